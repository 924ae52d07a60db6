"""FAISS's OpenBLAS works with the kernels of the processor at hand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vpr_kd_ros.blas import VARIABLE, fastest_kernels, instructions

# What the OpenBLAS that FAISS has loaded says of itself, and what is left of our variable.
PROBE = """
import ctypes, os
import vpr_kd_ros.index
maps = [line.split()[-1] for line in open("/proc/self/maps") if "openblas" in line and "faiss" in line]
library = ctypes.CDLL(maps[0]) if maps else None
if library is not None:
    library.openblas_get_corename.restype = ctypes.c_char_p
    print(library.openblas_get_corename().decode())
print(os.environ.get("OPENBLAS_CORETYPE"))
"""


def probed(**environment: str) -> list[str]:
    inherited = {key: value for key, value in os.environ.items() if key != VARIABLE}
    command = [sys.executable, "-c", PROBE]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[1], env={**inherited, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_faiss_multiplies_with_the_kernels_of_this_processor() -> None:
    wanted = fastest_kernels(instructions())
    if wanted is None:
        pytest.skip("this processor has neither AVX2 nor AVX-512: OpenBLAS is left alone")
    *loaded, variable = probed()
    if not loaded:
        pytest.skip("this FAISS brings no OpenBLAS of its own")
    assert loaded[0].lower() == wanted.lower()
    assert variable == "None", "other libraries' OpenBLAS finds out for itself"


def test_a_choice_of_the_users_own_stays() -> None:
    *loaded, variable = probed(**{VARIABLE: "Nehalem"})
    assert variable == "Nehalem"
    assert not loaded or loaded[0] == "Nehalem"


@pytest.mark.parametrize(
    ("known", "wanted"),
    [
        ({"sse4_2"}, None),
        ({"avx2"}, None),
        ({"avx2", "fma"}, "Haswell"),
        ({"avx2", "fma", "avx512f"}, "Haswell"),
        ({"avx2", "fma", "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "amx_tile"}, "SkylakeX"),
        (set(), None),
    ],
)
def test_kernels_are_those_whose_instructions_are_all_there(known: set[str], wanted: str | None) -> None:
    assert fastest_kernels(known) == wanted
