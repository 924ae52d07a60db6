"""What the engines of both roads to TensorRT depend on."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from vpr_kd_ros.backends.cache import Key
from vpr_kd_ros.backends.devices import driver_version, gpu_name
from vpr_kd_ros.student_file import StudentFile


def engine_key(
    runtime: str, file: StudentFile, model: str, device: torch.device, precision: str, parts: Mapping[str, str]
) -> Key:
    """The key of an engine: of this student, on this device, with this driver and this CUDA.

    Args:
        runtime: what builds it.
        file: the student.
        model: which of the networks in the student's file is built, see ``StudentFile.digests``.
        device: a CUDA device.
        precision: ``fp32`` or ``fp16``.
        parts: what else it depends on, such as versions of libraries.
    """
    common = {
        "driver": driver_version(),
        "cuda": str(torch.version.cuda),
        "student": file.digests().get(model, ""),
    }
    return Key(f"{runtime}-{precision}", file.metadata.fingerprint, gpu_name(device), {**common, **parts})
