"""Engines on disk: kept while they fit, built again when they do not, and never half written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from vpr_kd_ros.backends import cache
from vpr_kd_ros.backends.cache import Entry, Key, cache_folder, load_or_build

KEY = Key("tensorrt-fp16", "ab" * 32, "Orin, sm_87", {"driver": "540.3", "tensorrt": "10.3.0", "cuda": "12.6"})


class Builder:
    """Stands in for a compiler: what it builds says how often it did; what begins otherwise does not load."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.built = 0
        self.heard: list[str] = []
        self._seconds = seconds

    def build(self) -> bytes:
        time.sleep(self._seconds)
        self.built += 1
        return f"engine {self.built}".encode() * 1000

    def load(self, data: bytes) -> bytes | None:
        return data[:8] if data.startswith(b"engine") else None

    def __call__(self, entry: Entry) -> bytes:
        return load_or_build(entry, self.build, self.load, self.heard.append)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_an_engine_is_built_once(root: Path) -> None:
    builder = Builder()
    assert builder(Entry(KEY, root)) == b"engine 1"
    assert "none in the cache yet" in builder.heard[0]
    assert "built in" in builder.heard[1]
    builder.heard.clear()
    assert builder(Entry(KEY, root)) == b"engine 1"
    assert builder.built == 1
    assert builder.heard == []


@pytest.mark.parametrize("part", ["driver", "tensorrt", "cuda"])
def test_a_change_builds_anew_and_is_named(root: Path, part: str) -> None:
    builder = Builder()
    builder(Entry(KEY, root))
    builder.heard.clear()
    changed = replace(KEY, parts={**KEY.parts, part: "999"})
    assert builder(Entry(changed, root)) == b"engine 2"
    assert f"{part} {KEY.parts[part]} is now 999" in builder.heard[0]
    assert [path for path in root.iterdir() if path.is_dir()] == [Entry(changed, root).folder], "the old one is gone"


def test_engines_of_other_machines_students_and_precisions_stay(root: Path) -> None:
    builder = Builder()
    keys = [
        KEY,
        replace(KEY, machine="Thor, sm_110"),
        replace(KEY, fingerprint="cd" * 32),
        replace(KEY, name="tensorrt-fp32"),
    ]
    for key in keys:
        builder(Entry(key, root))
    assert builder.built == 4
    assert all("none in the cache yet" in text for text in builder.heard[::2])
    for key in keys:
        builder(Entry(key, root))
    assert builder.built == 4


def truncate(folder: Path) -> None:
    data = (folder / "content").read_bytes()
    (folder / "content").write_bytes(data[: len(data) // 2])


def flip(folder: Path) -> None:
    data = bytearray((folder / "content").read_bytes())
    data[1234] ^= 4
    (folder / "content").write_bytes(data)


def lose_content(folder: Path) -> None:
    (folder / "content").unlink()


def lose_key(folder: Path) -> None:
    (folder / "key.json").unlink()


def spoil_key(folder: Path) -> None:
    (folder / "key.json").write_text("[1, 2")


@pytest.mark.parametrize("damage", [truncate, flip, lose_content, lose_key, spoil_key])
def test_a_damaged_engine_is_built_again(root: Path, damage: object) -> None:
    builder = Builder()
    builder(Entry(KEY, root))
    damage(Entry(KEY, root).folder)  # type: ignore[operator]
    builder.heard.clear()
    assert builder(Entry(KEY, root)) == b"engine 2"
    assert "damaged" in builder.heard[0]
    assert builder(Entry(KEY, root)) == b"engine 2"


def test_an_engine_that_does_not_load_is_built_again(root: Path) -> None:
    Entry(KEY, root).write(b"of another world, though whole")
    assert Builder()(Entry(KEY, root)) == b"engine 1"


def test_what_is_built_and_does_not_load_is_not_kept(root: Path) -> None:
    with pytest.raises(RuntimeError, match="cannot be loaded"):
        load_or_build(Entry(KEY, root), lambda: b"nonsense", Builder().load, print)
    assert Entry(KEY, root).read() is None


def test_an_error_while_building_passes_through_and_leaves_nothing(root: Path) -> None:
    def fail() -> bytes:
        raise ValueError("no kernel for this")

    with pytest.raises(ValueError, match="no kernel"):
        load_or_build(Entry(KEY, root), fail, Builder().load, print)
    assert Builder()(Entry(KEY, root)) == b"engine 1"


def test_a_cache_that_cannot_be_written_is_told_and_the_engine_runs(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    builder = Builder()
    assert builder(Entry(KEY, tmp_path / "cache")) == b"engine 1"
    assert "not kept" in builder.heard[-1]


def test_a_long_build_tells_that_it_goes_on(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "PROGRESS_S", 0.05)
    builder = Builder(seconds=0.4)
    builder(Entry(KEY, root))
    assert sum("still building" in text for text in builder.heard) >= 2


def test_two_that_start_together_build_one_engine(root: Path) -> None:
    builder = Builder(seconds=0.5)
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(builder(Entry(KEY, root)))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [b"engine 1"] * 3
    assert builder.built == 1
    assert sum("another process" in text for text in builder.heard) == 2


def test_a_builder_that_is_killed_leaves_no_engine_and_no_lock(root: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from vpr_kd_ros.backends.cache import *;"
        "key = Key('tensorrt-fp16', 'ab' * 32, 'Orin, sm_87', {'driver': '540.3', 'tensorrt': '10.3.0',"
        " 'cuda': '12.6'});"
        "load_or_build(Entry(key, Path(sys.argv[1])), lambda: time.sleep(60) or b'', lambda data: data,"
        " lambda text: print(text, flush=True))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(root)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert process.stdout is not None
    assert "building" in process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert Builder()(Entry(KEY, root)) == b"engine 1"


def test_the_cache_is_where_the_user_wants_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "vpr_kd_ros"
    for value in ("relative", ""):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache_folder() == Path.home() / ".cache" / "vpr_kd_ros"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    Builder()(Entry(KEY))
    assert os.stat(tmp_path / "vpr_kd_ros").st_mode & 0o077 == 0, "what is loaded from there is the user's own"
