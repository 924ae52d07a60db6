"""Satellite fixes to local metres: a plane that touches the WGS 84 ellipsoid at an origin.

Formulae: geodetic to Earth-centred coordinates and these to east, north, up (any textbook of geodesy; the constants are
those that define WGS 84).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vpr_kd_ros.errors import DataError
from vpr_kd_ros.geometry import Floats

SEMI_MAJOR_M = 6378137.0
FLATTENING = 1.0 / 298.257223563
ECCENTRICITY_2 = FLATTENING * (2.0 - FLATTENING)


def fix_from_message(message: Any) -> tuple[float, float, float]:
    """Latitude and longitude in degrees and altitude in metres (NaN: none) of a ``sensor_msgs/NavSatFix``.

    Raises:
        DataError: the receiver had no fix, or the numbers are no place on Earth.
    """
    if int(message.status.status) < 0:
        raise DataError("fix: status.status is negative: the receiver had no fix")
    latitude, longitude = float(message.latitude), float(message.longitude)
    if not (-90.0 <= latitude <= 90.0 and -180.0 <= longitude <= 360.0):
        raise DataError(f"fix: latitude {latitude}, longitude {longitude} are no place on Earth")
    altitude = float(message.altitude)
    return latitude, longitude, altitude if np.isfinite(altitude) else float("nan")


def earth_centred(fixes: Floats) -> Floats:
    """Earth-centred, Earth-fixed x, y, z in metres, (N, 3), of latitude, longitude (degrees), altitude (m), (N, 3)."""
    latitude, longitude, altitude = np.deg2rad(fixes[:, 0]), np.deg2rad(fixes[:, 1]), fixes[:, 2]
    normal = SEMI_MAJOR_M / np.sqrt(1.0 - ECCENTRICITY_2 * np.sin(latitude) ** 2)
    across = (normal + altitude) * np.cos(latitude)
    along = (normal * (1.0 - ECCENTRICITY_2) + altitude) * np.sin(latitude)
    return np.stack([across * np.cos(longitude), across * np.sin(longitude), along], axis=1)


def east_north_up(fixes: Floats, origin: tuple[float, float, float]) -> Floats:
    """East, north, up in metres from the origin, (N, 3) float64.

    Args:
        fixes: (N, 3): latitude, longitude in degrees, altitude in metres; without altitude (NaN) the origin's is taken.
        origin: latitude, longitude, altitude.
    """
    filled = np.where(np.isnan(fixes), np.array([np.nan, np.nan, origin[2]]), fixes)
    offset = earth_centred(filled) - earth_centred(np.array([origin], dtype=np.float64))
    latitude, longitude = np.deg2rad(origin[0]), np.deg2rad(origin[1])
    east = np.array([-np.sin(longitude), np.cos(longitude), 0.0])
    up = np.array([np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)])
    return np.asarray(offset @ np.stack([east, np.cross(up, east), up], axis=1))


def course(positions: Floats, reach_m: float = 1.0) -> Floats:
    """Heading of travel at each position of a drive, (N,) float64, radians; 0 for a drive that never moves.

    Args:
        positions: (N, 3), metres, in the order of time.
        reach_m: headings are taken between points at least this far apart, so that noise at a standstill is no turn.
    """
    plane = positions[:, :2]
    corners = [0]
    for i in range(1, len(plane)):
        if np.hypot(*(plane[i] - plane[corners[-1]])) >= reach_m:
            corners.append(i)
    if len(corners) < 2:
        return np.zeros(len(plane))
    ends = plane[corners]
    chords = np.concatenate([ends[1:2] - ends[:1], ends[2:] - ends[:-2], ends[-1:] - ends[-2:-1]])
    headings = np.unwrap(np.arctan2(chords[:, 1], chords[:, 0]))
    return np.asarray(np.interp(np.arange(len(plane)), corners, headings))
