"""Backbones for local features: a row of blocks, of which only the last ones may learn."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from training.models.pretrained import torchvision_network
from training.options import choice
from vpr_kd_ros.errors import ConfigError

TRUNKS = {"vgg16": 512, "resnet18": 256, "mobilenetv2": 320}
"""Channels of each backbone's last map."""


def trunk_channels(name: str) -> int:
    """Channels of a backbone's last map.

    Raises:
        ConfigError: an unknown name.
    """
    return TRUNKS[choice("backbone", name, TRUNKS)]


class Trunk(nn.Sequential):
    """Blocks in a row: (B, 3, H, W) to (B, C, H', W').

    Args:
        blocks: applied one after the other.
        trainable: how many of the last blocks learn. The others keep their weights and their BatchNorm statistics, in
            training mode too.

    Raises:
        ConfigError: there are fewer blocks.
    """

    def __init__(self, blocks: Sequence[nn.Module], trainable: int) -> None:
        super().__init__(*blocks)
        if not 0 <= trainable <= len(blocks):
            raise ConfigError(f"model option trainable_blocks must be 0 to {len(blocks)}, got {trainable}")
        self.frozen = len(blocks) - trainable
        for block in blocks[: self.frozen]:
            block.requires_grad_(False)

    def train(self, mode: bool = True) -> Trunk:
        super().train(mode)
        for block in list(self)[: self.frozen]:
            block.train(False)
        return self


def local_feature_trunk(name: str, pretrained: bool | str, trainable_blocks: int) -> Trunk:
    """A backbone cropped where NetVLAD reads it, as in LSDNet (Peng et al., IROS 2022, Sec. IV-B and Table III).

    Args:
        name: "vgg16" (5 blocks, to conv5_3 before its ReLU, 512 channels, stride 16), "resnet18" (4 blocks: stem and
            layer1 to layer3, 256 channels, stride 16) or "mobilenetv2" (18 blocks: all but the last convolution, 320
            channels, stride 32).
        pretrained: see ``torchvision_network``.
        trainable_blocks: see ``Trunk``.

    Raises:
        ConfigError: an unknown name, or more trainable blocks than there are.
        DataError, MissingDependencyError: see ``torchvision_network``.
    """
    trunk_channels(name)
    blocks: list[nn.Module]
    if name == "vgg16":
        layers = list(torchvision_network("vgg16", pretrained).get_submodule("features").children())
        ends = (0, 5, 10, 17, 24, 29)
        blocks = [nn.Sequential(*layers[start:end]) for start, end in pairwise(ends)]
    elif name == "resnet18":
        network = torchvision_network("resnet18", pretrained)
        stem = nn.Sequential(*(network.get_submodule(part) for part in ("conv1", "bn1", "relu", "maxpool")))
        blocks = [stem, *(network.get_submodule(f"layer{i}") for i in (1, 2, 3))]
    else:
        blocks = list(torchvision_network("mobilenet_v2", pretrained).get_submodule("features").children())[:18]
    return Trunk(blocks, trainable_blocks)
