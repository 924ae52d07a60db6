"""What a live localisation was worth, from what ``training.demo.watch`` wrote down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vpr_kd_ros.errors import DataError
from vpr_kd_ros.geometry import Floats, Ints, Trajectory


@dataclass(frozen=True)
class Live:
    """The frames the localizer answered, beside the truth.

    Attributes:
        stamps_ns: (F,) int64.
        truth: (F, 2) float64, where the robot was, metres.
        accepted: (F,) bool, whether a pose was published.
        estimates: (F, 2) float64, the published position; NaN where none was.
        places: (F,) int64, id of the best candidate; -1 where there was none.
        guesses: (F, 2) float64, position of the best candidate; NaN where there was none.
        probabilities: (F,) float64, of the best candidate being right.
        latencies_s: (L,) float64, from a camera image to the localizer's answer, both as they reached a subscriber.
        images: how many images the camera published while the localizer was watched.
        without_truth: answers that no true pose surrounds; they are not among the frames.
    """

    stamps_ns: Ints
    truth: Floats
    accepted: NDArray[np.bool_]
    estimates: Floats
    places: Ints
    guesses: Floats
    probabilities: Floats
    latencies_s: Floats
    images: int
    without_truth: int

    @classmethod
    def from_watch(cls, watched: Mapping[str, Any]) -> Live:
        """From the content of ``live.json``.

        Raises:
            DataError: the localizer answered nothing, or no answer lies between two true poses.
        """
        frames = watched["frames"]
        if not frames or not watched["truth"]:
            raise DataError(
                f"live localisation: {len(frames)} answers and {len(watched['truth'])} true poses were seen; "
                "see the logs of the localizer and of the drive"
            )
        truth = np.array(watched["truth"], dtype=np.float64)
        stamps = np.array([row[0] for row in watched["truth"]], dtype=np.int64)
        when = np.array([frame["stamp_ns"] for frame in frames], dtype=np.int64)
        positions, _, valid = Trajectory(stamps, truth[:, 1:4], truth[:, 4:8]).at(when, max_gap_ns=1_000_000_000)
        nothing = {"x": np.nan, "y": np.nan, "place_id": -1, "probability": 0.0}
        best = [frame["best"] or nothing for frame in frames]
        rows = np.flatnonzero(valid)
        if not len(rows):
            raise DataError(
                f"live localisation: none of {len(frames)} answers lies between two of {len(truth)} true poses; "
                "do localizer and ground truth stamp by the same clock?"
            )
        return cls(
            stamps_ns=when[rows],
            truth=positions[rows, :2],
            accepted=np.array([frame["pose"] is not None for frame in frames])[rows],
            estimates=np.array([(frame["pose"] or [np.nan, np.nan])[:2] for frame in frames])[rows],
            places=np.array([b["place_id"] for b in best], dtype=np.int64)[rows],
            guesses=np.array([[b["x"], b["y"]] for b in best])[rows],
            probabilities=np.array([b["probability"] for b in best])[rows],
            latencies_s=np.array([f["latency_s"] for f in frames if f["latency_s"] is not None]),
            images=int(watched["images"]),
            without_truth=len(frames) - len(rows),
        )

    def right(self, radius_m: float) -> NDArray[np.bool_]:
        """(F,) bool, whether a published position is within ``radius_m`` metres of the truth."""
        with np.errstate(invalid="ignore"):
            return np.asarray(np.linalg.norm(self.estimates - self.truth, axis=1) <= radius_m)

    def summary(self, mapped: Floats, radius_m: float) -> dict[str, Any]:
        """Counts, precision, recall and latency; None where there is nothing to divide by.

        Precision is over all published positions, recall over the frames that could be recognised; ``dropped`` are the
        camera's images that were never answered.

        Args:
            mapped: (P, 2) float64, positions of the places of the map, metres.
            radius_m: a published position this near the truth is right; a frame this near a place could be recognised.
        """
        right = self.right(radius_m)
        distances = np.linalg.norm(self.truth[:, None] - mapped[None, :, :2], axis=2)
        possible = (distances <= radius_m).any(axis=1)
        errors = np.linalg.norm(self.estimates - self.truth, axis=1)[self.accepted]
        nearest = np.linalg.norm(self.guesses - self.truth, axis=1) <= radius_m
        return {
            "frames": len(self.accepted),
            "accepted": int(self.accepted.sum()),
            "right": int(right.sum()),
            "precision": float(right.sum() / self.accepted.sum()) if self.accepted.any() else None,
            "recall": float((right & possible).sum() / possible.sum()) if possible.any() else None,
            "best_candidate_right": float(nearest[possible].mean()) if possible.any() else None,
            "median_error_m": float(np.median(errors)) if len(errors) else None,
            "radius_m": radius_m,
            "latency_ms": {
                "p50": float(1e3 * np.percentile(self.latencies_s, 50)),
                "p99": float(1e3 * np.percentile(self.latencies_s, 99)),
            }
            if len(self.latencies_s)
            else None,
            "images": self.images,
            "dropped": self.images - len(self.latencies_s),
            "without_truth": self.without_truth,
        }
