"""Running a suite: each cell is a training, then a measurement on the test regions, and is done once."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from training.benchmark.suite import Cell, Suite, read_config
from training.data.dataset import Keyframes
from training.engine.checkpoints import differing_keys
from training.engine.config import to_dict
from training.engine.descriptors import describe, fastest_device, preprocess_of, split_by_session
from training.engine.fingerprints import sessions_fingerprint
from training.engine.jobs import distill, teach
from training.engine.runs import RECORD, load_run
from training.evaluation.protocol import evaluate
from training.evaluation.results import Evaluation
from training.models import EmbeddingModel
from training.sessions import load_sessions
from training.simulation.dataset import write_dataset
from vpr_kd_ros.errors import ConfigError, DataError, VprError
from vpr_kd_ros.preprocess import Preprocess

PARTS = ("train", "validation", "test")
RESULT, ANSWERS = "evaluation.json", "answers.npz"
DATABASE_BATCH = 16
"""As in SciceVPR's Fig. 2."""
HOW = {"precision", "compile", "validate_every"}
"""Keys of a training that say how it is computed and watched, not what is compared: results that differ in nothing else
stand in one table, which says so (``training.benchmark.summary``)."""
REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Workplace:
    """Where a suite is run.

    Attributes:
        suite: what is run.
        out: folder of its cells, tables and report.
        data: folder with ``train``, ``validation`` and ``test`` sessions.
    """

    suite: Suite
    out: Path
    data: Path

    def folder(self, cell: str) -> Path:
        """A cell's run folder."""
        return self.out / "cells" / cell

    def result(self, cell: Cell) -> dict[str, Any] | None:
        """What was measured; None where the cell is not done.

        Raises:
            ConfigError: the cell in the folder was trained with another configuration, ``HOW`` aside, or was measured
                by another protocol or with other sessions.
        """
        path = self.folder(cell.name) / RESULT
        if not path.exists():
            return None
        found: dict[str, Any] = json.loads(path.read_text())
        # Keys that are newer than the result had their defaults.
        keys = differing_keys(to_dict(read_config(found["config"])), to_dict(cell.config))
        if keys := [key for key in keys if key not in HOW]:
            raise ConfigError(
                f"{path.parent}: was trained with other values of {', '.join(keys)} than the suite has now; remove it, "
                "or choose another --out"
            )
        for what, before, now in (
            ("protocol", found.get("protocol"), to_dict(self.suite.protocol)),
            ("sessions", found.get("sessions"), self.sessions),
        ):
            # Results of the suite's own town, and those from before this was kept, name no sessions.
            if None not in (before, now) and before != now:
                raise ConfigError(f"{path.parent}: was measured with other {what}; remove it, or choose another --out")
        return found

    @cached_property
    def sessions(self) -> dict[str, str] | None:
        """Fingerprints of one's own sessions; None for the suite's town, which its configuration describes."""
        if self.simulated or not self.data.is_dir():
            return None
        return {part: sessions_fingerprint(load_sessions([self.data / part])) for part in PARTS}

    @property
    def simulated(self) -> bool:
        """Whether the data is the suite's own town."""
        return self.data == self.out / "data"

    def to_run(self, cells: Sequence[Cell]) -> list[Cell]:
        """Those of the cells that are not done, and those that one of them learns from or starts with, where a result
        was kept without the weights.
        """
        lacking = [cell for cell in cells if self.result(cell) is None]
        wanted = {name for cell in lacking for name in (cell.teacher, cell.start)}
        return [cell for cell in cells if cell in lacking or (cell.name in wanted and not self.trained(cell.name))]

    def trained(self, cell: str) -> bool:
        """Whether the weights of a cell are there, whole."""
        return (self.folder(cell) / RECORD).exists()


def prepare_data(place: Workplace, workers: int) -> None:
    """Simulate the suite's town below ``data``, or what is missing of it; sessions of one's own are left alone.

    Raises:
        DataError: a part is missing, or sessions of the test are of a region that is trained in.
    """
    if place.simulated:
        write_dataset(place.data, place.suite.simulation, workers)
        return
    for part in PARTS:
        if not (place.data / part).is_dir():
            raise DataError(f"{place.data}: has no folder {part} of sessions")
    train, _, test = ({s.region for s in load_sessions([place.data / part])} for part in PARTS)
    if shared := sorted(train & test):
        raise DataError(f"{place.data}: train and test must be of different regions; both have {', '.join(shared)}")


