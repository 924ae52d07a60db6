"""One process at a time writes a map: a lock file ``.NAME.lock`` beside it.

The lock is the kernel's (flock), so a killed process leaves none behind, whatever file stays. Network file systems may
not know it.
"""

from __future__ import annotations

import fcntl
import os
from collections import Counter
from pathlib import Path
from threading import Lock

from vpr_kd_ros.errors import DataError

_held: dict[Path, int] = {}
_uses: Counter[Path] = Counter()
_guard = Lock()


def map_folder(path: Path) -> Path:
    """Where a map lies: absolute, links followed, so that a save replaces what a link points to and not the link."""
    return Path(os.path.realpath(path))


class MapLock:
    """The right to write a map, for as long as the block lasts or until ``close``; a process may hold it many times.

    Args:
        path: the map's folder, or a link to it; the folder's parent has to be there.

    Raises:
        DataError: another process holds it; the message names its number.
    """

    def __init__(self, path: Path) -> None:
        self._map = map_folder(path)
        self._open = True
        with _guard:
            if not _uses[self._map]:
                _held[self._map] = _acquire(self._map)
            _uses[self._map] += 1

    def __enter__(self) -> MapLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the right back; a second time does nothing."""
        with _guard:
            if not self._open:
                return
            self._open = False
            _uses[self._map] -= 1
            if not _uses[self._map]:
                # Removed while it is still locked: nobody can have taken it in between.
                _lock_file(self._map).unlink(missing_ok=True)
                os.close(_held.pop(self._map))


def _lock_file(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _acquire(path: Path) -> int:
    """An open, locked lock file that nobody has removed."""
    file = _lock_file(path)
    while True:
        handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if file.exists() and os.fstat(handle).st_ino == file.stat().st_ino:
                os.ftruncate(handle, 0)
                os.pwrite(handle, str(os.getpid()).encode(), 0)
                return handle
        except BlockingIOError:
            owner = os.pread(handle, 20, 0).decode(errors="replace") or "unknown"
            os.close(handle)
            raise DataError(
                f"{path}: process {owner} is writing this map, and only one may; end it, or write another map"
            ) from None
        except FileNotFoundError:
            pass
        except OSError:
            # An open handle would keep the lock that nobody has.
            os.close(handle)
            raise
        os.close(handle)
