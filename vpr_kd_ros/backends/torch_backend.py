"""The exported program, run by torch itself, on the CPU or a CUDA device."""

from __future__ import annotations

import inspect

import torch
from torch.export import ExportedProgram

from vpr_kd_ros.backends import UnreadableError
from vpr_kd_ros.backends.devices import set_torch_threads
from vpr_kd_ros.errors import ConfigError


class TorchBackend:
    """Runs an exported program.

    Args:
        program: float32 (B, 3, height, width) to float32 (B, D).
        device: the CPU or a CUDA device.
        threads: CPU threads of torch in this process (all of it, not only this student); torch's default when None.
        precision: ``fp32``; on CUDA also ``fp16``, which is torch's autocast: convolutions and matrix products in half
            precision, powers, norms and softmax in single.

    Raises:
        ConfigError: ``threads`` is not positive, or ``fp16`` on a CPU.
        UnreadableError: this torch cannot run a program without evaluating the guards in it.
    """

    def __init__(
        self, program: ExportedProgram, device: torch.device, threads: int | None = None, precision: str = "fp32"
    ) -> None:
        set_torch_threads(threads)
        if "check_guards" not in inspect.signature(program.module).parameters:
            raise UnreadableError(
                f"torch {torch.__version__} is too old to run a .pt2; use backend onnxruntime or tensorrt"
            )
        self.device = device
        self._half = precision == "fp16"
        if self._half and device.type == "cpu":
            raise ConfigError("precision: fp16 is slower than fp32 on a CPU; use fp32, or device cuda")
        if device.type == "cuda":
            from torch.export.passes import move_to_device_pass

            # TF32 convolutions are good to three digits only: a map made with them would not fit a query made without.
            torch.backends.cudnn.allow_tf32 = False
            program = move_to_device_pass(program, str(device))
        # The guards are Python text that torch would evaluate; the student checks shapes and dtypes itself.
        self._module = program.module(check_guards=False)

    def describe(self, batch: torch.Tensor) -> torch.Tensor:
        """Descriptors, (B, D) float32, not normalised, of normalised images, (B, 3, height, width) float32."""
        with torch.inference_mode(), torch.autocast(self.device.type, torch.float16, enabled=self._half):
            descriptors: torch.Tensor = self._module(batch)
        return descriptors.float()
