"""LSDNet's image encoder: NetVLAD with self-attention between residuals and weighted clusters (IROS 2022)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.models.base import require_positive
from training.models.netvlad import NetVLAD, VLADEncoder
from training.models.trunks import trunk_channels
from training.options import choice


class SAVLAD(NetVLAD):
    """Self-attentional VLAD (Peng et al., IROS 2022, Eqs. 1 to 5).

    The refined residuals of Eq. 4 are averages R'_i = sum_j A_ij R_j over all places j of the map, and a visual word is
    their sum over i. That sum is sum_j (sum_i A_ij) R_j: refining comes to weighting each place by the attention that
    it receives, which is what is computed here; R' itself, D K H W numbers, never is.

    Queries and keys are read either from the residuals, (D K) to C as Eq. 3 has it (2 C (D K + 1) parameters), or from
    the local features, D to C. The latter fits the published sizes: with D = 320 and C = 180 it has the 115,560
    parameters and, on a 15 x 20 map, the 0.035 G multiplications by which Table III's LSDNet exceeds MobileNetVLAD.

    Parametric normalisation adds one weight gamma_k for each cluster (K parameters, which Table III does not count).

    Args:
        dim, clusters, assignment: see ``NetVLAD``.
        attention_dim: C.
        attention_input: "features" or "residuals".
    """

    def __init__(
        self,
        dim: int,
        clusters: int = 64,
        assignment: str = "tied",
        attention_dim: int = 180,
        attention_input: str = "features",
    ) -> None:
        super().__init__(dim, clusters, assignment)
        require_positive(attention_dim=attention_dim)
        choice("attention_input", attention_input, ("features", "residuals"))
        self.of_residuals = attention_input == "residuals"
        width = dim * clusters if self.of_residuals else dim
        self.query = nn.Linear(width, attention_dim)
        self.key = nn.Linear(width, attention_dim)
        self.gamma = nn.Parameter(torch.ones(clusters))

    def weights(self, x: Tensor) -> Tensor:
        """Soft assignment times the attention that a place receives: (B, D, H, W) to (B, K, H, W)."""
        weights = super().weights(x)
        places = x.flatten(2).transpose(1, 2)
        if self.of_residuals:
            residuals = places[:, :, None] - self.centroids
            places = (weights.flatten(2).transpose(1, 2)[..., None] * residuals).flatten(2)
        scores: Tensor = self.query(places) @ self.key(places).transpose(1, 2) / math.sqrt(self.query.out_features)
        received = scores.softmax(dim=2).sum(dim=1)
        return weights * received.reshape(x.shape[0], 1, *x.shape[2:])

    def join(self, words: Tensor) -> Tensor:
        """Words scaled by the cluster saliency (Eq. 5): (B, K, D) of length one to (B, K D) of length one."""
        return super().join(words * F.normalize(self.gamma, dim=0)[:, None])


class LSDNetEncoder(VLADEncoder):
    """Camera: LSDNet's student, MobileNetV2 and SAVLAD, 20,480-d; 1,947,752 + 64 parameters, of which 610,024 learn.

    Args:
        backbone, clusters, assignment, pretrained, trainable_blocks, pca_dim: see ``NetVLADEncoder``.
        attention_dim, attention_input: see ``SAVLAD``.
    """

    def __init__(
        self,
        backbone: str = "mobilenetv2",
        clusters: int = 64,
        assignment: str = "tied",
        attention_dim: int = 180,
        attention_input: str = "features",
        pretrained: bool | str = False,
        trainable_blocks: int = 1,
        pca_dim: int = 0,
    ) -> None:
        pool = SAVLAD(trunk_channels(backbone), clusters, assignment, attention_dim, attention_input)
        super().__init__(backbone, pretrained, trainable_blocks, pool, pca_dim)
