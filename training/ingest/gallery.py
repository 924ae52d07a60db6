"""What a bag looks like: a few frames with the LiDAR from above beside them, in one HTML file without any network."""

from __future__ import annotations

import base64
import html
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from training.ingest.bag import Bag
from training.ingest.keyframes import shrink
from training.ingest.topics import candidates
from vpr_kd_ros.decode import cloud_from_message, image_from_message
from vpr_kd_ros.errors import DataError

FRAMES = 6
SIDE_PX = 420
REACH_M = 40.0
STYLE = """body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem}
pre{overflow-x:auto;background:#f4f4f4;padding:1rem;font-size:13px}
figure{margin:1rem 0;display:flex;gap:.5rem;flex-wrap:wrap}
figcaption{flex-basis:100%;color:#555}img{max-width:100%}"""


@dataclass(frozen=True)
class _Picture:
    caption: str
    image: str
    cloud: str


def write_gallery(bag: Bag, text: str, out: str | Path) -> None:
    """Write the page.

    Args:
        bag: open; its busiest camera and LiDAR topics are shown.
        text: what ``inspect`` says of the bag.
        out: the HTML file.

    Raises:
        DataError: the file cannot be written.
    """
    figures = "\n".join(
        f"<figure><figcaption>{html.escape(p.caption)}</figcaption>{p.image}{p.cloud}</figure>" for p in _pictures(bag)
    )
    title = html.escape(str(bag.path))
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{STYLE}</style></head>
<body><h1>{title}</h1>
<pre>{html.escape(text)}</pre>
<p>LiDAR from above, {2 * REACH_M:.0f} m wide, in the sensor's frame: x is up, y is left; brighter is higher.</p>
{figures}
</body></html>
"""
    try:
        Path(out).write_text(page, encoding="utf-8")
    except OSError as error:
        raise DataError(f"{out}: cannot be written: {error.strerror}") from error


def birds_eye(points: NDArray[np.float32], side_px: int = SIDE_PX, reach_m: float = REACH_M) -> NDArray[np.uint8]:
    """Picture (side_px, side_px, 3) of points (M, 3): x up, y left, the sensor in the middle, brighter is higher."""
    picture = np.full((side_px, side_px, 3), 16, dtype=np.uint8)
    near = points[(np.abs(points[:, :2]) < reach_m).all(axis=1)]
    if len(near) == 0:
        return picture
    near = near[np.argsort(near[:, 2])]  # the highest is drawn last
    low, high = np.percentile(near[:, 2], [2, 98])
    level = np.clip((near[:, 2] - low) / max(high - low, 1e-3), 0.0, 1.0)
    rows, columns = ((1.0 - near[:, :2] / reach_m) * side_px / 2).astype(int).clip(0, side_px - 1).T
    picture[rows, columns] = (np.outer(90 + 165 * level, [0.55, 0.85, 1.0])).astype(np.uint8)
    return picture


def _pictures(bag: Bag) -> list[_Picture]:
    camera, lidar = (
        max(candidates(bag.topics, role), key=lambda topic: topic.count, default=None) for role in ("camera", "lidar")
    )
    if camera is None:
        return []
    wanted = set(np.linspace(0, camera.count - 1, min(FRAMES, camera.count)).round().astype(int).tolist())
    pictures: list[_Picture] = []
    number, first, cloud = 0, 0, b""
    for topic, time, data in bag.messages({camera.name} | ({lidar.name} if lidar is not None else set())):
        first = first or time
        if topic != camera.name:
            cloud = data
            continue
        if number in wanted:
            above = "" if lidar is None or not cloud else _cloud(bag, lidar.name, cloud)
            caption = f"{camera.name}, message {number}, {(time - first) / 1e9:.1f} s"
            pictures.append(_Picture(caption, _image(bag, camera.name, data), above))
        number += 1
    return pictures


def _image(bag: Bag, topic: str, data: bytes) -> str:
    try:
        return _tag(shrink(image_from_message(bag.decode(topic, data)), SIDE_PX), "the camera's image")
    except DataError as error:
        return f"<p>{html.escape(str(error))}</p>"


def _cloud(bag: Bag, topic: str, data: bytes) -> str:
    try:
        return _tag(birds_eye(cloud_from_message(bag.decode(topic, data))), "the last scan before it, from above")
    except DataError as error:
        return f"<p>{html.escape(str(error))}</p>"


def _tag(picture: NDArray[np.uint8], what: str) -> str:
    _, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    text = base64.b64encode(data.tobytes()).decode()
    return f'<img alt="{what}" src="data:image/jpeg;base64,{text}">'