def run_cell(place: Workplace, cell: Cell) -> None:
    """Train a cell, or go on with its training, and measure it on the test sessions.

    Raises:
        DataError: its teacher or start is not trained yet, or another process is at work on the cell.
        ConfigError: the folder holds a run of another configuration.
    """
    folder = place.folder(cell.name)
    with _alone_in(folder):
        trained = place.trained(cell.name)
        if trained and place.result(cell):
            return
        if not trained:
            _train(place, cell, folder)
        _measure(place, folder)


def _train(place: Workplace, cell: Cell, folder: Path) -> None:
    train, validation = (load_sessions([place.data / part]) for part in ("train", "validation"))
    for what, needed in (("teacher", cell.teacher), ("start", cell.start)):
        if needed and not place.trained(needed):
            raise DataError(f"{cell.name}: its {what} {needed} is not trained yet; run that cell first")
    config = replace(cell.config, start=str(place.folder(cell.start))) if cell.start else cell.config
    if cell.teacher:
        distill(config, train, validation, folder, place.folder(cell.teacher), resume=True)
    else:
        teach(config, train, validation, folder, resume=True)


def _measure(place: Workplace, folder: Path) -> None:
    model, config = load_run(folder)
    sessions = load_sessions([place.data / "test"])
    preprocess = preprocess_of(config)
    keyframes = Keyframes(sessions, preprocess)
    device = fastest_device()
    rows = split_by_session(keyframes, describe(model.to(device), keyframes, preprocess, device))
    queries = None
    if config.degradation.changes:
        degraded = describe(model, keyframes, preprocess, device, degradation=config.degradation)
        queries = split_by_session(keyframes, degraded)
    result = evaluate(sessions, rows, place.suite.protocol, queries)
    record = json.loads((folder / RECORD).read_text())
    save_answers(folder / ANSWERS, result)
    summary = {
        **result.summary(),
        **_by_query_batch(place.suite, model, keyframes, preprocess, device),
        "parameters": record["parameters"],
        "descriptor_dim": model.descriptor_dim,
        "seconds": record["seconds"],
        "seconds_per_step": record["seconds"] / config.steps,
        "commit": record["commit"],
        "sessions": place.sessions,
        "config": {**to_dict(config), "start": ""},
    }
    # The last file to be written says that the cell is done.
    draft = folder / f".{RESULT}"
    draft.write_text(json.dumps(summary, indent=1, allow_nan=False) + "\n")
    os.replace(draft, folder / RESULT)


def _by_query_batch(
    suite: Suite, model: EmbeddingModel, keyframes: Keyframes, preprocess: Preprocess, device: torch.device
) -> dict[str, dict[str, float]]:
    """AR@1 by how many queries are described at once, under ``by_query_batch``; nothing where the suite asks for none.

    "16" are the queries in the order they were driven, "16 shuffled" in another; the database is described
    ``DATABASE_BATCH`` at a time in the order it was driven.
    """
    if not suite.query_batches:
        return {}
    database = split_by_session(keyframes, describe(model, keyframes, preprocess, device, DATABASE_BATCH))
    shuffled = np.random.default_rng(0).permutation(len(keyframes))
    found = {}
    for batch in suite.query_batches:
        for order, name in ((None, f"{batch}"), (shuffled, f"{batch} shuffled")):
            if batch == 1 and order is not None:
                continue
            rows = describe(model, keyframes, preprocess, device, batch, order=order)
            queries = split_by_session(keyframes, rows)
            found[name] = evaluate(keyframes.sessions, database, suite.protocol, queries).ar_at_1
    return {"by_query_batch": found}


def save_answers(path: Path, result: Evaluation) -> None:
    """Keep what came of every query, for curves and pictures; ``load_answers`` reads it."""
    arrays: dict[str, Any] = {}
    for number, pair in enumerate(result.pairs):
        arrays[f"{number}/names"] = np.array([pair.database, pair.query])
        for key, value in vars(pair.answers).items():
            arrays[f"{number}/{key}"] = value
    np.savez_compressed(path, **arrays)


