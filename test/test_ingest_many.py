"""Several bags at once, interrupted ingests, and drives cut into areas."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support import bags
from support.bags import START_NS, Record
from training.__main__ import main
from training.ingest.config import IngestConfig
from training.ingest.ingest import STAGES, ingest
from training.ingest.many import find_bags, plan_jobs
from training.ingest.progress import Progress, SharedProgress
from training.sessions import Session, SessionInfo, SessionWriter
from vpr_kd_ros.errors import ConfigError, DataError

ROOT = Path(__file__).parent.parent
MS = 1_000_000


def drive(frames: int = 40, x0: float = 0.0, broken: tuple[int, ...] = ()) -> list[Record]:
    """Straight ahead, two metres between images; clouds 20 ms after them; some images are of an unknown encoding."""
    rng = np.random.default_rng(frames)
    picture = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    records: list[Record] = []
    for i in range(frames):
        stamp = START_NS + i * 100 * MS
        image = bags.image(stamp, np.roll(picture, i, axis=1))
        image.encoding = "thermal7" if i in broken else image.encoding
        points = rng.normal(0, 10, (300, 3)).astype(np.float32)
        records.append(("/odom", stamp, bags.odometry(stamp, x0 + 2.0 * i, 0.0, 0.0)))
        records.append(("/camera", stamp + MS, image))
        records.append(("/points", stamp + 21 * MS, bags.cloud(stamp + 20 * MS, points)))
    return sorted(records, key=lambda r: r[1])


def contents(folder: Path) -> dict[str, str]:
    """Of every file below the folder, the hash of its bytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def command(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "training", "ingest", *arguments]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, **options)


def config(**values: Any) -> IngestConfig:
    return IngestConfig(**{"region": "town", **values})


# --- interrupted ------------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from training.__main__ import main
from training.session_journal import Journal
count = 0
def counted(self, values, append=Journal._append):
    global count
    append(self, values)
    count += 1
    if count == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
Journal._append = counted
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize(("storage", "kills"), [("mcap", (1, 12, 30)), ("sqlite3", (1, 9, 20))])
def test_a_killed_ingest_goes_on_where_it_was(storage: str, kills: tuple[int, ...], tmp_path: Path) -> None:
    bag = bags.write_bag(tmp_path / "drive", drive(60, broken=(2, 9, 33)), storage)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    ingest(bag, whole, config(), Progress())
    partial = killed / ".drive.partial"
    written: list[int] = []
    for lines in kills:  # of the journal, of which the first is its key
        words = [sys.executable, "-c", KILLED, str(lines), "ingest", str(bag), "--out", str(killed), "--region", "town"]
        assert subprocess.run(words, cwd=ROOT, check=False, capture_output=True).returncode == -signal.SIGKILL
        written.append(len(list((partial / "images").glob("*.jpg"))) if (partial / "images").is_dir() else 0)
        assert not (killed / "drive").exists()
    assert 0 == written[0] < 4 < written[1] < written[2] < 57
    early = {path.name: path.stat().st_mtime_ns for path in (partial / "images").glob("*.jpg")}
    # What a killed process left half of: a picture without its line, and half a line.
    (partial / "images" / f"{written[2]:06d}.jpg").write_bytes(b"half a picture")
    (partial / "clouds" / "000999.npz").write_bytes(b"")
    with (partial / "journal.jsonl").open("ab") as journal:
        journal.write(b'{"row": {"stamp')
    assert main(["ingest", str(bag), "--out", str(killed), "--region", "town"]) == 0
    assert contents(killed) == contents(whole)
    session = Session(killed / "drive")
    assert session.info.drops == {"undecodable image": 3}
    assert len(session) == 57
    later = {path.name: path.stat().st_mtime_ns for path in (killed / "drive" / "images").glob("*.jpg")}
    assert {name: later[name] for name in early} == early  # they were not written again


def interrupted(bag: Path, out: Path, after: int, **values: Any) -> None:
    """Ingest until so many keyframes were read, as Ctrl-C ends it."""

    class Interrupting(Progress):
        def of(self, stage: str, items: Any, total: int, done: int = 0) -> Any:
            for number, item in enumerate(items):
                if stage == "keyframes" and number == after:
                    raise KeyboardInterrupt
                yield item

    with pytest.raises(KeyboardInterrupt):
        ingest(bag, out, config(**values), Interrupting())


