"""NetVLAD (Arandjelovic et al., CVPR 2016): residuals of local features to learnt cluster centres."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.models.image import ImageEncoder
from training.models.pca import optional_pca
from training.models.pooling import at_least_float32
from training.models.trunks import local_feature_trunk, trunk_channels
from training.options import choice
from vpr_kd_ros.blas import known_processor
from vpr_kd_ros.errors import ConfigError, DataError

LOCAL_FEATURES = 50_000
"""Local features that the clusters are computed from."""
PER_IMAGE = 100
"""Local features taken of one image for that."""
LEAST_GAP = 1e-4
"""Below this difference of squared distances, of features of length one, the two nearest centres are one."""


class NetVLAD(nn.Module):
    """Sum of residuals to each cluster centre, softly assigned, normalised per cluster and as a whole (Eqs. 2 to 4).

    Local features are brought to length one first. The assignment of feature x to cluster k is the softmax over k of
    w_k x + b_k: "untied", w, b and the centres c are independent; "tied", w_k = 2 a c_k and b_k = -a |c_k|^2, with a
    fixed sharpness a, so that K D centres are all there is to learn (LSDNet counts 64 D parameters).

    Takes (B, D, H, W), answers (B, K D) of length one, cluster by cluster. Computes in float32 under autocast.

    Args:
        dim: D.
        clusters: K, at least 2.
        assignment: "tied" or "untied".

    Raises:
        ConfigError: a value out of range.
    """

    sharpness: Tensor

    def __init__(self, dim: int, clusters: int = 64, assignment: str = "tied") -> None:
        super().__init__()
        if clusters < 2:
            raise ConfigError(f"model option clusters must be at least 2, got {clusters}")
        choice("assignment", assignment, ("tied", "untied"))
        self.centroids = nn.Parameter(F.normalize(torch.randn(clusters, dim), dim=1))
        self.register_buffer("sharpness", torch.tensor(10.0))
        self.assign = nn.Conv2d(dim, clusters, kernel_size=1) if assignment == "untied" else None

    def forward(self, x: Tensor) -> Tensor:
        x = F.normalize(at_least_float32(x), dim=1)
        with torch.autocast(x.device.type, enabled=False):
            weights = self.weights(x).flatten(2)
            words = weights @ x.flatten(2).transpose(1, 2) - weights.sum(2)[..., None] * self.centroids
            return self.join(F.normalize(words, dim=2))

    def weights(self, x: Tensor) -> Tensor:
        """How much each local feature counts in each cluster, (B, D, H, W) of length one to (B, K, H, W)."""
        if self.assign is not None:
            scores: Tensor = self.assign(x)
        else:
            weight, bias = self._assignment()
            scores = F.conv2d(x, weight[:, :, None, None], bias)
        return scores.softmax(dim=1)

    def join(self, words: Tensor) -> Tensor:
        """Visual words (B, K, D) of length one to a descriptor (B, K D) of length one."""
        return F.normalize(words.flatten(1), dim=1)

    @torch.no_grad()
    def init_from_descriptors(self, features: Tensor, seed: int = 0) -> None:
        """Put the centres where k-means finds clusters, and fit the assignment to them.

        The sharpness a is such that the assignment to the nearest centre is on average (geometrically) 100 times that
        to the second nearest, as the authors do.

        Args:
            features: (N, D) local features, N at least K; brought to length one here.
            seed: of k-means.

        Raises:
            DataError: too few features, not finite, or all alike.
        """
        with known_processor():
            import faiss

        clusters, dim = self.centroids.shape
        rows = F.normalize(features.detach().float(), dim=1).cpu().numpy()
        if rows.shape[0] < clusters or rows.shape[1] != dim or not np.isfinite(rows).all():
            raise DataError(
                f"clustering wants at least {clusters} finite local features of {dim} channels, got {rows.shape}"
            )
        kmeans = faiss.Kmeans(dim, clusters, niter=30, seed=seed, min_points_per_centroid=1)
        kmeans.train(rows)
        squared, _ = kmeans.index.search(rows, 2)
        gap = float(np.mean(squared[:, 1] - squared[:, 0]))
        if not gap > LEAST_GAP:
            raise DataError("clustering: the local features are all alike; are the images blank?")
        self.centroids.copy_(torch.from_numpy(kmeans.centroids))
        self.sharpness.fill_(math.log(100) / gap)
        if self.assign is not None:
            weight, bias = self._assignment()
            self.assign.weight.copy_(weight[:, :, None, None])
            assert self.assign.bias is not None
            self.assign.bias.copy_(bias)

    def _assignment(self) -> tuple[Tensor, Tensor]:
        """w (K, D) and b (K,) of an assignment that is tied to the centres."""
        return 2 * self.sharpness * self.centroids, -self.sharpness * self.centroids.square().sum(dim=1)


class VLADEncoder(ImageEncoder):
    """What the encoders with visual words share: a backbone, a NetVLAD in ``pool`` and, on demand, a PCA."""

    pool: NetVLAD

    def __init__(
        self, backbone: str, pretrained: bool | str, trainable_blocks: int, pool: NetVLAD, pca_dim: int
    ) -> None:
        super().__init__()
        self.features = local_feature_trunk(backbone, pretrained, trainable_blocks)
        self.pool = pool
        self.project, self.descriptor_dim = optional_pca(pool.centroids.numel(), pca_dim, whiten=True)
        self.output = nn.Identity()

    @torch.no_grad()
    def initialise(self, images: Iterable[Tensor]) -> None:
        """Cluster local features of training images.

        Args:
            images: batches (B, 3, H, W) of normalised images; read until 50,000 local features are there, 100 an image.

        Raises:
            DataError: see ``NetVLAD.init_from_descriptors``.
        """
        generator = torch.Generator().manual_seed(0)
        device = self.pool.centroids.device
        training = self.training
        self.eval()
        rows: list[Tensor] = []
        try:
            for batch in images:
                maps = self.features(batch.to(device)).flatten(2).transpose(1, 2).cpu()
                rows += [image[torch.randperm(len(image), generator=generator)[:PER_IMAGE]] for image in maps]
                if sum(len(row) for row in rows) >= LOCAL_FEATURES:
                    break
        finally:
            self.train(training)
        self.pool.init_from_descriptors(torch.cat(rows) if rows else torch.zeros(0, self.pool.centroids.shape[1]))


class NetVLADEncoder(VLADEncoder):
    """Camera: a backbone and NetVLAD, 32,768-d with VGG16; LSDNet's teacher, both networks of VPR4LQQ.

    Parameters with tied assignment, 64 clusters and one trainable block, learnt and in all (LSDNet's Table III):
    VGG16 7,112,192 of 14,747,456; ResNet18 2,116,096 of 2,799,168; MobileNetV2 494,400 of 1,832,192.

    Args:
        backbone: "vgg16", "resnet18" or "mobilenetv2" (see ``local_feature_trunk``).
        clusters: visual words; the descriptor has ``clusters`` times the backbone's channels.
        assignment: "tied" or "untied" (see ``NetVLAD``).
        pretrained: true downloads ImageNet weights, a path reads them from a file, false starts from random weights.
        trainable_blocks: how many of the backbone's last blocks learn. One, as published, wants pretrained weights.
        pca_dim: size that a PCA with whitening reduces the descriptor to, after training; 0 for no PCA.
    """

    def __init__(
        self,
        backbone: str = "vgg16",
        clusters: int = 64,
        assignment: str = "tied",
        pretrained: bool | str = False,
        trainable_blocks: int = 1,
        pca_dim: int = 0,
    ) -> None:
        pool = NetVLAD(trunk_channels(backbone), clusters, assignment)
        super().__init__(backbone, pretrained, trainable_blocks, pool, pca_dim)
