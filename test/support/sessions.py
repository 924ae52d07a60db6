"""Small sessions that tests make."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from training.sessions import CLASSES, Session, SessionInfo, SessionWriter
from vpr_kd_ros.geometry import Pose

RADIUS_M = 40.0


def loop_session(
    path: Path,
    name: str,
    region: str,
    frames: int,
    seed: int,
    labelled: bool = True,
    condition: str = "sun",
    clouds: bool = True,
    size: tuple[int, int] = (24, 32),
    semantics: bool = False,
) -> Session:
    """A drive once around a circle of ``RADIUS_M`` metres.

    Picture, cloud and semantic labels are functions of the place in its region, the first two with some noise by drive,
    so that places can be learnt.
    """
    rng = np.random.default_rng(seed)
    place = np.random.default_rng(sum(region.encode()))
    scenes = place.integers(0, 256, (frames, 6, 8, 3))
    points = place.normal(0.0, 10.0, (frames, 120, 3)).astype(np.float32)
    info = SessionInfo(name=name, region=region, condition=condition, frame_id="map")
    with SessionWriter(path, info) as writer:
        for i in range(frames):
            angle = 2 * np.pi * i / frames
            scene = np.kron(scenes[i], np.ones((size[0] // 6, size[1] // 8, 1)))
            noisy = np.clip(scene + rng.normal(0, 10, scene.shape), 0, 255).astype(np.uint8)
            writer.add(
                stamp_ns=1_000_000_000 * (i + 1),
                image=noisy,
                cloud=points[i] + rng.normal(0, 0.05, points[i].shape).astype(np.float32) if clouds else None,
                pose=Pose.planar(RADIUS_M * np.cos(angle), RADIUS_M * np.sin(angle), angle + np.pi / 2)
                if labelled
                else None,
                semantics=np.kron(scenes[i, :, :, 0] % len(CLASSES), np.ones((size[0] // 6, size[1] // 8))).astype(
                    np.uint8
                )
                if semantics
                else None,
            )
    return Session(path)
