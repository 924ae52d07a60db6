"""Checkpoint files: tensors and plain values; a killed process leaves a whole file, the new one or the one before."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from vpr_kd_ros.errors import DataError


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` write a file beside ``path``, bring it to the disk and put it in place of ``path``."""
    work = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(work)
        with work.open("rb") as file:
            os.fsync(file.fileno())
        work.replace(path)
    finally:
        work.unlink(missing_ok=True)


def write_checkpoint(stored: Mapping[str, Any], path: Path) -> None:
    """Write tensors and plain values; what was at ``path`` stays whole until the new file is."""
    write_atomically(path, lambda work: torch.save(dict(stored), work))


def read_checkpoint(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    """Read what ``write_checkpoint`` wrote.

    Raises:
        DataError: the file is damaged, is something else, or lacks one of ``keys``.
    """
    try:
        stored: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        missing = [key for key in keys if key not in stored]
    except (RuntimeError, OSError, ValueError, TypeError, EOFError, pickle.UnpicklingError) as error:
        raise DataError(f"{path}: not a checkpoint of this version: {error}") from error
    if missing:
        raise DataError(f"{path}: not a checkpoint of this version: it has no {', '.join(missing)}")
    return stored


def differing_keys(one: Mapping[str, Any], other: Mapping[str, Any], above: str = "") -> list[str]:
    """The keys, dotted, at which two trees of plain values differ."""
    keys = []
    for key in sorted({*one, *other}):
        left, right = one.get(key), other.get(key)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            keys += differing_keys(left, right, f"{above}{key}.")
        elif left != right or (key in one) != (key in other):
            keys.append(f"{above}{key}")
    return keys
