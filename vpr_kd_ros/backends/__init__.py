"""Runtimes that carry a student: each maps a batch of normalised images to descriptors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from vpr_kd_ros.errors import DataError

if TYPE_CHECKING:
    import torch

BACKENDS = ("torch", "onnxruntime", "tensorrt", "torch-tensorrt")
PRECISIONS = ("fp32", "fp16")


class UnreadableError(DataError):
    """This version of a runtime cannot read a network that is in order; another runtime may."""


class Backend(Protocol):
    """What a runtime offers to ``vpr_kd_ros.student.Student``."""

    device: torch.device
    """Where ``describe`` wants its batch."""

    def describe(self, batch: torch.Tensor) -> torch.Tensor:
        """Descriptors, (B, D) float32, not normalised, of normalised images, (B, 3, height, width) float32."""
        ...
