"""Devices by name, and what of a machine decides whether something measured or built for it still holds."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import torch

from vpr_kd_ros.errors import ConfigError


def parse_device(name: str) -> torch.device:
    """``cpu``, ``cuda`` or ``cuda:N`` as a device that is there.

    Raises:
        ConfigError: it is unknown or not there.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device: {name!r} is unknown; use 'cpu', 'cuda', 'cuda:N' or 'auto'") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device: {name!r} is not supported; use 'cpu', 'cuda', 'cuda:N' or 'auto'")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device: {name!r} is not there ({torch.cuda.device_count()} CUDA devices); use 'cpu'")
    return device


def set_torch_threads(threads: int | None) -> None:
    """Set the CPU threads of torch in this process; None leaves them.

    Raises:
        ConfigError: not positive.
    """
    if threads is not None:
        if threads < 1:
            raise ConfigError(f"threads: {threads} is not positive")
        torch.set_num_threads(threads)


def cpu_name() -> str:
    """The processor's name and the number of cores that this process may use."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    found = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", text, re.MULTILINE)
    name = found[1] if found else platform.processor() or platform.machine()
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


def physical_cores() -> int:
    """The cores that this process may use, each counted once however many threads it has."""
    logical = os.sched_getaffinity(0)
    siblings = (Path(f"/sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list") for number in logical)
    return len({path.read_text() if path.exists() else str(path) for path in siblings})


def gpu_name(device: torch.device) -> str:
    """A CUDA device's name and compute capability."""
    properties = torch.cuda.get_device_properties(device)
    return f"{properties.name}, sm_{properties.major}{properties.minor}"


def driver_version() -> str:
    """The NVIDIA driver: its own version, Jetson Linux's release, or "unknown"."""
    for path, pattern in (
        ("/proc/driver/nvidia/version", r"Kernel Module.*?\s(\d+\.[\d.]+)\s"),
        ("/etc/nv_tegra_release", r"(R\d+).*?REVISION: ([\d.]+)"),
    ):
        try:
            found = re.search(pattern, Path(path).read_text())
        except OSError:
            continue
        if found:
            return " ".join(found.groups())
    return "unknown"
