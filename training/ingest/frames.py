"""Where the LiDAR sits on the robot: from the configuration, or from the static transforms of the bag."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from vpr_kd_ros.decode import FARTHEST_M, stamp_ns
from vpr_kd_ros.errors import DataError
from vpr_kd_ros.geometry import Floats

BASE = "base_link"
"""Name of the base frame (REP 105), for pose sources that do not tell whose pose they give."""

Edge = tuple[str, str]
"""Parent and child frame of a transform."""
StaticTransforms = Mapping[Edge, Floats]
"""(parent, child) to parent_from_child, (4, 4)."""


@dataclass(frozen=True)
class Extrinsic:
    """Transform from the LiDAR's frame to the base frame, (4, 4) float64, metres, and where it was found."""

    base_from_lidar: Floats
    source: str

    def apply(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """Points (M, 3) of the LiDAR's frame in the base frame."""
        if np.array_equal(self.base_from_lidar, np.eye(4)):
            return points
        moved = points @ self.base_from_lidar[:3, :3].T + self.base_from_lidar[:3, 3]
        return np.asarray(moved, dtype=np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"base_from_lidar": self.base_from_lidar.tolist(), "source": self.source}


def matrix(translation: Floats | list[float], rotation: Rotation) -> Floats:
    """Homogeneous transform, (4, 4)."""
    result: Floats = np.eye(4)
    result[:3, :3] = rotation.as_matrix()
    result[:3, 3] = translation
    return result


def stamped_transforms(message: Any) -> Iterator[tuple[Edge, int, list[float], list[float]]]:
    """Usable transforms of a ``tf2_msgs/TFMessage``: edge, stamp in nanoseconds, translation (3), quaternion (4)."""
    for item in message.transforms:
        t, q = item.transform.translation, item.transform.rotation
        translation, quaternion = [t.x, t.y, t.z], [q.x, q.y, q.z, q.w]
        # Not a number fails the comparison too.
        near = np.abs(translation).max() <= FARTHEST_M
        if near and np.isfinite(quaternion).all() and np.linalg.norm(quaternion) > 1e-6:
            edge = (_clean(item.header.frame_id), _clean(item.child_frame_id))
            yield edge, stamp_ns(item.header), translation, quaternion


def transforms_of(message: Any) -> dict[Edge, Floats]:
    """Static transforms of a ``tf2_msgs/TFMessage``."""
    return {
        edge: matrix(translation, Rotation.from_quat(quaternion))
        for edge, _, translation, quaternion in stamped_transforms(message)
    }


def find_extrinsic(
    given: list[float] | None, lidar_frame: str, base_frame: str, transforms: StaticTransforms
) -> Extrinsic:
    """Transform from LiDAR to base.

    Args:
        given: x, y, z, roll, pitch, yaw in metres and radians (fixed axes, as URDF has it), or None to look for it.
        lidar_frame: frame of the clouds.
        base_frame: frame whose pose the pose source gives.
        transforms: static transforms of the bag.

    Raises:
        DataError: nothing is given and no chain of static transforms joins the two frames.
    """
    if given is not None:
        return Extrinsic(matrix(given[:3], Rotation.from_euler("xyz", given[3:])), "given")
    lidar, base = _clean(lidar_frame), _clean(base_frame)
    if lidar and lidar == base:
        return Extrinsic(np.eye(4), f"clouds are in frame {base!r}")
    chain = _join(base, lidar, transforms)
    if chain is None:
        raise DataError(
            f"clouds are in frame {lidar!r}, poses are of frame {base!r}, and the bag's static transforms do not join "
            "them: say where the LiDAR sits with --base_from_lidar '[x, y, z, roll, pitch, yaw]' "
            "(all 0 where the frames are the same)"
        )
    return Extrinsic(chain, "static transforms of the bag")


def find_chain(target: str, source: str, edges: Iterable[Edge]) -> list[tuple[Edge, bool]] | None:
    """Shortest chain of transforms whose product is target_from_source; None where there is none.

    Returns:
        Each edge, and whether it is taken as it is (parent_from_child) or inverted.
    """
    target, source = _clean(target), _clean(source)
    steps: dict[str, list[tuple[str, Edge, bool]]] = {}
    for parent, child in edges:
        steps.setdefault(parent, []).append((child, (parent, child), True))
        steps.setdefault(child, []).append((parent, (parent, child), False))
    reached: dict[str, list[tuple[Edge, bool]]] = {target: []}
    queue = deque([target])
    while queue:
        frame = queue.popleft()
        for neighbour, edge, forward in steps.get(frame, []):
            if neighbour not in reached:
                reached[neighbour] = [*reached[frame], (edge, forward)]
                queue.append(neighbour)
    return reached.get(source)


def _join(target: str, source: str, transforms: StaticTransforms) -> Floats | None:
    """target_from_source along the shortest chain of transforms, None where there is none."""
    chain = find_chain(target, source, transforms)
    if chain is None:
        return None
    joined: Floats = np.eye(4)
    for edge, forward in chain:
        joined = joined @ (transforms[edge] if forward else np.linalg.inv(transforms[edge]))
    return joined


def _clean(frame: str) -> str:
    return frame.lstrip("/")
