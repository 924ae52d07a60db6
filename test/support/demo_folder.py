"""A finished demo's folder, made up: the files that its report reads, with numbers chosen by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from support.sessions import RADIUS_M, loop_session
from training.demo.live import Live
from vpr_kd_ros.geometry import Pose
from vpr_kd_ros.place_map import PlaceMap

CONDITIONS = ("sun", "night", "dusk")
PLACES, FRAMES = 12, 24
RIGHT_M = 12.0


def make_demo(out: Path, accept: bool = True, validation: bool = True) -> dict[str, Any]:
    """Write the folder and return the summary.

    Args:
        out: folder to write.
        accept: whether the localizer accepts anything: else every frame is refused, and the first has no candidate.
        validation: whether the runs logged a validation.
    """
    for condition in ("sun", "night"):
        path = out / "sessions" / "train" / f"train-0-{condition}"
        loop_session(path, path.name, "train-0", 3, 1, labelled=condition == "sun", condition=condition)
    for number, condition in enumerate(CONDITIONS):
        path = out / "sessions" / "test" / f"test-0-{condition}"
        loop_session(path, path.name, "test-0", 6, number, condition=condition)
    for number, run in enumerate(("teacher", "student", "distilvpr")):
        _write_run(out / "runs" / run, validation)
        _write_json(out / "evaluation" / f"{run}.json", _evaluation(0.9 - 0.1 * number))
    places = _map()
    places.save(out / "map")
    watched = _watched(accept)
    _write_json(out / "live" / "live.json", watched)
    frames = out / "live" / "frames"
    frames.mkdir()
    for frame in watched["frames"]:
        cv2.imwrite(str(frames / f"{frame['stamp_ns']}.jpg"), _picture(frame["stamp_ns"] % 7))
    (out / "student.pt2").write_bytes(b"x" * 1234)
    live = Live.from_watch(watched).summary(places.positions[:, :2], RIGHT_M)
    names = {"region": "test-0", "mapped": "sun", "condition": "night", "places": PLACES}
    ar1 = {"teacher_ar1": 0.8125, "student_plain_ar1": 0.4375, "student_distilled_ar1": 0.5625}
    summary = {
        **{key: {"ar1": value, "ar1_percent": value + 0.1, "seed": 7} for key, value in ar1.items()},
        "protocol": {"radius_m": 17.0, "heading_deg": None},
        "live": {**live, **names, "diagnostics": {"processed": "24", "last_refusal": "probability <0.5"}},
        "seconds": {"simulate": 12.0, "teach": 321.0, "localise": 40.5, "total": 373.5},
        "peak_process_memory_mb": 876,
        "machine": {"processor": "A & B, 2 cores", "python": "3.11.2"},
    }
    _write_json(out / "summary.json", summary)
    return summary


def _on_loop(share: float) -> tuple[float, float]:
    return RADIUS_M * float(np.cos(2 * np.pi * share)), RADIUS_M * float(np.sin(2 * np.pi * share))


def _picture(seed: int) -> NDArray[np.uint8]:
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(np.kron(blocks, np.ones((8, 8, 1), dtype=np.uint8)))


def _map() -> PlaceMap:
    places = PlaceMap(PLACES, "f" * 64, "map")
    for number in range(PLACES):
        pose = Pose.planar(*_on_loop(number / PLACES), 0.0)
        # The first place has no picture.
        places.add(
            np.eye(PLACES, dtype=np.float32)[number], pose, number, "mapping", _picture(number) if number else None
        )
    return places


def _watched(accept: bool) -> dict[str, Any]:
    truth = [[10**8 * i, *_on_loop(i / FRAMES), 0.0, 0.0, 0.0, 0.0, 1.0] for i in range(FRAMES)]
    frames = []
    for i in range(FRAMES):
        x, y = _on_loop(i / FRAMES)
        wrong = i % 5 == 4
        guess = _on_loop((i // 2 + 6 * wrong) / PLACES)
        probability = 0.3 if i % 3 == 0 or not accept else 0.95
        best = {"x": guess[0], "y": guess[1], "probability": probability, "place_id": (i // 2 + 6 * wrong) % PLACES}
        pose = [*(guess if wrong else (x + 1.0, y)), 0.0, 0.0, 0.0, 0.0, 1.0] if probability > 0.9 else None
        frames.append({"stamp_ns": 10**8 * i, "best": best, "pose": pose, "latency_s": 0.02 + 0.001 * i})
    if not accept:
        frames[0]["best"] = None
    return {"images": FRAMES + 2, "frames": frames, "truth": truth, "diagnostics": {}}


def _evaluation(best: float) -> dict[str, Any]:
    between = {q: {d: float("nan") if q == d else best - 0.1 * i for d in CONDITIONS} for i, q in enumerate(CONDITIONS)}
    by_query = {condition: best - 0.1 * i for i, condition in enumerate(CONDITIONS)}
    counts = {"ordered_pairs": 56, "queries": 5432, "excluded": 19}
    return {"by_query_condition": by_query, "between_conditions": between, **counts}


def _write_run(path: Path, validation: bool) -> None:
    path.mkdir(parents=True)
    lines = [{"step": step, "seconds": 1.0, "loss": 1.0 / step} for step in (10, 20, 30)]
    ends = [{"step": step, "seconds": 1.0, "validation_ar1": 0.5} for step in (15, 30)] if validation else []
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines + ends))
    results = {"parameters": 1234567, "validation_ar1": 0.5} if validation else {}
    _write_json(path / "run.json", {"seconds": 33.3, "vpr_kd_ros": "0.1.0", "torch": "2.0", "commit": "", **results})


def _write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
