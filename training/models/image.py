"""Image encoders: the students, and the image half of the fusion teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from training.models.base import EmbeddingModel, output_layer, require_positive
from training.models.pooling import GeM
from training.models.pretrained import torchvision_network
from training.models.voxels import VoxelBatch
from training.options import choice
from vpr_kd_ros.errors import DataError

RESNETS = {"resnet18": 512, "resnet34": 512, "resnet50": 2048, "resnet101": 2048, "resnet152": 2048}
"""Channels of the last stage; the one before has half."""


class ImageEncoder(EmbeddingModel):
    """What the image encoders share: features, pooling, descriptor. The constructors of the subclasses fill
    ``features`` ((B, 3, H, W) to (B, C', H', W')), ``pool`` (to (B, C'')), ``project`` (to (B, C)) and ``output``.
    """

    uses_images = True
    features: nn.Module
    pool: nn.Module
    project: nn.Module
    output: nn.Module

    def map_layers(self) -> list[nn.Module]:
        return list(self.features) if isinstance(self.features, nn.Sequential) else [self.features]

    def forward(self, images: Tensor | None, voxels: VoxelBatch | None = None, labels: Tensor | None = None) -> Tensor:
        """Normalised images (B, 3, H, W) float32 to descriptors (B, C); ``voxels`` and ``labels`` are ignored."""
        if images is None:
            raise DataError("this model needs images, and the batch has none")
        # Channels last is a third faster on a CPU. The weights stay contiguous: safetensors takes no others.
        images = images.contiguous(memory_format=torch.channels_last)
        descriptors: Tensor = self.output(self.project(self.pool(self.features(images))))
        return descriptors


class MinkLoc2D(ImageEncoder):
    """Camera: the image encoder of MinkLoc++ (ResNet18 to layer3, 1x1 convolution, GeM); DistilVPR's student at 384-d.

    2,881,473 parameters at 384-d (DistilVPR), 2,815,681 at 128-d (MinkLoc++). DistilVPR does not say what its teacher
    MinkLoc++2D-Big is; a deeper ``network`` makes one.

    Args:
        descriptor_dim: of the descriptor.
        network: "resnet18", "resnet34", "resnet50", "resnet101" or "resnet152".
        pretrained: true downloads ImageNet weights, a path reads them from a file, false starts from random weights.
        output_norm: "none" or "batchnorm" (see ``output_layer``).
    """

    def __init__(
        self,
        descriptor_dim: int = 384,
        pretrained: bool | str = False,
        output_norm: str = "none",
        network: str = "resnet18",
    ) -> None:
        super().__init__()
        require_positive(descriptor_dim=descriptor_dim)
        self.descriptor_dim = descriptor_dim
        channels = RESNETS[choice("network", network, RESNETS)] // 2
        trunk = torchvision_network(network, pretrained)
        # The projection comes before the pooling here: GeM clamps at eps, so it must see the final features.
        self.features = nn.Sequential(
            *(getattr(trunk, name) for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3")),
            nn.Conv2d(channels, descriptor_dim, kernel_size=1),
        )
        self.pool = GeM()
        self.project = nn.Identity()
        self.output = output_layer(output_norm, descriptor_dim)


class ResNet18GeM(ImageEncoder):
    """Camera: ResNet18, GeM, linear projection.

    Args:
        descriptor_dim: of the descriptor.
        pretrained: true downloads ImageNet weights, a path reads them from a file, false starts from random weights.
        output_norm: "none" or "batchnorm" (see ``output_layer``).
    """

    network = "resnet18"

    def __init__(self, descriptor_dim: int = 256, pretrained: bool | str = False, output_norm: str = "none") -> None:
        super().__init__()
        require_positive(descriptor_dim=descriptor_dim)
        self.descriptor_dim = descriptor_dim
        trunk = torchvision_network(self.network, pretrained)
        names = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
        self.features = nn.Sequential(*(getattr(trunk, name) for name in names))
        self.pool = GeM()
        self.project = nn.Linear(RESNETS[self.network], descriptor_dim)
        self.output = output_layer(output_norm, descriptor_dim)


class ResNet50GeM(ResNet18GeM):
    """Camera: ResNet50, GeM, linear projection; a big teacher for smaller cameras. Options as ``resnet18-gem``."""

    network = "resnet50"


class MobileNetV2GeM(ImageEncoder):
    """Camera: MobileNetV2 (all features, 1280 channels), GeM, linear projection; the light student for robots.

    Args:
        descriptor_dim: of the descriptor.
        pretrained: true downloads ImageNet weights, a path reads them from a file, false starts from random weights.
        output_norm: "none" or "batchnorm" (see ``output_layer``).
    """

    def __init__(self, descriptor_dim: int = 256, pretrained: bool | str = False, output_norm: str = "none") -> None:
        super().__init__()
        require_positive(descriptor_dim=descriptor_dim)
        self.descriptor_dim = descriptor_dim
        trunk = torchvision_network("mobilenet_v2", pretrained)
        self.features = nn.Sequential(*trunk.get_submodule("features").children())
        self.pool = GeM()
        self.project = nn.Linear(1280, descriptor_dim)
        self.output = output_layer(output_norm, descriptor_dim)


class BasicBlock(nn.Module):
    """Residual block of two 3x3 convolutions (He et al., CVPR 2016); ``norm`` makes its branch's normalisation."""

    def __init__(self, cin: int, cout: int, stride: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(cin, cout, 3, stride, padding=1, bias=False),
            norm(cout),
            nn.ReLU(inplace=True),
            nn.Conv2d(cout, cout, 3, padding=1, bias=False),
            norm(cout),
        )
        self.shortcut: nn.Module = nn.Identity()
        if cin != cout or stride != 1:
            self.shortcut = nn.Sequential(nn.Conv2d(cin, cout, 1, bias=False), nn.BatchNorm2d(cout))
        self.stride = stride
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        # Not a stride of the convolution: of fewer than 16 channels, oneDNN writes the gradient of a strided one of 1x1
        # past the end of its workspace, and crashes, hangs or is wrong (oneDNN issue 6035).
        kept = x[:, :, :: self.stride, :: self.stride]
        out: Tensor = self.relu(self.body(x) + self.shortcut(kept))
        return out


class SmallResNetGeM(ImageEncoder):
    """Camera: a small ResNet for images of about 96 x 128 that learns from scratch on a CPU, GeM, linear projection.

    Args:
        descriptor_dim: of the descriptor.
        widths: channels of the stages; the stem and every stage but the last halve the resolution.
        blocks: residual blocks per stage.
        output_norm: "none" or "batchnorm" (see ``output_layer``).
        norm: "batch", or "instance": the image, and the residual branches of all stages but the last, are normalised by
            their own mean and deviation and not by those of the training's images. Both kinds are there, as in IBN-Net
            (Pan et al., ECCV 2018); light and weather that nobody trained for disturb the later layers far less.
    """

    def __init__(
        self,
        descriptor_dim: int = 128,
        widths: Sequence[int] = (32, 64, 128, 192),
        blocks: int = 1,
        output_norm: str = "none",
        norm: str = "batch",
    ) -> None:
        super().__init__()
        require_positive(descriptor_dim=descriptor_dim, blocks=blocks, widths=min(widths, default=0))
        self.descriptor_dim = descriptor_dim
        by_image = choice("norm", norm, ("batch", "instance")) == "instance"
        self.standardise: nn.Module = nn.InstanceNorm2d(3) if by_image else nn.Identity()
        self.features = small_resnet(widths, blocks, by_image)
        self.pool = GeM()
        self.project = nn.Linear(widths[-1], descriptor_dim)
        self.output = output_layer(output_norm, descriptor_dim)

    def forward(self, images: Tensor | None, voxels: VoxelBatch | None = None, labels: Tensor | None = None) -> Tensor:
        """As ``ImageEncoder``."""
        return super().forward(None if images is None else self.standardise(images))


def small_resnet(widths: Sequence[int], blocks: int, by_image: bool) -> nn.Sequential:
    """Stem and stages of stride 2, a last one of stride 1: (B, 3, H, W) to (B, C, H / 2^n, W / 2^n) for n stages.

    ``by_image`` normalises the residual branches of all stages but the last image by image.
    """
    early: Callable[[int], nn.Module] = partial(nn.InstanceNorm2d, affine=True) if by_image else nn.BatchNorm2d
    stem = [
        nn.Conv2d(3, widths[0], kernel_size=5, stride=2, padding=2, bias=False),
        nn.BatchNorm2d(widths[0]),
        nn.ReLU(inplace=True),
    ]
    stages: list[nn.Module] = []
    width = widths[0]
    for stage, plane in enumerate(widths):
        last = stage == len(widths) - 1
        for block in range(blocks):
            stride = 2 if block == 0 and not last else 1
            stages.append(BasicBlock(width, plane, stride, nn.BatchNorm2d if last else early))
            width = plane
    return nn.Sequential(*stem, *stages)
