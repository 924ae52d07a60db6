"""Giving a session that stands semantic labels: a PNG for each keyframe, and their names in its table.

The labels are collected in a hidden folder of the session and put in place when there is one for every keyframe. Until
then the session is as it was, and whatever ends the writer leaves what another one goes on with.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from training.sessions import CLASSES, Session
from vpr_kd_ros.errors import DataError

FOLDER, PARTIAL = "labels", ".labels.partial"
SOURCE = "source.json"


class SessionLabels:
    """Writes the labels of a session.

    Args:
        session: which gets labels, or others than it has.
        source: what tells the pixels' classes, as plain values; kept in ``labels/source.json``. Labels that a writer
            with another source left half-written are removed.

    Attributes:
        found: how many labels an earlier writer left to go on with.

    Raises:
        DataError: the session's folder cannot be written to.
    """

    def __init__(self, session: Session, source: Mapping[str, Any]) -> None:
        self._session = session
        self._work = session.path / PARTIAL
        values = json.dumps(dict(source), indent=1, sort_keys=True) + "\n"
        try:
            noted = self._work / SOURCE
            if not noted.is_file() or noted.read_text() != values:
                shutil.rmtree(self._work, ignore_errors=True)
                self._work.mkdir()
                _write(noted, values.encode())
        except OSError as error:
            raise DataError(f"{self._work}: cannot be written: {error.strerror}") from error
        self.found = sum(self.has(index) for index in range(len(session)))

    def has(self, index: int) -> bool:
        """Whether the keyframe's labels are written."""
        path = self._work / _name(index)
        return path.is_file() and path.stat().st_size > 0

    def add(self, index: int, labels: NDArray[np.uint8]) -> None:
        """Write the labels of a keyframe, (H, W) uint8, indices into ``training.sessions.CLASSES``.

        Raises:
            DataError: they are no labels, or cannot be written.
        """
        if labels.ndim != 2 or labels.dtype != np.uint8 or labels.size == 0 or labels.max() >= len(CLASSES):
            raise DataError(
                f"{self._session.path}: labels of keyframe {index} are no (H, W) uint8 below {len(CLASSES)}"
            )
        _, data = cv2.imencode(".png", labels)
        try:
            _write(self._work / _name(index), data.tobytes())
        except OSError as error:
            raise DataError(f"{self._work}: cannot be written: {error.strerror}") from error

    def finish(self) -> None:
        """Put the labels in place of any that the session has, and name them in its table.

        Raises:
            ValueError: a keyframe has none.
        """
        missing = [index for index in range(len(self._session)) if not self.has(index)]
        if missing:
            raise ValueError(f"{self._session.path}: no labels of the keyframes {missing}")
        folder, old = self._session.path / FOLDER, self._session.path / f".{FOLDER}.old"
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        self._work.rename(folder)
        path = self._session.path / "keyframes.parquet"
        table = pq.read_table(path)
        names = [f"{FOLDER}/{_name(index)}" for index in range(len(self._session))]
        buffer = BytesIO()
        pq.write_table(table.set_column(table.column_names.index("labels"), "labels", [names]), buffer)
        _write(path, buffer.getvalue())
        shutil.rmtree(old, ignore_errors=True)


def has_labels(session: Session) -> bool:
    """Whether the session's labels are in place."""
    return session.has_semantics and (session.path / FOLDER).is_dir()


def _name(index: int) -> str:
    return f"{index:06d}.png"


def _write(path: Path, data: bytes) -> None:
    """Write a file that is there whole or not at all, whenever the process ends."""
    work = path.with_name(f".{path.name}")
    work.write_bytes(data)
    work.replace(path)
