"""All benchmarks of speed and memory, one after the other, and their results in one file of the machine.

    python benchmarks/run.py                          # or: make bench
    python benchmarks/run.py --only search image_path

Each runs in a process of its own; when one fails the others still run, the failed ones are named at the end, and the
exit status is 1. Written are `benchmarks/results/MACHINE.json` and the same as tables in `MACHINE.md`, with a table of
the targets first: met, missed or not measured. With ``--only`` the other benchmarks' results stay in the files as they
were, with their own dates. It takes about twelve minutes on two cores and wants the machine for itself.

The benchmarks that need a trained student are not among them: `localization.py`, `soak.py`, `town_seeds.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Run as a file, the checkout is not on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measuring import REPOSITORY, Row, cores, cpu_seconds, load, machine, machine_slug, markdown, report
from benchmarks.targets import judge

RESULTS = REPOSITORY / "benchmarks" / "results"
LIMIT_S = 600.0
BUSY = 0.3
"""Load a core, above which the machine counts as busy."""


@dataclass(frozen=True)
class Benchmark:
    """A benchmark and how it is run here.

    Attributes:
        script: file that takes ``--json``; its stem is the benchmark's name.
        arguments: that keep it short.
    """

    script: Path
    arguments: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The script's name."""
        return self.script.stem

    def run(self, limit_s: float) -> Row:
        """Its report, with the seconds that it took and the cores that other processes of the machine used meanwhile.

        Where it failed, ``failed`` says why and there are no rows.
        """
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "report.json"
            command = [sys.executable, str(self.script), *self.arguments, "--json", str(path)]
            began, own, all_of_it = time.monotonic(), _cpu_of_children(), cpu_seconds(None)
            problem = _ended(command, limit_s)
            seconds = time.monotonic() - began
            others = cpu_seconds(None) - all_of_it - (_cpu_of_children() - own)
            found: Row = report(self.name, [])
            if problem is None:
                try:
                    found = json.loads(path.read_text())
                except (OSError, ValueError) as error:
                    problem = f"it wrote no report: {error}"
        return {
            **found,
            "arguments": list(self.arguments),
            "seconds": round(seconds, 1),
            "others_cores": round(max(0.0, others) / seconds, 2),
            "failed": problem,
        }


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _ended(command: Sequence[str], limit_s: float) -> str | None:
    """Run a command to its end; returns what went wrong. Nothing that it started outlives it."""
    process = subprocess.Popen(command, cwd=REPOSITORY, start_new_session=True)
    try:
        status = process.wait(limit_s)
    except subprocess.TimeoutExpired:
        return f"not finished after {limit_s:g} s"
    finally:
        # Its nodes are in its session too.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return None if status == 0 else f"exit status {status}"


def _here(name: str, arguments: str = "") -> Benchmark:
    return Benchmark(Path(__file__).resolve().with_name(f"{name}.py"), tuple(shlex.split(arguments)))


BENCHMARKS = (
    _here("relational_losses", "--sizes 128x384 256x384 512x384 --repeats 3"),
    _here("sparse_convolution", "--repeats 3"),
    _here("image_path"),
    _here("training_step"),
    _here("backends", "--models mobilenetv2-gem small-resnet-gem --repeats 10"),
    _here("search"),
    _here("node_share", "--seconds 20"),
    _here("recording", "--seconds 15 --repeats 2"),
    _here("ingest", "--seconds 30 --compression zstd"),
)


def gather(benchmarks: Sequence[Benchmark], path: Path, limit_s: float = LIMIT_S) -> list[str]:
    """Run benchmarks and merge what they report into the results of this machine.

    Args:
        benchmarks: to run, in this order.
        path: the JSON file; its tables go beside it, as ``.md``. Written after each benchmark.
        limit_s: for each benchmark.

    Returns:
        What failed, one line each.
    """
    failures = []
    for benchmark in benchmarks:
        print(f"\n=== {benchmark.name} {shlex.join(benchmark.arguments)}", flush=True)
        done = benchmark.run(limit_s)
        if done["failed"] is not None:
            failures.append(f"{benchmark.name}: {done['failed']}")
            print(f"FAILED: {failures[-1]}", flush=True)
        known = {before["name"]: before for before in _read(path)}
        write(path, [*({**known, benchmark.name: done}).values()])
    return failures


def _read(path: Path) -> list[Row]:
    """The reports in a results file; none where there is no file."""
    reports: list[Row] = json.loads(path.read_text())["benchmarks"] if path.exists() else []
    return reports


def write(path: Path, reports: Sequence[Row]) -> None:
    """Write results and tables, each as a whole."""
    targets = judge({done["name"]: done["rows"] for done in reports})
    results = {"machine": machine(), "targets": targets, "benchmarks": list(reports)}
    path.parent.mkdir(parents=True, exist_ok=True)
    for file, text in ((path, json.dumps(results, indent=1) + "\n"), (path.with_suffix(".md"), tables(results))):
        new = file.with_suffix(f"{file.suffix}.new")
        new.write_text(text)
        new.replace(file)


def tables(results: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    parts = [f"# Benchmarks: {results['machine']}\n", "## Targets\n", markdown(results["targets"])]
    for done in results["benchmarks"]:
        command = shlex.join(["python", f"benchmarks/{done['name']}.py", *done["arguments"]])
        parts += [
            f"\n## {done['name']}\n",
            f"`{command}`, {done['date']}, {done['seconds']:g} s; others used {done['others_cores']:g} cores.\n",
            f"**Failed: {done['failed']}.**" if done["failed"] is not None else markdown(done["rows"]),
        ]
    return "\n".join(parts) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print the targets and return the exit status."""
    names = [benchmark.name for benchmark in BENCHMARKS]
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", nargs="+", choices=names, metavar="NAME", default=names, help=f"{', '.join(names)}")
    options.add_argument("--out", type=Path, default=RESULTS, help="folder of the results (default: %(default)s)")
    args = options.parse_args(argv)
    path = args.out / f"{machine_slug()}.json"
    busy = f"The machine is busy (load {load()} on {cores()} cores): times are too long, ratios less certain."
    is_busy = load() > BUSY * cores()
    print(busy if is_busy else f"{machine()}, load {load()}", flush=True)
    # Ended like this, too, it takes with it what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    failures = gather([benchmark for benchmark in BENCHMARKS if benchmark.name in args.only], path)
    print(f"\n{markdown(json.loads(path.read_text())['targets'])}\n\n{path}\n{path.with_suffix('.md')}")
    if is_busy:
        print(busy)
    if failures:
        print("Failed:\n" + "\n".join(f"  {line}" for line in failures), file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
