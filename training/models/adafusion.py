"""AdaFusion (Lai, Yin, Scherer, RA-L 2022): camera and LiDAR weighed by attention, and its two branches alone.

The released implementation describes with features that are cut off from the backbones, so that its backbones get no
gradient. Here, as in the paper, only what feeds the attention is cut off.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.models.base import EmbeddingModel, output_layer, require_positive
from training.models.image import ImageEncoder
from training.models.pooling import at_least_float32
from training.models.voxels import VoxelBatch
from vpr_kd_ros.errors import ConfigError, DataError

ATTENTION = 16
"""Channels of each attention map."""
KEYS = 4
"""Channels of queries and keys."""


def _convolutions(dims: int, *widths: int) -> list[nn.Module]:
    """Convolutions of kernel 3 with ReLU, through ``widths``."""
    kind = (nn.Conv2d, nn.Conv3d)[dims - 2]
    layers: list[nn.Module] = []
    for i in range(1, len(widths)):
        layers += [kind(widths[i - 1], widths[i], kernel_size=3, padding=1), nn.ReLU(inplace=True)]
    return layers


class Backbone(nn.Sequential):
    """Three stages; the map of each."""

    def forward(self, x: Tensor) -> list[Tensor]:
        maps: list[Tensor] = []
        for stage in self:
            x = stage(x)
            maps.append(x)
        return maps


def image_backbone(widths: Sequence[int]) -> Backbone:
    """Maps of stride 4, 8 and 16: (B, 3, H, W) to (B, C_i, H_i, W_i)."""
    a, b, c = widths
    return Backbone(
        nn.Sequential(*_convolutions(2, 3, a, a), nn.MaxPool2d(2), *_convolutions(2, a, a, a), nn.MaxPool2d(2)),
        nn.Sequential(*_convolutions(2, a, a, a, b, b), nn.MaxPool2d(2)),
        nn.Sequential(*_convolutions(2, b, c, c, c, c), nn.BatchNorm2d(c), nn.MaxPool2d(2)),
    )


def voxel_backbone(widths: Sequence[int]) -> Backbone:
    """Maps of stride 2, 4 and 8: (B, 1, X, Y, Z) to (B, C_i, X_i, Y_i, Z_i)."""
    a, b, c = widths
    return Backbone(
        nn.Sequential(*_convolutions(3, 1, a, a), nn.AvgPool3d(2)),
        nn.Sequential(*_convolutions(3, a, b, b, b, b), nn.AvgPool3d(2)),
        nn.Sequential(*_convolutions(3, b, c, c), nn.BatchNorm3d(c), nn.AvgPool3d(2)),
    )


def pooled(x: Tensor) -> Tensor:
    """Mean over all places: (B, C, ...) to (B, C) float32."""
    return at_least_float32(x).flatten(2).mean(dim=2)


class SpatialAttention(nn.Module):
    """Self-attention between places, one head: (B, C, ...) to (B, 16, ...), of every second place with stride 2."""

    def __init__(self, dims: int, channels: int, stride: int) -> None:
        super().__init__()
        kind = (nn.Conv2d, nn.Conv3d)[dims - 2]
        self.project = kind(channels, 2 * KEYS + ATTENTION, kernel_size=3, stride=stride, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.project(x)
        query, key, value = torch.split(x.flatten(2).transpose(1, 2), [KEYS, KEYS, ATTENTION], dim=2)
        out = F.scaled_dot_product_attention(query, key, value)
        return out.transpose(1, 2).reshape(x.shape[0], ATTENTION, *x.shape[2:])


class ChannelAttention(nn.Module):
    """Self-attention between channels (Fu et al., CVPR 2019) and a 1x1 convolution: (B, C, ...) to (B, 16, ...).

    The products are sums over all places and not scaled, so they are taken in float32 under autocast.
    """

    def __init__(self, dims: int, channels: int) -> None:
        super().__init__()
        self.project = (nn.Conv2d, nn.Conv3d)[dims - 2](channels, ATTENTION, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            flat = at_least_float32(x).flatten(2)
            mixed = (flat @ flat.transpose(1, 2)).softmax(dim=2) @ flat
        out: Tensor = self.project(mixed.reshape(x.shape))
        return out


class MultiScaleAttention(nn.Module):
    """Spatial and channel attention on three maps, at the size of the last, joined and pooled: maps to (B, 128)."""

    def __init__(self, dims: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.spatial = nn.ModuleList(
            SpatialAttention(dims, width, stride) for width, stride in zip(widths, (2, 2, 1), strict=True)
        )
        self.channel = nn.ModuleList(ChannelAttention(dims, width) for width in widths)
        convolution, norm = ((nn.Conv2d, nn.BatchNorm2d), (nn.Conv3d, nn.BatchNorm3d))[dims - 2]
        self.join = nn.Sequential(convolution(6 * ATTENTION, 128, kernel_size=1), norm(128), nn.ReLU(inplace=True))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        attended = [layer(x) for layers in (self.spatial, self.channel) for layer, x in zip(layers, maps, strict=True)]
        size = maps[-1].shape[2:]
        return pooled(self.join(torch.cat([F.interpolate(x, size=size, mode="nearest") for x in attended], dim=1)))


class DenseVoxels(nn.Module):
    """The voxels of a box as a dense grid: a VoxelBatch to (B, 1, X, Y, Z) float32, one where occupied.

    Args:
        lower, upper: corners of the box, in the clouds' unit. Voxels are counted from the origin, so the box is moved
            to the nearest whole voxel.
        shape: voxels along x, y and z; at least 8 each.

    Raises:
        ConfigError: not three numbers each, too few voxels, or an empty box.
    """

    def __init__(self, lower: Sequence[float], upper: Sequence[float], shape: Sequence[int]) -> None:
        super().__init__()
        if not len(lower) == len(upper) == len(shape) == 3:
            raise ConfigError("model options lower, upper and voxels want three numbers each: x, y, z")
        if min(shape) < 8 or any(not low < high for low, high in zip(lower, upper, strict=True)):
            raise ConfigError("model options: lower must be below upper, and voxels at least 8 along each axis")
        x, y, z = ((high - low) / n for low, high, n in zip(lower, upper, shape, strict=True))
        self.voxel_size = (x, y, z)
        self.first = [round(low / edge) for low, edge in zip(lower, self.voxel_size, strict=True)]
        self.shape = list(shape)

    def forward(self, voxels: VoxelBatch) -> Tensor:
        coordinates = voxels.coordinates.long()
        cells = coordinates[:, 1:] - torch.tensor(self.first, device=coordinates.device)
        inside = ((cells >= 0) & (cells < torch.tensor(self.shape, device=cells.device))).all(dim=1)
        x, y, z = cells[inside].unbind(dim=1)
        grid = torch.zeros(voxels.batch_size, 1, *self.shape, device=cells.device)
        grid[coordinates[inside, 0], 0, x, y, z] = 1.0
        return grid


def _checked(widths: Sequence[int], option: str) -> Sequence[int]:
    if len(widths) != 3 or min(widths) < 1:
        raise ConfigError(f"model option {option} wants three numbers above 0, got {list(widths)}")
    return widths


class LastMap(nn.Module):
    """The last map of a backbone."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> Tensor:
        maps: list[Tensor] = self.backbone(x)
        return maps[-1]


