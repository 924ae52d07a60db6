"""The student's ONNX model, compiled and run by TensorRT through its own Python package.

This is the way on a Jetson, whose JetPack brings that package. An engine is built for one GPU, driver and TensorRT; it
is kept in the user's cache and built again when one of them is another. Written for TensorRT 10 and 11.
"""

from __future__ import annotations

import ctypes.util
import re
from typing import Any

import torch

from vpr_kd_ros.backends.cache import Entry, Key, Notice, load_or_build
from vpr_kd_ros.backends.devices import gpu_name
from vpr_kd_ros.backends.engines import engine_key
from vpr_kd_ros.backends.half import to_half
from vpr_kd_ros.errors import ConfigError, MissingDependencyError
from vpr_kd_ros.student_file import StudentFile

MAX_BATCH = 8
"""The largest batch of an engine: what it reserves grows with it, and a robot has one image at a time."""
OLDEST = 10
"""Major version of TensorRT that knows tensors by name and networks that carry their types."""
NETWORKS = 1
"""Counts changes of how the network given to TensorRT is made: engines of another count are built again."""


class TensorRTBackend:
    """Runs an engine, built when there is none yet.

    Args:
        file: the student; must hold an ONNX model.
        device: a CUDA device.
        precision: ``fp32`` (without TF32, good to three digits only) or ``fp16`` (see ``vpr_kd_ros.backends.half``).
        notice: told what is built and why.

    Raises:
        MissingDependencyError: the tensorrt package is not installed, or onnx is not and ``fp16`` is wanted.
        ConfigError: the device is no CUDA device, TensorRT is too old, or it cannot build the engine.
    """

    def __init__(self, file: StudentFile, device: torch.device, precision: str, notice: Notice) -> None:
        self._trt = import_tensorrt(device)
        self.device = torch.device("cuda", device.index or 0)
        self._dimension = file.metadata.descriptor_dim
        preprocess = file.metadata.preprocess
        self._shape = (3, preprocess.height, preprocess.width)
        assert file.onnx is not None
        model = file.onnx
        # TensorRT makes and runs everything on the thread's current device.
        with torch.cuda.device(self.device):
            self._logger = self._trt.Logger(self._trt.Logger.WARNING)
            self._runtime = self._trt.Runtime(self._logger)
            self._engine = load_or_build(
                Entry(key_of(file, self.device, precision, str(self._trt.__version__))),
                lambda: self._build(to_half(model) if precision == "fp16" else model),
                self._load,
                notice,
            )
            self._context = self._engine.create_execution_context()
            if self._context is None:
                raise ConfigError("backend 'tensorrt': no memory for the engine; close what else uses the GPU")
            self._stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]  # torch has no types there

    def describe(self, batch: torch.Tensor) -> torch.Tensor:
        """Descriptors, (B, D) float32, not normalised, of normalised images, (B, 3, height, width) float32."""
        with torch.cuda.device(self.device):
            return torch.cat([self._run(part.contiguous()) for part in torch.split(batch, MAX_BATCH)])

    def _run(self, batch: torch.Tensor) -> torch.Tensor:
        rows = torch.empty((len(batch), self._dimension), device=self.device)
        current = torch.cuda.current_stream(self.device)
        # On a stream of its own, for on the default one TensorRT adds waits.
        self._stream.wait_stream(current)
        done = self._context.set_input_shape(self._input, tuple(batch.shape))
        done = done and self._context.set_tensor_address(self._input, batch.data_ptr())
        done = done and self._context.set_tensor_address(self._output, rows.data_ptr())
        done = done and self._context.execute_async_v3(self._stream.cuda_stream)
        if not done:
            raise RuntimeError(f"TensorRT did not run a batch of {tuple(batch.shape)}; its log says why")
        for tensor in (batch, rows):
            tensor.record_stream(self._stream)
        current.wait_stream(self._stream)
        return rows

    def _build(self, model: bytes) -> bytes:
        """A serialised engine of an ONNX model, for batches of 1 to ``MAX_BATCH``, best at 1."""
        trt = self._trt
        builder = trt.Builder(self._logger)
        # The types are the network's own; TensorRT 11 does so always and ignores the flag.
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, self._logger)
        if not parser.parse(model):
            errors = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
            raise ConfigError(f"backend 'tensorrt': TensorRT {trt.__version__} cannot read the student: {errors}")
        config = builder.create_builder_config()
        config.clear_flag(trt.BuilderFlag.TF32)
        profile = builder.create_optimization_profile()
        shapes = [(batch, *self._shape) for batch in (1, 1, MAX_BATCH)]
        profile.set_shape(network.get_input(0).name, *shapes)
        config.add_optimization_profile(profile)
        engine = builder.build_serialized_network(network, config)
        if engine is None:
            raise ConfigError(
                f"backend 'tensorrt': TensorRT {trt.__version__} cannot build the student for {gpu_name(self.device)}; "
                "its log above says why"
            )
        return bytes(engine)

    def _load(self, data: bytes) -> Any | None:
        """The engine in serialised bytes; None where TensorRT cannot load it or it is not the student's."""
        trt = self._trt
        engine = self._runtime.deserialize_cuda_engine(data)
        if engine is None:
            return None
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        modes = {engine.get_tensor_mode(name): name for name in names}
        if len(names) != 2 or any(engine.get_tensor_dtype(name) != trt.float32 for name in names):
            return None
        self._input, self._output = modes[trt.TensorIOMode.INPUT], modes[trt.TensorIOMode.OUTPUT]
        fits = tuple(engine.get_tensor_shape(self._input))[1:] == self._shape
        return engine if fits and tuple(engine.get_tensor_shape(self._output))[1:] == (self._dimension,) else None


def import_tensorrt(device: torch.device) -> Any:
    """The tensorrt package, once it is clear that it can be used.

    Raises:
        MissingDependencyError, ConfigError: it cannot, and why.
    """
    if device.type != "cuda" or not torch.cuda.is_available():
        raise ConfigError("backend 'tensorrt': needs a CUDA device; use device cuda, or backend onnxruntime")
    try:
        import tensorrt
    except ImportError:
        library = ctypes.util.find_library("nvinfer")
        raise MissingDependencyError(
            "the tensorrt package is not installed in this Python: "
            + (
                f"{library} is, so on a Jetson `apt install python3-libnvinfer`, and make a virtual environment with "
                "--system-site-packages"
                if library
                else "on a Jetson `apt install nvidia-jetpack`, on a desktop `pip install tensorrt`"
            )
        ) from None
    version = str(tensorrt.__version__)
    if (major := re.match(r"\d+", version)) is None or int(major[0]) < OLDEST:
        raise ConfigError(
            f"backend 'tensorrt': TensorRT {version} is too old, wants {OLDEST} or newer (JetPack 6.1 or newer)"
        )
    return tensorrt


def key_of(file: StudentFile, device: torch.device, precision: str, version: str) -> Key:
    """What an engine of this student, on this device, in this TensorRT, depends on."""
    parts = {"tensorrt": version, "batch": str(MAX_BATCH), "networks": str(NETWORKS)}
    return engine_key("tensorrt", file, "onnx", device, precision, parts)
