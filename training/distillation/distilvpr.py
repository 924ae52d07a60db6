"""DistilVPR: relations between self-agents and cross-agents on several manifolds (Wang et al., AAAI 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

from torch import Tensor

from training.distillation.manifolds import (
    Relation,
    cosine_similarities,
    euclidean_distances,
    hyperbolic_distances,
    hyperbolic_distances_released,
    normalise_rows,
)
from training.distillation.method import DistillationMethod
from training.distillation.penalties import PENALTIES, Penalty
from training.distillation.rkd import angle_loss, divide_by_mean
from training.options import choice
from vpr_kd_ros.errors import ConfigError

DISTANCES = ("euclidean", "cosine", "hyperbolic")
AGENTS = {"tt-ss": "self", "ts-ss": "cross", "tt-ts": "teacher_cross"}
"""The three schemes of Fig. 2 and the names that their terms carry."""


class Relations:
    """The three matrices that Eq. 3 to 5 compare, each computed once and only when asked for.

    Args:
        teacher, student: (N, C) descriptors; of different sizes only where `ts` is not asked for.
        relation: r(x, y), a function of (N, C) and (N, C) to (N, N).
    """

    def __init__(self, teacher: Tensor, student: Tensor, relation: Relation) -> None:
        self.teacher, self.student, self.relation = teacher, student, relation

    @cached_property
    def tt(self) -> Tensor:
        """r(t_i, t_j)."""
        return self.relation(self.teacher, self.teacher)

    @cached_property
    def ts(self) -> Tensor:
        """r(t_i, s_j)."""
        return self.relation(self.teacher, self.student)

    @cached_property
    def ss(self) -> Tensor:
        """r(s_i, s_j)."""
        return self.relation(self.student, self.student)


def tt_ss_loss(r: Relations, penalty: Penalty, reduction: str, by_mean: bool = False) -> Tensor:
    """Self-agents, Eq. 3 (7, 10, 16): student's relations like the teacher's; ``by_mean``: each over its mean."""
    if by_mean:
        return penalty(divide_by_mean(r.ss), divide_by_mean(r.tt), reduction=reduction)
    return penalty(r.ss, r.tt, reduction=reduction)


def ts_ss_loss(r: Relations, penalty: Penalty, reduction: str, detach: bool = False) -> Tensor:
    """Cross-agents, Eq. 4 (8, 11, 17); with ``detach`` the student's gradient flows through r(s, s) only.

    An adaptor on the teacher's side has no other gradient than that of r(t, s), and keeps it.
    """
    return penalty(r.ss, r.relation(r.teacher, r.student.detach()) if detach else r.ts, reduction=reduction)


def tt_ts_loss(r: Relations, penalty: Penalty, reduction: str) -> Tensor:
    """Cross-agents against the teacher's own relations, Eq. 5; only in the paper's ablation (Table 4)."""
    return penalty(r.ts, r.tt, reduction=reduction)


@dataclass(frozen=True)
class Settings:
    """What the paper's text leaves open, and where its published code departs from it.

    Attributes:
        lambda_self, lambda_cross: weights of L_KD-S and L_KD-C, Eq. 20 to 22.
        reduction: ``sum`` over i, j as in the equations, or ``mean``, which does not grow with the batch.
        penalty: the l of Eq. 3 (self-agents): ``smooth_l1``, ``mse`` or ``l1``.
        cross_penalty: the l of Eq. 4 and 5.
        normalise_self, normalise_cross: L2-normalise the descriptors first.
        divide_by_mean: divide the self-agents' Euclidean and hyperbolic distances by the mean of those above zero
            (each side by its own), so that the student need not copy the teacher's scale.
        detach_cross: no gradient to the student through r(t, s) of Eq. 4.
        self_cosine: ``cosine`` (Eq. 10), or ``angle`` (RKD's over triplets, O(N³) time) in its place.
        hyperbolic: ``exact``, or ``released`` with the limits of the published code (see `manifolds`).
    """

    lambda_self: float
    lambda_cross: float
    reduction: str
    penalty: str
    cross_penalty: str
    normalise_self: bool
    normalise_cross: bool
    divide_by_mean: bool
    detach_cross: bool
    self_cosine: str
    hyperbolic: str

    def __post_init__(self) -> None:
        choice("reduction", self.reduction, ("sum", "mean"))
        choice("penalty", self.penalty, PENALTIES)
        choice("penalty", self.cross_penalty, PENALTIES)
        choice("self_cosine", self.self_cosine, ("cosine", "angle"))
        choice("form of the hyperbolic distance", self.hyperbolic, ("exact", "released"))


PRESETS: dict[str, Settings] = {
    # Eq. 3 to 22 to the letter. l is not named in the paper; smooth-L1 is what its relational ancestor RKD uses and
    # what the code uses for self-agents. The lambdas are not given either.
    "paper": Settings(
        lambda_self=1.0,
        lambda_cross=1.0,
        reduction="sum",
        penalty="smooth_l1",
        cross_penalty="smooth_l1",
        normalise_self=False,
        normalise_cross=False,
        divide_by_mean=False,
        detach_cross=False,
        self_cosine="cosine",
        hyperbolic="exact",
    ),
    # The authors' published code, with its weights for Oxford RobotCar (for Boreas lambda_self is 1). Their training
    # also halves the student's task loss, which is outside this module.
    "released": Settings(
        lambda_self=10.0,
        lambda_cross=0.1,
        reduction="mean",
        penalty="smooth_l1",
        cross_penalty="mse",
        normalise_self=False,
        normalise_cross=True,
        divide_by_mean=True,
        detach_cross=True,
        self_cosine="angle",
        hyperbolic="released",
    ),
    # Independent of the scale of either network and of the batch size: what taught students best in the simulated town.
    "scaled": Settings(
        lambda_self=5.0,
        lambda_cross=0.1,
        reduction="mean",
        penalty="smooth_l1",
        cross_penalty="smooth_l1",
        normalise_self=True,
        normalise_cross=True,
        divide_by_mean=True,
        detach_cross=True,
        self_cosine="cosine",
        hyperbolic="exact",
    ),
}


class DistilVPR(DistillationMethod):
    """DistilVPR-S, -C and -SC: Eq. 18 to 22 without the task loss.

    Args:
        preset: ``paper``, ``released`` or ``scaled``, see `PRESETS`; the options from ``lambda_self`` on replace single
            settings of it and are explained in `Settings`.
        agents: of ``tt-ss`` (Eq. 3), ``ts-ss`` (Eq. 4), ``tt-ts`` (Eq. 5). The default is DistilVPR-SC; (tt-ss,) is
            DistilVPR-S and (ts-ss,) is DistilVPR-C. All but tt-ss need descriptors of equal size, or an adaptor.
        distances: of ``euclidean``, ``cosine``, ``hyperbolic``.
        curvature: c of Eq. 12 to 15; 0.1 in the published code, not given in the paper.

    Terms are named ``self/euclidean`` (tt-ss), ``cross/cosine`` (ts-ss), ``teacher_cross/hyperbolic`` (tt-ts, weighted
    by lambda_cross) and so on; the RKD angle is ``self/angle``.

    Raises:
        ConfigError: an unknown name, or nothing left to compute.
    """

    paper = "DistilVPR, AAAI 2024"
    needs = "any teacher, of the student's size or with an adaptor (agents tt-ss: of any size)"

    def __init__(
        self,
        preset: str = "scaled",
        agents: Sequence[str] = ("tt-ss", "ts-ss"),
        distances: Sequence[str] = DISTANCES,
        curvature: float = 0.1,
        *,
        lambda_self: float | None = None,
        lambda_cross: float | None = None,
        reduction: str | None = None,
        penalty: str | None = None,
        cross_penalty: str | None = None,
        normalise_self: bool | None = None,
        normalise_cross: bool | None = None,
        divide_by_mean: bool | None = None,
        detach_cross: bool | None = None,
        self_cosine: str | None = None,
        hyperbolic: str | None = None,
    ) -> None:
        super().__init__()
        options: dict[str, Any] = {
            "lambda_self": lambda_self,
            "lambda_cross": lambda_cross,
            "reduction": reduction,
            "penalty": penalty,
            "cross_penalty": cross_penalty,
            "normalise_self": normalise_self,
            "normalise_cross": normalise_cross,
            "divide_by_mean": divide_by_mean,
            "detach_cross": detach_cross,
            "self_cosine": self_cosine,
            "hyperbolic": hyperbolic,
        }
        given = {name: value for name, value in options.items() if value is not None}
        self.settings = replace(PRESETS[choice("preset of distilvpr", preset, PRESETS)], **given)
        if not agents or not distances:
            raise ConfigError("distilvpr: `agents` and `distances` must each name at least one")
        if curvature <= 0:
            raise ConfigError(
                f"distilvpr: `curvature` is the c of the ball c |p|² < 1 and must be positive, not {curvature}"
            )
        self.agents = tuple(choice("agents", name, AGENTS) for name in agents)
        self.distances = tuple(choice("distance", name, DISTANCES) for name in distances)
        self.curvature = curvature

    @property
    def needs_equal_dims(self) -> bool:
        return self.agents != ("tt-ss",)

    def terms(self, teacher: Tensor, student: Tensor) -> dict[str, Tensor]:
        settings = self.settings
        unit_teacher, unit_student = normalise_rows(teacher), normalise_rows(student)
        terms = {}
        for distance in self.distances:
            as_given = Relations(teacher, student, self._relation(distance))
            unit = Relations(unit_teacher, unit_student, self._relation(distance))
            for_self = unit if settings.normalise_self else as_given
            for_cross = unit if settings.normalise_cross else as_given
            for agents in self.agents:
                if agents == "tt-ss":
                    name, term = self._self_term(distance, for_self)
                    terms[f"self/{name}"] = settings.lambda_self * term
                else:
                    terms[f"{AGENTS[agents]}/{distance}"] = settings.lambda_cross * self._cross_term(agents, for_cross)
        return terms

    def _relation(self, distance: str) -> Relation:
        if distance == "euclidean":
            return euclidean_distances
        if distance == "cosine":
            return cosine_similarities
        form = hyperbolic_distances if self.settings.hyperbolic == "exact" else hyperbolic_distances_released
        return partial(form, curvature=self.curvature)

    def _self_term(self, distance: str, r: Relations) -> tuple[str, Tensor]:
        settings = self.settings
        penalty = PENALTIES[settings.penalty]
        if distance == "cosine" and settings.self_cosine == "angle":
            return "angle", angle_loss(r.teacher, r.student, penalty, settings.reduction)
        by_mean = settings.divide_by_mean and distance != "cosine"
        return distance, tt_ss_loss(r, penalty, settings.reduction, by_mean)

    def _cross_term(self, agents: str, r: Relations) -> Tensor:
        settings = self.settings
        penalty = PENALTIES[settings.cross_penalty]
        if agents == "ts-ss":
            return ts_ss_loss(r, penalty, settings.reduction, settings.detach_cross)
        return tt_ts_loss(r, penalty, settings.reduction)