class MeanPool(nn.Module):
    """Mean over all places: (B, C, ...) to (B, C) float32."""

    def forward(self, x: Tensor) -> Tensor:
        return pooled(x)


class AdaFusion2D(ImageEncoder):
    """Camera: AdaFusion's image backbone, mean over all places, linear projection; DistilVPR's AdaFusion-2D at 256-d.

    The backbone ends with 128 channels; DistilVPR does not say how it comes to 256.

    Args:
        descriptor_dim: of the descriptor.
        widths: channels of the three stages; wider ones make a big teacher.
        output_norm: "none" or "batchnorm" (see ``output_layer``).
    """

    def __init__(
        self, descriptor_dim: int = 256, widths: Sequence[int] = (64, 128, 128), output_norm: str = "none"
    ) -> None:
        super().__init__()
        require_positive(descriptor_dim=descriptor_dim)
        self.descriptor_dim = descriptor_dim
        self.features = LastMap(image_backbone(_checked(widths, "widths")))
        self.pool = MeanPool()
        self.project = nn.Linear(widths[-1], descriptor_dim)
        self.output = output_layer(output_norm, descriptor_dim)


class AdaFusion3D(EmbeddingModel):
    """LiDAR: AdaFusion's dense 3-d convolutions, mean over all places, linear projection; AdaFusion-3D at 256-d.

    Args:
        descriptor_dim: of the descriptor.
        widths: channels of the three stages.
        lower, upper, voxels: the box that is looked at (see ``DenseVoxels``); the defaults are those for NCLT.
        output_norm: "none" or "batchnorm" (see ``output_layer``).
    """

    uses_clouds = True

    def __init__(
        self,
        descriptor_dim: int = 256,
        widths: Sequence[int] = (32, 64, 128),
        lower: Sequence[float] = (-20.0, -20.0, 0.0),
        upper: Sequence[float] = (20.0, 20.0, 5.0),
        voxels: Sequence[int] = (72, 72, 48),
        output_norm: str = "none",
    ) -> None:
        super().__init__()
        require_positive(descriptor_dim=descriptor_dim)
        self.descriptor_dim = descriptor_dim
        self.densify = DenseVoxels(lower, upper, voxels)
        self.voxel_size = self.densify.voxel_size
        self.features = LastMap(voxel_backbone(_checked(widths, "widths")))
        self.pool = MeanPool()
        self.project = nn.Linear(widths[-1], descriptor_dim)
        self.output = output_layer(output_norm, descriptor_dim)

    def forward(self, images: Tensor | None, voxels: VoxelBatch | None = None, labels: Tensor | None = None) -> Tensor:
        """Voxels of B clouds to descriptors (B, C); ``images`` and ``labels`` are ignored."""
        if voxels is None:
            raise DataError("this model needs clouds, and the batch has none")
        descriptors: Tensor = self.output(self.project(self.pool(self.features(self.densify(voxels)))))
        return descriptors


