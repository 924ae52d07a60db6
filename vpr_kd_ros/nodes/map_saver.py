"""Saves the map that a mapper builds, one save at a time; no ROS in here."""

from __future__ import annotations

import itertools
import os
import tempfile
import threading
from pathlib import Path

from vpr_kd_ros.errors import DataError
from vpr_kd_ros.place_map import PlaceMap


class MapSaver:
    """A map that grows while it is saved, and its folder.

    Args:
        place_map: the map.
        path: its folder.
    """

    def __init__(self, place_map: PlaceMap, path: Path) -> None:
        self.place_map = place_map
        self.path = path
        # One thread adds, and whoever saves holds the lock: neither number is written by two at once.
        self._added = 0
        self._saved = 0
        self._lock = threading.Lock()

    @property
    def unsaved(self) -> int:
        """Number of places added that no save holds."""
        return self._added - self._saved

    def count_added(self) -> None:
        """Count a place that was added to the map; always from the same thread."""
        self._added += 1

    def save(self) -> None:
        """Save the map, after a save that another thread is at.

        Raises:
            DataError: as ``PlaceMap.save``.
        """
        with self._lock:
            self._save_to(self.path)

    def rescue(self) -> Path:
        """Save the map where its own folder cannot be written, and return where.

        That is ``NAME.rescued`` beside the folder or, where that fails too, in the folder of temporary files; what an
        earlier drive rescued stays.

        Raises:
            DataError: neither can be written.
        """
        failed: list[str] = []
        with self._lock:
            for parent in (self.path.parent, Path(tempfile.gettempdir())):
                folder = _unused(parent / f"{self.path.name}.rescued")
                try:
                    self._save_to(folder)
                except DataError as error:
                    failed.append(str(error))
                    continue
                return folder
        raise DataError("; ".join(failed))

    def _save_to(self, folder: Path) -> None:
        # What is added from here on may or may not be in the file, and counts as unsaved.
        added = self._added
        self.place_map.save(folder)
        self._saved = added


def _unused(path: Path) -> Path:
    """The path, or the first of ``PATH-2``, ``PATH-3`` and so on where nothing is."""
    paths = itertools.chain([path], (path.with_name(f"{path.name}-{number}") for number in itertools.count(2)))
    return next(path for path in paths if not os.path.lexists(path))
