"""Local contrast: what an image has left when light and exposure are taken out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.models.pooling import at_least_float32
from vpr_kd_ros.errors import ConfigError


class LocalContrast(nn.Module):
    """Subtracts from each pixel the mean of the window around it, then divides by the root of the window's mean square.

    Channel by channel: Jarrett et al., ICCV 2009, without the Gaussian; SeqSLAM's patch normalisation (Milford and
    Wyeth, ICRA 2012) with a window that slides.

    A network behind it sees night, fog and low sun in one range of values, which the running statistics of its batch
    normalisation were made for. At the image's edges the mean is of the part of the window that is inside.

    Takes and answers (B, C, H, W), normalised images; float32 also under autocast.

    Args:
        window: side of the window, pixels, odd.
        floor: added to the variance, so that noise in what has no contrast (sky) is not blown up.

    Raises:
        ConfigError: the window is even or below 3.
    """

    def __init__(self, window: int, floor: float = 0.003) -> None:
        super().__init__()
        if window < 3 or window % 2 == 0:
            raise ConfigError(f"model option contrast_window must be odd and at least 3, got {window}")
        self.window = window
        self.floor = floor

    def forward(self, images: Tensor) -> Tensor:
        images = at_least_float32(images)
        centred = images - self._mean(images)
        return centred * (self._mean(centred * centred) + self.floor).rsqrt()

    def _mean(self, x: Tensor) -> Tensor:
        """The mean over each pixel's window as two products of matrices; pooling costs eight times as much."""
        rows, columns = (self._averaging(size, x) for size in x.shape[2:])
        return rows @ x @ columns.T

    def _averaging(self, size: int, like: Tensor) -> Tensor:
        """(size, size): row i averages what is at most half a window from i and inside."""
        at = torch.arange(size, device=like.device)
        near = ((at[:, None] - at[None, :]).abs() <= self.window // 2).to(like.dtype)
        return near / near.sum(dim=1, keepdim=True)
