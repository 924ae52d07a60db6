"""StructVPR's alternatives to distillation (Shen et al., CVPR 2023, Sec. 4.4 and supplement 3.1): images and semantic
labels in one network, and a network that learns to tell the labels beside its descriptor.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.models.base import EmbeddingModel
from training.models.multilevel import CLASS_WEIGHTS, LabelEncoding, StructVPR, StructVPRSeg
from training.models.voxels import VoxelBatch
from vpr_kd_ros.errors import DataError


class ImageAndLabels(EmbeddingModel):
    """What the two fusions share: both inputs, and StructVPR's rgb-branch, whose maps are the network's."""

    uses_images = True
    uses_labels = True

    def __init__(self, pooling: str, pretrained: bool | str) -> None:
        super().__init__()
        self.branch = StructVPR(pooling, pretrained)
        self.descriptor_dim = self.branch.descriptor_dim

    def map_layers(self) -> list[nn.Module]:
        return self.branch.map_layers()

    def describe(self, images: Tensor, labels: Tensor) -> Tensor:
        """Images (B, 3, H, W) and labels (B, H, W) to descriptors (B, C) of length one."""
        raise NotImplementedError

    def forward(self, images: Tensor | None, voxels: VoxelBatch | None = None, labels: Tensor | None = None) -> Tensor:
        """See ``describe``; ``voxels`` are ignored."""
        if images is None or labels is None:
            raise DataError("this model needs images and semantic labels, and the batch has not both")
        return self.describe(images, labels)


class ConcatInput(ImageAndLabels):
    """Image and semantic labels: StructVPR's Concat-input, the encoded labels as further channels of the image; 448-d.

    The first convolution reads nine channels instead of three, and the rest is the rgb-branch: 1,813,440 parameters.

    Args:
        pooling, pretrained: see ``StructVPR``; the weights that read the labels are random in any case.
        class_weights: see ``StructVPRSeg``.
    """

    def __init__(
        self, pooling: str = "max", pretrained: bool | str = False, class_weights: Sequence[float] = CLASS_WEIGHTS
    ) -> None:
        super().__init__(pooling, pretrained)
        self.encode = LabelEncoding(class_weights)
        first = self.branch.get_submodule("features.0.0.0")
        assert isinstance(first, nn.Conv2d)
        self.branch.set_submodule("features.0.0.0", _with_more_inputs(first, len(class_weights)))

    def describe(self, images: Tensor, labels: Tensor) -> Tensor:
        descriptors: Tensor = self.branch(torch.cat([images, self.encode(labels)], dim=1))
        return descriptors


class ConcatFeature(ImageAndLabels):
    """Image and semantic labels: StructVPR's Concat-feat, the descriptors of its two branches side by side; 928-d.

    The whole is of length one, so that squared distances are the mean of the branches'. The supplement adds "the two
    losses" without naming them; here the task loss compares the whole.

    Args:
        pooling: of both branches, see ``StructVPR``.
        pretrained: of the image branch, see ``StructVPR``.
        class_weights: see ``StructVPRSeg``.
    """

    def __init__(
        self, pooling: str = "max", pretrained: bool | str = False, class_weights: Sequence[float] = CLASS_WEIGHTS
    ) -> None:
        super().__init__(pooling, pretrained)
        self.seg = StructVPRSeg(class_weights, pooling)
        image_dim = self.branch.descriptor_dim
        self.descriptor_dim = image_dim + self.seg.descriptor_dim
        self.parts = {"image": slice(0, image_dim), "labels": slice(image_dim, self.descriptor_dim)}

    def describe(self, images: Tensor, labels: Tensor) -> Tensor:
        return F.normalize(torch.cat([self.branch(images), self.seg(None, labels=labels)], dim=1), dim=1)


class LabelDecoder(nn.Module):
    """What the multi-task student learns beside its descriptor: U-Net's decoder (Ronneberger et al., MICCAI 2015), from
    the feature maps of an encoder to the semantic class of each pixel. It is thrown away after training.

    From the coarsest map on: twice as large by bilinear interpolation, the next finer map beside it, then two 3x3
    convolutions with BatchNorm and ReLU to as many channels as that map has; at the end a 1x1 convolution.

    Args:
        channels: of the encoder's maps, fine first.
        classes: of the labels.
    """

    def __init__(self, channels: Sequence[int], classes: int) -> None:
        super().__init__()
        self.steps = nn.ModuleList(
            nn.Sequential(_convolution(coarse + fine, fine), _convolution(fine, fine))
            for coarse, fine in pairwise(reversed(channels))
        )
        self.tell = nn.Conv2d(channels[0], classes, 1)

    def logits(self, maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """Maps (B, C_i, H_i, W_i), fine first, to logits (B, classes, H, W) of the given ``size`` (H, W)."""
        *finer, x = maps
        for step, fine in zip(self.steps, reversed(finer), strict=True):
            x = step(torch.cat([_resized(x, fine.shape[2:]), fine], dim=1))
        return _resized(self.tell(x), size)

    def forward(self, maps: Sequence[Tensor], labels: Tensor) -> Tensor:
        """Mean cross-entropy over the pixels that have a class, zero where none has; in float32 under autocast.

        Args:
            maps: (B, C_i, H_i, W_i) of an encoder, fine first.
            labels: (B, H, W) integers; one that is no class, such as 255, does not count.
        """
        logits = self.logits(maps, labels.shape[1:]).float()
        wanted = labels.long()
        known = wanted < logits.shape[1]
        each = F.cross_entropy(logits, wanted.masked_fill(~known, 0), reduction="none")
        return (each * known).sum() / known.sum().clamp(min=1)


def _convolution(cin: int, cout: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(cin, cout, 3, padding=1, bias=False), nn.BatchNorm2d(cout), nn.ReLU(inplace=True))


def _resized(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def _with_more_inputs(convolution: nn.Conv2d, more: int) -> nn.Conv2d:
    """The convolution with further input channels; the weights of those that it has stay."""
    wider = nn.Conv2d(
        convolution.in_channels + more,
        convolution.out_channels,
        kernel_size=(convolution.kernel_size[0], convolution.kernel_size[1]),
        stride=(convolution.stride[0], convolution.stride[1]),
        padding=tuple(convolution.padding),  # type: ignore[arg-type]
        bias=convolution.bias is not None,
    )
    with torch.no_grad():
        wider.weight[:, : convolution.in_channels] = convolution.weight
    return wider
