"""The localizer with several cameras, on descriptors that the test chooses."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from support.tiny import PRESET
from vpr_kd_ros.belief import BeliefConfig
from vpr_kd_ros.errors import DataError
from vpr_kd_ros.geometry import Pose
from vpr_kd_ros.localizer import Localizer, LocalizerConfig
from vpr_kd_ros.match import Match
from vpr_kd_ros.place_filter import SAME_HEADING_RAD, SAME_SPOT_M, counterparts
from vpr_kd_ros.place_map import PlaceMap
from vpr_kd_ros.preprocess import Preprocess
from vpr_kd_ros.student import Student, StudentMetadata

PLACES = 40
DIM = 2 * PLACES + 1
SECOND = 1_000_000_000
FINGERPRINT = "ab" * 32
Descriptor = NDArray[np.float32]


class Silent:
    """A backend that nobody asks."""

    device = torch.device("cpu")

    def describe(self, batch: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


STUDENT = Student(StudentMetadata("preset", "none", DIM, Preprocess(8, 8), {}, PRESET, FINGERPRINT), Silent())


def street(camera: str, spacing: float = 4.0, first: int = 0, frame: str = "map", behind: float = 0.0) -> PlaceMap:
    """A camera's map of a street: each place has a dimension of its own, and each camera its own half of them."""
    place_map = PlaceMap(DIM, FINGERPRINT, frame)
    place_map._next_id = first
    for i in range(PLACES):
        row = np.eye(DIM, dtype=np.float32)[i + (PLACES if camera == "rear" else 0)]
        place_map.add(row, Pose.planar(spacing * i - behind, 0.0, 0.0), i, "drive")
    return place_map


def seen(camera: str, similarities: dict[int, float]) -> Descriptor:
    """What a camera sees that finds these places this similar."""
    descriptor = np.zeros(DIM)
    for place, similarity in similarities.items():
        descriptor[place + (PLACES if camera == "rear" else 0)] = similarity
    descriptor[-1] = math.sqrt(1.0 - float(descriptor @ descriptor))
    return descriptor.astype(np.float32)


def localizer(*cameras: str, **config: Any) -> Localizer:
    """Rear places lie a metre behind the front's, and have other ids."""
    maps = {"front": street("front"), "rear": street("rear", first=1000, behind=1.0)}
    belief = BeliefConfig(decorrelation_m=1e-3, camera_correlation=0.5)
    options: dict[str, Any] = {"mode": "belief", "candidates": 5, "belief": belief, **config}
    return Localizer(STUDENT, {camera: maps[camera] for camera in cameras}, LocalizerConfig(**options))


