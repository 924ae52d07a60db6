"""The benchmarks' command lines, the gatherer of their results, and the targets; no times are judged here."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from benchmarks.measuring import REPOSITORY, Row, in_turns, markdown, slug_of
from benchmarks.run import BENCHMARKS, Benchmark, gather
from benchmarks.targets import TARGETS, Target, judge

PARTS = {"__init__", "live_node", "measuring", "run", "targets"}
NAMES = sorted({path.stem for path in (REPOSITORY / "benchmarks").glob("*.py")} - PARTS)


def call(name: str, *arguments: str) -> Any:
    """What a benchmark's ``main`` returns, in this process: importing torch for each would take most of the time."""
    return importlib.import_module(f"benchmarks.{name}").main(arguments)


@pytest.mark.parametrize("name", [*NAMES, "run"])
def test_help_teaches_with_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        call(name, "--help")
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert f"python benchmarks/{name}.py" in text
    assert ("--json" in text) == (name != "run")


def test_a_benchmark_runs_as_a_file_from_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    command = [
        sys.executable,
        str(REPOSITORY / "benchmarks" / "image_path.py"),
        *TINY["image_path"],
        "--json",
        str(path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(path.read_text())
    assert report["name"] == "image_path"
    assert report["machine"]
    assert report["date"]
    assert markdown(report["rows"]) in done.stdout


def test_the_gathered_benchmarks_and_the_targets_are_there() -> None:
    names = [benchmark.name for benchmark in BENCHMARKS]
    assert all(benchmark.script.exists() for benchmark in BENCHMARKS)
    assert len(set(names)) == len(names)
    assert {target.benchmark for target in TARGETS} <= set(names)


TINY = {
    "relational_losses": ("--sizes", "12x6", "--repeats", "2"),
    "sparse_convolution": (
        "--clouds",
        "2",
        "--points",
        "200",
        "--scales",
        "metres",
        "--repeats",
        "1",
        "--threads",
        "1",
    ),
    "image_path": ("--cameras", "64x48", "--inputs", "24x32", "--repeats", "2"),
    "training_step": ("--size", "32x32", "--windows", "2", "--steps", "1", "--threads", "1"),
}


@pytest.mark.parametrize("name", TINY)
def test_a_tiny_run_writes_the_columns_that_its_targets_judge(name: str, tmp_path: Path) -> None:
    rows = call(name, *TINY[name], "--json", str(tmp_path / "report.json"))
    assert rows
    assert json.loads((tmp_path / "report.json").read_text())["rows"] == rows
    for target in TARGETS:
        if target.benchmark == name and "minkowski" not in target.value:
            assert all(target.value in row for row in rows)
            assert set(target.where) <= set(rows[0])
    # The forms compared compute the same.
    for row in rows:
        assert row.get("value_difference", 0.0) < 1e-6
        assert row.get("gradient_difference", 0.0) < 1e-5
        assert row.get("im2col_difference", 0.0) < 1e-4


# --- the gatherer -----------------------------------------------------------------------------------------------------


def fake(folder: Path, name: str, body: str) -> Benchmark:
    """A benchmark whose script is ``body``, with ``finish(rows)`` to write its report."""
    script = folder / f"{name}.py"
    head = f"""
        import json, sys, time, subprocess
        def finish(rows):
            report = {{"name": {name!r}, "machine": "m", "date": "2026-01-01T00:00:00+00:00", "rows": rows}}
            open(sys.argv[sys.argv.index("--json") + 1], "w").write(json.dumps(report))
    """
    script.write_text(textwrap.dedent(head) + textwrap.dedent(body))
    return Benchmark(script, ("--few", "a b"))


def results(path: Path) -> dict[str, Any]:
    return {done["name"]: done for done in json.loads(path.read_text())["benchmarks"]}


def test_the_others_run_when_one_fails_and_the_failed_ones_are_named(tmp_path: Path) -> None:
    path = tmp_path / "out" / "machine.json"
    failures = gather(
        [
            fake(tmp_path, "broken", "raise SystemExit(3)"),
            fake(tmp_path, "silent", ""),
            fake(tmp_path, "garbled", "open(sys.argv[-1], 'w').write('{')"),
            fake(tmp_path, "good", "finish([{'value': 1.5, 'arguments': sys.argv[1:3]}])"),
        ],
        path,
    )
    assert [line.split(":")[0] for line in failures] == ["broken", "silent", "garbled"]
    assert "exit status 3" in failures[0]
    assert "no report" in failures[1]
    found = results(path)
    assert list(found) == ["broken", "silent", "garbled", "good"]
    assert found["good"]["rows"] == [{"value": 1.5, "arguments": ["--few", "a b"]}]
    assert found["good"]["failed"] is None
    assert found["broken"]["rows"] == []
    text = path.with_suffix(".md").read_text()
    assert "**Failed: exit status 3.**" in text
    assert "--few 'a b'" in text
    assert not list(path.parent.glob("*.new"))


def test_what_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    body = f"""
        child = subprocess.Popen(["sleep", "600"])
        open("{tmp_path / "pid"}", "w").write(str(child.pid))
        time.sleep(600)
    """
    failures = gather([fake(tmp_path, "hangs", body)], tmp_path / "machine.json", limit_s=2.0)
    assert failures == ["hangs: not finished after 2 s"]
    state = Path(f"/proc/{(tmp_path / 'pid').read_text()}/stat")
    # Gone, or dead and not yet waited for by whoever inherited it.
    assert not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] == "Z"


def test_results_are_merged_by_name(tmp_path: Path) -> None:
    path = tmp_path / "machine.json"
    gather([fake(tmp_path, "one", "finish([{'value': 1}])"), fake(tmp_path, "two", "finish([{'value': 2}])")], path)
    gather([fake(tmp_path, "two", "finish([{'value': 3}])"), fake(tmp_path, "three", "finish([])")], path)
    assert {name: done["rows"] for name, done in results(path).items()} == {
        "one": [{"value": 1}],
        "two": [{"value": 3}],
        "three": [],
    }


# --- targets and names ------------------------------------------------------------------------------------------------


def test_a_row_is_judged_where_it_is_a_target() -> None:
    rows: list[Row] = [{"size": "a", "ms": 3.0, "most": 2.0}, {"size": "b", "ms": 9.0, "most": 10.0}, {"size": "b"}]
    worst = Target("x", "", "ms", "<=", 2.0).judge(rows)
    assert (worst["is"], worst["worst"], worst["rows"]) == ("missed", 9.0, 2)
    assert Target("x", "", "ms", ">=", 2.0).judge(rows)["worst"] == 3.0
    assert Target("x", "", "ms", ">=", 9.0, where={"size": "b"}).judge(rows)["is"] == "met"
    against_a_column = Target("x", "", "ms", "<=", "most").judge(rows)
    assert (against_a_column["is"], against_a_column["wanted"]) == ("missed", "ms <= 2")
    assert Target("x", "", "ms", "<=", "most", factor=1.5).judge(rows)["is"] == "met"
    assert Target("x", "", "ms", "<=", 1.0, where={"size": "c"}).judge(rows)["is"] == "not measured"
    assert {line["is"] for line in judge({})} == {"not measured"}
    assert len(judge({})) == len(TARGETS)


@pytest.mark.parametrize(
    ("name", "count", "slug"),
    [
        ("Intel(R) Xeon(R) Processor @ 2.50GHz", 2, "xeon-2.5ghz-2-cores"),
        ("Intel(R) Core(TM) i7-8700 CPU @ 3.20GHz", 12, "core-i7-8700-3.2ghz-12-cores"),
        ("Intel(R) Xeon(R) CPU @ 3.00GHz", 4, "xeon-3ghz-4-cores"),
        ("AMD Ryzen 9 3900X 12-Core Processor", 24, "ryzen-9-3900x-24-cores"),
        ("NVIDIA Jetson Orin NX", 8, "jetson-orin-nx-8-cores"),
    ],
)
def test_a_machine_has_a_short_name(name: str, count: int, slug: str) -> None:
    assert slug_of(name, count) == slug


def test_a_table_has_the_columns_of_all_rows() -> None:
    rows: list[Row] = [{"a_ms": 0.12345, "b": "x|y"}, {"a_ms": 1234.5, "c": {"p": 1, "q": 2}}, {"c": [1.0, None, 2.0]}]
    assert markdown(rows).splitlines() == [
        "| a ms | b | c |",
        "| --- | --- | --- |",
        "| 0.123 | x\\|y | - |",
        "| 1234 | - | p 1, q 2 |",
        "| - | - | 1.5 ± 0.7 |",
    ]


def test_runs_take_turns_and_a_slow_one_sits_out(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    order: list[str] = []

    def run(name: str, seconds: float) -> None:
        order.append(name)
        clock[0] += seconds

    times = in_turns({"quick": lambda: run("quick", 1.0), "slow": lambda: run("slow", 7.0)}, 4, warm=1, most_s=10.0)
    assert order == ["quick", "slow"] * 3 + ["quick"] * 2
    assert times == {"quick": [1e3] * 4, "slow": [7e3] * 2}
