"""From a camera's message to the network's input: decode, resize, normalise; ours against plain OpenCV and torch.

    python benchmarks/image_path.py
    python benchmarks/image_path.py --cameras 1280x720 --inputs 224x224 --repeats 100

Ours is what the localizer does with a message: `decode.image_from_message` and `preprocess.BatchInput`. Plain is what
one writes at first: decode with OpenCV, convert the whole image to RGB, reduce it with INTER_AREA (INTER_LINEAR
aliases), scale and normalise in float32, transpose, and make a tensor of it. Both take JPEGs (`CompressedImage`)
and raw images (`bgr8`), on one thread. Runs are interleaved: read the ratio. The network is not in it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

# Run as a file, the checkout is not on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measuring import Row, faster, finish, in_turns, parser, spread
from vpr_kd_ros.decode import image_from_message
from vpr_kd_ros.preprocess import BatchInput, Preprocess


def photograph(width: int, height: int) -> NDArray[np.uint8]:
    """A BGR image (height, width, 3) as compressible as a camera's: smooth shapes and the noise of a sensor."""
    rows, columns = np.mgrid[:height, :width]
    shapes = [120 + 60 * np.sin(rows / a) * np.cos(columns / b) for a, b in ((31, 47), (53, 19), (17, 71))]
    noise = np.random.default_rng(0).normal(0, 3, (height, width, 3))
    return np.asarray((np.dstack(shapes) + noise).clip(0, 255), dtype=np.uint8)


def messages(image: NDArray[np.uint8]) -> dict[str, Any]:
    """The image as `sensor_msgs/CompressedImage` and as `sensor_msgs/Image`, with the fields that are read."""
    height, width, _ = image.shape
    jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
    raw = {"height": height, "width": width, "encoding": "bgr8", "is_bigendian": 0, "step": 3 * width}
    return {
        "jpeg": SimpleNamespace(format="bgr8; jpeg compressed bgr8", data=jpeg.tobytes()),
        "raw": SimpleNamespace(**raw, data=image.tobytes()),
    }


def plain(message: Any, preprocess: Preprocess) -> torch.Tensor:
    """Network input (1, 3, height, width) float32 with OpenCV and torch alone."""
    if hasattr(message, "format"):
        image = cv2.imdecode(np.frombuffer(message.data, np.uint8), cv2.IMREAD_COLOR)
        assert image is not None
    else:
        image = np.frombuffer(message.data, np.uint8).reshape(message.height, message.width, 3)
    rgb = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    small = cv2.resize(rgb, (preprocess.width, preprocess.height), interpolation=cv2.INTER_AREA)
    scaled = small.astype(np.float32) / 255.0
    normal = (scaled - np.array(preprocess.mean, np.float32)) / np.array(preprocess.std, np.float32)
    return torch.from_numpy(np.ascontiguousarray(normal.transpose(2, 0, 1)))[None]


def measure(camera: str, size: str, repeats: int) -> list[Row]:
    """The rows of one camera and one network input."""
    width, height = map(int, camera.split("x"))
    rows_wanted, columns_wanted = map(int, size.split("x"))
    preprocess = Preprocess(rows_wanted, columns_wanted)
    to_input = BatchInput(preprocess, torch.device("cpu"))
    rows = []
    for transport, message in messages(photograph(width, height)).items():
        runs = {
            "ours": lambda message=message: to_input([image_from_message(message)]),
            "plain": lambda message=message: plain(message, preprocess),
            "ours_decode": lambda message=message: image_from_message(message),
        }
        times = in_turns(runs, repeats, warm=3)
        row: Row = {"camera": camera, "transport": transport, "input": size}
        for name in ("ours", "plain"):
            row |= spread(name, times[name])
        row["ours_decode_ms"] = spread("ours_decode", times["ours_decode"])["ours_decode_ms"]
        rows.append({**row, "speedup": faster(times, "ours", "plain")})
    return rows


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Measure, print the table and return its rows."""
    options = parser(__doc__)
    options.add_argument(
        "--cameras", nargs="+", default=["640x480", "1280x720", "1920x1080"], help="width x height of the images"
    )
    options.add_argument("--inputs", nargs="+", default=["224x224", "240x320"], help="height x width of the network")
    options.add_argument("--repeats", type=int, default=60)
    args = options.parse_args(argv)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    rows = [row for camera in args.cameras for size in args.inputs for row in measure(camera, size, args.repeats)]
    return finish(args, "image_path", rows)


if __name__ == "__main__":
    main()
