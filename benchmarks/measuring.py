"""What the benchmarks share: the machine's name, times taken in turns, memory, tables, and what ``--json`` writes.

Not a benchmark itself. Machines are described as Linux describes them, in ``/proc``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
Row = dict[str, Any]
"""One line of a table: plain values by column."""


def parser(description: str | None) -> argparse.ArgumentParser:
    """The command line that every benchmark begins with: its docstring as help, and ``--json``."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", type=Path, help="also write the rows to this file")
    return options


# --- the machine ------------------------------------------------------------------------------------------------------


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))


def processor() -> str:
    """What the processor, or the board, calls itself."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    named = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    board = Path("/proc/device-tree/model")  # ARM boards say it here
    return named or (board.read_text().strip("\0\n ") if board.exists() else platform.machine())


def machine() -> str:
    """The machine in words."""
    return f"{processor()}, {cores()} cores, {platform.system()} {platform.machine()}"


def machine_slug() -> str:
    """A short name of the machine for a file, for example ``xeon-2.5ghz-2-cores``."""
    return slug_of(processor(), cores())


def slug_of(name: str, count: int) -> str:
    """See ``machine_slug``.

    Args:
        name: of the processor.
        count: of its cores.
    """
    text = re.sub(r"\((r|tm|c)\)|\b(intel|amd|nvidia|cpu|processor|\d+-core)\b|@", " ", name.lower())
    text = re.sub(r"(\.\d*?)0+(?=ghz)", r"\1", text).replace(".ghz", "ghz")
    return "-".join([*re.findall(r"[a-z0-9.]+", text), str(count), "cores"])


def load() -> float:
    """Processes that wanted to run in the last minute."""
    return round(os.getloadavg()[0], 1)


def status_of(entry: str, pid: int | str = "self") -> int:
    """A number of a process's status: VmRSS is its resident memory, VmHWM the peak of it, both in kB; Threads."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{entry}:")).split()[1])


def available_mb() -> float:
    """Memory that can be had without swapping, MB."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) / 1024


def cpu_seconds(pid: int | None) -> float:
    """Processor time of a process so far, user and system; of all processes for None."""
    if pid is None:
        user, nice, system, _idle, _wait, irq, softirq, *_ = map(
            int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
        )
        ticks = user + nice + system + irq + softirq
    else:
        # Behind the name, which is in brackets and may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        ticks = int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


# --- times ------------------------------------------------------------------------------------------------------------


def in_turns(
    runs: Mapping[str, Callable[[], Any]], repeats: int, warm: int = 1, most_s: float = float("inf")
) -> dict[str, list[float]]:
    """Milliseconds of each run, sorted. A busy machine slows all of them alike: compare medians of one call only.

    Args:
        runs: what to time, by name.
        repeats: turns.
        warm: turns before, which do not count.
        most_s: a run that has taken so many seconds in all sits out the turns that remain.
    """
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(warm + repeats):
        for name, run in runs.items():
            if sum(taken[name]) > 1e3 * most_s:
                continue
            start = time.perf_counter()
            run()
            if turn >= warm:
                taken[name].append(1e3 * (time.perf_counter() - start))
    return {name: sorted(times) for name, times in taken.items()}


def spread(name: str, times: Sequence[float]) -> Row:
    """Median, least and greatest of some milliseconds, as columns called after ``name``."""
    values = {"ms": statistics.median(times), "min_ms": min(times), "max_ms": max(times)}
    return {f"{name}_{key}": round(value, 2) for key, value in values.items()}


def faster(times: Mapping[str, Sequence[float]], ours: str, other: str) -> float:
    """How many times faster the median of ``ours`` is than that of ``other``."""
    return round(statistics.median(times[other]) / statistics.median(times[ours]), 2)


# --- reports ----------------------------------------------------------------------------------------------------------


def report(name: str, rows: Sequence[Row]) -> Row:
    """What ``--json`` writes: name, machine, date and rows."""
    date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return {"name": name, "machine": machine(), "date": date, "rows": list(rows)}


def write_report(path: Path | None, name: str, rows: Sequence[Row]) -> None:
    """Write the report as JSON where a path is given."""
    if path is not None:
        path.write_text(json.dumps(report(name, rows), indent=1) + "\n")


def finish(args: argparse.Namespace, name: str, rows: list[Row]) -> list[Row]:
    """Print the table, write what ``--json`` asks for, and return the rows."""
    print(markdown(rows), flush=True)
    write_report(args.json, name, rows)
    return rows


def markdown(rows: Sequence[Row]) -> str:
    """A table with a column for each key of any row; a dash where a row lacks it.

    A list of numbers, of repetitions, becomes their mean and standard deviation.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [[column.replace("_", " ") for column in columns], ["---"] * len(columns)]
    lines += [[_cell(row.get(column)) for column in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        return ", ".join(f"{key} {inner}" for key, inner in value.items())
    if isinstance(value, list) and all(isinstance(inner, (int, float, type(None))) for inner in value):
        known = [inner for inner in value if inner is not None]
        spread_of_them = f" ± {statistics.stdev(known):.1f}" if len(known) > 1 else ""
        return f"{statistics.mean(known):.1f}{spread_of_them}" if known else "-"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return str(value).replace("|", "\\|")
