"""The exported program, run by torch itself, on the CPU or a CUDA device."""

from __future__ import annotations

import torch
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass

from vpr_kd_ros.errors import ConfigError


class TorchBackend:
    """Runs an exported program in float32.

    Args:
        program: float32 (B, 3, height, width) to float32 (B, D).
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        threads: CPU threads of torch in this process (all of it, not only this student); torch's default when None.

    Raises:
        ConfigError: the device is unknown or not there, or ``threads`` is not positive.
    """

    def __init__(self, program: ExportedProgram, device: str, threads: int | None) -> None:
        if threads is not None:
            if threads < 1:
                raise ConfigError(f"threads: {threads} is not positive")
            torch.set_num_threads(threads)
        self.device = _device(device)
        if self.device.type == "cuda":
            # TF32 convolutions are good to three digits only: a map made with them would not fit a query made without.
            torch.backends.cudnn.allow_tf32 = False
            program = move_to_device_pass(program, str(self.device))
        # The guards are Python text that torch would evaluate; the student checks shapes and dtypes itself.
        self._module = program.module(check_guards=False)

    def describe(self, batch: torch.Tensor) -> torch.Tensor:
        """Descriptors, (B, D) float32, not normalised, of normalised images, (B, 3, height, width) float32."""
        with torch.inference_mode():
            descriptors: torch.Tensor = self._module(batch)
        return descriptors


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device: {name!r} is unknown; use 'cpu', 'cuda' or 'cuda:N'") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device: {name!r} is not supported; use 'cpu', 'cuda' or 'cuda:N'")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device: {name!r} is not there ({torch.cuda.device_count()} CUDA devices); use 'cpu'")
    return device
