"""What distillation methods are given beside the descriptors, made up from the descriptors themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from training.distillation import DistillationMethod, build_method
from training.distillation.method import Beginning, Context

CHANNELS = 5
SIZES = ((4, 6), (2, 3))
"""Height and width of the feature maps, fine first."""


def maps_of(rows: Tensor, sizes: Sequence[tuple[int, int]] = SIZES) -> tuple[Tensor, ...]:
    """Feature maps (N, 5, H, W): fixed linear functions of the descriptors (N, C), of their type and with their
    gradient; all zero where a descriptor is.
    """
    maps = []
    for seed, size in enumerate(sizes):
        generator = torch.Generator().manual_seed(seed)
        patterns = torch.randn(rows.shape[1], CHANNELS * size[0] * size[1], generator=generator).to(rows)
        with torch.autocast("cpu", enabled=False):
            maps.append((rows @ patterns).reshape(len(rows), CHANNELS, *size))
    return tuple(maps)


def prepared(
    name: str, options: Mapping[str, Any], teacher: Tensor, student: Tensor,
    sizes: Sequence[tuple[int, int]] = SIZES, **dims: int,
) -> DistillationMethod:  # fmt: skip
    """The method, begun as before the first step, with the descriptors of the batch for those of all keyframes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        method = build_method(name, options, **dims)
        if method.needs_maps:
            shapes = [(CHANNELS, *size) for size in sizes]
            method.begin_maps(shapes, shapes)
        if method.needs_beginning:
            drives = torch.arange(len(teacher)) % 2
            method.begin(Beginning(teacher.detach().float(), student.detach().float(), drives))
    return method


def context_of(
    method: DistillationMethod, teacher: Tensor, student: Tensor, sizes: Sequence[tuple[int, int]] = SIZES
) -> Context:
    """What the method asks to know of the batch: keyframes, triplets of neighbours, maps made of the descriptors."""
    rows = torch.arange(len(teacher)) if len(teacher) > 2 else torch.arange(0)
    following = [(rows + step) % max(len(rows), 1) for step in range(3)]
    return Context(
        torch.arange(len(teacher)),
        (following[0], following[1], following[2]) if method.needs_triplets else None,
        maps_of(teacher, sizes) if method.needs_maps else (),
        maps_of(student, sizes) if method.needs_maps else (),
    )


def terms_of(
    method: DistillationMethod, teacher: Tensor, student: Tensor, sizes: Sequence[tuple[int, int]] = SIZES
) -> dict[str, Tensor]:
    """The method's terms of the batch, with the context that it asks for."""
    terms: dict[str, Tensor] = method(teacher, student, context_of(method, teacher, student, sizes))
    return terms
