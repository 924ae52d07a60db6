"""The candidates of an image as a cloud: x, y, z, yaw, similarity, probability, place_id."""

from __future__ import annotations

import struct
from functools import lru_cache

import numpy as np
from rclpy.serialization import serialize_message

from vpr_kd_ros.conversions import columns_to_cloud, stamp_from_ns
from vpr_kd_ros.match import Match

_NUMBERS = ("x", "y", "z", "yaw", "similarity", "probability")
_ROW = np.dtype([*((name, np.float32) for name in _NUMBERS), ("place_id", np.int32)])
_STAMP_AT = 4


def candidates_cloud(match: Match, frame_id: str) -> bytes:
    """The serialized ``sensor_msgs/PointCloud2`` of a match's candidates, best first.

    Clouds of as many candidates differ by stamp and points only, which are written over those of the first: making and
    serializing the message takes as long as finding the place.
    """
    candidates, stamp = match.candidates, stamp_from_ns(match.stamp_ns)
    rows = np.empty(len(candidates), dtype=_ROW)
    rows["x"], rows["y"], rows["z"] = candidates.positions.T
    rows["yaw"], rows["similarity"] = candidates.yaws, candidates.similarities
    rows["probability"], rows["place_id"] = candidates.probabilities, candidates.place_ids
    order, data_at, first = _first_cloud(len(candidates), frame_id)
    cloud = bytearray(first)
    struct.pack_into(f"{order}iI", cloud, _STAMP_AT, stamp.sec, stamp.nanosec)
    cloud[data_at : data_at + rows.nbytes] = rows.tobytes()
    return bytes(cloud)


@lru_cache(maxsize=8)
def _first_cloud(count: int, frame_id: str) -> tuple[str, int, bytes]:
    """A serialized cloud of so many candidates, its byte order, and where in it the points are."""
    rows = np.full(count * _ROW.itemsize, 0xA5, dtype=np.uint8).view(_ROW)
    serialized: bytes = serialize_message(
        columns_to_cloud({name: rows[name] for name in _ROW.names or ()}, 0, frame_id)
    )
    return "<" if serialized[1] & 1 else ">", serialized.rindex(rows.tobytes()), serialized
