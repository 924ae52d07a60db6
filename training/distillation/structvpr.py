"""StructVPR: distilling the samples on which the teacher knows more, by rank (Shen et al., CVPR 2023)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from training.distillation.method import Beginning, Context, DistillationMethod, Triplets
from training.options import choice
from vpr_kd_ros.errors import ConfigError

GROUPS = {"gp-d": ("D1", "D2", "D3", "D4"), "gp-s": ("S1", "S2"), "gp-r": ("R1", "R2")}
"""The groups of each partition: by the ranks of both branches, of the seg-branch, of the rgb-branch."""


TIE = 1e-9
"""Cosines nearer than this are equal: what rounding of identical descriptors makes of one."""


def positive_ranks(descriptors: Tensor, sessions: Tensor, queries: Tensor, positives: Tensor) -> Tensor:
    """The rank, from 1, of each positive p in the recall list of its query q.

    The paper's training sets have one database, and a query's list is all of it. Here every drive is a database for the
    others, and a place that was passed in ten drives has ten times as many positives: in one list of them all, the rank
    of p would tell how often its place was seen. So the list of (q, p) is the drive that p is of, without q where q is
    of that drive too; drives without poses, which no p is of, are in no list. The list is sorted by cosine similarity,
    as the robot compares; where others are as similar as p they come before it, so that a branch which cannot tell
    places apart ranks p last.

    Args:
        descriptors: (M, C) float64 of length one, of all training keyframes.
        sessions: (M,) int64, their drives.
        queries, positives: (T,) int64 keyframes.

    Returns:
        (T,) int64; 1 where p is q, which two processes may have drawn. Takes O(T M) memory.
    """
    similarity = descriptors[queries] @ descriptors.T
    listed = sessions[positives][:, None] == sessions[None, :]
    listed.scatter_(1, queries[:, None], False)
    least = similarity.gather(1, positives[:, None]) - TIE
    return (listed & (similarity >= least)).sum(dim=1).clamp(min=1)


def groups(x: Tensor, y: Tensor, partition: str, n_t: int) -> Tensor:
    """Which group of ``GROUPS[partition]`` each sample pair is in (Sec. 3.4): (T,) int64, from 0.

    Args:
        x, y: (T,) int64 ranks by the seg-branch (teacher) and the rgb-branch (student as it was pre-trained).
        partition: a key of ``GROUPS``.
        n_t: N_t, the last rank that counts as found.
    """
    if partition == "gp-s":
        return (x > n_t).long()
    if partition == "gp-r":
        return (y > n_t).long()
    found_by_both = 1 + (y < x).long()
    return torch.where(x > n_t, 3, torch.where(y > n_t, 0, found_by_both))


def function_weights(x: Tensor, y: Tensor, partition: str, n_t: int, n_m: int) -> Tensor:
    """phi of Eq. 4 (``gp-d``) or phi' of Eq. 7 (``gp-s``), (T,) float64; arguments as of ``groups``.

    Args:
        x, y, partition, n_t: see ``groups``.
        n_m: N_m, the student's rank from which on its gap does not count for more.

    Returns:
        Never negative, as the paper wants it: Eq. 4 alone would be from N_t = 11 on, at x = N_t, y = 1.
    """
    group = groups(x, y, partition, n_t)
    logarithm = torch.log1p(x.double())
    if partition == "gp-s":
        return torch.where(group == 0, 1 + 1 / (4 * logarithm), 0.0)
    # In D2 and D3 y is at most N_t, and so below N_m.
    gap = (y.clamp(max=n_m) - x).double()
    slope = torch.tensor([4.0, 5.0, 4.0, 4.0], dtype=torch.float64, device=x.device)[group]
    return torch.where(group < 3, 1 + gap / (slope * logarithm), 0.0).clamp(min=0.0)


def weighted_feature_loss(teacher: Tensor, student: Tensor, triplets: Triplets, weights: Tensor) -> Tensor:
    """The sum over {q, p, n} of Eq. 5 and 6, mean over the triplets; zero where there is none.

    Args:
        teacher: (N, C), x^S.
        student: (N, C), T(x^D).
        triplets: rows q, p, n, (T,) int64 each.
        weights: (T,), phi(q, p).
    """
    errors = (teacher - student).square().sum(dim=1)
    if len(weights) == 0:
        return errors.sum() * 0
    return (weights * sum((errors[rows] for rows in triplets), start=torch.zeros_like(weights))).mean()


class StructVPR(DistillationMethod):
    """StructVPR: weighted feature distillation, Eq. 4 to 7, of a teacher such as its seg-branch.

    The sample pairs (q, p) are those of the batch's triplets. Their weights come from the ranks that the teacher and
    the student as it starts give to p, and do not change in training: start from a student that was trained alone,
    Stage I (``start`` of the training). The paper's Stage II begins with ImageNet's weights, and going on from Stage I
    made no significant difference to it (supplement 3.1): so one network serves both. The paper's T is the adaptor on
    the student's side: set its option ``adaptor: student``; without it descriptors of one size are compared as they
    are.

    Args:
        weight: of the term ``feature``; 1 in Eq. 6.
        partition: the groups of sample pairs: ``gp-d`` (D1 to D4, by both ranks), ``gp-s`` (S1, S2, by the teacher's)
            or ``gp-r`` (R1, R2, by the student's).
        weights: ``function``: Eq. 4, or Eq. 7 with ``gp-s``; or one number for each group. [8, 4, 1, 0] is Table 6's
            GP-D(8-4-1-0); [1, 0] with ``gp-s`` GP-S(1-0); [1, 0, 0, 0] is D1 alone and [1, 1, 1, 1] all samples, as in
            Table 5.
        n_t: N_t, the last rank that counts as found.
        n_m: N_m, at least N_t; the student's rank from which on its gap does not count for more.
    """

    paper = "StructVPR, CVPR 2023"
    needs = (
        "poses and a pre-trained student (start); its own teacher reads semantic labels; an adaptor where sizes differ"
    )
    needs_triplets = True
    needs_beginning = True

    def __init__(
        self, weight: float = 1.0, partition: str = "gp-d", weights: str | Sequence[float] = "function", n_t: int = 10,
        n_m: int = 20,
    ) -> None:  # fmt: skip
        super().__init__()
        self.weight = weight
        self.partition = choice("partition", partition, GROUPS)
        if not 1 <= n_t <= n_m:
            raise ConfigError(f"structvpr: wants 1 <= n_t <= n_m, got n_t={n_t}, n_m={n_m}")
        self.n_t, self.n_m = n_t, n_m
        self.weights: list[float] | None = None
        names = GROUPS[partition]
        if isinstance(weights, str):
            choice("weights", weights, ["function"])
            if partition == "gp-r":
                raise ConfigError("structvpr: gp-r has no weight function; give its weights as [R1, R2]")
        elif len(weights) != len(names) or min(weights) < 0:
            raise ConfigError(f"structvpr: weights wants one number >= 0 for each of {', '.join(names)}, got {weights}")
        else:
            self.weights = [float(value) for value in weights]
        # Neither buffers nor part of a checkpoint: DDP would send buffers at every step, and a resumed training begins
        # from the same student and teacher.
        self._known: Beginning | None = None

    def begin(self, beginning: Beginning) -> None:
        """Keep the descriptors of both branches, from which ranks are made as batches ask for them."""
        # In float64, because the cosines of a branch that hardly tells places apart differ by less than float32 holds.
        teacher, student = (F.normalize(rows.double(), dim=1) for rows in (beginning.teacher, beginning.student))
        self._known = Beginning(teacher, student, beginning.sessions)

    def ranks(self, queries: Tensor, positives: Tensor) -> tuple[Tensor, Tensor]:
        """x and y: the ranks, from 1, by the teacher and by the student as it started, (T,) int64 each.

        Args:
            queries, positives: (T,) int64 training keyframes.

        Raises:
            ValueError: ``begin`` was not called.
        """
        if self._known is None:
            raise ValueError("StructVPR: begin() must be called before the first batch")
        known = self._known
        if known.sessions.device != queries.device:
            known = self._known = Beginning(
                *(x.to(queries.device) for x in (known.teacher, known.student, known.sessions))
            )
        return (
            positive_ranks(known.teacher, known.sessions, queries, positives),
            positive_ranks(known.student, known.sessions, queries, positives),
        )

    def sample_weights(self, x: Tensor, y: Tensor) -> Tensor:
        """phi(q, p) as configured, (T,) float64, for ranks x and y (T,) int64."""
        if self.weights is None:
            return function_weights(x, y, self.partition, self.n_t, self.n_m)
        constants = torch.tensor(self.weights, dtype=torch.float64, device=x.device)
        return constants[groups(x, y, self.partition, self.n_t)]

    def terms_in(self, teacher: Tensor, student: Tensor, context: Context) -> dict[str, Tensor]:
        if context.triplets is None or context.keyframes is None:
            raise ValueError("StructVPR: the context has no triplets or no keyframes")
        queries, positives, _ = (context.keyframes[rows] for rows in context.triplets)
        weights = self.sample_weights(*self.ranks(queries, positives))
        return {"feature": self.weight * weighted_feature_loss(teacher, student, context.triplets, weights)}
