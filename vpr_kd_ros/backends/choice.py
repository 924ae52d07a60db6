"""Which runtime runs a student: the one that was asked for, or the fastest one that is there."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vpr_kd_ros.backends import BACKENDS, PRECISIONS, Backend, UnreadableError
from vpr_kd_ros.backends.cache import Entry, Key, Notice
from vpr_kd_ros.backends.devices import cpu_name, driver_version, gpu_name, parse_device
from vpr_kd_ros.errors import ConfigError, MissingDependencyError, VprError, did_you_mean
from vpr_kd_ros.student_file import StudentFile

MEASURE_S = 1.0
"""How long each runtime is measured, at most, once it is warm."""
MEASURE_RUNS = 20
WARM_RUNS = 3


def log_notice(text: str) -> None:
    """Where notices go when nobody else wants them."""
    logging.getLogger("vpr_kd_ros").warning(text)


@dataclass(frozen=True)
class Wanted:
    """What may run a student.

    Attributes:
        backend: one of ``BACKENDS``, several with commas between them in order of preference, or ``auto``.
        device: ``cpu``, ``cuda``, ``cuda:N`` or ``auto``.
        precision: one of ``PRECISIONS``.
        threads: CPU threads; the runtime's default when None.
    """

    backend: str = "auto"
    device: str = "cpu"
    precision: str = "fp32"
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            hint = did_you_mean(self.precision, PRECISIONS)
            raise ConfigError(f"precision: {self.precision!r} is none of {', '.join(PRECISIONS)}{hint}")
        if self.backend != "auto":
            for name in self.backends:
                if name not in BACKENDS:
                    hint = did_you_mean(name, (*BACKENDS, "auto"))
                    raise ConfigError(f"backend: {name!r} is none of {', '.join(BACKENDS)}, auto{hint}")
        if self.device != "auto":
            parse_device(self.device)

    @property
    def backends(self) -> list[str]:
        """The names in ``backend``, in order."""
        return [name.strip() for name in self.backend.split(",")]

    def devices(self) -> list[torch.device]:
        """Where the student may run, the best first."""
        if self.device != "auto":
            return [parse_device(self.device)]
        return [parse_device(name) for name in ("cuda", "cpu") if name == "cpu" or torch.cuda.is_available()]


@dataclass(frozen=True)
class Runtime:
    """A backend on a device, in a precision."""

    backend: str
    device: torch.device
    precision: str

    def __str__(self) -> str:
        return f"{self.backend} on {self.device}, {self.precision}"

    def why_not(self, file: StudentFile) -> str:
        """What speaks against it without trying; empty when nothing does."""
        on_cpu = self.device.type == "cpu"
        if on_cpu and self.precision == "fp16":
            return "precision fp16 needs a CUDA device"
        if self.backend == "onnxruntime" and not on_cpu:
            return "it runs on device cpu only"
        if self.backend in ("tensorrt", "torch-tensorrt") and on_cpu:
            return "it needs a CUDA device"
        if self.backend in ("onnxruntime", "tensorrt") and file.onnx is None:
            return f"{file.path} holds no ONNX model; export it again"
        if self.backend in ("torch", "torch-tensorrt") and file.archive is None:
            return f"{file.path} holds no torch program; give the .pt2 file"
        return ""

    def open(self, file: StudentFile, threads: int | None, notice: Notice) -> Backend:
        """Make it ready to run.

        Raises:
            VprError: it cannot be, and why.
        """
        if why := self.why_not(file):
            raise ConfigError(f"backend {self.backend!r}: {why}")
        if self.backend == "onnxruntime":
            from vpr_kd_ros.backends.onnx_backend import OnnxBackend

            assert file.onnx is not None
            return OnnxBackend(file.path, file.onnx, file.metadata, threads)
        if self.backend == "tensorrt":
            from vpr_kd_ros.backends.tensorrt_backend import TensorRTBackend

            return TensorRTBackend(file, self.device, self.precision, notice)
        if self.backend == "torch-tensorrt":
            from vpr_kd_ros.backends.torch_tensorrt_backend import TorchTensorRTBackend

            return TorchTensorRTBackend(file, self.device, self.precision, notice)
        from vpr_kd_ros.backends.torch_backend import TorchBackend

        return TorchBackend(file.program(), self.device, threads, self.precision)


def open_backend(file: StudentFile, wanted: Wanted, notice: Notice) -> tuple[Backend, str]:
    """The runtime that was asked for, ready, and what it is, for people.

    One name is taken or refused. Of several, the first that runs is taken, and what kept the others from running is
    told. ``auto`` allows all of them, and measures those that run.

    Raises:
        VprError: the one that was asked for cannot run.
        ConfigError: none of those that are allowed can.
    """
    _warn_of_unmeasured(file, wanted, notice)
    if wanted.backend == "auto":
        return _fastest(file, wanted, notice)
    reasons = []
    runtimes = [Runtime(name, device, wanted.precision) for name in wanted.backends for device in wanted.devices()]
    for runtime in runtimes:
        try:
            backend = runtime.open(file, wanted.threads, notice)
        except (ConfigError, MissingDependencyError, UnreadableError) as error:
            if len(runtimes) == 1:
                raise
            reasons.append(f"{runtime.backend} on {runtime.device}: {error}")
            continue
        if reasons:
            notice(f"student runs with {runtime}, which 'backend' allows after: {'; '.join(reasons)}")
        return backend, str(runtime)
    raise ConfigError(f"backend: none of {wanted.backend} runs: {'; '.join(reasons)}")


def runnable(file: StudentFile, wanted: Wanted, notice: Notice) -> dict[Runtime, Backend]:
    """All runtimes that run, ready; what kept the others from running is told.

    Raises:
        ConfigError: none runs.
        DataError: the artefact is not in order.
    """
    ready: dict[Runtime, Backend] = {}
    errors: list[VprError] = []
    reasons = []
    for runtime in _every(wanted):
        why = runtime.why_not(file)
        if not why:
            try:
                ready[runtime] = runtime.open(file, wanted.threads, notice)
                continue
            except (ConfigError, MissingDependencyError, UnreadableError) as error:
                errors.append(error)
                why = str(error)
        reasons.append(f"{runtime.backend} on {runtime.device}: {why}")
    if not ready and len(errors) == 1:
        raise errors[0]
    if not ready:
        raise ConfigError(f"backend auto: nothing runs with precision {wanted.precision}: {'; '.join(reasons)}")
    if reasons:
        notice(f"not usable here: {'; '.join(reasons)}")
    return ready


def _fastest(file: StudentFile, wanted: Wanted, notice: Notice) -> tuple[Backend, str]:
    possible = [runtime for runtime in _every(wanted) if not runtime.why_not(file)]
    entry = Entry(_choice_key(file, wanted, possible))
    if len(possible) > 1 and (kept := _kept(entry, possible)) is not None:
        runtime, why = kept
        try:
            backend = runtime.open(file, wanted.threads, notice)
        except (ConfigError, MissingDependencyError, UnreadableError) as error:
            notice(f"student: {runtime} was the fastest here and no longer runs ({error}); measuring again")
        else:
            notice(f"student runs with {runtime}: {why}, measured earlier")
            return backend, str(runtime)
    ready = runnable(file, wanted, notice)
    if len(ready) == 1:
        runtime, backend = next(iter(ready.items()))
        notice(f"student runs with {runtime}: nothing else runs it here")
        return backend, str(runtime)
    seconds = measure(list(ready.values()), file)
    milliseconds = {runtime: 1e3 * median for runtime, median in zip(ready, seconds, strict=True)}
    best = min(milliseconds, key=lambda runtime: milliseconds[runtime])
    others = ", ".join(f"{runtime} {ms:.1f}" for runtime, ms in milliseconds.items() if runtime != best)
    why = f"{milliseconds[best]:.1f} ms an image ({others})"
    try:
        entry.write(json.dumps({"backend": best.backend, "device": str(best.device), "why": why}).encode())
    except OSError as error:
        notice(f"the choice is not kept, so that the next start measures again: {entry.folder}: {error.strerror}")
    notice(f"student runs with {best}: {why}")
    return ready[best], str(best)


def measure(backends: Sequence[Backend], file: StudentFile) -> list[float]:
    """Median seconds that each backend takes for one image, in turns, so that a busy machine slows all alike."""
    preprocess = file.metadata.preprocess
    batch = torch.rand((1, 3, preprocess.height, preprocess.width), generator=torch.Generator().manual_seed(0))
    inputs = [batch.to(backend.device) for backend in backends]
    seconds: list[list[float]] = [[] for _ in backends]
    start = time.monotonic()
    for run in range(WARM_RUNS + MEASURE_RUNS):
        for backend, image, taken in zip(backends, inputs, seconds, strict=True):
            before = time.perf_counter()
            backend.describe(image).cpu()  # reading the descriptor back waits for the device
            if run >= WARM_RUNS:
                taken.append(time.perf_counter() - before)
        if run > WARM_RUNS and time.monotonic() - start > MEASURE_S * len(backends):
            break
    return [statistics.median(taken) for taken in seconds]


def _every(wanted: Wanted) -> list[Runtime]:
    return [
        Runtime(name, device, wanted.precision)
        for device in wanted.devices()
        for name in (("tensorrt", "torch-tensorrt", "torch") if device.type == "cuda" else ("onnxruntime", "torch"))
    ]


def _kept(entry: Entry, possible: Sequence[Runtime]) -> tuple[Runtime, str] | None:
    """The choice in the cache, if it is one of ``possible``."""
    data = entry.read()
    if data is None:
        return None
    values = json.loads(data)
    for runtime in possible:
        if (runtime.backend, str(runtime.device)) == (values["backend"], values["device"]):
            return runtime, values["why"]
    return None


def _choice_key(file: StudentFile, wanted: Wanted, possible: Sequence[Runtime]) -> Key:
    gpus = sorted({gpu_name(runtime.device) for runtime in possible if runtime.device.type == "cuda"})
    return Key(
        name=f"choice-{wanted.precision}",
        fingerprint=file.metadata.fingerprint,
        machine="; ".join([cpu_name(), *gpus]),
        parts={
            **file.digests(),
            "possible": ", ".join(map(str, possible)),
            "threads": str(wanted.threads or torch.get_num_threads()),
            "driver": driver_version() if gpus else "none",
            **{name: library_version(name) for name in ("torch", "onnxruntime", "tensorrt", "torch-tensorrt")},
        },
    )


def library_version(name: str) -> str:
    """Version of an installed distribution, or "none"."""
    try:
        return importlib.metadata.version(name.replace("-", "_"))
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _warn_of_unmeasured(file: StudentFile, wanted: Wanted, notice: Notice) -> None:
    if wanted.precision == "fp16" and not any(entry.precision == "fp16" for entry in file.metadata.parity):
        notice(
            f"{file.path}: its descriptors in fp16 were not compared with its checkpoint when it was exported; "
            "export it again to have that checked"
        )
