"""What a session that is being written holds already, so that a writer that was killed can go on.

A file of JSON lines beside the half-written session: the key of what it is made from, then a line for each keyframe
once its files are written, with their sizes and checksums, and lines that the source wants to remember. Of an earlier
writer's journal counts what makes sense from its beginning and whose files are as they were written.
"""

from __future__ import annotations

import fcntl
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vpr_kd_ros.errors import DataError

NAME = "journal.jsonl"
ROW, FILES, ENTRY, KEY = "row", "files", "entry", "key"


class Journal:
    """The journal in a folder, locked: two writers of one session would spoil it.

    Args:
        folder: of the half-written session; it exists.
        key: tells what the session is made from. A journal with another key does not count.

    Attributes:
        rows: keyframes that stand, in their order.
        entries: what the source remembered up to the last of what stands, in its order.
        files: name, relative to the folder, of every file of the rows.

    Raises:
        DataError: another writer is at work in the folder, or the disk refuses.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder
        self.rows: list[dict[str, Any]] = []
        self.entries: list[dict[str, Any]] = []
        self.files: set[str] = set()
        try:
            self._stream = (folder / NAME).open("a+b")
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._stream.close()
            raise DataError(f"{folder}: another process is writing this session; wait for it, or end it") from None
        except OSError as error:
            raise DataError(f"{folder}: cannot be written: {error.strerror}") from error
        self._stream.truncate(self._take(key))
        if self._stream.tell() == 0:
            self._append({KEY: key})

    def add(self, row: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
        """Note a keyframe whose files are written."""
        self._append({ROW: row, FILES: {name: [len(data), zlib.crc32(data)] for name, data in files.items()}})

    def remember(self, entry: Mapping[str, Any]) -> None:
        """Note what the source wants to know when it goes on."""
        self._append({ENTRY: entry})

    def close(self) -> None:
        """Unlock it."""
        self._stream.close()

    def remove(self, folder: Path) -> None:
        """Delete it from where the folder is now, and unlock it: the session is whole."""
        (folder / NAME).unlink()
        self.close()

    def _append(self, values: dict[str, Any]) -> None:
        # At once to the system: what it has, a killed process does not lose.
        self._stream.write(json.dumps(values).encode() + b"\n")
        self._stream.flush()

    def _take(self, key: str) -> int:
        """Take in what counts; returns where it ends, in bytes."""
        end = 0
        for number, (values, stop) in enumerate(self._lines()):
            if number == 0:
                if values.get(KEY) != key:
                    break
            elif ENTRY in values:
                self.entries.append(values[ENTRY])
            elif ROW in values and all(map(self._is_whole, values[FILES].items())):
                self.rows.append(values[ROW])
                self.files.update(values[FILES])
            else:
                break
            end = stop
        self._stream.seek(end)
        return end

    def _lines(self) -> Iterator[tuple[dict[str, Any], int]]:
        self._stream.seek(0)
        stop = 0
        for line in self._stream:
            stop += len(line)
            try:
                values = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                values = None
            if not isinstance(values, dict):
                return
            yield values, stop

    def _is_whole(self, item: tuple[str, list[int]]) -> bool:
        name, (size, checksum) = item
        try:
            data = (self.folder / name).read_bytes()
        except OSError:
            return False
        return len(data) == size and zlib.crc32(data) == checksum
