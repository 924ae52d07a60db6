"""``python -m training evaluate``."""

from __future__ import annotations

import json
from pathlib import Path

import jsonargparse

from training.data.dataset import Keyframes
from training.engine.descriptors import describe, preprocess_of, split_by_session
from training.engine.runs import load_run
from training.evaluation.protocol import Evaluation, Protocol, evaluate
from training.sessions import load_sessions

DESCRIPTION = """Measure recall between traverses: each session of a region in turn is the database, each other one the
queries (AR@1 and AR@1 %, as in PointNetVLAD and DistilVPR).

Example: python -m training evaluate --model runs/student --sessions sessions/test"""


def parser() -> jsonargparse.ArgumentParser:
    """The command's options."""
    result = jsonargparse.ArgumentParser(prog="python -m training evaluate", description=DESCRIPTION)
    result.add_argument("--model", type=str, required=True, help="the run folder of a trained model")
    result.add_argument("--sessions", nargs="+", required=True, help="session folders, or folders of sessions")
    result.add_argument("--out", type=str, help="JSON file to write; default: printed only")
    result.add_class_arguments(Protocol, None)
    return result


def run(args: jsonargparse.Namespace) -> None:
    """Evaluate and print the table."""
    model, config = load_run(args.model)
    sessions = load_sessions(args.sessions)
    preprocess = preprocess_of(config)
    keyframes = Keyframes(sessions, preprocess)
    rows = describe(model, keyframes, preprocess)
    result = evaluate(sessions, split_by_session(keyframes, rows), Protocol(args.radius_m, args.heading_deg))
    print(table(result))
    if args.out:
        out = Path(args.out)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result.summary(), indent=1) + "\n")


def table(result: Evaluation) -> str:
    """The result as text: the means, then AR@1 by condition of query and database."""
    protocol, conditions = result.protocol, result.conditions
    heading = "" if protocol.heading_deg is None else f" and {protocol.heading_deg:g} degrees"
    queries = sum(pair.queries for pair in result.pairs)
    excluded = sum(pair.excluded for pair in result.pairs)
    lines = [
        f"AR@1 {100 * result.ar_at_1:.1f} %   AR@1% {100 * result.ar_at_1_percent:.1f} %",
        f"right within {protocol.radius_m:g} m{heading}; {len(result.pairs)} ordered pairs of traverses, "
        f"{queries} queries, {excluded} without a right answer left out",
        "",
    ]
    width = max(8, *map(len, conditions))
    lines.append("query \\ database".ljust(width + 8) + "".join(name.rjust(width + 2) for name in conditions))
    for query, row in result.between_conditions().items():
        cells = ("-" if value != value else f"{100 * value:.1f}" for value in row.values())
        lines.append(query.ljust(width + 8) + "".join(cell.rjust(width + 2) for cell in cells))
    return "\n".join(lines)
