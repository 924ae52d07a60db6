"""Several processes that train one model: starting them, and what they tell each other.

Each process draws its own part of the batch and describes it. The descriptors of all are then gathered, so that every
process computes the same loss over the whole batch: a relation between two keyframes counts whichever processes drew
them. In the backward pass each process takes the gradient of its own descriptors, summed over all processes; the mean
over processes, which DDP takes of the parameters' gradients, makes that the gradient of one process with the whole
batch.

Batch normalisation is not part of this: it normalises over a process's own part, as DDP has it, and the running
statistics that are kept are those of the first process.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import lightning.fabric
import torch
import torch.distributed as dist
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.multiprocessing.spawn import ProcessRaisedException

from training.engine.config import TrainConfig
from vpr_kd_ros import errors
from vpr_kd_ros.blas import instructions
from vpr_kd_ros.errors import ConfigError, VprError

FAST = "fast"
"""The precision that is ``fast_precision`` of the machine it is trained on."""
Result = TypeVar("Result")
Value = TypeVar("Value")


def fast_precision() -> str:
    """bf16-mixed where this machine's GPU, or else its processor, multiplies matrices of bfloat16; 32-true elsewhere.

    A processor that does not takes twelve times as long in bf16-mixed (two cores of an AMD EPYC, 2026-11-27).
    """
    if torch.cuda.is_available():
        multiplies = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        multiplies = "amx_bf16" in instructions()
    return "bf16-mixed" if multiplies else "32-true"


def run_processes(config: TrainConfig, work: Callable[[lightning.fabric.Fabric], Result]) -> Result:
    """Call ``work`` in ``config.devices`` processes, or in this one where one is enough; returns the first's result.

    Args:
        config: its ``devices`` and ``precision``.
        work: with several processes it must be picklable, a frozen dataclass it needs bound by ``partial``, and its
            result must be plain values or arrays, not tensors, whose memory goes with the process; and few of them, as
            it is read when the process has ended: more than a pipe holds (64 KiB) would wait for that for ever.

    Raises:
        ConfigError: the machine has fewer devices, or there is no such precision.
        VprError: whatever ``work`` raised.
    """
    strategy = "auto" if config.devices == 1 else "ddp_spawn"
    try:
        fabric = lightning.fabric.Fabric(
            accelerator="auto", strategy=strategy, devices=config.devices, precision=config.precision
        )
    except (MisconfigurationException, ValueError) as error:
        raise ConfigError(f"training: devices={config.devices}, precision={config.precision!r}: {error}") from error
    try:
        result: Result = fabric.launch(partial(_call_and_leave, work))
    except ProcessRaisedException as error:
        raise _own_error(error) or error from None
    return result


def gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """The rows (n, ...) of every process, (N, ...), in the order of the processes; gradients flow back to each.

    Processes may bring different numbers of rows, but at least one each.
    """
    if not _several():
        return rows
    gathered: torch.Tensor = _GatherRows.apply(rows)
    return gathered


def gather_objects(value: Value) -> list[Value]:
    """The small object of every process, in the order of the processes."""
    if not _several():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor) -> torch.Tensor:
        counts = gather_objects(len(rows))
        # The collective wants equal shapes: everyone pads to the longest.
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        ctx.start, ctx.count = sum(counts[: dist.get_rank()]), len(rows)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total[ctx.start : ctx.start + ctx.count]


def _call_and_leave(work: Callable[[lightning.fabric.Fabric], Result], fabric: lightning.fabric.Fabric) -> Result:
    """``work``, then leave the process group together.

    A process that ends while gloo's threads still run is aborted by them ("terminate called without an active
    exception") although its work was done.
    """
    result = work(fabric)
    if _several():
        dist.barrier()
        dist.destroy_process_group()
    return result


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _own_error(error: ProcessRaisedException) -> VprError | None:
    """The error of ours that ended a process, made from the last line of its traceback; None for any other."""
    kind, _, message = str(error).strip().splitlines()[-1].partition(": ")
    found = getattr(errors, kind.rpartition(".")[2], None)
    return found(message) if isinstance(found, type) and issubclass(found, VprError) else None
