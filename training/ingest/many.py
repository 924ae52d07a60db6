"""Several bags at once, each in a process of its own: what one of them does to its process, the others do not feel."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import cv2
from tqdm import tqdm

from training.ingest.bag import bags_in
from training.ingest.config import IngestConfig
from training.ingest.ingest import STAGES, Outcome, ingest, session_name
from training.ingest.origins import require_shared_origins
from training.ingest.progress import SharedProgress
from vpr_kd_ros.errors import ConfigError, DataError, VprError, did_you_mean


@dataclass(frozen=True)
class Job:
    """A bag and how to read it."""

    path: Path
    config: IngestConfig


@dataclass(frozen=True)
class Result:
    """What came of a job: sessions, or what went wrong."""

    job: Job
    outcomes: tuple[Outcome, ...] = ()
    error: str = ""


def plan_jobs(
    given: Iterable[str | Path], config: IngestConfig, per_bag: Mapping[str, Mapping[str, Any]]
) -> tuple[list[Job], list[str]]:
    """One job for each bag; a folder that is no bag stands for the bags in it.

    Args:
        given: bags and folders of bags.
        config: of all of them.
        per_bag: name of a bag to options that it has instead, above all region, condition and name.

    Returns:
        The jobs, and what the owner should know.

    Raises:
        ConfigError: an option is not known or out of its range, two bags would be sessions of one name, or the fixes
            of a region would be counted from different origins.
        DataError: a folder holds no bag.
    """
    known = {field.name for field in fields(IngestConfig)}
    jobs: list[Job] = []
    unused = set(per_bag)
    names: dict[str, Path] = {}
    paths = [bag for folder in given for bag in find_bags(Path(folder))]
    if config.name is not None and len(paths) > 1:
        raise ConfigError(f"--name {config.name} is given for {len(paths)} bags; give one bag, or names with per_bag")
    for path in paths:
        own = session_name(path)
        options = per_bag.get(own, {})
        unused.discard(own)
        for option in options:
            if option not in known:
                raise ConfigError(f"per_bag: {own}: no option {option!r}{did_you_mean(option, known)}")
        try:
            job = Job(path, replace(config, **dict(options)))
        except ConfigError as error:
            raise ConfigError(f"per_bag: {own}: {error}") from error
        name = job.config.name or own
        if name in names:
            raise ConfigError(
                f"{names[name]} and {path} would both be the session {name!r}: give them names, "
                f"per_bag: {{{own}: {{name: ...}}}}, where their folders have different names, or another --out"
            )
        names[name] = path
        jobs.append(job)
    require_shared_origins([(job.path, job.config) for job in jobs])
    return jobs, [f"per_bag names {name!r}, which is none of the bags given" for name in sorted(unused)]


def find_bags(path: Path) -> list[Path]:
    """The bag at the path, or, where it is a folder of bags, those in it and in its folders, sorted by name.

    A bag is a folder of rosbag2, or a file; files in one folder are one bag where its recorder split it.

    Raises:
        DataError: it is a folder without a bag.
    """
    if not path.is_dir() or (here := bags_in(path)) == [path]:
        return [path]
    inside = sorted([*here, *(bag for folder in path.iterdir() if folder.is_dir() for bag in bags_in(folder))])
    if not inside:
        raise DataError(f"{path}: neither a bag nor a folder of bags: it holds no .mcap, .db3 or .bag file")
    return inside


def ingest_many(jobs: Sequence[Job], output: Path, processes: int, announce: Callable[[Result], None]) -> list[Result]:
    """Ingest the bags, with one bar for all.

    Args:
        jobs: the bags.
        output: folder of the sessions.
        processes: bags that are read at once.
        announce: called with what came of a bag as soon as it is known.

    Returns:
        What came of each, in the order of the jobs. A bag that fails does not keep the others from theirs.
    """
    context = multiprocessing.get_context("spawn")
    coming = list(reversed(list(enumerate(jobs))))
    running: dict[Connection, tuple[int, SpawnProcess]] = {}
    results: dict[int, Result] = {}
    sizes = [_size(job.path) for job in jobs]
    done = [0.0] * len(jobs)
    with tqdm(total=sum(sizes), desc=f"{len(jobs)} bags", unit="B", unit_scale=True, leave=False) as bar:
        try:
            while coming or running:
                while coming and len(running) < processes:
                    number, job = coming.pop()
                    ours, theirs = context.Pipe(duplex=False)
                    process = context.Process(target=_work, args=(theirs, job, output), daemon=True)
                    process.start()
                    theirs.close()
                    running[ours] = (number, process)
                for connection in wait(list(running)):
                    assert isinstance(connection, Connection)
                    number, process = running[connection]
                    news = _receive(connection, process, jobs[number])
                    part = news if isinstance(news, float) else 1.0
                    bar.update(round(max(0.0, part - done[number]) * sizes[number]))
                    done[number] = max(done[number], part)
                    if isinstance(news, Result):
                        results[number] = news
                        process.join()
                        del running[connection]
                        bar.clear()
                        announce(news)
                        bar.refresh()
        finally:
            for _, process in running.values():
                process.terminate()
    return [results[number] for number in range(len(jobs))]


def _receive(connection: Connection, process: SpawnProcess, job: Job) -> Result | float:
    try:
        news: Result | float = connection.recv()
    except EOFError:
        process.join()
        code = process.exitcode or 0
        how = (
            f"was killed by signal {-code}; if memory ran out, read fewer bags at once (--jobs)"
            if code < 0
            else "ended"
        )
        return Result(job, error=f"{job.path}: its process {how}; the next ingest goes on where it was")
    return news


def _work(connection: Connection, job: Job, output: Path) -> None:
    """In the process of a bag: ingest it and tell how far it is and what came of it."""
    cv2.setNumThreads(1)  # the other cores have bags of their own
    try:
        outcomes = ingest(job.path, output, job.config, SharedProgress(connection.send, STAGES))
        result = Result(job, tuple(outcomes))
    except VprError as error:
        text = str(error)
        result = Result(job, error=text if str(job.path) in text else f"{job.path}: {text}")
    except BrokenPipeError:  # nobody is left to tell: who started this was killed
        return
    except KeyboardInterrupt:
        os._exit(130)
    except Exception:  # a defect of ours; it must not cost the other bags
        result = Result(job, error=f"{job.path}: {traceback.format_exc()}")
    connection.send(result)


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.glob("*") if file.is_file()]
    return max(1, sum(file.stat().st_size for file in files))
