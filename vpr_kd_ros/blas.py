"""FAISS's own OpenBLAS, told what processor it is on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VARIABLE = "OPENBLAS_CORETYPE"
KERNELS = {
    "SkylakeX": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    "Haswell": {"avx2", "fma"},
}
"""OpenBLAS's names for its kernels, the fastest first, and the instructions that they use."""


@contextmanager
def known_processor() -> Iterator[None]:
    """Import FAISS inside this, before anyone else does.

    The OpenBLAS in FAISS's wheels takes a processor that is younger than it for one of 2004, and multiplies matrices at
    a quarter of the speed: a map of a million places then takes minutes to load. An ``OPENBLAS_CORETYPE`` of the user's
    own stays; ours is gone again afterwards, as other libraries bring newer OpenBLASes that know better.
    """
    kernels = None if VARIABLE in os.environ else fastest_kernels(instructions())
    if kernels is None:
        yield
        return
    os.environ[VARIABLE] = kernels
    try:
        yield
    finally:
        del os.environ[VARIABLE]


def fastest_kernels(known: set[str]) -> str | None:
    """OpenBLAS's name for the best kernels of a processor with these instructions; None where it is best left alone."""
    return next((name for name, needed in KERNELS.items() if needed <= known), None)


def instructions() -> set[str]:
    """The sets of instructions of this x86 processor, as Linux names them; none elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), set())
