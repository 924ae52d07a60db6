"""Students: networks that describe a camera image by one vector.

A student travels as an artefact: a torch.export archive (``.pt2``) with the same network as ONNX and our metadata
inside, or that ONNX model by itself. Training writes it, the robot reads it without timm or torchvision. See
``vpr_kd_ros.artefact`` and ``vpr_kd_ros.onnx_file`` for what is checked before a runtime may open it.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vpr_kd_ros.backends import Backend
from vpr_kd_ros.backends.cache import Notice
from vpr_kd_ros.backends.choice import Wanted, log_notice, open_backend
from vpr_kd_ros.errors import DataError
from vpr_kd_ros.preprocess import BatchInput
from vpr_kd_ros.student_file import StudentFile, save_student
from vpr_kd_ros.student_metadata import SCHEMA, StudentMetadata

__all__ = ["MAX_BATCH", "SCHEMA", "Student", "StudentMetadata", "save_student"]

MAX_BATCH = 32
"""Images that go through the network at once; more are cut into batches of this size."""
_SHORTEST = np.float32(1e-12)


class Student:
    """A loaded student: images in, descriptors out.

    Attributes:
        metadata: of the artefact.
        runtime: what runs it, for people.
    """

    def __init__(self, metadata: StudentMetadata, backend: Backend, runtime: str = "") -> None:
        self.metadata = metadata
        self.runtime = runtime
        self._backend = backend
        self._input = BatchInput(metadata.preprocess, backend.device)
        # The input's buffers are of one batch at a time.
        self._lock = threading.Lock()

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str = "cpu",
        threads: int | None = None,
        backend: str = "auto",
        precision: str = "fp32",
        notice: Notice = log_notice,
    ) -> Student:
        """Verify and open an artefact.

        Args:
            path: of the ``.pt2`` or ``.onnx`` file.
            device: ``cpu``, ``cuda``, ``cuda:N``, or ``auto`` for a CUDA device where there is one.
            threads: CPU threads of the runtime (torch's are those of the process); the runtime's default when None.
            backend: ``torch``, ``onnxruntime``, ``tensorrt`` or ``torch-tensorrt``; several with commas between them,
                the first that runs is taken; ``auto`` measures all that run, once, and takes the fastest.
            precision: ``fp32``, or on CUDA devices ``fp16``.
            notice: told in one line each what was chosen and why, what is built, and what could not be used.

        Raises:
            DataError: the file is not a student artefact, is damaged, is of a newer schema, or does not hold what its
                metadata says.
            ConfigError: the device is not there, or no backend that is allowed runs.
            MissingDependencyError: the one backend that is allowed is not installed.
        """
        file = StudentFile.open(path)
        running, runtime = open_backend(file, Wanted(backend, device, precision, threads), notice)
        return cls(file.metadata, running, runtime)

    def describe(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Descriptors, (B, D) float32 of length 1, of RGB images, each (H, W, 3) uint8 of any size.

        A network output without a direction (all zeros, or not finite) gives a row of zeros or NaN.

        Raises:
            DataError: an image is not RGB uint8.
        """
        descriptors = np.empty((len(images), self.metadata.descriptor_dim), dtype=np.float32)
        with self._lock:
            for start in range(0, len(images), MAX_BATCH):
                batch = images[start : start + MAX_BATCH]
                rows = self._backend.describe(self._input(batch))
                if rows.shape != (len(batch), self.metadata.descriptor_dim) or rows.dtype != torch.float32:
                    raise DataError(
                        f"student {self.metadata.name!r}: gave {tuple(rows.shape)} {rows.dtype} for {len(batch)} "
                        f"images, its metadata promises descriptors of {self.metadata.descriptor_dim} float32; export "
                        f"it again"
                    )
                found = rows.cpu().numpy()
                with np.errstate(invalid="ignore", over="ignore"):  # a network's overflow shows in the descriptor
                    lengths = np.maximum(np.sqrt(np.einsum("ij,ij->i", found, found)), _SHORTEST)
                    np.divide(found, lengths[:, None], out=descriptors[start : start + len(batch)])
        return descriptors
