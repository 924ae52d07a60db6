"""What a live localisation was worth: against numbers computed by hand."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from training.demo.live import Live
from vpr_kd_ros.errors import DataError

SECOND = 10**9
MAPPED = np.array([[0.0, 0.0], [10.0, 0.0], [20.0, 0.0], [30.0, 0.0]])


def drive(seconds: int) -> list[list[float]]:
    """True poses: along x at 10 m/s, one a second."""
    return [[i * SECOND, 10.0 * i, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0] for i in range(seconds)]


def answer(
    second: float,
    guess: tuple[float, float] | None,
    pose: tuple[float, float] | None = None,
    latency: float | None = 0.1,
) -> dict[str, Any]:
    best = None if guess is None else {"x": guess[0], "y": guess[1], "place_id": 3, "probability": 0.75}
    published = None if pose is None else [*pose, 0.0, 0.0, 0.0, 0.0, 1.0]
    return {"stamp_ns": round(second * SECOND), "best": best, "pose": published, "latency_s": latency}


def watched(frames: list[dict[str, Any]], images: int = 0, seconds: int = 10) -> dict[str, Any]:
    """As it comes back from ``live.json``."""
    result = {"images": images or len(frames), "frames": frames, "truth": drive(seconds), "diagnostics": {}}
    return dict(json.loads(json.dumps(result)))


def test_precision_recall_and_errors_by_hand() -> None:
    frames = [
        answer(0.0, (0.0, 0.0), (3.0, 4.0)),  # 5 m off: right
        answer(1.5, (10.0, 0.0), (15.0, 2.0)),  # truth between two poses at x = 15: 2 m off, right
        answer(2.0, (0.0, 0.0), (0.0, 0.0)),  # 20 m off: wrong
        answer(3.0, (30.0, 3.0)),  # refused, its best candidate was right
        answer(3.2, (0.0, 0.0)),  # refused, its best candidate was wrong
        answer(9.0, (30.0, 0.0)),  # 60 m from every place: no answer could be right
    ]
    result = Live.from_watch(watched(frames)).summary(MAPPED, radius_m=6.0)
    assert (result["frames"], result["accepted"], result["right"]) == (6, 3, 2)
    assert result["precision"] == pytest.approx(2 / 3)
    assert result["recall"] == pytest.approx(2 / 5)
    # Right best candidates among the five: at 0 s (0 m), 1.5 s (5 m) and 3 s (3 m).
    assert result["best_candidate_right"] == pytest.approx(3 / 5)
    assert result["median_error_m"] == pytest.approx(5.0)
    assert result["radius_m"] == 6.0


def test_a_position_at_the_radius_is_right() -> None:
    live = Live.from_watch(watched([answer(0.0, (0.0, 0.0), (6.0, 0.0)), answer(1.0, (0.0, 0.0), (10.0, 6.001))]))
    assert live.right(6.0).tolist() == [True, False]


def test_latency_is_over_the_answers_to_images_that_were_seen() -> None:
    latencies = [0.010, 0.020, 0.030, 0.040, 0.110]
    frames = [answer(0.5 * i, (0.0, 0.0), latency=value) for i, value in enumerate([*latencies, None])]
    result = Live.from_watch(watched(frames, images=9)).summary(MAPPED, 6.0)
    # Linear between ranks: rank 0.99 * 4 = 3.96 lies 96 % of the way from 40 to 110 ms.
    assert result["latency_ms"] == {"p50": pytest.approx(30.0), "p99": pytest.approx(40.0 + 0.96 * 70.0)}
    # Nine images were seen and five of them answered; the sixth answer is to an image that was not seen.
    assert (result["images"], result["dropped"]) == (9, 4)


def test_without_any_latency_there_is_none() -> None:
    result = Live.from_watch(watched([answer(0.0, (0.0, 0.0), latency=None)], images=2)).summary(MAPPED, 6.0)
    assert result["latency_ms"] is None
    assert result["dropped"] == 2


def test_nothing_accepted() -> None:
    result = Live.from_watch(watched([answer(0.0, (0.0, 0.0)), answer(1.0, (30.0, 0.0))])).summary(MAPPED, 6.0)
    assert (result["accepted"], result["right"]) == (0, 0)
    assert result["precision"] is None
    assert result["median_error_m"] is None
    assert result["recall"] == 0.0
    assert result["best_candidate_right"] == 0.5


def test_answers_without_candidates_are_frames_that_nothing_was_found_in() -> None:
    live = Live.from_watch(watched([answer(0.0, None), answer(1.0, (10.0, 0.0), (10.0, 1.0))]))
    assert live.places.tolist() == [-1, 3]
    assert np.isnan(live.guesses[0]).all()
    assert live.probabilities.tolist() == [0.0, 0.75]
    result = live.summary(MAPPED, 6.0)
    assert (result["precision"], result["recall"], result["best_candidate_right"]) == (1.0, 0.5, 0.5)


def test_answers_beyond_the_true_poses_are_counted_but_no_frames_and_no_drops() -> None:
    frames = [answer(1.0, (10.0, 0.0), (10.0, 0.0)), answer(4.5, (30.0, 0.0), (0.0, 0.0))]
    result = Live.from_watch(watched(frames, images=2, seconds=4)).summary(MAPPED, 6.0)
    assert (result["frames"], result["without_truth"], result["dropped"]) == (1, 1, 0)
    assert result["precision"] == 1.0


def test_an_empty_map_recognises_nothing() -> None:
    result = Live.from_watch(watched([answer(0.0, None)])).summary(np.empty((0, 2)), 6.0)
    assert (result["precision"], result["recall"], result["best_candidate_right"]) == (None, None, None)


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (watched([]), "0 answers and 10 true poses"),
        (watched([answer(0.0, None)], seconds=0), "1 answers and 0 true poses"),
        (watched([answer(20.0, None), answer(30.0, None)]), "none of 2 answers"),
    ],
    ids=["no answers", "no truth", "another clock"],
)
def test_what_cannot_be_measured_is_an_error(seen: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        Live.from_watch(seen)
