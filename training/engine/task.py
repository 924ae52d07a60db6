"""The task losses: what makes descriptors of one place alike and of different places different.

The losses are pytorch-metric-learning's. Which pairs and triplets they see comes from the positives and negatives of
``training.data.pairing``, which are relations by distance and not the class labels that library's miners expect.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import ContrastiveLoss, MultiSimilarityLoss, TripletMarginLoss
from pytorch_metric_learning.reducers import AvgNonZeroReducer, MeanReducer
from torch.nn import functional as F

from training.distillation.method import Triplets
from training.engine.config import TaskConfig

Pairs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""Anchors and their positives, anchors and their negatives: rows of a batch, int64 each."""


def batch_hard_triplets(distance: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor) -> Triplets:
    """The farthest positive and the nearest negative of each row that has both.

    Args:
        distance: (N, N) distances between descriptors.
        positive, negative: (N, N) bool.

    Returns:
        Anchors, positives, negatives: (T,) int64 each.
    """
    anchors = _with_both(positive, negative)
    far = distance.masked_fill(~positive, -torch.inf)[anchors].argmax(dim=1)
    return anchors, far, _nearest(distance[anchors], negative[anchors])


def nearest_triplets(distance: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor) -> Triplets:
    """The nearest positive and the nearest negative of each row that has both; otherwise as ``batch_hard_triplets``."""
    anchors = _with_both(positive, negative)
    return anchors, _nearest(distance[anchors], positive[anchors]), _nearest(distance[anchors], negative[anchors])