def test_files_that_were_changed_in_between_are_written_again(tmp_path: Path) -> None:
    bag = bags.write_bag(tmp_path / "drive", drive())
    ingest(bag, tmp_path / "whole", config(), Progress())
    interrupted(bag, tmp_path / "out", 20)
    (tmp_path / "out" / ".drive.partial" / "clouds" / "000007.npz").write_bytes(b"PK")
    (tmp_path / "out" / ".drive.partial" / "images" / "000012.jpg").unlink()
    ingest(bag, tmp_path / "out", config(), Progress())
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_with_other_settings_or_another_bag_it_begins_anew(tmp_path: Path) -> None:
    bag = bags.write_bag(tmp_path / "drive", drive())
    for values in ({"keyframe_distance_m": 5.0}, {"condition": "rain"}):
        out = tmp_path / f"out-{len(values)}-{next(iter(values))}"
        interrupted(bag, out, 20)
        ingest(bag, out, config(**values), Progress())
        ingest(bag, tmp_path / "whole" / out.name, config(**values), Progress())
        assert contents(out) == contents(tmp_path / "whole" / out.name)
    interrupted(bag, tmp_path / "other", 20)
    shutil.rmtree(bag)
    bags.write_bag(tmp_path / "drive", drive(30))
    ingest(bag, tmp_path / "other", config(), Progress())
    assert len(Session(tmp_path / "other" / "drive")) == 30
    assert len(list((tmp_path / "other" / "drive" / "clouds").iterdir())) == 30


def test_submaps_go_on_too(tmp_path: Path) -> None:
    bag = bags.write_bag(tmp_path / "drive", drive())
    ingest(bag, tmp_path / "whole", config(submap_m=7.0), Progress())
    interrupted(bag, tmp_path / "out", 17, submap_m=7.0)
    ingest(bag, tmp_path / "out", config(submap_m=7.0), Progress())
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_two_at_once_do_not_write_one_session(tmp_path: Path) -> None:
    info = SessionInfo("s", "town")
    with SessionWriter(tmp_path / "s", info, resume_key="k") as writer:
        writer.add(1, np.zeros((8, 8, 3), np.uint8))
        with pytest.raises(DataError, match=r"\.s\.partial: another process is writing this session"):
            SessionWriter(tmp_path / "s", info, resume_key="k")
        writer.add(2, np.zeros((8, 8, 3), np.uint8))
    assert len(Session(tmp_path / "s")) == 2
    assert {path.name for path in (tmp_path / "s").iterdir()} == {"images", "keyframes.parquet", "session.json"}


