"""Searching a map: exact against the memory's speed, approximate against exact, and the memory of a million places.

    python benchmarks/search.py
    python benchmarks/search.py --sizes 10000 100000 --queries 500 --json search.json

Descriptors are routes: each place resembles the one before it (0.9), sessions are 2000 places long; a query is a place
with noise (similarity about 0.85). Places farther apart, and of other routes, are as unlike as random directions are:
the descriptors fill all their dimensions, and no groups larger than a stretch of street help the cells of the
approximate search. One query at a time on one thread, searches and a pass of numpy over memory interleaved, so that a
busy machine slows both alike. Printed are medians of processor time: ``limit`` is reading the exact index's bytes once
at the rate that a sum over 256 MB of memory reaches, ``ratio`` the exact search over it. Last, a map of the largest
size is saved and loaded in a process of its own: its memory beside what the manifest announces.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Run as a file, the checkout is not on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measuring import REPOSITORY, write_report
from vpr_kd_ros.geometry import Pose
from vpr_kd_ros.index import PlaceIndex
from vpr_kd_ros.map_files import MapContent, Place, write_map
from vpr_kd_ros.place_map import PlaceMap

Halves = NDArray[np.float16]
SESSION, LIKENESS, NOISE = 2000, 0.9, 0.62
MEMORY_PASS_BYTES = 256_000_000
STUDENT = "ab" * 32


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="places")
    options.add_argument("--dim", type=int, default=256, help="length of a descriptor (default: 256)")
    options.add_argument("--queries", type=int, default=300, help="queries of each size (default: 300)")
    options.add_argument("--json", type=Path, help="file for the rows")
    options.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    return options


def routes(count: int, dim: int, rng: np.random.Generator) -> Halves:
    """Descriptors of drives, (count, dim), of length 1."""
    rows = np.empty((count, dim), dtype=np.float16)
    step = np.float32(np.sqrt(1 - LIKENESS**2))
    for start in range(0, count, SESSION * 50):
        part = rng.standard_normal((min(SESSION * 50, count - start), dim), dtype=np.float32)
        for first in range(0, len(part), SESSION):
            drive = part[first : first + SESSION]
            for i in range(1, len(drive)):
                drive[i] = LIKENESS * drive[i - 1] + step * drive[i]
        rows[start : start + len(part)] = part / np.linalg.norm(part, axis=1, keepdims=True)
    return rows


def queries_of(rows: Halves, count: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Places seen again, (count, dim) float32 of length 1."""
    dim = rows.shape[1]
    picked = rows[rng.integers(0, len(rows), count)].astype(np.float32)
    picked += NOISE / np.sqrt(dim) * rng.standard_normal(picked.shape, dtype=np.float32)
    return np.asarray(picked / np.linalg.norm(picked, axis=1, keepdims=True))


def timed(action: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """Processor milliseconds of this thread, and the result."""
    began = time.thread_time()
    result = action(*arguments)
    return (time.thread_time() - began) * 1e3, result


def measure(rows: Halves, queries: NDArray[np.float32]) -> dict[str, Any]:
    """Both searches of one size."""
    ids = np.arange(len(rows))
    memory = np.ones(MEMORY_PASS_BYTES // 8)
    exact = PlaceIndex.build(ids, rows, "exact")
    build_ms, approximate = timed(PlaceIndex.build, ids, rows, "approximate")
    times: dict[str, list[float]] = {"exact": [], "approximate": [], "pass": []}
    found = 0
    for number, query in enumerate(queries):
        spent, (wanted, _) = timed(exact.search, query[None], 10)
        times["exact"].append(spent)
        spent, (answer, _) = timed(approximate.search, query[None], 10)
        times["approximate"].append(spent)
        found += int(answer[0, 0] == wanted[0, 0])
        if number % 5 == 0:
            times["pass"].append(timed(memory.sum)[0])
    medians = {name: float(np.median(values)) for name, values in times.items()}
    limit = medians["pass"] * rows.nbytes / MEMORY_PASS_BYTES
    return {
        "places": len(rows),
        "dim": rows.shape[1],
        "exact_ms": round(medians["exact"], 3),
        "limit_ms": round(limit, 3),
        "ratio": round(medians["exact"] / limit, 2),
        "memory_gb_per_s": round(MEMORY_PASS_BYTES / medians["pass"] / 1e6, 1),
        "approximate_ms": round(medians["approximate"], 3),
        "recall_at_1": round(found / len(queries), 4),
        "build_s": round(build_ms / 1e3, 1),
        "load": round(os.getloadavg()[0], 1),
    }


def save_map(path: Path, rows: Halves) -> None:
    """A map without pictures."""
    poses = [Pose.planar(2.0 * i, 0.0, 0.0) for i in range(SESSION)]
    places = [Place(poses[i % SESSION], i, f"drive-{i // SESSION}", None) for i in range(len(rows))]
    write_map(path, MapContent(STUDENT, "map", len(rows), np.arange(len(rows)), rows, places))


def load_map(path: Path) -> None:
    """In a process of its own: load, search once, and print what it took."""
    before = resident_bytes()
    began = time.process_time()
    place_map = PlaceMap.load(path)
    row = {
        "resident_mb": round((resident_bytes() - before) / 1e6),
        "announced_mb": round(read_info(path) / 1e6),
        "load_cpu_s": round(time.process_time() - began, 1),
        "approximate": place_map.approximate,
    }
    print(json.dumps(row))


def read_info(path: Path) -> int:
    """What the manifest announces, bytes."""
    return int(json.loads((path / "map.json").read_text())["memory_bytes"])


def resident_bytes() -> int:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Run and return the rows."""
    args = parser().parse_args(argv)
    if args.load is not None:
        load_map(args.load)
        return []
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    descriptors = routes(max(args.sizes), args.dim, rng)
    for size in args.sizes:
        part = descriptors[:size]
        rows.append(measure(part, queries_of(part, args.queries, rng)))
        print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        save_map(Path(folder) / "map", descriptors)
        command = [sys.executable, __file__, "--load", str(Path(folder) / "map")]
        done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=REPOSITORY)
    rows.append({"places": max(args.sizes), "dim": args.dim, **json.loads(done.stdout)})
    print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    write_report(args.json, "search", rows)
    return rows


if __name__ == "__main__":
    main()
