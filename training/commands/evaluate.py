"""``python -m training evaluate``."""

from __future__ import annotations

import json
from pathlib import Path

import jsonargparse

from training.commands._options import config_of
from training.data.dataset import Keyframes
from training.data.degrade import Degradation
from training.engine.config import to_dict
from training.engine.descriptors import describe, preprocess_of, split_by_session
from training.engine.runs import load_run
from training.evaluation.protocol import evaluate
from training.evaluation.results import Evaluation, Protocol
from training.sessions import load_sessions
from vpr_kd_ros.errors import ConfigError

DESCRIPTION = """Measure recall between traverses: each session of a region in turn is the database, each other one the
queries (AR@1 and AR@1 %, as in PointNetVLAD and DistilVPR).

Example: python -m training evaluate --model runs/student --sessions sessions/test

With queries of a quarter of the resolution, searched among images as they were taken:
python -m training evaluate --model runs/student --sessions sessions/test --degradation.scale [0.25,0.25]"""


def parser() -> jsonargparse.ArgumentParser:
    """The command's options."""
    result = jsonargparse.ArgumentParser(prog="python -m training evaluate", description=DESCRIPTION)
    result.add_argument("--model", type=str, required=True, help="the run folder of a trained model")
    result.add_argument("--sessions", nargs="+", required=True, help="session folders, or folders of sessions")
    result.add_argument("--out", type=str, help="JSON file to write; default: printed only")
    result.add_class_arguments(Protocol, None)
    result.add_class_arguments(Degradation, "degradation")
    return result


def run(args: jsonargparse.Namespace) -> None:
    """Evaluate and print the table."""
    values = vars(parser().instantiate(args))
    degradation: Degradation = values["degradation"]
    model, config = load_run(args.model)
    if degradation.changes and not model.uses_images:
        raise ConfigError(f"degradation: the model of {args.model} reads no images; leave it out")
    sessions = load_sessions(args.sessions)
    preprocess = preprocess_of(config)
    keyframes = Keyframes(sessions, preprocess)
    rows = split_by_session(keyframes, describe(model, keyframes, preprocess))
    queries = None
    if degradation.changes:
        degraded = describe(model, keyframes, preprocess, title="describing degraded", degradation=degradation)
        queries = split_by_session(keyframes, degraded)
    result = evaluate(sessions, rows, config_of(Protocol, parser(), args), queries)
    print(table(result))
    if degradation.changes:
        print(f"\nqueries degraded: {taken(degradation)}")
    if args.out:
        out = Path(args.out)
        out.parent.mkdir(parents=True, exist_ok=True)
        summary = {**result.summary(), "degradation": to_dict(degradation)}
        out.write_text(json.dumps(summary, indent=1) + "\n")


def taken(degradation: Degradation) -> str:
    """What is taken from an image, in words: the keys that are not as by default, with their values."""
    untouched = to_dict(Degradation())
    changed = {key: limits for key, limits in to_dict(degradation).items() if limits != untouched[key]}
    return ", ".join(
        f"{key} {low:g}" if low == high else f"{key} {low:g} to {high:g}" for key, (low, high) in changed.items()
    )


def table(result: Evaluation) -> str:
    """The result as text: the means, then AR@1 by condition of query and database."""
    conditions = result.conditions
    queries = sum(pair.queries for pair in result.pairs)
    excluded = sum(pair.excluded for pair in result.pairs)
    lines = [
        f"AR@1 {100 * result.ar_at_1:.1f} %   AR@1% {100 * result.ar_at_1_percent:.1f} %",
        f"{result.protocol}; {result.answerable_pairs} ordered pairs of traverses, "
        f"{queries} queries, {excluded} without a right answer left out",
        "",
    ]
    width = max(8, *map(len, conditions))
    lines.append("query \\ database".ljust(width + 8) + "".join(name.rjust(width + 2) for name in conditions))
    for query, row in result.between_conditions().items():
        cells = ("-" if value != value else f"{100 * value:.1f}" for value in row.values())
        lines.append(query.ljust(width + 8) + "".join(cell.rjust(width + 2) for cell in cells))
    return "\n".join(lines)