def _with_both(positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
    return torch.nonzero(positive.any(dim=1) & negative.any(dim=1)).squeeze(1)


def _nearest(distance: torch.Tensor, among: torch.Tensor) -> torch.Tensor:
    return distance.masked_fill(~among, torch.inf).argmin(dim=1)


def all_triplets(positive: torch.Tensor, negative: torch.Tensor) -> Triplets:
    """Every anchor with every one of its positives and every one of its negatives; (T,) int64 each."""
    anchors, positives = torch.nonzero(positive, as_tuple=True)
    pair, negatives = torch.nonzero(negative[anchors], as_tuple=True)
    return anchors[pair], positives[pair], negatives


def informative_pairs(
    similarity: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor, epsilon: float
) -> Pairs:
    """The pairs that the multi-similarity loss looks at (Wang et al., CVPR 2019, Eq. 11 and 12).

    A negative is kept where it is more similar to its anchor than the anchor's least similar positive, and a positive
    where it is less similar than the most similar negative, both with ``epsilon`` to spare. An anchor without
    positives keeps no negatives, and the other way round.

    Args:
        similarity: (N, N) between descriptors.
        positive, negative: (N, N) bool.
        epsilon: above 0.
    """
    least = similarity.masked_fill(~positive, torch.inf).amin(dim=1, keepdim=True)
    most = similarity.masked_fill(~negative, -torch.inf).amax(dim=1, keepdim=True)
    anchors, positives = torch.nonzero(positive & (similarity - epsilon < most), as_tuple=True)
    others, negatives = torch.nonzero(negative & (similarity + epsilon > least), as_tuple=True)
    return anchors, positives, others, negatives


class TaskLoss(ABC):
    """A task loss as configured: ``loss`` in a subclass, called through ``__call__``.

    Args:
        config: which loss, and its constants.
        margin: where the configuration leaves it to the loss.
        p: norm of the distance between descriptors.
        normalise: compare descriptors of length one.

    Attributes:
        parts: columns of the network's descriptor by name (``EmbeddingModel.parts``), for those that are configured.
    """

    parts: Mapping[str, slice] = MappingProxyType({})

    def __init__(self, config: TaskConfig, margin: float, p: int = 2, normalise: bool = False) -> None:
        self.config = config
        self.margin = margin if config.margin is None else config.margin
        self.distance = LpDistance(p=p, normalize_embeddings=normalise)

    @abstractmethod
    def loss(
        self, descriptors: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor, progress: float
    ) -> torch.Tensor:
        """The loss without its weight; arguments as those of a call, in float32."""

    def hardest(self, descriptors: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor) -> Triplets:
        """Each anchor with its hardest positive and negative; arguments as those of a call."""
        with torch.no_grad(), torch.autocast(descriptors.device.type, enabled=False):
            return batch_hard_triplets(self.distance(descriptors.float()), positive, negative)

    def __call__(
        self, descriptors: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor, progress: float
    ) -> torch.Tensor:
        """The weighted loss, a scalar; zero, and with a gradient of zero, where the batch has nothing to compare.

        Args:
            descriptors: (N, C), of the labelled part of the batch.
            positive, negative: (N, N) bool, see ``training.data.pairing.place_masks``.
            progress: of the training, in [0, 1).
        """
        return self.config.weight * self._unweighted(descriptors, positive, negative, progress)

    def terms(
        self, descriptors: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor, progress: float
    ) -> dict[str, torch.Tensor]:
        """The weighted losses of the descriptors, ``task``, and of their configured parts, ``task/cloud`` and so on.

        Arguments as those of a call.
        """
        found = {"task": self(descriptors, positive, negative, progress)}
        for name, weight in self.config.parts.items():
            part = self._unweighted(descriptors[:, self.parts[name]], positive, negative, progress)
            found[f"task/{name}"] = weight * part
        return found

    def _unweighted(
        self, descriptors: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor, progress: float
    ) -> torch.Tensor:
        # Mixed precision stops here: differences of near descriptors do not survive half precision.
        with torch.autocast(descriptors.device.type, enabled=False):
            return self.loss(descriptors.float(), positive, negative, progress)


class TripletTask(TaskLoss):
    """MinkLoc++'s batch-hard triplets, which DistilVPR trains teachers and students with: margin 0.2, swapped when the
    positive is the nearer to the negative (not where ``swap`` is off: StructVPR's Eq. 3), mean over the triplets that
    violate the margin. Batch-all for the first share of the steps if so configured.
    """

    def __init__(self, config: TaskConfig) -> None:
        super().__init__(config, margin=0.2, normalise=config.normalise)
        self._loss = TripletMarginLoss(
            margin=self.margin, swap=config.swap, distance=self.distance, reducer=AvgNonZeroReducer()
        )

    def loss(
        self, descriptors: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor, progress: float
    ) -> torch.Tensor:
        """See ``TaskLoss``."""
        if progress < self.config.batch_all:
            triplets = all_triplets(positive, negative)
        else:
            triplets = self.hardest(descriptors, positive, negative)
        if len(triplets[0]) == 0:
            return descriptors.sum() * 0.0
        placeholder = torch.zeros(len(descriptors), dtype=torch.long, device=descriptors.device)
        loss: torch.Tensor = self._loss(descriptors, placeholder, triplets)
        return loss


class RankingTask(TaskLoss):
    """NetVLAD's weakly supervised ranking, LSDNet's Eq. 6: a query's squared distance to its nearest positive is to be
    smaller, by the margin of 0.1, than that to each of its ``negatives`` nearest negatives. Mean over the negatives of
    a query, then over the queries.
    """

    def __init__(self, config: TaskConfig) -> None:
        super().__init__(config, margin=0.1, normalise=config.normalise)

    def hardest(self, descriptors: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor) -> Triplets:
        """The queries with their nearest positive and nearest negative, which the loss looks at."""
        with torch.no_grad(), torch.autocast(descriptors.device.type, enabled=False):
            return nearest_triplets(self.distance(descriptors.float()), positive, negative)

    def loss(
        self, descriptors: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor, progress: float
    ) -> torch.Tensor:
        """See ``TaskLoss``."""
        distance = self.distance(descriptors)
        queries, positives, _ = nearest_triplets(distance.detach(), positive, negative)
        if len(queries) == 0:
            return descriptors.sum() * 0.0
        squared = distance[queries].square()
        to_positive = squared.gather(1, positives[:, None])
        count = min(self.config.negatives, squared.shape[1])
        to_negatives = squared.masked_fill(~negative[queries], torch.inf).topk(count, dim=1, largest=False).values
        # A query with fewer negatives than that has the mean over those it has.
        there = to_negatives.isfinite()
        short = (to_positive - to_negatives.masked_fill(~there, 0.0) + self.margin).clamp(min=0) * there
        loss: torch.Tensor = (short.sum(dim=1) / there.sum(dim=1)).mean()
        return loss


class MultiSimilarityTask(TaskLoss):
    """SciceVPR's multi-similarity loss, its Eq. 10 with +beta in the negative term (as in Wang et al., CVPR 2019; the
    minus in the paper would reward similar negatives), of the pairs that ``informative_pairs`` keeps: alpha 1, beta 50,
    lambda 0, epsilon (the margin) 0.1. Mean over all descriptors of the batch; similarities are cosines. The library
    takes a batch in which one positive and one negative are left, or fewer, as nothing to compare.
    """

    def __init__(self, config: TaskConfig) -> None:
        super().__init__(config, margin=0.1, normalise=True)
        self._loss = MultiSimilarityLoss(alpha=config.alpha, beta=config.beta, base=config.base)

    def loss(
        self, descriptors: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor, progress: float
    ) -> torch.Tensor:
        """See ``TaskLoss``."""
        with torch.no_grad():
            unit = F.normalize(descriptors, dim=1)
            pairs = informative_pairs(unit @ unit.T, positive, negative, self.margin)
        loss: torch.Tensor = self._loss(descriptors, indices_tuple=pairs)
        return loss


class PairwiseMarginTask(TaskLoss):
    """AdaFusion's loss: max(0, a + d - m) of positives and max(0, a - d + m) of negatives, d the L1 distance, m = 25,
    a (the margin) = 1; the mean over positive pairs plus the mean over negative pairs.

    The published training draws one negative pair for each positive pair; here it is every pair of the batch.
    """

    def __init__(self, config: TaskConfig) -> None:
        super().__init__(config, margin=1.0, p=1, normalise=config.normalise)
        self._loss = ContrastiveLoss(
            pos_margin=config.boundary - self.margin,
            neg_margin=config.boundary + self.margin,
            distance=self.distance,
            reducer=MeanReducer(),
        )

    def loss(
        self, descriptors: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor, progress: float
    ) -> torch.Tensor:
        """See ``TaskLoss``."""
        pairs = (*torch.nonzero(positive, as_tuple=True), *torch.nonzero(negative, as_tuple=True))
        loss: torch.Tensor = self._loss(descriptors, indices_tuple=pairs)
        return loss


TASKS: dict[str, Callable[[TaskConfig], TaskLoss]] = {
    "triplet": TripletTask,
    "ranking": RankingTask,
    "multi-similarity": MultiSimilarityTask,
    "pairwise-margin": PairwiseMarginTask,
}


def task_loss(config: TaskConfig, parts: Mapping[str, slice] = TaskLoss.parts) -> TaskLoss:
    """The configured task loss, of a network whose descriptor has these ``parts``."""
    task = TASKS[config.loss](config)
    task.parts = parts
    return task
