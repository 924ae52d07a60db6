"""The course of a training, from what its run logged."""

from __future__ import annotations

import json
from pathlib import Path

from training.evaluation.plots import TrainingCurve
from vpr_kd_ros.errors import DataError


def read_curve(path: Path, name: str) -> TrainingCurve:
    """Loss and validation of a run.

    Args:
        path: its ``metrics.jsonl``.
        name: of the curve.

    Raises:
        DataError: it cannot be read.
    """
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    except (OSError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: not readable as the metrics of a run: {error}") from error
    return TrainingCurve(
        name,
        [(line["step"], line["loss"]) for line in lines if "loss" in line],
        [(line["step"], line["validation_ar1"]) for line in lines if "validation_ar1" in line],
    )
