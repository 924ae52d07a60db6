"""The student's ONNX model, run by ONNX Runtime on the CPU."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from vpr_kd_ros.backends import UnreadableError
from vpr_kd_ros.backends.devices import physical_cores
from vpr_kd_ros.errors import ConfigError, DataError, MissingDependencyError
from vpr_kd_ros.student_metadata import StudentMetadata


class OnnxBackend:
    """Runs an ONNX model in its own precision.

    torch and ONNX Runtime read one another's CPU memory: neither batch nor descriptors are copied.

    Args:
        path: of the artefact, named in errors.
        model: serialised; float32 (B, 3, height, width) to float32 (B, D).
        metadata: says height, width and D.
        threads: CPU threads; as many as there are physical cores when None.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        ConfigError: ``threads`` is not positive.
        UnreadableError: this onnxruntime cannot read the model.
        DataError: it maps something else.
    """

    def __init__(self, path: Path, model: bytes, metadata: StudentMetadata, threads: int | None = None) -> None:
        # From 1.29 on, onnxruntime reports its use to its makers; a robot does not, unless its owner says so.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        try:
            import onnxruntime
        except ImportError:
            raise MissingDependencyError("onnxruntime is not installed: pip install onnxruntime") from None
        if threads is not None and threads < 1:
            raise ConfigError(f"threads: {threads} is not positive")
        self.device = torch.device("cpu")
        options = onnxruntime.SessionOptions()
        # Always a number: by default each thread is pinned to a core, and what else runs there holds up every image.
        options.intra_op_num_threads = threads or physical_cores()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Threads that sleep between layers are woken on the core of the one that wakes them, and two are no faster than
        # one; these spin within an image. Between two images they sleep, or they would keep every core busy.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors have no common base but this
            raise UnreadableError(
                f"{path}: onnxruntime {onnxruntime.__version__} cannot read its ONNX model ({error})"
            ) from error
        preprocess = metadata.preprocess
        self._input = _only(path, "input", self._session.get_inputs(), [3, preprocess.height, preprocess.width])
        self._output = _only(path, "output", self._session.get_outputs(), [metadata.descriptor_dim])

    def describe(self, batch: torch.Tensor) -> torch.Tensor:
        """Descriptors, (B, D) float32, not normalised, of normalised images, (B, 3, height, width) float32."""
        return torch.from_numpy(self._session.run([self._output], {self._input: batch.contiguous().numpy()})[0])


def _only(path: Path, what: str, found: Any, shape: list[int]) -> str:
    """The name of the one input or output, which must be float32 (any B, shape)."""
    kinds = [(value.shape, value.type) for value in found]
    if len(kinds) != 1 or kinds[0][1] != "tensor(float)" or not _is_batch_of(kinds[0][0], shape):
        raise DataError(
            f"{path}: the {what} of its ONNX model is {kinds}, wants one float32 tensor (dynamic B, {shape})"
        )
    return str(found[0].name)


def _is_batch_of(found: list[Any], shape: list[int]) -> bool:
    return list(found[1:]) == shape and not isinstance(found[0], int)