class AdaFusion(EmbeddingModel):
    """LiDAR + camera: AdaFusion, both descriptors side by side, each times a weight read from attention; 256-d.

    2,345,586 parameters. The attention reads maps that are cut off from the backbones: it learns to weigh what they
    see and does not change it. Published with images of 300 x 400 pixels.

    Args:
        image_widths, cloud_widths: channels of the three stages; the descriptor has the last of each.
        lower, upper, voxels: the box that is looked at (see ``DenseVoxels``); the defaults are those for NCLT.
    """

    uses_images = True
    uses_clouds = True
    cloud_modules = ("cloud", "cloud_attention")

    def __init__(
        self,
        image_widths: Sequence[int] = (64, 128, 128),
        cloud_widths: Sequence[int] = (32, 64, 128),
        lower: Sequence[float] = (-20.0, -20.0, 0.0),
        upper: Sequence[float] = (20.0, 20.0, 5.0),
        voxels: Sequence[int] = (72, 72, 48),
    ) -> None:
        super().__init__()
        self.densify = DenseVoxels(lower, upper, voxels)
        self.voxel_size = self.densify.voxel_size
        self.image = image_backbone(_checked(image_widths, "image_widths"))
        self.cloud = voxel_backbone(_checked(cloud_widths, "cloud_widths"))
        self.image_attention = MultiScaleAttention(2, image_widths)
        self.cloud_attention = MultiScaleAttention(3, cloud_widths)
        self.weigh = nn.Sequential(
            nn.Linear(256, 64), nn.ReLU(inplace=True), nn.Linear(64, 32), nn.ReLU(inplace=True), nn.Linear(32, 2),
            nn.Sigmoid(),
        )  # fmt: skip
        self.descriptor_dim = image_widths[-1] + cloud_widths[-1]
        self.parts = {"image": slice(0, image_widths[-1]), "cloud": slice(image_widths[-1], self.descriptor_dim)}

    def map_layers(self) -> list[nn.Module]:
        return list(self.image)

    def forward(self, images: Tensor | None, voxels: VoxelBatch | None = None, labels: Tensor | None = None) -> Tensor:
        """Images (B, 3, H, W) and voxels of B clouds to descriptors (B, C); ``labels`` are ignored."""
        if images is None or voxels is None:
            raise DataError(f"this model needs {'images' if images is None else 'clouds'}, and the batch has none")
        image_maps, cloud_maps = self.image(images), self.cloud(self.densify(voxels))
        weights = self.weigh(
            torch.cat(
                [
                    self.image_attention([x.detach() for x in image_maps]),
                    self.cloud_attention([x.detach() for x in cloud_maps]),
                ],
                dim=1,
            )
        )
        return torch.cat([weights[:, :1] * pooled(image_maps[-1]), weights[:, 1:] * pooled(cloud_maps[-1])], dim=1)
