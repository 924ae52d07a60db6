"""Fixtures that several test modules share."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from support.tiny import save_tiny_student

if TYPE_CHECKING:
    from support.ros import Graph


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student artefact without a calibration: 32x48 input, 16 numbers, small fixed random network."""
    path = tmp_path_factory.mktemp("student") / "tiny.pt2"
    save_tiny_student(path)
    return path


@pytest.fixture
def graph(tmp_path: Path) -> Iterator[Graph]:
    """Real nodes and a node in the test to talk with them, for modules that need ROS and say so."""
    from support.ros import ros_graph

    with ros_graph(tmp_path) as graph:
        yield graph


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """The folder of a disk of 4 MB; skips where this user may not mount one."""
    folder = tmp_path / "small_disk"
    folder.mkdir()
    try:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, text=True
        )
        problem = done.stderr.strip()
    except OSError as error:
        problem = str(error)
    if problem:
        pytest.skip(f"a small disk cannot be mounted here: {problem}")
    try:
        yield folder
    finally:
        # Lazily, because a process that failed to end may still have a file open.
        subprocess.run(["umount", "--lazy", folder], check=True)
