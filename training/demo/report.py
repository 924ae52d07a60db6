"""The demo's report: one HTML file that opens without a network, and three pictures beside it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from training.demo.live import Live
from training.evaluation import plots
from training.evaluation.training_log import read_curve
from training.pages import data_uri, jpeg_uri, template
from training.sessions import Session, load_sessions
from vpr_kd_ros.errors import DataError
from vpr_kd_ros.place_map import PlaceMap

MODELS = {
    "teacher": ("teacher_ar1", "teacher", "LiDAR"),
    "student": ("student_plain_ar1", "plain student", "camera"),
    "distilvpr": ("student_distilled_ar1", "distilled student", "camera"),
}
"""Run folder to its key in the summary, its name in the report and its sensor."""

WITH_POSES, WITHOUT_POSES, NEVER_SEEN = "with poses", "without poses", "never seen in training"
OUTCOMES = {"right": "Accepted and right", "wrong": "Accepted and wrong", "unknown": "Refused: it does not know"}
EXAMPLES = 6
"""Pictures of each outcome in the report."""
GALLERY = {"right": 4, "wrong": 2, "unknown": 2}
"""And in ``gallery.png``."""

STEPS = {
    "simulate": "simulate the town and its drives",
    "record": "record a surveyed drive",
    "ingest": "ingest the bag",
    "teach": "teach the LiDAR teacher",
    "train_plain": "train the plain student",
    "distill": "distil the student",
    "evaluate": "evaluate all three",
    "export": "export and calibrate the student",
    "build_map": "record and map a drive",
    "localise": "localise live",
}

ARTEFACTS = {
    "student.pt2": "the student: network, pre-processing, calibration",
    "map": "the place map",
    "runs": "configurations, metrics and checkpoints of the three trainings",
    "evaluation": "recall between drives",
    "sessions": "the data set: keyframes, images, clouds",
    "bags": "the drives recorded over ROS 2",
    "live": "what the localizer said, the truth beside it, and the camera's images",
    "logs": "output of the nodes",
    "summary.json": "the numbers of this report",
}


def write_report(out: Path, summary: dict[str, Any]) -> Path:
    """Write ``report.html``, ``recall.png``, ``route.png`` and ``gallery.png`` into a finished demo's folder.

    Args:
        out: the demo's folder.
        summary: what the demo measured, as in ``out/summary.json``.

    Returns:
        The HTML file.

    Raises:
        DataError: something the demo should have left behind is missing or damaged.
    """
    evaluations = {run: _read_json(out / "evaluation" / f"{run}.json") for run in MODELS}
    records = {run: _read_json(out / "runs" / run / "run.json") for run in MODELS}
    curves = {run: read_curve(out / "runs" / run / "metrics.jsonl", names[1]) for run, names in MODELS.items()}
    places = PlaceMap.load(out / "map")
    live = Live.from_watch(_read_json(out / "live" / "live.json"))
    radius_m = summary["live"]["radius_m"]
    groups = condition_groups(load_sessions([out / "sessions" / "train"]), evaluations["teacher"]["by_query_condition"])
    order = [condition for conditions in groups.values() for condition in conditions]
    group_of = {condition: heading for heading, conditions in groups.items() for condition in conditions}
    cards = {outcome: examples(out, live, places, outcome, radius_m, EXAMPLES) for outcome in OUTCOMES}
    figures = {
        "recall": plots.recall_by_condition(
            {MODELS[r][1]: e["by_query_condition"] for r, e in evaluations.items()}, groups
        ),
        "between": plots.recall_between_conditions(
            {MODELS[run][1]: e["between_conditions"] for run, e in evaluations.items()}, order
        ),
        "route": plots.route(live.truth, live.estimates, live.accepted, live.right(radius_m), places.positions[:, :2]),
        "latency": plots.latency_histogram(live.latencies_s),
        "training": plots.training_curves(list(curves.values())),
    }
    pictures = {name: plots.png(figure) for name, figure in figures.items()}
    for name in ("recall", "route"):
        (out / f"{name}.png").write_bytes(pictures[name])
    few = [c for outcome, n in GALLERY.items() for c in examples(out, live, places, outcome, radius_m, n)]
    (out / "gallery.png").write_bytes(plots.png(plots.gallery(few), dpi=90))
    seconds = summary["seconds"]
    longest = max((value for step, value in seconds.items() if step != "total"), default=1.0)
    page = template(Path(__file__).parent / "report.html.j2", percent=_percent, number=_number).render(
        models=[{"name": name, "sensor": sensor, **summary[key]} for key, name, sensor in MODELS.values()],
        gap=gap_sentence(*(summary[key]["ar1"] for key, _, _ in MODELS.values())),
        protocol=summary["protocol"],
        pairs=evaluations["teacher"]["ordered_pairs"],
        queries=evaluations["teacher"]["queries"],
        excluded=evaluations["teacher"]["excluded"],
        seeds=_seed_sentence({summary[key]["seed"] for key, _, _ in MODELS.values()}),
        live=summary["live"],
        groups=groups,
        pictures={name: data_uri("image/png", content) for name, content in pictures.items()},
        town=[
            (condition, group_of.get(condition, ""), jpeg_uri(image))
            for condition, image in same_place(out / "sessions" / "test", summary["live"]["region"], order)
        ],
        gallery=[
            (outcome, title, [_card(item) for item in cards[outcome]], int(_is(live, outcome, radius_m).sum()))
            for outcome, title in OUTCOMES.items()
        ],
        runs=[_run_row(MODELS[run][1], record) for run, record in records.items()],
        steps=[
            (STEPS.get(step, step.replace("_", " ")), _duration(value), round(100 * value / max(longest, 1e-9), 1))
            for step, value in seconds.items()
            if step != "total"
        ],
        total=_duration(seconds["total"]),
        memory=summary["peak_process_memory_mb"],
        machine=_machine(summary["machine"], records["distilvpr"]),
        artefacts=[
            (name, what, _size(_bytes(out / name))) for name, what in ARTEFACTS.items() if (out / name).exists()
        ],
        commands=next_commands(_shown(out)),
    )
    path = out / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


# --- what the numbers say --------------------------------------------------------------------------------------------


def gap_sentence(teacher: float, plain: float, distilled: float) -> str:
    """What distillation did to the difference of teacher and plain student; AR@1 in [0, 1]."""
    gap, gain = 100 * (teacher - plain), 100 * (distilled - plain)
    if gap <= 0:
        return (
            f"The teacher is not better than the plain student ({gap:+.1f} points), so that there is no gap to close; "
            f"the distilled student is at {gain:+.1f} points of the plain one."
        )
    if gain <= 0:
        return (
            f"Distillation did not close the gap of {gap:.1f} points between teacher and plain student: "
            f"the distilled student is at {gain:+.1f} points of the plain one."
        )
    closed = f"Distillation closed {100 * gain / gap:.0f} % of the gap"
    return f"{closed} between plain student and teacher: {gain:.1f} of {gap:.1f} points of AR@1."


def condition_groups(training: list[Session], conditions: Mapping[str, float]) -> dict[str, list[str]]:
    """Tested conditions by what training had of them, each in order of name."""
    posed = {session.condition for session in training if session.labelled}
    seen = {session.condition for session in training}
    return {
        WITH_POSES: sorted(c for c in conditions if c in posed),
        WITHOUT_POSES: sorted(c for c in conditions if c in seen - posed),
        NEVER_SEEN: sorted(c for c in conditions if c not in seen),
    }


def _seed_sentence(seeds: set[int]) -> str:
    if len(seeds) > 1:
        return f"Seeds {', '.join(map(str, sorted(seeds)))}."
    return f"One seed ({next(iter(seeds))}): seed noise is several points, so smaller differences may be chance."


# --- pictures of the town and of the live drive ----------------------------------------------------------------------


def same_place(test: Path, region: str, order: list[str]) -> list[tuple[str, NDArray[np.uint8]]]:
    """A picture per condition, where drives of a region come nearest to one place of the first of them."""
    sessions = [s for s in load_sessions([test]) if s.region == region and s.labelled]
    sessions.sort(key=lambda s: (order.index(s.condition) if s.condition in order else len(order), s.name))
    one_each = list({session.condition: session for session in reversed(sessions)}.values())[::-1]
    if not one_each:
        raise DataError(f"{test}: no session of region {region!r}")
    place = one_each[0].positions[len(one_each[0]) // 2, :2]
    nearest = [int(np.linalg.norm(s.positions[:, :2] - place, axis=1).argmin()) for s in one_each]
    return [(session.condition, session.image(index)) for session, index in zip(one_each, nearest, strict=True)]


def choose(live: Live, outcome: str, radius_m: float, count: int) -> NDArray[np.int64]:
    """At most ``count`` frames of an outcome, spread evenly over the drive."""
    rows = np.flatnonzero(_is(live, outcome, radius_m))
    if not len(rows):
        return rows
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(np.int64))]


def examples(
    out: Path, live: Live, places: PlaceMap, outcome: str, radius_m: float, count: int
) -> list[plots.Comparison]:
    """At most ``count`` frames of an outcome beside their best matches, spread evenly over the drive."""
    return [_comparison(out, live, places, row, outcome) for row in choose(live, outcome, radius_m, count).tolist()]


def _comparison(out: Path, live: Live, places: PlaceMap, row: int, outcome: str) -> plots.Comparison:
    """A frame of the live drive beside the picture of its best candidate."""
    path = out / "live" / "frames" / f"{live.stamps_ns[row]}.jpg"
    query = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if query is None:  # the watcher may have missed an image that the localizer answered
        query = np.full((96, 128, 3), 235, dtype=np.uint8)
    place = int(live.places[row])
    lines = ["no candidate"]
    if place >= 0:
        away = np.linalg.norm(live.guesses[row] - live.truth[row])
        probability = live.probabilities[row]
        lines = [f"match {away:.1f} m away" + ("" if math.isnan(probability) else f", probability {probability:.2f}")]
    if live.accepted[row]:
        lines.append(f"published pose {np.linalg.norm(live.estimates[row] - live.truth[row]):.1f} m off")
    return plots.Comparison(
        outcome,
        np.asarray(query[:, :, ::-1], dtype=np.uint8),
        places.thumbnail(place) if place in places.ids else None,
        "\n".join(lines),
    )


def _is(live: Live, outcome: str, radius_m: float) -> NDArray[np.bool_]:
    right = live.right(radius_m)
    masks = {"right": live.accepted & right, "wrong": live.accepted & ~right, "unknown": ~live.accepted}
    return np.asarray(masks[outcome])


def _card(item: plots.Comparison) -> dict[str, str | None]:
    match = None if item.match is None else jpeg_uri(item.match)
    return {"query": jpeg_uri(item.query), "match": match, "caption": item.caption}


# --- what it took and how to go on -----------------------------------------------------------------------------------


def next_commands(out: str) -> list[tuple[str, str]]:
    """What to do next, and the command for it."""
    data = "--train sessions/train --validation sessions/validation"
    return [
        (
            "Run this student on a robot's camera, or on a bag that plays:",
            f"ros2 run vpr_kd_ros localizer --ros-args -p student:={out}/student.pt2 -p map:={out}/map "
            "-r image:=/camera/image_raw",
        ),
        (
            "See what a recording of your own holds, and make training sessions of it:",
            "python -m training inspect DRIVE\n"
            "python -m training ingest DRIVE --out sessions/train --region REGION --condition WEATHER",
        ),
        (
            "Train on your sessions (validation: drives of another region, with poses):",
            f"python -m training teach --config config/town/teacher.yaml {data} --out runs/teacher\n"
            f"python -m training distill --config config/town/distilvpr.yaml --teacher runs/teacher {data} "
            "--out runs/student",
        ),
        (
            "Measure the student, and export it for the robot:",
            "python -m training evaluate --model runs/student --sessions sessions/test\n"
            "python -m training export --run runs/student --sessions sessions/validation --out student.pt2",
        ),
        (
            "Another seed, or other weather, in a folder of its own:",
            "python -m training demo --out out/demo-night --seed 1 --live night",
        ),
    ]


def _run_row(name: str, record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "parameters": f"{record['parameters']:,}" if "parameters" in record else "–",
        "best": record.get("validation_ar1"),
        "seconds": f"{record['seconds']:.0f}" if "seconds" in record else "–",
    }


def _machine(machine: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    versions = {name: record[name] for name in ("vpr_kd_ros", "commit", "torch") if record.get(name)}
    return {**machine, **versions}


def _shown(out: Path) -> str:
    """The folder as a command in the working directory names it."""
    relative = os.path.relpath(out)
    return str(out) if relative.startswith("..") else relative


def _bytes(path: Path) -> int:
    return sum(p.stat().st_size for p in ([path] if path.is_file() else path.rglob("*")) if p.is_file())


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.1f} min"


# --- the page --------------------------------------------------------------------------------------------------------


def _percent(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{100 * value:.1f} %"


def _number(value: float | None, unit: str, digits: int = 0) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f} {unit}"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable, though the demo should have written it: {error}") from error
