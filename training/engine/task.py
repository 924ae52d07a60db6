"""The task loss: triplets of places.

DistilVPR trains teachers and students with MinkLoc++'s batch-hard triplet margin loss (margin 0.2, swapped when the
positive is the nearer to the negative, mean over the triplets that violate the margin). The loss is
pytorch-metric-learning's; the triplets come from the positives and negatives of ``training.data.pairing``, which are
relations by distance and not the class labels that library's miners expect.
"""

from __future__ import annotations

import torch
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.reducers import AvgNonZeroReducer

from training.distillation.method import Triplets
from training.engine.config import TaskConfig


def batch_hard_triplets(distance: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor) -> Triplets:
    """The farthest positive and the nearest negative of each row that has both.

    Args:
        distance: (N, N) distances between descriptors.
        positive, negative: (N, N) bool.

    Returns:
        Anchors, positives, negatives: (T,) int64 each.
    """
    anchors = torch.nonzero(positive.any(dim=1) & negative.any(dim=1)).squeeze(1)
    far = distance.masked_fill(~positive, -torch.inf)[anchors].argmax(dim=1)
    near = distance.masked_fill(~negative, torch.inf)[anchors].argmin(dim=1)
    return anchors, far, near


def all_triplets(positive: torch.Tensor, negative: torch.Tensor) -> Triplets:
    """Every anchor with every one of its positives and every one of its negatives; (T,) int64 each."""
    anchors, positives = torch.nonzero(positive, as_tuple=True)
    pair, negatives = torch.nonzero(negative[anchors], as_tuple=True)
    return anchors[pair], positives[pair], negatives


class TripletTask:
    """The triplet loss of a batch; batch-all for the first share of the steps if so configured, then batch-hard."""

    def __init__(self, config: TaskConfig) -> None:
        self._config = config
        distance = LpDistance(normalize_embeddings=config.normalise)
        self._distance = distance
        self._loss = TripletMarginLoss(margin=config.margin, swap=True, distance=distance, reducer=AvgNonZeroReducer())

    def hardest(self, descriptors: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor) -> Triplets:
        """Each anchor with its hardest positive and negative; arguments as those of a call."""
        with torch.no_grad(), torch.autocast(descriptors.device.type, enabled=False):
            return batch_hard_triplets(self._distance(descriptors.float()), positive, negative)

    def __call__(
        self, descriptors: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor, progress: float
    ) -> torch.Tensor:
        """The weighted loss, a scalar.

        Args:
            descriptors: (N, C), of the labelled part of the batch.
            positive, negative: (N, N) bool, see ``training.data.pairing.place_masks``.
            progress: of the training, in [0, 1).
        """
        # Mixed precision stops here: differences of near descriptors do not survive half precision.
        with torch.autocast(descriptors.device.type, enabled=False):
            descriptors = descriptors.float()
            if progress < self._config.batch_all:
                triplets = all_triplets(positive, negative)
            else:
                triplets = self.hardest(descriptors, positive, negative)
            if len(triplets[0]) == 0:
                return descriptors.sum() * 0.0
            placeholder = torch.zeros(len(descriptors), dtype=torch.long, device=descriptors.device)
            loss: torch.Tensor = self._loss(descriptors, placeholder, triplets)
            return self._config.weight * loss
