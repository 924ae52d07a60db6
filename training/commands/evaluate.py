"""``python -m training evaluate``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import jsonargparse
import numpy as np
from numpy.typing import NDArray

from training.commands._options import config_of
from training.data.dataset import Keyframes
from training.data.degrade import Degradation
from training.engine.config import to_dict
from training.engine.descriptors import describe, fastest_device, preprocess_of, split_by_session
from training.engine.runs import load_run, trained_on
from training.evaluation.protocol import evaluate, evaluate_queries
from training.evaluation.results import Evaluation, Protocol
from training.models import EmbeddingModel
from training.sessions import load_sessions
from vpr_kd_ros.errors import ConfigError
from vpr_kd_ros.preprocess import Preprocess

DESCRIPTION = """Measure recall between traverses: each session of a region in turn is the database, each other one the
queries (AR@1 and AR@1 %, as in PointNetVLAD and DistilVPR).

Example: python -m training evaluate --model runs/student --sessions sessions/test

With queries of a quarter of the resolution, searched among images as they were taken:
python -m training evaluate --model runs/student --sessions sessions/test --degradation.scale [0.25,0.25]

Against all databases of a region together, as MSLS, Pittsburgh, Tokyo 24/7 and Nordland are measured:
python -m training evaluate --model runs/student --databases msls/database --queries msls/query

The database of another network, whose descriptors the student imitates (low-quality queries: the teacher's):
python -m training evaluate --model runs/low-quality --database_model runs/teacher-netvlad --sessions sessions/test"""


def parser() -> jsonargparse.ArgumentParser:
    """The command's options."""
    result = jsonargparse.ArgumentParser(prog="python -m training evaluate", description=DESCRIPTION)
    result.add_argument("--model", type=str, required=True, help="the run folder of a trained model")
    result.add_argument("--database_model", type=str, help="run folder of the model that describes the databases")
    result.add_argument("--sessions", nargs="+", default=[], help="session folders, or folders of sessions")
    result.add_argument("--databases", nargs="+", default=[], help="sessions to search in, those of a region together")
    result.add_argument("--queries", nargs="+", default=[], help="sessions to search in --databases for")
    result.add_argument("--out", type=str, help="JSON file to write; default: printed only")
    result.add_class_arguments(Protocol, None)
    result.add_class_arguments(Degradation, "degradation")
    return result


def run(args: jsonargparse.Namespace) -> None:
    """Evaluate and print the table."""
    if bool(args.sessions) == bool(args.databases) or bool(args.databases) != bool(args.queries):
        raise ConfigError("evaluate wants --sessions, or --databases and --queries together")
    degradation: Degradation = vars(parser().instantiate(args))["degradation"]
    protocol = config_of(Protocol, parser(), args)
    model = Describer.of(args.model)
    if degradation.changes and not model.network.uses_images:
        raise ConfigError(f"degradation: the model of {args.model} reads no images; leave it out")
    of_databases = Describer.of(args.database_model) if args.database_model else model
    if of_databases.network.descriptor_dim != model.network.descriptor_dim:
        raise ConfigError(
            f"database_model: {args.database_model} describes with {of_databases.network.descriptor_dim} numbers and "
            f"{args.model} with {model.network.descriptor_dim}: their descriptors cannot be compared"
        )
    databases, queries = load_sessions(args.sessions or args.databases), load_sessions(args.queries)
    keyframes = Keyframes(databases, of_databases.preprocess)
    rows = of_databases(keyframes)
    if queries:
        asked = model(Keyframes(queries, model.preprocess), degradation)
        result = evaluate_queries(databases, queries, rows, asked, protocol)
    else:
        same = of_databases is model and not degradation.changes
        result = evaluate(databases, rows, protocol, None if same else model(keyframes, degradation))
    print(table(result))
    if known := sorted(trained_on(args.model) & {session.name for session in (*databases, *queries)}):
        print(
            f"\nNOTICE: {args.model} was trained on {', '.join(known)}: this says nothing about places it has not seen"
        )
    if degradation.changes:
        print(f"\nqueries degraded: {taken(degradation)}")
    if args.out:
        out = Path(args.out)
        out.parent.mkdir(parents=True, exist_ok=True)
        summary = {**result.summary(), "degradation": to_dict(degradation)}
        out.write_text(json.dumps(summary, indent=1, allow_nan=False) + "\n")


@dataclass(frozen=True)
class Describer:
    """A trained network and the pre-processing of its images."""

    network: EmbeddingModel
    preprocess: Preprocess

    @classmethod
    def of(cls, run: str) -> Describer:
        """From a run folder."""
        network, config = load_run(run)
        return cls(network.to(fastest_device()), preprocess_of(config))

    def __call__(self, keyframes: Keyframes, degradation: Degradation | None = None) -> list[NDArray[np.float32]]:
        """Descriptors of each session, (N_i, C); of degraded images where that changes them."""
        seen = keyframes.seen_by(self.preprocess)
        changes = degradation if degradation is not None and degradation.changes else None
        rows = describe(self.network, seen, self.preprocess, fastest_device(), degradation=changes)
        return split_by_session(seen, rows)


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
