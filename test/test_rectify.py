"""Rectified images show straight what is straight, by the camera's own calibration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from support import bags
from support.bags import START_NS
from support.ingested import ingest
from training.ingest.config import IngestConfig
from training.ingest.rectify import Rectifier
from training.sessions import Session
from vpr_kd_ros.errors import DataError

WIDTH, HEIGHT, FOCAL = 160, 120, 100.0
K = np.array([[FOCAL, 0, 80.0], [0, FOCAL, 60.0], [0, 0, 1]])


def info(model: str, d: list[float], **values: Any) -> Any:
    roi = bags.message("sensor_msgs/msg/RegionOfInterest", x_offset=0, y_offset=0, height=0, width=0, do_rectify=False)
    fields = {
        "header": bags.header(START_NS, "camera"),
        "height": HEIGHT,
        "width": WIDTH,
        "distortion_model": model,
        "d": np.array(d),
        "k": K.ravel(),
        "r": np.eye(3).ravel(),
        "p": np.column_stack([K, np.zeros(3)]).ravel(),
        "binning_x": 0,
        "binning_y": 0,
        "roi": roi,
    }
    return bags.message("sensor_msgs/msg/CameraInfo", **{**fields, **values})


def seen_through(model: str, d: list[float]) -> NDArray[np.uint8]:
    """A picture whose green is the undistorted column and whose red the undistorted row, by the lens's formula."""
    v, u = np.mgrid[0:HEIGHT, 0:WIDTH].astype(float)
    goal_x, goal_y = (u - 80) / FOCAL, (v - 60) / FOCAL
    x, y = goal_x.copy(), goal_y.copy()
    for _ in range(60):  # the formula distorts; it is inverted by fixed-point iteration
        r2 = x * x + y * y
        if model == "equidistant":
            r = np.sqrt(r2) + 1e-12
            theta = np.arctan(r)
            factor = theta * (1 + d[0] * theta**2) / r
        else:
            factor = 1 + d[0] * r2 + d[1] * r2 * r2
        x, y = goal_x / factor, goal_y / factor
    columns, rows = np.clip(x * FOCAL + 80, 0, 255), np.clip(y * FOCAL + 60, 0, 255)
    return np.dstack([rows, columns, 0 * rows]).round().astype(np.uint8)


@pytest.mark.parametrize(
    ("model", "d"), [("plumb_bob", [-0.2, 0.03, 0.0, 0.0, 0.0]), ("equidistant", [0.02, 0.0, 0.0, 0.0])]
)
def test_columns_and_rows_are_where_a_pinhole_sees_them(model: str, d: list[float]) -> None:
    found = Rectifier.from_message(info(model, d)).apply(seen_through(model, d)).astype(float)
    v, u = np.mgrid[0:HEIGHT, 0:WIDTH].astype(float)
    middle = (slice(20, -20), slice(20, -20))
    assert np.abs(found[middle][..., 0] - v[middle]).max() <= 1.5
    assert np.abs(found[middle][..., 1] - u[middle]).max() <= 1.5
    assert np.abs(seen_through(model, d)[middle][..., 1] - u[middle]).max() > 3


def records(camera: str = "/front/image_raw", **values: Any) -> list[bags.Record]:
    model, d = "plumb_bob", [-0.2, 0.03, 0.0, 0.0, 0.0]
    picture = seen_through(model, d)
    return [
        ("/front/camera_info", START_NS, info(model, **{"d": d, **values})),
        *((camera, START_NS + i * 10**9, bags.image(START_NS + i * 10**9, picture)) for i in range(3)),
    ]


def test_ingest_rectifies_and_keeps_the_new_intrinsics(tmp_path: Path) -> None:
    path = bags.write_bag(tmp_path / "drive", records())
    outcome = ingest(path, tmp_path / "out", IngestConfig(region="town", lidar_topic="none", rectify=True))
    image = Session(outcome.session).image(0).astype(float)
    assert np.abs(image[60, 20:140, 1] - np.arange(20, 140)).max() < 8  # JPEG takes some
    assert outcome.info.calibration["rectified_intrinsics"] == K.tolist()


def test_intrinsics_are_those_of_the_images_as_they_are_stored(tmp_path: Path) -> None:
    """A marked pixel of the whole image is, seen through both matrices, in the same direction in the shrunk one."""
    path = bags.write_bag(tmp_path / "drive", records())
    config = IngestConfig(region="town", lidar_topic="none", rectify=True, max_image_side_px=70)
    outcome = ingest(path, tmp_path / "out", config)
    image = Session(outcome.session).image(0).astype(float)
    assert image.shape == (52, 70, 3)  # of 120 rows, rounded down: the two factors differ
    found = np.array(outcome.info.calibration["rectified_intrinsics"])
    assert found == pytest.approx(np.diag([70 / 160, 52 / 120, 1.0]) @ K)
    # Green is the column and red the row of the whole image: where a ray meets it, by the matrix of the whole one.
    for column, row in ((20, 26), (35, 10), (50, 40)):
        ray = np.linalg.inv(found) @ [column, row, 1.0]
        expected = K @ ray
        assert np.abs(image[row, column, [1, 0]] - expected[:2]).max() < 8  # JPEG takes some


@pytest.mark.parametrize(
    ("values", "camera", "words"),
    [
        ({"k": np.zeros(9)}, "/front/image_raw", "not calibrated"),
        ({"distortion_model": "thin_prism"}, "/front/image_raw", "thin_prism"),
        (
            {"distortion_model": "equidistant", "d": np.array([0.1, 0.2])},
            "/front/image_raw",
            "d has 2 numbers, which are no equidistant distortion",
        ),
        ({"d": np.zeros(3)}, "/front/image_raw", "d has 3 numbers, which are no plumb_bob distortion"),
        ({}, "/rear/image_raw", "give --camera_info_topic /front/camera_info"),
        ({"height": 60}, "/front/image_raw", "160x120 pixels, but its CameraInfo is of 160x60"),
    ],
)
def test_calibrations_that_do_not_fit_are_told(values: dict[str, Any], camera: str, words: str, tmp_path: Path) -> None:
    path = bags.write_bag(tmp_path / "drive", records(camera, **values))
    with pytest.raises(DataError, match=words):
        ingest(path, tmp_path / "out", IngestConfig(region="town", lidar_topic="none", rectify=True))