def load_answers(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """The answers of each (database, query) pair, by the names of ``training.evaluation.results.Answers``."""
    with np.load(path, allow_pickle=False) as file:
        pairs: dict[str, dict[str, Any]] = {}
        for key in file.files:
            number, _, name = key.partition("/")
            pairs.setdefault(number, {})[name] = file[key]
    return {(str(p["names"][0]), str(p["names"][1])): p for p in pairs.values()}


def run_cells(place: Workplace, cells: Sequence[Cell]) -> list[str]:
    """Run cells one after the other, teachers first; returns the names of those that failed."""
    failed: list[str] = []
    waiting = place.to_run(cells)
    for number, cell in enumerate(waiting):
        tqdm.write(f"{place.suite.name}: training {number + 1} of {len(waiting)}: {cell.name}")
        try:
            run_cell(place, cell)
        except VprError as error:
            failed.append(cell.name)
            tqdm.write(f"{cell.name}: failed: {error}")
    return failed


def run_cells_in_processes(place: Workplace, cells: Sequence[Cell], workers: int, command: Sequence[str]) -> list[str]:
    """Run cells side by side, teachers first; returns the names of those that failed.

    Args:
        place: where.
        cells: what; those that are done are skipped.
        workers: processes at a time. GPUs are dealt out in turn, processors are shared evenly.
        command: of one cell, to which its name is appended.
    """
    waiting = place.to_run(cells)
    running: dict[str, tuple[subprocess.Popen[bytes], Path, int]] = {}
    failed: list[str] = []
    free = list(range(workers))
    logs = place.out / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    with tqdm(total=len(cells), initial=len(cells) - len(waiting), desc=place.suite.name, unit="cell") as bar:
        while waiting or running:
            for cell in _ready(place, waiting, len(free)):
                waiting.remove(cell)
                log = logs / f"{cell.name.replace('/', '--')}.log"
                slot = free.pop()
                running[cell.name] = (start_cell([*command, cell.name], log, slot, workers), log, slot)
            if not running:  # what waits, waits for a teacher that failed
                failed += [cell.name for cell in waiting]
                break
            bar.set_postfix_str(", ".join(running))
            time.sleep(0.5)
            for name, (process, log, slot) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[name]
                free.append(slot)
                bar.update()
                if process.returncode != 0:
                    failed.append(name)
                    tqdm.write(f"{name}: failed: {_last_line(log)} (all of it: {log})")
    return failed


def _ready(place: Workplace, waiting: Sequence[Cell], count: int) -> list[Cell]:
    return [cell for cell in waiting if _taught(place, cell)][:count]


def _taught(place: Workplace, cell: Cell) -> bool:
    return all(
        place.trained(name) and (place.folder(name) / RESULT).exists() for name in (cell.teacher, cell.start) if name
    )


def start_cell(command: Sequence[str], log: Path, slot: int, workers: int) -> subprocess.Popen[bytes]:
    """Start a cell's command with its share of the processors, or the GPU of its slot; its output goes to ``log``."""
    environment = dict(os.environ)
    environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // workers))
    if torch.cuda.device_count() > 1:
        # Of those that the user's own mask leaves.
        devices = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        visible = devices if devices[0] else [str(number) for number in range(torch.cuda.device_count())]
        environment["CUDA_VISIBLE_DEVICES"] = visible[slot % len(visible)]
    with log.open("wb") as stream:
        return subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=stream, stderr=subprocess.STDOUT)


def cell_command(suite: str, out: Path, data: Path, seeds: Sequence[int]) -> list[str]:
    """The command that runs one cell, to which the cell's name is appended: also what a job array would call."""
    return [
        *(sys.executable, "-m", "training", "benchmark", "--suite", suite, "--out", str(out), "--data", str(data)),
        *("--seeds", *map(str, seeds), "--cell"),
    ]


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Hold the cell against other processes and machines; a process that dies lets go."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DataError(f"{folder}: another process is at work on this cell") from None
        yield


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "no output"


def find_cell(cells: Sequence[Cell], name: str) -> Cell:
    """The cell of this name.

    Raises:
        ConfigError: there is none.
    """
    for cell in cells:
        if cell.name == name:
            return cell
    raise ConfigError(f"no cell {name!r}; --list true prints their names")
