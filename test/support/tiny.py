"""A student small enough to be exported in a test, and pictures for it to tell apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export import Dim, ExportedProgram

from vpr_kd_ros.calibration import Calibration, Evidence, Filtered, Spread
from vpr_kd_ros.preprocess import Preprocess
from vpr_kd_ros.student import StudentMetadata, save_student

TINY_PREPROCESS = Preprocess(height=32, width=48)
TINY_DIM = 16


def _calibration(bias: float, gain: float, right: int, evidence: Evidence, filtered: Filtered) -> Calibration:
    return Calibration(
        *(bias, gain, 0.0),
        cluster_radius_m=10.0,
        right=right,
        wrong=100 - right,
        evidence=evidence,
        with_odometry=filtered,
        without_odometry=filtered,
    )


SHY = _calibration(-99.0, 100.0, 80, Evidence(-297.0, 300.0, 0.0), Filtered(0.0, 1.0, Spread(0.5, 0.5), 80, 20))
"""A picture that is the same is right with 73 %: alone, it is never accepted."""
PRESET = _calibration(-3.0, 10.0, 60, Evidence(-1.0, 13.333, 0.0), Filtered(0.0, 1.0, Spread(0.5, 1.0), 10, 10))
"""For descriptors that a test sets: a similarity of 0.45 to a place speaks for it by 5, one of 0.3 by 3."""


class TinyNet(torch.nn.Module):
    """A convolution, pooled on a 2 x 3 grid, and a projection; fixed random weights, no bias to share a direction."""

    def __init__(self, seed: int = 0, descriptor_dim: int = TINY_DIM) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.convolution = torch.nn.Parameter(torch.randn(8, 3, 5, 5, generator=generator))
        self.projection = torch.nn.Parameter(torch.randn(descriptor_dim, 48, generator=generator))
        self.register_buffer("scale", torch.full((1,), 0.1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = torch.tanh(torch.nn.functional.conv2d(images, self.convolution, stride=2) * self.scale)
        pooled = torch.nn.functional.adaptive_avg_pool2d(maps, (2, 3)).flatten(1)
        return torch.nn.functional.linear(pooled, self.projection)


def export_tiny(module: torch.nn.Module | None = None, preprocess: Preprocess = TINY_PREPROCESS) -> ExportedProgram:
    """Export with zeros as sample inputs and a dynamic batch, as training does."""
    zeros = torch.zeros(2, 3, preprocess.height, preprocess.width)
    return torch.export.export((module or TinyNet()).eval(), (zeros,), dynamic_shapes=({0: Dim("batch", min=1)},))


def save_tiny_student(path: Path, seed: int = 0, calibration: Calibration | None = None) -> StudentMetadata:
    """Write a student artefact; another seed is another student."""
    metadata = StudentMetadata("tiny", "none", TINY_DIM, TINY_PREPROCESS, {"seed": seed}, calibration)
    return save_student(path, export_tiny(TinyNet(seed)), metadata)


def picture(seed: int, height: int = 60, width: int = 90) -> NDArray[np.uint8]:
    """A picture of coloured blocks, (height, width, 3) RGB uint8; each seed another."""
    blocks = np.random.default_rng(seed).integers(0, 256, size=(4, 6, 3), dtype=np.uint8)
    rows, columns = np.arange(height) * 4 // height, np.arange(width) * 6 // width
    return np.asarray(blocks[rows][:, columns])
