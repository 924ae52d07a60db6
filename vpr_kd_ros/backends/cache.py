"""What is built or measured on a machine, kept in the user's cache folder as long as nothing it depends on changes.

``$XDG_CACHE_HOME/vpr_kd_ros`` (``~/.cache/vpr_kd_ros``) holds one folder per entry, named by what it is and by a digest
of its key: the student, the GPU, the driver, the libraries and their versions, the precision. An entry counts once its
``key.json`` is there, which is written last. Losing the cache costs time, nothing else.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from vpr_kd_ros.student_file import write_atomically

T = TypeVar("T")
Notice = Callable[[str], None]

PROGRESS_S = 10.0
"""A build tells this often that it goes on."""


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/vpr_kd_ros``, or ``~/.cache/vpr_kd_ros``."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The specification says to ignore relative paths.
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "vpr_kd_ros"


@dataclass(frozen=True)
class Key:
    """What an entry is, and what it depends on.

    Attributes:
        name: what it is, such as ``tensorrt-fp16``; part of a file name.
        fingerprint: of the student.
        machine: the GPU or processor. Entries of one student on several machines stay side by side: homes are shared.
        parts: everything else, by name: versions, digests, sizes.
    """

    name: str
    fingerprint: str
    machine: str
    parts: dict[str, str]

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return {"name": self.name, "fingerprint": self.fingerprint, "machine": self.machine, "parts": self.parts}

    @property
    def prefix(self) -> str:
        """The same for all entries of this name, student and machine."""
        return f"{self.name}-{self.fingerprint[:12]}-{_digest(self.machine)[:8]}-"

    @property
    def folder_name(self) -> str:
        """Another as soon as anything of the key is."""
        return self.prefix + _digest(json.dumps(self.to_dict(), sort_keys=True))[:16]


class Entry:
    """A place in the cache.

    Args:
        key: of the entry.
        root: the cache folder; the user's when None.
    """

    def __init__(self, key: Key, root: Path | None = None) -> None:
        self.key = key
        self.root = root or cache_folder()
        self.folder = self.root / key.folder_name

    def read(self) -> bytes | None:
        """What was kept, whole; None where there is nothing or it is damaged."""
        try:
            stored = json.loads((self.folder / "key.json").read_text())
            data = (self.folder / "content").read_bytes()
        except (OSError, ValueError):
            return None
        expected = {**self.key.to_dict(), "sha256": hashlib.sha256(data).hexdigest()}
        return data if stored == expected else None

    def write(self, data: bytes) -> None:
        """Keep ``data`` and forget entries of this name, student and machine that no longer fit.

        Raises:
            OSError: the folder cannot be written.
        """
        write_atomically(self.folder / "content", data)
        key = {**self.key.to_dict(), "sha256": hashlib.sha256(data).hexdigest()}
        write_atomically(self.folder / "key.json", json.dumps(key, indent=1).encode())
        for old in self._others():
            shutil.rmtree(old, ignore_errors=True)

    def forget(self) -> None:
        """Remove the entry."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def what_changed(self) -> str:
        """What tells the newest older entry from this one, such as ``driver 535.1 is now 550.2``; empty without one."""
        for old in sorted(self._others(), key=lambda path: path.stat().st_mtime, reverse=True):
            try:
                before = json.loads((old / "key.json").read_text())["parts"]
            except (OSError, ValueError, KeyError):
                continue
            now = self.key.parts
            return ", ".join(
                f"{part} {before.get(part, 'nothing')} is now {now.get(part, 'nothing')}"
                for part in sorted({*before, *now})
                if before.get(part) != now.get(part)
            )
        return ""

    @contextlib.contextmanager
    def locked(self, notice: Notice) -> Iterator[None]:
        """Hold the entry against other processes: two nodes that start together build one engine."""
        with contextlib.ExitStack() as stack:
            try:
                self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
                file = stack.enter_context(open(self.root / f"{self.key.folder_name}.lock", "w"))
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    notice(f"{self.key.name}: another process is building it, waiting")
                    fcntl.flock(file, fcntl.LOCK_EX)
            except OSError:
                pass  # A cache that cannot be written cannot be locked either; write() says so.
            yield

    def _others(self) -> list[Path]:
        if not self.root.is_dir():
            return []
        return [
            path
            for path in self.root.iterdir()
            if path.name.startswith(self.key.prefix) and path.is_dir() and path != self.folder
        ]


def load_or_build(
    entry: Entry, build: Callable[[], bytes], open_content: Callable[[bytes], T | None], notice: Notice
) -> T:
    """Open what is kept; where there is nothing, it is damaged or it does not open, build it and keep it.

    Args:
        entry: where it is kept.
        build: makes the content; minutes, perhaps.
        open_content: makes of the content what is wanted, None where it cannot.
        notice: told why something is built, that it goes on, and how long it took.

    Raises:
        RuntimeError: what was just built does not open. And whatever ``build`` raises.
    """
    with entry.locked(notice):
        there = entry.folder.exists()
        kept = entry.read()
        opened = None if kept is None else open_content(kept)
        if opened is not None:
            return opened
        changed = entry.what_changed()
        why = (
            "what is in the cache is damaged"
            if there
            else f"{changed}"
            if changed
            else "there is none in the cache yet"
        )
        notice(f"{entry.key.name}: building for {entry.key.machine}; {why}")
        start = time.monotonic()
        with _progress(entry.key.name, notice):
            data = build()
        opened = open_content(data)
        if opened is None:
            raise RuntimeError(f"{entry.key.name}: what was just built cannot be loaded")
        took = f"{entry.key.name}: built in {time.monotonic() - start:.0f} s"
        try:
            entry.write(data)
            notice(f"{took}, kept in {entry.folder}")
        except OSError as error:
            notice(f"{took}, but not kept, so that the next start builds it again: {entry.folder}: {error.strerror}")
        return opened


@contextlib.contextmanager
def _progress(name: str, notice: Notice) -> Iterator[None]:
    """Tell every ``PROGRESS_S`` seconds that a build goes on."""
    done = threading.Event()

    def tell() -> None:
        start = time.monotonic()
        while not done.wait(PROGRESS_S):
            notice(f"{name}: still building, {time.monotonic() - start:.0f} s")

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