def drive(subject: Localizer, step: int, cameras: tuple[str, ...], similarity: float = 0.2) -> Match:
    """The robot is at place 5 + step, and every image is as similar to one other place, another for each camera."""
    for shift, camera in enumerate(cameras):
        other = (17 * step + 29 + 7 * shift) % PLACES
        descriptor = seen(camera, {other: similarity} | {5 + step: similarity})
        told = Pose.planar(4.0 * step + 0.3 * shift, 0.0, 0.0)
        match = subject.find(descriptor, step * SECOND + shift * SECOND // 20, told, camera)
    return match


def test_two_cameras_agree_sooner_than_one() -> None:
    together = localizer("front", "rear")
    both = [drive(together, i, ("front", "rear")) for i in range(8)]
    alone = {}
    for camera in ("front", "rear"):
        single = localizer(camera)
        alone[camera] = [drive(single, i, (camera,)) for i in range(8)]
    for match in (both[-1], alone["front"][-1]):
        assert match.pose is not None
    first = {name: [m.accepted for m in matches].index(True) for name, matches in (alone | {"both": both}).items()}
    assert first["both"] < min(first["front"], first["rear"])
    # The answer to the rear camera's image names a place of its own map, and the pose is the base's.
    assert both[-1].camera == "rear"
    assert both[-1].place_id == 1000 + 12
    assert both[-1].pose is not None
    np.testing.assert_allclose(both[-1].pose.position[:2], [4.0 * 12 + 0.3, 0.0], atol=2.0)
    assert set(both[-1].candidates.place_ids.tolist()) <= set(range(1000, 1000 + PLACES))


@pytest.mark.parametrize("left", ["front", "rear"])
def test_when_a_camera_fails_the_other_goes_on(left: str) -> None:
    subject = localizer("front", "rear")
    for step in range(4):
        drive(subject, step, ("front", "rear"))
    matches = [drive(subject, step, (left,)) for step in range(4, 20)]
    assert all(match.accepted for match in matches[2:])
    last = matches[-1]
    assert last.pose is not None
    assert last.place_id == (24 if left == "front" else 1024)
    np.testing.assert_allclose(last.pose.position[:2], [4.0 * 24, 0.0], atol=2.0)


def test_one_camera_of_a_name_is_the_camera_without_one() -> None:
    named = localizer("front")
    plain = Localizer(STUDENT, street("front"), named.config)
    for step in range(6):
        descriptor = seen("front", {5 + step: 0.3, (17 * step + 29) % PLACES: 0.2})
        told = Pose.planar(4.0 * step, 0.0, 0.0)
        ours = named.find(descriptor, step * SECOND, told, "front")
        theirs = plain.find(descriptor, step * SECOND, told)
        assert (ours.place_id, ours.probability, ours.accepted) == (
            theirs.place_id,
            theirs.probability,
            theirs.accepted,
        )


def test_single_images_are_found_in_their_cameras_map() -> None:
    subject = localizer("front", "rear", mode="single", min_probability=0.5)
    for camera, first, behind in (("front", 0, 0.0), ("rear", 1000, 1.0)):
        match = subject.find(seen(camera, {9: 0.8}), 0, None, camera)
        assert match.accepted
        assert match.place_id == first + 9
        assert match.pose is not None
        np.testing.assert_allclose(match.pose.position[:2], [36.0 - behind, 0.0], atol=1e-3)
        # What one camera sees is nothing to the other's map.
        other = "rear" if camera == "front" else "front"
        assert not subject.find(seen(other, {9: 0.8}), 0, None, camera).accepted


def test_where_a_cameras_map_has_no_place_it_says_nothing() -> None:
    """The rear camera's map ends half way: beyond, its images speak neither for nor against the places there."""
    rear = street("rear")
    rear.remove(np.arange(PLACES // 2, PLACES))
    subject = Localizer(STUDENT, {"front": street("front"), "rear": rear}, localizer("front").config)
    assert subject.filter is not None
    belief = subject.filter.belief
    assert subject.filter.seen_by("rear", np.array([3, 19, 20, 21, 39])).tolist() == [3, 19, 19, -1, -1]
    subject.find(seen("front", {30: 0.4}), 0, Pose.planar(0, 0, 0), "front")
    place_ids, before = belief.hypotheses
    place = place_ids.tolist().index(30)
    match = subject.find(seen("rear", {}), 1, Pose.planar(0, 0, 0), "rear")
    assert belief.hypotheses[1][belief.hypotheses[0].tolist().index(30)] >= before[place]
    assert match.place_id is None
    assert match.reason == "" or "probability" in match.reason


def test_counterparts_are_the_nearest_of_the_same_drive() -> None:
    """Against a loop over all pairs."""
    rng = np.random.default_rng(4)

    def scattered(count: int, sessions: list[str]) -> PlaceMap:
        place_map = PlaceMap(DIM, FINGERPRINT, "map")
        for i in range(count):
            x, y = rng.uniform(0, 40, 2)
            pose = Pose.planar(float(x), float(y), float(rng.uniform(-4, 4)), z=float(rng.uniform(0, 2)))
            place_map.add(np.eye(DIM, dtype=np.float32)[i % DIM], pose, i, sessions[i % len(sessions)])
        place_map.remove(rng.choice(count, count // 10, replace=False))
        return place_map

    places, others = scattered(300, ["sun", "snow", "fog"]), scattered(200, ["snow", "sun"])
    found = counterparts(places, others)
    assert (found >= 0).any()
    assert (found < 0).any()
    radius = SAME_SPOT_M / (2 * math.sin(SAME_HEADING_RAD / 2))
    for place_id, ours in zip(places.ids.tolist(), found.tolist(), strict=True):
        pose = places.pose(place_id)
        far = {}
        for other in others.ids.tolist():
            there = others.pose(other)
            chord = 2 * radius * math.sin(abs(math.remainder(there.yaw - pose.yaw, 2 * math.pi)) / 2)
            far[other] = math.hypot(float(np.linalg.norm(there.position - pose.position)), chord)
        near = {other: distance for other, distance in far.items() if distance <= SAME_SPOT_M}
        same = {other: d for other, d in near.items() if others.session(other) == places.session(place_id)}
        best = min(same or near, key=lambda other: far[other], default=-1)
        assert ours == best
    # A place headed the other way is no counterpart, however near.
    street_map = street("front")
    back = PlaceMap(DIM, FINGERPRINT, "map")
    back.add(np.eye(DIM, dtype=np.float32)[0], Pose.planar(0.0, 0.0, math.pi), 0, "drive")
    assert counterparts(street_map, back).tolist() == [-1] * PLACES
    assert counterparts(back, PlaceMap(DIM, FINGERPRINT, "map")).tolist() == [-1]


def test_maps_that_do_not_belong_together_are_refused() -> None:
    config = LocalizerConfig()
    with pytest.raises(DataError, match=r"camera 'rear'.*in frame 'odom'.*'map'"):
        Localizer(STUDENT, {"front": street("front"), "rear": street("rear", frame="odom")}, config)
    stranger = PlaceMap(DIM, "cd" * 32, "map")
    with pytest.raises(DataError, match="camera 'rear': was made with the student cdcdcdcdcdcd"):
        Localizer(STUDENT, {"front": street("front"), "rear": stranger}, config)
    silent = Student(replace(STUDENT.metadata, calibration=PRESET), Silent())
    assert list(Localizer(silent, {"front": street("front")}, config).maps) == ["front"]
