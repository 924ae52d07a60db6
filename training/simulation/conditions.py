"""Light, weather and season, by name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vpr_kd_ros.errors import ConfigError, did_you_mean

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Condition:
    """What the world looks like; colours are linear light, so that 1 is a white wall in plain daylight.

    Attributes:
        ambient: light from the whole sky.
        horizon, zenith: the sky's colour low and high.
        clouds: share of the sky that clouds cover, 0 to 1.
        sun: the sun's light on a surface that faces it; 0 for none.
        sun_elevation: range that a traverse draws from, radians.
        haze: extinction of the air per metre.
        exposure: gain of the camera.
        noise: standard deviation of the sensor's noise, in display units of [0, 1].
        blur: standard deviation of the lens's blur, pixels per 128 pixels of image width.
        saturation: 1 as is, 0 grey.
        lit_windows: share of windows with the lamp on.
        lamps: strength of street lamps and headlights, 0 to 1.
        wet: how much the ground shines, 0 to 1.
        snow: how much of what faces up is white, 0 to 1.
        foliage: share of a tree's crown that leaves or twigs fill, 0 to 1.
        autumn: how far leaves have turned, 0 to 1.
        streaks, flakes, drops: numbers of rain streaks, snow flakes and drops on the lens in an image.
    """

    ambient: Colour
    horizon: Colour
    zenith: Colour
    clouds: float = 0.0
    sun: Colour = (0.0, 0.0, 0.0)
    sun_elevation: tuple[float, float] = (0.5, 0.9)
    haze: float = 0.0006
    exposure: float = 1.0
    noise: float = 0.012
    blur: float = 0.45
    saturation: float = 1.0
    lit_windows: float = 0.0
    lamps: float = 0.0
    wet: float = 0.0
    snow: float = 0.0
    foliage: float = 0.93
    autumn: float = 0.0
    streaks: int = 0
    flakes: int = 0
    drops: int = 0


CONDITIONS: dict[str, Condition] = {
    "sun": Condition(
        ambient=(0.44, 0.52, 0.64),
        horizon=(0.72, 0.86, 1.0),
        zenith=(0.16, 0.36, 0.85),
        clouds=0.35,
        sun=(2.1, 1.95, 1.7),
    ),
    "overcast": Condition(
        ambient=(0.72, 0.75, 0.80),
        horizon=(0.95, 0.97, 1.0),
        zenith=(0.62, 0.66, 0.72),
        clouds=1.0,
        haze=0.002,
        saturation=0.85,
    ),
    "night": Condition(
        ambient=(0.010, 0.012, 0.020),
        horizon=(0.030, 0.026, 0.030),
        zenith=(0.004, 0.005, 0.012),
        clouds=0.2,
        exposure=2.2,
        noise=0.05,
        blur=0.7,
        saturation=0.8,
        lit_windows=0.3,
        lamps=1.0,
    ),
    "fog": Condition(
        ambient=(0.66, 0.68, 0.70),
        horizon=(0.78, 0.80, 0.82),
        zenith=(0.74, 0.76, 0.78),
        haze=0.034,
        saturation=0.6,
        blur=0.8,
    ),
    "rain": Condition(
        ambient=(0.30, 0.33, 0.37),
        horizon=(0.46, 0.50, 0.55),
        zenith=(0.24, 0.27, 0.31),
        clouds=1.0,
        haze=0.005,
        exposure=1.15,
        noise=0.02,
        blur=0.65,
        saturation=0.75,
        lit_windows=0.08,
        lamps=0.12,
        wet=0.8,
        streaks=70,
        drops=7,
    ),
    "snow": Condition(
        ambient=(0.66, 0.70, 0.78),
        horizon=(0.86, 0.89, 0.94),
        zenith=(0.70, 0.74, 0.80),
        clouds=0.8,
        haze=0.009,
        saturation=0.75,
        snow=0.95,
        foliage=0.38,
        flakes=110,
        blur=0.55,
    ),
    "autumn": Condition(
        ambient=(0.36, 0.40, 0.48),
        horizon=(1.0, 0.90, 0.72),
        zenith=(0.30, 0.46, 0.78),
        clouds=0.5,
        sun=(2.0, 1.5, 0.95),
        sun_elevation=(0.22, 0.38),
        haze=0.003,
        foliage=0.72,
        autumn=1.0,
    ),
    "dusk": Condition(
        ambient=(0.10, 0.10, 0.17),
        horizon=(0.90, 0.42, 0.20),
        zenith=(0.07, 0.09, 0.24),
        clouds=0.6,
        exposure=1.35,
        noise=0.025,
        blur=0.55,
        saturation=0.9,
        lit_windows=0.35,
        lamps=0.45,
    ),
}


def check_conditions(names: Iterable[str], key: str) -> None:
    """Raise ConfigError, naming ``key``, unless every name is a known condition."""
    for name in names:
        if name not in CONDITIONS:
            known = ", ".join(CONDITIONS)
            raise ConfigError(f"{key}: no condition {name!r}{did_you_mean(name, CONDITIONS)}; there are: {known}")
