"""The student's torch program, compiled by torch-tensorrt: the way on a desktop GPU.

torch-tensorrt keeps the engines in a folder of its own; here that is an entry of our cache, so that another driver,
GPU or version of a library begins an empty one.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
from typing import Any

import torch

from vpr_kd_ros.backends.cache import Entry, Key, Notice, load_or_build
from vpr_kd_ros.backends.engines import engine_key
from vpr_kd_ros.errors import ConfigError, MissingDependencyError
from vpr_kd_ros.student_file import StudentFile

MAX_BATCH = 8
"""The largest batch of an engine: what it reserves grows with it, and a robot has one image at a time."""


class TorchTensorRTBackend:
    """Runs a program that torch-tensorrt compiled, as a whole, for batches of 1 to ``MAX_BATCH``.

    Args:
        file: the student; must hold a torch program.
        device: a CUDA device.
        precision: ``fp32``, or ``fp16`` by torch-tensorrt's autocast.
        notice: told what is built and why.

    Raises:
        MissingDependencyError: torch-tensorrt is not installed.
        ConfigError: the device is no CUDA device, or torch-tensorrt cannot compile the student.
    """

    def __init__(self, file: StudentFile, device: torch.device, precision: str, notice: Notice) -> None:
        require_torch_tensorrt(device)
        self.device = torch.device("cuda", device.index or 0)
        self._half = precision == "fp16"
        entry = Entry(key_of(file, self.device, precision))
        self._module: Any = None

        def build() -> bytes:
            self._module = self._compile(file, str(entry.folder / "engines"))
            return b"the engines are beside this file"

        def open_content(_: bytes) -> bool | None:
            try:
                # torch-tensorrt finds its engine in the folder, and compiles around it.
                self._module = self._module or self._compile(file, str(entry.folder / "engines"))
            except ConfigError:
                entry.forget()
                return None
            return True

        load_or_build(entry, build, open_content, notice)

    def describe(self, batch: torch.Tensor) -> torch.Tensor:
        """Descriptors, (B, D) float32, not normalised, of normalised images, (B, 3, height, width) float32."""
        with torch.inference_mode(), torch.cuda.device(self.device):
            return torch.cat([self._module(part.contiguous()) for part in torch.split(batch, MAX_BATCH)]).float()

    def _compile(self, file: StudentFile, folder: str) -> Any:
        import torch_tensorrt
        from torch.export.passes import move_to_device_pass

        preprocess = file.metadata.preprocess
        shapes = [(batch, 3, preprocess.height, preprocess.width) for batch in (1, 1, MAX_BATCH)]
        batch = torch_tensorrt.Input(min_shape=shapes[0], opt_shape=shapes[1], max_shape=shapes[2], dtype=torch.float32)
        try:
            with torch.cuda.device(self.device):
                return torch_tensorrt.dynamo.compile(
                    move_to_device_pass(file.program(), str(self.device)),
                    arg_inputs=[batch],
                    device=self.device,
                    disable_tf32=True,
                    # Parts left to torch would be a slow path that nobody asked for.
                    require_full_compilation=True,
                    min_block_size=1,
                    cache_built_engines=True,
                    reuse_cached_engines=True,
                    # Both are in a folder of /tmp that all users share unless they are told.
                    engine_cache_dir=folder,
                    timing_cache_path=f"{folder}/timing_cache.bin",
                    **self._half_options(torch_tensorrt),
                )
        except (RuntimeError, AssertionError, ValueError, TypeError) as error:
            raise ConfigError(
                f"backend 'torch-tensorrt': {torch_tensorrt.__version__} cannot compile the student ({error}); use "
                "backend tensorrt or torch"
            ) from error

    def _half_options(self, torch_tensorrt: Any) -> dict[str, Any]:
        if not self._half:
            return {}
        # Older ones, and none of the newer, know enabled_precisions, and all ignore what they do not know.
        if "enable_autocast" not in inspect.signature(torch_tensorrt.dynamo.compile).parameters:
            raise ConfigError(
                f"backend 'torch-tensorrt': {torch_tensorrt.__version__} has no autocast, so no fp16; use backend "
                "tensorrt, or torch-tensorrt 2.10 or newer"
            )
        aten = torch.ops.aten
        return {
            "enable_autocast": True,
            "autocast_low_precision_type": torch.float16,
            # GeM: the cube of a feature overflows float16 above about 40.
            "autocast_excluded_ops": {aten.pow.Tensor_Scalar, aten.pow.Tensor_Tensor, aten.mean.dim},
        }


def require_torch_tensorrt(device: torch.device) -> None:
    """Refuse before the import, which ends the process where there is no GPU.

    Raises:
        MissingDependencyError, ConfigError: torch-tensorrt cannot be used, and why.
    """
    if device.type != "cuda" or not torch.cuda.is_available():
        raise ConfigError("backend 'torch-tensorrt': needs a CUDA device; use device cuda, or backend onnxruntime")
    if importlib.util.find_spec("torch_tensorrt") is None:
        version = ".".join(torch.__version__.split(".")[:2])
        raise MissingDependencyError(
            f"torch-tensorrt is not installed: pip install 'torch-tensorrt=={version}.*' "
            "--extra-index-url https://download.pytorch.org/whl/cu130"
        )


def key_of(file: StudentFile, device: torch.device, precision: str) -> Key:
    """What an engine of this student, on this device, in this torch-tensorrt, depends on."""
    parts = {
        "torch": torch.__version__,
        "torch_tensorrt": importlib.metadata.version("torch_tensorrt"),
        "batch": str(MAX_BATCH),
    }
    return engine_key("torch-tensorrt", file, "program", device, precision, parts)
