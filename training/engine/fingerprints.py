"""Fingerprints: whether weights and sessions are the ones they were, without keeping a copy."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch

from training.sessions import Session

HASHED = ("session.json", "keyframes.parquet")


def fingerprint(value: Any) -> str:
    """SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def sessions_fingerprint(sessions: Sequence[Session], times: bool = False) -> str:
    """SHA-256 of the sessions' descriptions and keyframe tables, and of the names and sizes of all their files.

    Args:
        sessions: in their order, which numbers the keyframes.
        times: take the files' times of change too, which tells an image that was replaced by one of the same size but
            is another for a copy of the session.
    """
    return fingerprint([_describe(session, times) for session in sessions])


def weights_fingerprint(model: torch.nn.Module) -> str:
    """SHA-256 of the names, types, shapes and values of a model's weights and buffers."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _describe(session: Session, times: bool) -> list[Any]:
    files = []
    for path in sorted(session.path.rglob("*")):
        if path.is_file():
            status = path.stat()
            entry = [path.relative_to(session.path).as_posix(), status.st_size]
            files.append([*entry, status.st_mtime_ns] if times else entry)
    return [[hashlib.sha256((session.path / name).read_bytes()).hexdigest() for name in HASHED], files]
