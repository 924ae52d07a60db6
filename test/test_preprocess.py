"""The pre-processing against OpenCV and its own definition."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from support.tiny import picture
from training.data.dataset import Keyframes
from training.sessions import Session, SessionInfo, SessionWriter
from vpr_kd_ros.decode import image_from_message
from vpr_kd_ros.errors import DataError
from vpr_kd_ros.preprocess import BatchInput, Preprocess


def test_shrinking_averages_as_opencv_does() -> None:
    rng = np.random.default_rng(0)
    smooth = cv2.GaussianBlur(rng.integers(0, 256, (240, 320, 3), dtype=np.uint8), (0, 0), 6)
    smooth = np.asarray(cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX), dtype=np.uint8)  # type: ignore[call-overload]
    found = Preprocess(60, 80).resize(smooth).permute(1, 2, 0).numpy()
    wanted = cv2.resize(smooth, (80, 60), interpolation=cv2.INTER_AREA)
    assert np.abs(found.astype(int) - wanted.astype(int)).max() <= 6


def test_shrinking_does_not_alias() -> None:
    stripes = np.zeros((100, 200, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    found = Preprocess(10, 20).resize(stripes).numpy().astype(int)
    assert np.abs(found[:, :, 1:-1] - 128).max() <= 2


def test_normalised_by_channel() -> None:
    preprocess = Preprocess(4, 6, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    image = picture(1, 4, 6)  # its own size: not resized
    wanted = np.empty((3, 4, 6))
    for channel in range(3):
        wanted[channel] = (image[:, :, channel] / 255.0 - preprocess.mean[channel]) / preprocess.std[channel]
    found = preprocess(image)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-5)
    batch = torch.stack([preprocess.resize(image)] * 2)
    np.testing.assert_array_equal(preprocess.normalise(batch)[1].numpy(), found.numpy())


def test_the_image_is_left_alone_and_views_are_welcome() -> None:
    image = picture(2, 20, 30)
    kept = image.copy()
    preprocess = Preprocess(8, 8)
    wanted = preprocess(image)
    image.flags.writeable = False
    np.testing.assert_array_equal(preprocess(image).numpy(), wanted.numpy())
    bgr = np.ascontiguousarray(image[:, :, ::-1])
    np.testing.assert_array_equal(preprocess(bgr[:, :, ::-1]).numpy(), wanted.numpy())
    np.testing.assert_array_equal(image, kept)
    same_size = Preprocess(20, 30).resize(image)
    same_size += 1
    np.testing.assert_array_equal(image, kept)


def test_round_trip_through_json() -> None:
    preprocess = Preprocess(224, 320, mean=(0.5, 0.4, 0.3))
    assert Preprocess.from_dict(json.loads(json.dumps(preprocess.to_dict()))) == preprocess


@pytest.mark.parametrize(
    "changes",
    [
        {"height": 0},
        {"height": "tall"},
        {"width": None},
        {"std": [0.1, 0.0, 0.1]},
        {"std": [0.1, math.nan, 0.1]},
        {"mean": [0.1, 0.1]},
        {"mean": [0.1, 0.1, math.inf]},
        {"mean": 3},
        {"resizer": "nearest"},
        {"colour": "bgr"},
    ],
)
def test_bad_values_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="preprocess"):
        Preprocess.from_dict({**Preprocess(8, 8).to_dict(), **changes})


def test_what_is_no_image_is_refused() -> None:
    for image in (np.zeros((8, 8)), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 0, 3), np.uint8)):
        with pytest.raises(DataError, match="RGB"):
            Preprocess(4, 4).resize(image)  # type: ignore[arg-type]


CPU = torch.device("cpu")


def test_training_and_robot_see_the_same_pixels(tmp_path: Path) -> None:
    """A keyframe as training reads it, and the same JPEG as a camera's message: equal bit for bit."""
    preprocess = Preprocess(24, 40)
    rng = np.random.default_rng(0)
    with SessionWriter(tmp_path / "s", SessionInfo(name="s", region="r", condition="sun", frame_id="map")) as writer:
        for i in range(3):
            writer.add(stamp_ns=i + 1, image=rng.integers(0, 256, (60, 90, 3), dtype=np.uint8), cloud=None, pose=None)
    keyframes = Keyframes([Session(tmp_path / "s")], preprocess)
    learnt = preprocess.normalise(keyframes.frames([0, 1, 2], images=True).images)  # type: ignore[arg-type]
    files = sorted((tmp_path / "s" / "images").iterdir())
    messages = [SimpleNamespace(format="jpeg", data=file.read_bytes()) for file in files]
    seen = BatchInput(preprocess, CPU)([image_from_message(message) for message in messages])
    assert torch.equal(seen, learnt)
    raw = [np.ascontiguousarray(keyframes.sessions[0].image(i)[:, :, ::-1]) for i in range(3)]
    messages = [
        SimpleNamespace(encoding="bgr8", height=60, width=90, step=270, is_bigendian=0, data=image.tobytes())
        for image in raw
    ]
    assert torch.equal(BatchInput(preprocess, CPU)([image_from_message(message) for message in messages]), learnt)


def test_a_batch_is_what_its_images_are_by_themselves() -> None:
    preprocess = Preprocess(16, 24)
    make = BatchInput(preprocess, CPU)
    for count in (3, 1, 5, 2):
        images = [picture(count + i, 16 + 7 * (i % 3), 24 + 11 * i) for i in range(count)]
        batch = make(images)
        assert batch.is_contiguous()
        assert torch.equal(batch, torch.stack([preprocess(image) for image in images]))
    assert make([]).shape == (0, 3, 16, 24)


def test_the_buffers_of_a_batch_are_used_again() -> None:
    make = BatchInput(Preprocess(16, 24), CPU)
    first = make([picture(0)] * 4)
    assert make([picture(1)]).data_ptr() == first.data_ptr()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_normalises_as_the_cpu_does() -> None:
    images = [picture(i, 50, 70) for i in range(5)]
    found = BatchInput(Preprocess(16, 24), torch.device("cuda"))(images)
    assert torch.equal(found.cpu(), BatchInput(Preprocess(16, 24), CPU)(images))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_batch_holds_the_normalised_pixels_whatever_the_sizes(data: st.DataObject) -> None:
    sizes = st.tuples(st.integers(1, 40), st.integers(1, 40))
    height, width = data.draw(sizes)
    preprocess = Preprocess(height, width, mean=(0.1, 0.5, 0.9), std=(0.2, 0.3, 0.4))
    images = [picture(i, *data.draw(st.one_of(sizes, st.just((height, width))))) for i in range(2)]
    padded = np.zeros((*images[1].shape[:2], 5), dtype=np.uint8)[:, :, :3]
    padded[:] = images[1]
    images[0].flags.writeable = False
    found = BatchInput(preprocess, CPU)([images[0], padded])
    wanted = torch.stack([preprocess(image) for image in images])
    assert torch.equal(found, wanted)
