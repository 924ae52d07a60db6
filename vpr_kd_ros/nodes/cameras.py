"""The cameras of a robot: their names, topics and maps. No ROS in here.

A robot with one camera names none: it is heard on the topic ``image``, and MAP is its map. With several, the parameter
``cameras`` says NAME=TOPIC of each, and the map of each is MAP/NAME.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from vpr_kd_ros.errors import ConfigError
from vpr_kd_ros.map_files import find_map, maps_in
from vpr_kd_ros.place_map import PlaceMap

ONLY = ""
"""Name of the camera of a robot that has one."""
IMAGE_TOPIC = "image"


def parse_cameras(items: Iterable[str]) -> dict[str, str]:
    """Names to topics of the parameter ``cameras``; ``ONLY`` on ``IMAGE_TOPIC`` where it is empty.

    Raises:
        ConfigError: an item of another form, a name that is no name of a folder, or a name or a topic that is there
            twice.
    """
    cameras: dict[str, str] = {}
    for item in items:
        name, _, topic = item.partition("=")
        if not (re.fullmatch(r"\w+", name, re.ASCII) and re.fullmatch(r"[\w/~]+", topic, re.ASCII)):
            raise ConfigError(
                f"parameter 'cameras': {item!r}, wants NAME=TOPIC with letters, digits and _ in the name, for example "
                f"front=/front/image_raw"
            )
        if name in cameras or topic in cameras.values():
            raise ConfigError(f"parameter 'cameras': {item!r} has a name or a topic that another camera has")
        cameras[name] = topic
    return cameras or {ONLY: IMAGE_TOPIC}


def map_folders(folder: Path, cameras: Iterable[str]) -> dict[str, Path]:
    """The map of each camera.

    Raises:
        ConfigError: a folder of several cameras' maps is wanted and there is the map of one, or the other way round.
        DataError: the folder cannot be read.
    """
    names = list(cameras)
    if names == [ONLY]:
        if find_map(folder) is None and (others := maps_in(folder)):
            raise ConfigError(
                f"parameter 'cameras': it is empty, and {folder} holds the maps of {', '.join(others)}; give "
                f"{others[0]}=TOPIC and so on, or one of those folders as 'map'"
            )
        return {ONLY: folder}
    if (found := find_map(folder)) is not None:
        raise ConfigError(
            f"parameter 'map': {found} is the map of one camera, and 'cameras' names {', '.join(names)}; move it to "
            f"{folder / names[0]} if it is that camera's, or map with these cameras"
        )
    return {name: folder / name for name in names}


def load_maps(folder: Path, cameras: Iterable[str], fingerprint: str, search: str) -> dict[str, PlaceMap]:
    """The maps of the cameras, as ``PlaceMap.load`` and ``map_folders`` say."""
    folders = map_folders(folder, cameras)
    return {name: PlaceMap.load(path, fingerprint, search) for name, path in folders.items()}


def prefixed(camera: str, text: str) -> str:
    """A text about a camera, with its name where it has one."""
    return f"camera {camera!r}: {text}" if camera else text
