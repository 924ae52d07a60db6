"""Whether the drives of a region whose poses are satellite fixes count their metres from one origin."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from training.ingest.bag import Bag
from training.ingest.config import IngestConfig
from training.ingest.ingest import region_of
from training.ingest.topics import FIX_TYPE, choose_topics
from vpr_kd_ros.errors import ConfigError, DataError
from vpr_kd_ros.geodesy import fix_from_message


def require_shared_origins(drives: Sequence[tuple[Path, IngestConfig]]) -> None:
    """Refuse drives of one region whose fixes would be counted from different origins: their positions are compared.

    Args:
        drives: bags and how they are read. One that cannot be opened is passed over: its ingest says what is wrong.

    Raises:
        ConfigError: two of a region differ in ``nav_origin``, or have none and would each take its own first fix.
    """
    surveyed = [(path, config) for path, config in drives if config.labelled and config.trajectory is None]
    shared = Counter(region_of(path, config) for path, config in surveyed)
    origins: defaultdict[str, list[tuple[Path, list[float], bool]]] = defaultdict(list)
    for path, config in surveyed:
        region = region_of(path, config)
        if shared[region] > 1 and (first := _first_fix(path, config)) is not None:
            origins[region].append((path, config.nav_origin or first, config.nav_origin is not None))
    for region, found in origins.items():
        (one, origin, _), *others = sorted(found, key=lambda entry: not entry[2])
        for other, its_origin, given in others:
            if not given or its_origin != origin:
                raise ConfigError(
                    f"{one} and {other} are of the region {region!r}, and the poses of both are fixes that would be "
                    f"counted from different origins: give all of them one, --nav_origin '{origin}', or regions of "
                    "their own"
                )


def _first_fix(path: Path, config: IngestConfig) -> list[float] | None:
    """Latitude, longitude (degrees) and altitude (metres, 0 for none); None where the poses are no fixes."""
    try:
        with Bag(path) as bag:
            topic = choose_topics(bag.topics, config).pose
            if topic not in bag.topics or bag.topics[topic].type != FIX_TYPE:
                return None
            fixes = (_fix(bag, topic, data) for _, _, data in bag.messages({topic}))
            return next((fix for fix in fixes if fix is not None), None)
    except DataError:
        return None


def _fix(bag: Bag, topic: str, data: bytes) -> list[float] | None:
    try:
        latitude, longitude, altitude = fix_from_message(bag.decode(topic, data))
    except DataError:  # until the receiver had its first
        return None
    return [latitude, longitude, 0.0 if math.isnan(altitude) else altitude]
