"""Random changes that leave the place the same.

Images: brightness, contrast, saturation and hue jitter and random erasing; clouds: jitter, dropped points, a removed
block, a small turn and shift. Strengths default to those of MinkLoc++, which DistilVPR keeps, in metres where that code
has scenes scaled to [-1, 1].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torchvision.transforms import v2


@dataclass(frozen=True)
class ImageAugmentation:
    """Colour jitter, then random erasing, drawn for each image on its own.

    Attributes:
        brightness, contrast, saturation, hue: strengths as torchvision's ``ColorJitter`` defines them.
        erase: probability that a rectangle of 10 to 40 % of the image is blanked.
    """

    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.1
    erase: float = 0.5

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Augment (B, 3, H, W) uint8; returns a new tensor of the same shape and type."""
        jitter = v2.ColorJitter(self.brightness, self.contrast, self.saturation, self.hue)
        erase = v2.RandomErasing(self.erase, scale=(0.1, 0.4))
        return torch.stack([erase(jitter(image)) for image in images])


@dataclass(frozen=True)
class CloudAugmentation:
    """What happens to a point cloud.

    Attributes:
        jitter_m: standard deviation of each coordinate's noise, metres, cut at twice that.
        drop: up to this share of the points is dropped.
        block: probability that a vertical column around a random point is removed, ``block_m`` metres in radius.
        turn_deg: largest turn about +z, degrees.
        shift_m: largest shift in the plane, metres.
    """

    jitter_m: float = 0.05
    drop: float = 0.1
    block: float = 0.4
    block_m: float = 8.0
    turn_deg: float = 5.0
    shift_m: float = 0.5

    def __call__(self, cloud: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Augment (M, 3) float32 points in metres; returns new points (M', 3), at least one where there was one."""
        if len(cloud) == 0:
            return cloud

        def uniform(*shape: int) -> torch.Tensor:
            return torch.rand(*shape, generator=generator)

        keep = uniform(len(cloud)) >= self.drop * uniform(1)
        if uniform(1) < self.block:
            centre = cloud[int(uniform(1) * len(cloud)), :2]
            keep &= (cloud[:, :2] - centre).norm(dim=1) > self.block_m
        if not keep.any():
            keep[:] = True
        points = cloud[keep]
        angle = torch.deg2rad(self.turn_deg * (2 * uniform(1) - 1))
        c, s = torch.cos(angle), torch.sin(angle)
        x = c * points[:, 0] - s * points[:, 1]
        y = s * points[:, 0] + c * points[:, 1]
        shift = self.shift_m * (2 * uniform(2) - 1)
        noise = (torch.randn(points.shape, generator=generator) * self.jitter_m).clamp_(
            -2 * self.jitter_m, 2 * self.jitter_m
        )
        return torch.stack([x + shift[0], y + shift[1], points[:, 2]], dim=1) + noise
