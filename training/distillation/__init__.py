"""Distillation losses: one file per method, each with its pure functions and the small module that holds its options.

A method maps the descriptors of one batch, teacher (N, Ct) and student (N, Cs), to a dict of weighted terms.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from training.distillation.adaptor import Adaptor
from training.distillation.afd import AFD
from training.distillation.csd import CSD
from training.distillation.distilvpr import DistilVPR
from training.distillation.epcnet import EPCNet
from training.distillation.ickd import ICKD
from training.distillation.kd import KD
from training.distillation.low_quality import LowQuality
from training.distillation.lsdnet import LSDNet
from training.distillation.method import DistillationMethod
from training.distillation.mkd import MKD
from training.distillation.mse import MSE
from training.distillation.rkd import RKD
from training.distillation.scicevpr import SciceVPR
from training.distillation.structvpr import StructVPR
from training.options import build
from vpr_kd_ros.errors import ConfigError

__all__ = ["METHODS", "Adaptor", "DistillationMethod", "build_method"]

METHODS: dict[str, type[DistillationMethod]] = {
    "distilvpr": DistilVPR,
    "rkd": RKD,
    "csd": CSD,
    "lsdnet": LSDNet,
    "mkd": MKD,
    "kd": KD,
    "epcnet": EPCNet,
    "mse": MSE,
    "structvpr": StructVPR,
    "afd": AFD,
    "ickd": ICKD,
    "low-quality": LowQuality,
    "scicevpr": SciceVPR,
}


def build_method(
    name: str, options: Mapping[str, Any], *, teacher_dim: int | None = None, student_dim: int | None = None
) -> DistillationMethod:
    """Build a distillation method from its name and options.

    Args:
        name: a key of ``METHODS``.
        options: keyword arguments of that class, and for every method ``adaptor``: ``teacher``, ``student`` or None.
        teacher_dim, student_dim: descriptor sizes. Where given, they are checked here rather than at the first batch;
            an adaptor needs them. Its weights are in ``method.parameters()``, which go to the optimiser.

    Raises:
        ConfigError: unknown name, option or value; sizes that do not fit.
    """
    own = {key: value for key, value in options.items() if key != "adaptor"}
    method: DistillationMethod = build("distillation method", METHODS, name, own)
    side = options.get("adaptor")
    if side is not None and not method.compares_descriptors:
        raise ConfigError(f"distillation method {name!r} compares feature maps alone: leave its option `adaptor` out")
    if side is not None:
        if teacher_dim is None or student_dim is None:
            raise ConfigError(f"distillation method {name!r}: `adaptor` needs the sizes of both descriptors")
        method.adaptor = Adaptor(side, teacher_dim, student_dim)
    elif teacher_dim is not None and student_dim is not None:
        method.check_dims(teacher_dim, student_dim)
    return method
