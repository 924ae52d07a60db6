"""PCA as a layer: fitted to descriptors after training, exported with the network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.models.pooling import at_least_float32
from vpr_kd_ros.errors import ConfigError, DataError

RELATIVE_VARIANCE = 1e-10
"""Below this part of the largest variance a direction holds rounding errors only."""
ALIKE = 1e-12
"""Below this part of the mean square, what descriptors differ by is rounding errors of float32."""


class PCA(nn.Module):
    """Projection onto the directions of largest variance, (B, dim) to (B, reduced).

    Args:
        dim: of the descriptors.
        reduced: directions kept, largest variance first.
        whiten: scale every direction to variance one.

    Raises:
        ConfigError: ``reduced`` is not in 1 to ``dim``.
    """

    mean: Tensor
    weight: Tensor
    fitted: Tensor

    def __init__(self, dim: int, reduced: int, whiten: bool) -> None:
        super().__init__()
        if not 1 <= reduced <= dim:
            raise ConfigError(f"model option pca_dim must be 1 to {dim} (the descriptor's size), or 0; got {reduced}")
        self.whiten = whiten
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("weight", torch.zeros(reduced, dim))
        self.register_buffer("fitted", torch.tensor(False))

    def forward(self, x: Tensor) -> Tensor:
        """Raises:
        DataError: not fitted yet (not checked while exporting).
        """
        if not torch.compiler.is_compiling() and not bool(self.fitted):
            raise DataError("the PCA of this model was not fitted: train with pca_dim 0, then reduce with with_pca")
        x = at_least_float32(x)
        with torch.autocast(x.device.type, enabled=False):
            return (x - self.mean) @ self.weight.T

    @torch.no_grad()
    def fit(self, descriptors: Tensor) -> None:
        """Fit to (N, dim) descriptors, N above ``reduced``.

        Raises:
            DataError: too few descriptors, not finite, all alike, or varying in fewer directions than are to be kept.
        """
        reduced, dim = self.weight.shape
        if descriptors.ndim != 2 or descriptors.shape[1] != dim or len(descriptors) <= reduced:
            shape = tuple(descriptors.shape)
            raise DataError(f"a PCA to {reduced} wants more than {reduced} descriptors of size {dim}, got {shape}")
        rows = descriptors.detach().cpu().double()
        if not rows.isfinite().all():
            raise DataError("a PCA wants finite descriptors")
        mean, square = rows.mean(dim=0), rows.square().sum()
        rows = rows - mean
        if not rows.square().sum() > ALIKE * square:
            raise DataError("a PCA wants descriptors that differ, and these are all alike: was the model trained?")
        # The smaller of the two Gram matrices; their eigenvalues are the same.
        wide = len(rows) < dim
        variances, vectors = torch.linalg.eigh((rows @ rows.T if wide else rows.T @ rows) / (len(rows) - 1))
        variances = variances.flip(0)[:reduced]
        vectors = vectors.flip(1)[:, :reduced]
        if not variances[-1] > RELATIVE_VARIANCE * variances[0]:
            known = int((variances > RELATIVE_VARIANCE * variances[0]).sum())
            raise DataError(f"a PCA to {reduced}: the {len(rows)} descriptors vary in {known} directions only")
        directions = nn.functional.normalize(vectors.T @ rows if wide else vectors.T, dim=1)
        if self.whiten:
            directions = directions / variances.sqrt()[:, None]
        self.mean.copy_(mean)
        self.weight.copy_(directions)
        self.fitted.fill_(True)


def optional_pca(dim: int, pca_dim: int, whiten: bool) -> tuple[nn.Module, int]:
    """The layer for a model's option ``pca_dim`` (0 for none) and the size of what comes out.

    Raises:
        ConfigError: ``pca_dim`` out of range.
    """
    if pca_dim == 0:
        return nn.Identity(), dim
    return PCA(dim, pca_dim, whiten), pca_dim
