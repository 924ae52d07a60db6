"""Random changes that leave the place the same.

Images: brightness, contrast, saturation and hue jitter and random erasing; clouds: jitter, dropped points, a removed
block, a small turn and shift. Strengths default to those of MinkLoc++, which DistilVPR keeps, in metres where that code
has scenes scaled to [-1, 1].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

LUMA = torch.tensor([0.299, 0.587, 0.114])
"""Weights of red, green and blue in grey (ITU-R BT.601)."""

YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
"""From RGB to grey and two chroma channels (NTSC)."""


@dataclass(frozen=True)
class ImageAugmentation:
    """RandAugment where asked for, then colour jitter and random erasing, drawn for each image on its own; the last two
    are applied to the whole batch at once.

    Brightness, contrast and saturation are drawn and applied as torchvision's ``ColorJitter`` does, but in this order;
    the hue is turned in the chroma plane of YIQ. So the whole jitter is one affine map of the colours of each image,
    which costs a hundredth of a call for each image.

    Attributes:
        brightness, contrast, saturation: factors are drawn from [1 - strength, 1 + strength].
        hue: turns are drawn from [-hue, hue], in full turns.
        erase: probability that a rectangle is blanked. A network that normalises by image takes it into its statistics;
            there 0 is better.
        erase_area: least and largest share of the image that the rectangle covers.
        rand_augment: operations of torchvision's RandAugment for each image; SciceVPR has 3. They also shear, shift and
            turn, which semantic labels do not follow.
    """

    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.1
    erase: float = 0.5
    erase_area: tuple[float, float] = (0.1, 0.4)
    rand_augment: int = 0

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Augment (B, 3, H, W) uint8; returns a new tensor of the same shape and type."""
        if self.rand_augment > 0:
            images = _rand_augmented(images, self.rand_augment)
        colours = images.to(torch.float32).flatten(2)
        matrix, offset = self._colour_maps(colours)
        jittered = torch.baddbmm(offset, matrix, colours).clamp_(0, 255).round_().to(torch.uint8).view_as(images)
        return jittered.masked_fill_(self._rectangles(len(images), *images.shape[2:])[:, None], 0)

    def _colour_maps(self, colours: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 3, 3) and (B, 3, 1) with out = matrix @ colour + offset, for colours (B, 3, P) in [0, 255]."""
        count = len(colours)

        def factor(strength: float) -> torch.Tensor:
            return 1 + strength * (2 * torch.rand(count, 1, 1) - 1)

        grey = LUMA.expand(3, 3)
        brightness, contrast, saturation = factor(self.brightness), factor(self.contrast), factor(self.saturation)
        mean = brightness * (LUMA @ colours.mean(dim=2).T).view(count, 1, 1)
        towards_grey = saturation * torch.eye(3) + (1 - saturation) * grey
        turn = 2 * torch.pi * (factor(self.hue) - 1)
        rotation = torch.zeros(count, 3, 3)
        rotation[:, 0, 0] = 1
        rotation[:, 1:, 1:] = torch.cat(
            [torch.cat([turn.cos(), -turn.sin()], dim=2), torch.cat([turn.sin(), turn.cos()], dim=2)], dim=1
        )
        hue = torch.linalg.inv(YIQ) @ rotation @ YIQ @ towards_grey
        # Contrast mixes with the grey of the image's mean, which neither saturation nor hue changes.
        return hue @ (contrast * brightness * torch.eye(3)), (1 - contrast) * mean * torch.ones(3, 1)

    def _rectangles(self, count: int, height: int, width: int) -> torch.Tensor:
        """(B, H, W) bool, what is blanked: a rectangle of random size, shape and place, or nothing."""
        low, high = self.erase_area
        area = low + (high - low) * torch.rand(count)
        shape = torch.exp((torch.rand(count) - 0.5) * 2 * math.log(3))  # height : width from 1 : 3 to 3 : 1
        tall = (area * shape).sqrt().clamp(max=1.0) * height
        wide = (area / shape).sqrt().clamp(max=1.0) * width
        top, left = torch.rand(count) * (height - tall), torch.rand(count) * (width - wide)
        erased = torch.rand(count) < self.erase
        rows, columns = torch.arange(height)[None, :] + 0.5, torch.arange(width)[None, :] + 0.5
        in_rows = (rows >= top[:, None]) & (rows < (top + tall)[:, None])
        in_columns = (columns >= left[:, None]) & (columns < (left + wide)[:, None])
        return in_rows[:, :, None] & in_columns[:, None, :] & erased[:, None, None]


def _rand_augmented(images: torch.Tensor, operations: int) -> torch.Tensor:
    # torchvision is slow to import, and most trainings do without.
    from torchvision.transforms.v2 import InterpolationMode, RandAugment

    change = RandAugment(operations, interpolation=InterpolationMode.BILINEAR)
    return torch.stack([change(image) for image in images])


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
