"""Which files a session was made from, and whether one that is there was made from the same.

Files are told apart by size, time of writing and CRC-32 of all their bytes. It tells damage and mix-ups, not forgery,
and costs a tenth of what SHA-256 does, which took longer than all the rest of an ingest.
"""

from __future__ import annotations

import json
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

from training.ingest.bag import Bag
from training.ingest.config import IngestConfig
from training.sessions import SessionInfo
from vpr_kd_ros.errors import DataError

BLOCK = 1 << 18
"""Small enough to stay in a processor's cache until its checksum is taken."""


class Provenance:
    """The files of a bag, and of the trajectory beside it, with the settings under which they are read.

    Raises:
        DataError: a file is missing.
    """

    def __init__(self, bag: Bag, config: IngestConfig) -> None:
        self._bag = str(bag.path)
        # As JSON gives it back, so that it compares with what a session holds.
        self._settings = json.loads(json.dumps(asdict(config)))
        extra = (Path(p) for p in (config.trajectory, config.trajectory_stamps) if p is not None)
        self._paths = [*bag.files, *extra]
        if missing := [str(path) for path in self._paths if not path.is_file()]:
            raise DataError(f"{', '.join(missing)}: there is no such file")
        self._stop = threading.Event()

    def source(self) -> dict[str, Any]:
        """Plain values for the session: the bag, its files with sizes, times and checksums, and the settings."""
        files = [{**self._look(path), "crc32": self._checksum(path)} for path in self._paths]
        return {"bag": self._bag, "files": files, "settings": self._settings}

    @contextmanager
    def in_background(self) -> Iterator[Future[dict[str, Any]]]:
        """``source()`` as a future: the files are read for it while others read them too, once from the disk."""
        with ThreadPoolExecutor(1, "checksum") as pool:
            try:
                yield pool.submit(self.source)
            finally:
                self._stop.set()

    def difference(self, info: SessionInfo) -> str:
        """In which way a session came of something else; empty where it came of the same.

        Files of the same size and time of writing are taken to be the same, others are read and compared.
        """
        known: Any = info.sources[0] if len(info.sources) == 1 else {}
        defaults = {f.name: f.default for f in fields(IngestConfig) if f.default is not MISSING}
        looks = [self._look(path) for path in self._paths]
        files = known.get("files", [])
        if [{key: file.get(key) for key in ("name", "bytes", "mtime_ns")} for file in files] != looks:
            sums = [(file.get("name"), file.get("crc32")) for file in files]
            if sums != [(path.name, self._checksum(path)) for path in self._paths]:
                return "from other files"
        return "" if {**defaults, **known.get("settings", {})} == self._settings else "with other settings"

    def _look(self, path: Path) -> dict[str, Any]:
        found = path.stat()
        return {"name": path.name, "bytes": found.st_size, "mtime_ns": found.st_mtime_ns}

    def _checksum(self, path: Path) -> str:
        value = 0
        block = memoryview(bytearray(BLOCK))
        try:
            with path.open("rb", buffering=0) as stream:
                while not self._stop.is_set() and (size := stream.readinto(block)):
                    value = zlib.crc32(block[:size], value)
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error
        return f"{value:08x}"
