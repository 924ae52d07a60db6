"""What RViz and the image view show of a map and of a match."""

from __future__ import annotations

import cv2
import numpy as np
from geometry_msgs.msg import Point
from numpy.typing import NDArray
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import ColorRGBA
from visualization_msgs.msg import Marker, MarkerArray

from vpr_kd_ros.conversions import header, pose_to_message
from vpr_kd_ros.geometry import Floats
from vpr_kd_ros.match import Match
from vpr_kd_ros.nodes.cameras import prefixed

GREY = ColorRGBA(r=0.6, g=0.6, b=0.6, a=0.8)
GREEN = ColorRGBA(r=0.1, g=0.8, b=0.2, a=1.0)
ORANGE = ColorRGBA(r=1.0, g=0.6, b=0.0, a=1.0)
BLUE = (0.1, 0.4, 1.0)
PANEL_HEIGHT = 240


def places_marker(positions: Floats, frame_id: str, stamp_ns: int) -> Marker:
    """All places of a map as points; positions (N, 3), metres."""
    marker = Marker(header=header(stamp_ns, frame_id), ns="places", id=0, type=Marker.SPHERE_LIST, color=GREY)
    marker.pose.orientation.w = 1.0
    marker.scale.x = marker.scale.y = marker.scale.z = 0.5
    marker.points = [Point(x=float(x), y=float(y), z=float(z)) for x, y, z in positions]
    # An empty list is an error to RViz; deleting is what an empty map means.
    marker.action = Marker.ADD if len(positions) else Marker.DELETE
    return marker


def route_marker(positions: Floats, frame_id: str, stamp_ns: int) -> Marker:
    """The accepted poses so far as a line; positions (N, 3), metres."""
    marker = Marker(header=header(stamp_ns, frame_id), ns="route", id=0, type=Marker.LINE_STRIP, color=GREEN)
    marker.pose.orientation.w = 1.0
    marker.scale.x = 0.4
    marker.points = [Point(x=float(x), y=float(y), z=float(z)) for x, y, z in positions]
    # A line of one point is an error to RViz.
    marker.action = Marker.ADD if len(positions) > 1 else Marker.DELETE
    return marker


def belief_marker(positions: Floats, weights: Floats, frame_id: str, stamp_ns: int) -> Marker:
    """The hypotheses as blue squares, the less transparent the more probable; positions (h, 3) metres, weights (h,)."""
    marker = Marker(header=header(stamp_ns, frame_id), ns="belief", id=0, type=Marker.CUBE_LIST)
    marker.pose.orientation.w = 1.0
    marker.scale.x = marker.scale.y = 2.0
    marker.scale.z = 0.2
    marker.points = [Point(x=float(x), y=float(y), z=float(z)) for x, y, z in positions]
    # The square root keeps the small ones visible.
    red, green, blue = BLUE
    marker.colors = [ColorRGBA(r=red, g=green, b=blue, a=float(np.sqrt(weight))) for weight in np.clip(weights, 0, 1)]
    marker.action = Marker.ADD if len(positions) else Marker.DELETE
    return marker


def match_markers(match: Match, frame_id: str) -> MarkerArray:
    """The candidates as spheres, the larger the more similar, and the accepted pose as an arrow."""
    markers = MarkerArray()
    candidates = Marker(header=header(match.stamp_ns, frame_id), ns="candidates", type=Marker.SPHERE_LIST, color=ORANGE)
    candidates.pose.orientation.w = 1.0
    candidates.scale.x = candidates.scale.y = candidates.scale.z = 1.2
    candidates.points = [Point(x=float(x), y=float(y), z=float(z)) for x, y, z in match.candidates.positions]
    candidates.action = Marker.ADD if len(match.candidates) else Marker.DELETE
    arrow = Marker(header=header(match.stamp_ns, frame_id), ns="match", type=Marker.ARROW, color=GREEN)
    arrow.scale.x, arrow.scale.y, arrow.scale.z = 4.0, 0.8, 0.8
    if match.pose is None:
        arrow.action = Marker.DELETE
    else:
        arrow.pose = pose_to_message(match.pose)
    markers.markers = [candidates, arrow]
    return markers


def match_picture(
    image: NDArray[np.uint8], thumbnail: NDArray[np.uint8] | None, match: Match, frame_id: str
) -> CompressedImage:
    """The image beside the best place's picture, with the verdict above, as JPEG.

    Args:
        image: what the camera saw, RGB (H, W, 3) uint8.
        thumbnail: of the best place, RGB, or None where there is none.
        match: the verdict.
        frame_id: of the camera.
    """
    panels = [_panel(image), *([_panel(thumbnail)] if thumbnail is not None else [])]
    picture = np.concatenate(panels, axis=1)
    verdict = f"place {match.place_id}, similarity {match.similarity:.2f}, probability {match.probability:.2f}"
    colour = (26, 204, 51) if match.accepted else (255, 153, 0)
    text = prefixed(match.camera, match.reason or verdict)
    cv2.putText(picture, text, (6, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.45, colour, 1, cv2.LINE_AA)
    _, jpeg = cv2.imencode(".jpg", np.ascontiguousarray(picture[:, :, ::-1]))
    return CompressedImage(header=header(match.stamp_ns, frame_id), format="jpeg", data=jpeg.tobytes())


def _panel(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = image.shape[:2]
    size = (max(1, round(width * PANEL_HEIGHT / height)), PANEL_HEIGHT)
    return np.asarray(cv2.resize(np.ascontiguousarray(image), size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