def test_a_session_that_is_finished_by_another_in_between_is_left_as_it_is(tmp_path: Path) -> None:
    bag = bags.write_bag(tmp_path / "drive", drive())

    class Overtaken(Progress):
        def of(self, stage: str, *args: Any) -> Any:
            ingest(bag, tmp_path / "out", config(), Progress())
            return super().of(stage, *args)

    (outcome,) = ingest(bag, tmp_path / "out", config(), Overtaken())
    assert not outcome.written
    assert outcome.keyframes == len(Session(tmp_path / "out" / "drive"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["drive"]


def test_a_session_that_is_being_finished_is_not_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = SessionInfo("s", "town")
    refusals: list[str] = []
    rename = os.rename

    def rename_beside_another_writer(source: Path, target: Path) -> None:
        for step in (lambda: None, lambda: rename(source, target)):
            step()
            with pytest.raises(DataError) as refusal:
                SessionWriter(tmp_path / "s", info, resume_key="k")
            refusals.append(str(refusal.value))

    with SessionWriter(tmp_path / "s", info, resume_key="k") as writer:
        writer.add(1, np.zeros((8, 8, 3), np.uint8))
        monkeypatch.setattr(os, "rename", rename_beside_another_writer)
    assert "another process" in refusals[0]
    assert "exists already" in refusals[1]
    assert len(Session(tmp_path / "s")) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    assert {path.name for path in (tmp_path / "s").iterdir()} == {"images", "keyframes.parquet", "session.json"}


def test_an_error_in_the_data_leaves_nothing_but_a_full_disk_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = SessionInfo("s", "town")
    with pytest.raises(DataError, match="shape"), SessionWriter(tmp_path / "s", info, resume_key="k") as writer:
        writer.add(1, np.zeros((8, 8, 3), np.uint8), np.zeros((3, 4), np.float32))
    assert not list(tmp_path.iterdir())

    def full(path: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    def write_until_full() -> None:
        with SessionWriter(tmp_path / "s", info, resume_key="k") as writer, monkeypatch.context() as patch:
            writer.add(1, np.zeros((8, 8, 3), np.uint8))
            patch.setattr(Path, "write_bytes", full)
            writer.add(2, np.zeros((8, 8, 3), np.uint8))

    with pytest.raises(DataError, match="No space left"):
        write_until_full()
    with SessionWriter(tmp_path / "s", info, resume_key="k") as writer:
        assert len(writer) == 1


# --- several bags -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three bags, one of which has no camera; not to be written to."""
    folder = tmp_path_factory.mktemp("fleet") / "harbour"
    bags.write_bag(folder / "monday", drive(12))
    bags.write_bag(folder / "tuesday", [r for r in drive(9) if r[0] != "/camera"])
    bags.write_bag(folder / "wednesday", drive(15), "sqlite3")
    (folder / "notes").mkdir()
    return folder


def test_a_bag_that_fails_does_not_stop_the_others(fleet: Path, tmp_path: Path) -> None:
    settings = tmp_path / "ingest.yaml"
    settings.write_text(
        "region: auto\nper_bag:\n  wednesday: {region: town, condition: rain, name: rainy}\n  mondy: {name: x}\n"
    )
    words = [str(fleet), "--config", str(settings), "--out", str(tmp_path / "out"), "--jobs", "2"]
    done = command(*words)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "1 of 3 bags failed" in done.stderr
    assert f"{fleet / 'tuesday'}: no topic of the bag could be the camera" in done.stderr.splitlines()[-1]
    assert "tuesday: FAILED" in done.stdout
    assert "NOTICE per_bag names 'mondy', which is none of the bags given" in done.stdout
    monday, rainy = Session(tmp_path / "out" / "monday"), Session(tmp_path / "out" / "rainy")
    assert (len(monday), monday.region, monday.condition) == (12, "harbour", "unknown")
    assert (len(rainy), rainy.region, rainy.condition) == (15, "town", "rain")
    # What each says is what it would say alone.
    ingest(fleet / "monday", tmp_path / "alone", config(region="auto"), Progress())
    assert contents(tmp_path / "alone" / "monday") == contents(tmp_path / "out" / "monday")
    again = command(*words)
    assert again.returncode == 1
    assert again.stdout.count("left as it is") == 2


def test_when_the_first_process_is_killed_the_others_end_and_go_on_later(tmp_path: Path) -> None:
    folder = tmp_path / "fleet"
    for name in ("a", "b"):
        bags.write_bag(folder / name, drive(250))
    # Slow enough that neither bag is done before the other has begun, whatever else the machine does.
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, time\n"
        "if '--multiprocessing-fork' in sys.argv:\n"
        "    import training.session_journal as j\n"
        "    add = j.Journal.add\n"
        "    j.Journal.add = lambda *args: (time.sleep(0.05), add(*args))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    words = [
        sys.executable,
        "-m",
        "training",
        "ingest",
        str(folder),
        "--out",
        str(tmp_path / "out"),
        "--region",
        "town",
    ]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    partials = [tmp_path / "out" / f".{name}.partial" / "images" for name in "ab"]
    give_up = time.monotonic() + 60
    while not all(p.is_dir() and len(list(p.iterdir())) > 5 for p in partials) and time.monotonic() < give_up:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    # The processes of the bags hold the journals' locks until they have noticed.
    for bag in ("a", "b"):
        while not _went_on(folder / bag, tmp_path / "out"):
            assert time.monotonic() < give_up
            time.sleep(0.1)
    ingest(folder / "a", tmp_path / "whole", config(), Progress())
    assert contents(tmp_path / "out" / "a") == contents(tmp_path / "whole" / "a")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a", "b"]


def _went_on(bag: Path, out: Path) -> bool:
    try:
        ingest(bag, out, config(), Progress())
    except DataError as error:
        if "another process" not in str(error):
            raise
        return False
    return True


def test_a_process_that_is_killed_is_told(fleet: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "if '--multiprocessing-fork' in sys.argv:\n"
        "    import training.session_journal as j\n"
        "    j.Journal.add = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    words = [str(fleet / "monday"), str(fleet / "wednesday"), "--out", str(tmp_path / "out"), "--region", "x"]
    done = command(*words, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 1
    assert "monday: its process was killed by signal 9; if memory ran out, read fewer bags at once" in done.stderr
    assert main(["ingest", words[0], *words[2:]]) == 0
    assert len(Session(tmp_path / "out" / "monday")) == 12


def test_jobs_are_planned_from_folders_and_options(fleet: Path, tmp_path: Path) -> None:
    assert [bag.name for bag in find_bags(fleet)] == ["monday", "tuesday", "wednesday"]
    assert find_bags(fleet / "monday") == [fleet / "monday"]
    with pytest.raises(DataError, match="neither a bag nor a folder of bags"):
        find_bags(fleet / "notes")
    jobs, notices = plan_jobs([fleet], config(), {"monday": {"labelled": False}})
    assert [job.config.labelled for job in jobs] == [False, True, True]
    assert not notices
    with pytest.raises(ConfigError, match=r"monday: no option 'regon' \(did you mean 'region'\?\)"):
        plan_jobs([fleet], config(), {"monday": {"regon": "x"}})
    with pytest.raises(ConfigError, match="monday: keyframe_distance_m is -1"):
        plan_jobs([fleet], config(), {"monday": {"keyframe_distance_m": -1}})
    with pytest.raises(ConfigError, match="would both be the session 'monday'"):
        plan_jobs([fleet], config(), {"tuesday": {"name": "monday"}})
    with pytest.raises(ConfigError, match="--name one is given for 3 bags"):
        plan_jobs([fleet], config(name="one"), {})


DAY_MS = 86_400_000


def files_of_days(folder: Path, names: tuple[str, ...], apart_ms: int = DAY_MS) -> Path:
    """A folder of MCAP files without metadata.yaml, each a drive of 1.2 s, the next so much later."""
    folder.mkdir(parents=True)
    for day, name in enumerate(names):
        records = [later(record, day * apart_ms * MS) for record in drive(12)]
        bag = bags.write_bag(folder.parent / f"recording-{name}", records)
        shutil.move(bag / f"{bag.name}.mcap", folder / f"{name}.mcap")
    return folder


def later(record: Record, by_ns: int) -> Record:
    topic, stamp, message = record
    message.header.stamp.sec += by_ns // 10**9
    return topic, stamp + by_ns, message


def test_a_folder_of_single_files_is_a_bag_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drives = files_of_days(tmp_path / "drives", ("monday", "tuesday", "wednesday"))
    jobs, notices = plan_jobs([drives], config(), {"monday": {"condition": "sun"}})
    assert [job.path.name for job in jobs] == ["monday.mcap", "tuesday.mcap", "wednesday.mcap"]
    assert [job.config.condition for job in jobs] == ["sun", "unknown", "unknown"]
    assert not notices
    with pytest.raises(DataError, match=r"drives: holds monday\.mcap, tuesday\.mcap, .*not the parts of one bag"):
        ingest(drives, tmp_path / "out", config(), Progress())
    assert main(["inspect", str(drives)]) == 0
    assert capsys.readouterr().out.count("next:") == 3
    assert main(["inspect", str(drives), "--html", str(tmp_path / "page.html")]) == 1
    assert "--html is given for 3 bags" in capsys.readouterr().err
    bags.write_bag(drives / "thursday", drive(12))
    assert [path.name for path in find_bags(drives)][1:] == ["thursday", "tuesday.mcap", "wednesday.mcap"]


@pytest.mark.parametrize(
    ("names", "apart_ms", "one_bag"),
    [
        (("drive_0", "drive_1", "drive_2"), 2000, True),
        (("drive_0", "drive_1", "drive_2"), DAY_MS, False),  # numbered, but days apart
        (("robot_0", "robot_1"), 0, False),  # two robots at once
        (("a_0", "b_1"), 2000, False),
        (("drive_0", "notes"), 2000, False),
        (("d_2024-05-03-10-00-00_0", "d_2024-05-03-10-00-01_1"), 2000, True),  # as ROS 1 splits
        (("d_2024-05-03-10-00-00", "d_2024-05-03-10-00-01"), 2000, False),
    ],
)
def test_files_are_one_bag_where_a_recorder_split_it(
    names: tuple[str, ...], apart_ms: int, one_bag: bool, tmp_path: Path
) -> None:
    folder = files_of_days(tmp_path / "drives", names, apart_ms)
    assert find_bags(folder) == ([folder] if one_bag else [folder / f"{name}.mcap" for name in names])
    if one_bag:
        assert ingest(folder, tmp_path / "out", config(), Progress())[0].keyframes == 12 * len(names)
    # Beside others, its files are still those of one.
    shutil.copytree(folder, tmp_path / "week" / "drives")
    files_of_days(tmp_path / "week" / "more", ("x",))
    assert (tmp_path / "week" / "drives" in find_bags(tmp_path / "week")) == one_bag


def test_a_part_that_cannot_be_opened_costs_no_other(tmp_path: Path) -> None:
    folder = files_of_days(tmp_path / "drives", ("drive_0", "drive_1"), 2000)
    (folder / "drive_2.mcap").write_bytes(b"no bag at all" * 20)
    assert [path.name for path in find_bags(folder)] == ["drive_0.mcap", "drive_1.mcap", "drive_2.mcap"]


def test_progress_is_told_from_none_to_all(tmp_path: Path) -> None:
    bag = bags.write_bag(tmp_path / "drive", drive())
    told: list[float] = []
    ingest(bag, tmp_path / "out", config(), SharedProgress(told.append, STAGES))
    assert told == sorted(told)
    assert told[0] == 0.0
    assert 0.9 < told[-1] <= 1.0
    assert any(0.1 < part < 0.4 for part in told)


# --- areas ------------------------------------------------------------------------------------------------------------


def test_areas_are_cut_out_of_the_drive(tmp_path: Path) -> None:
    bag = bags.write_bag(tmp_path / "drive", drive(60))
    areas = {"port": [20.0, -5.0, 39.0, 5.0], "hill": [500.0, 0.0, 600.0, 9.0]}
    cut = config(areas=areas, area_margin_m=9.0)
    rest, port = ingest(bag, tmp_path / "out", cut, Progress())
    outside = Session(rest.session)
    inside = Session(tmp_path / "out" / "port" / "drive-port")
    assert inside.positions[:, 0].tolist() == [float(x) for x in range(20, 40, 2)]
    assert outside.positions[:, 0].tolist() == [float(x) for x in range(0, 120, 2) if not 11 <= x <= 48]
    assert (inside.region, inside.name, outside.region) == ("port", "drive-port", "town")
    assert not (tmp_path / "out" / "hill").exists()
    for outcome in (rest, port):
        assert outcome.keyframes + sum(outcome.info.drops.values()) == 60
    ingest(bag, tmp_path / "whole", config(), Progress())
    whole = Session(tmp_path / "whole" / "drive")
    assert np.array_equal(whole.cloud(10), inside.cloud(0))
    before = contents(tmp_path / "out")
    assert [outcome.written for outcome in ingest(bag, tmp_path / "out", cut, Progress())] == [False, False]
    shutil.rmtree(inside.path)
    assert [outcome.written for outcome in ingest(bag, tmp_path / "out", cut, Progress())] == [False, True]
    assert contents(tmp_path / "out") == before


def test_areas_that_cannot_be_are_told(tmp_path: Path) -> None:
    for areas in ({"a": [0, 0, 1]}, {"a": [1, 0, 0, 1]}, {"a/b": [0, 0, 1, 1]}, {"a": [0, 0, float("nan"), 1]}):
        with pytest.raises(ConfigError, match="areas"):
            config(areas=areas)
    with pytest.raises(ConfigError, match="only poses tell"):
        config(areas={"a": [0, 0, 1, 1]}, pose_topic="none")
    bag = bags.write_bag(tmp_path / "drive", [r for r in drive() if r[0] != "/odom"])
    with pytest.raises(DataError, match="the bag has no poses"):
        ingest(bag, tmp_path / "out", config(areas={"a": [0.0, 0.0, 1.0, 1.0]}), Progress())


def test_the_journal_of_another_format_is_not_gone_on_with(tmp_path: Path) -> None:
    bag = bags.write_bag(tmp_path / "drive", drive())
    ingest(bag, tmp_path / "whole", config(), Progress())
    for text in ("", "[1, 2]\n", "{}\n", '{"key": "another"}\n', "\x00" * 50):
        interrupted(bag, tmp_path / "out", 10)
        journal = tmp_path / "out" / ".drive.partial" / "journal.jsonl"
        lines = journal.read_bytes().splitlines(keepends=True)
        journal.write_bytes(text.encode() + b"".join(lines[1:]))
        ingest(bag, tmp_path / "out", config(), Progress())
        assert contents(tmp_path / "out") == contents(tmp_path / "whole")
        shutil.rmtree(tmp_path / "out")
    assert json.loads((tmp_path / "whole" / "drive" / "session.json").read_text())["name"] == "drive"
