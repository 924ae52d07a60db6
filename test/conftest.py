"""Fixtures that several test modules share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from support.tiny import save_tiny_student


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student artefact without a calibration: 32x48 input, 16 numbers, small fixed random network."""
    path = tmp_path_factory.mktemp("student") / "tiny.pt2"
    save_tiny_student(path)
    return path
