"""StructVPR's two branches (Shen et al., CVPR 2023): global features of three stages side by side."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.models.base import EmbeddingModel
from training.models.image import ImageEncoder
from training.models.pooling import GeM, at_least_float32
from training.models.pretrained import torchvision_network
from training.models.voxels import VoxelBatch
from training.options import choice
from vpr_kd_ros.errors import ConfigError, DataError

LEVELS = 3
"""The descriptor is of the last three of five stages."""
CLASS_WEIGHTS = (0.5, 0.5, 1.0, 1.0, 2.0, 2.0)
"""The paper's values of ``training.sessions.CLASSES`` in an encoded map."""


class Stages(nn.Sequential):
    """Stages in a row; the maps of the last three, one after the other."""

    def forward(self, x: Tensor) -> list[Tensor]:
        maps: list[Tensor] = []
        for stage in self:
            x = stage(x)
            maps.append(x)
        return maps[-LEVELS:]


class MultiLevelConcatenation(nn.Module):
    """Each map pooled and brought to length one, then side by side, the whole of length one (Eqs. 1 and 2).

    Takes maps (B, C_i, H_i, W_i), answers (B, sum of C_i). Computes in float32 under autocast.

    Args:
        pooling: "max" over all places, as published, or "gem".
    """

    def __init__(self, pooling: str = "max") -> None:
        super().__init__()
        choice("pooling", pooling, ("max", "gem"))
        self.gems = nn.ModuleList(GeM() for _ in range(LEVELS)) if pooling == "gem" else None

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        if self.gems is not None:
            levels = [gem(x) for gem, x in zip(self.gems, maps, strict=True)]
        else:
            levels = [at_least_float32(x).amax(dim=(2, 3)) for x in maps]
        return F.normalize(torch.cat([F.normalize(level, dim=1) for level in levels], dim=1), dim=1)


class StructVPR(ImageEncoder):
    """Camera: StructVPR's rgb-branch and student, MobileNetV2 and multi-level concatenation; 448-d, of length one.

    448 = 32 + 96 + 320 channels of the stages of stride 8, 16 and 32; the convolution to 1280 is left out: 1,811,712
    parameters.

    Args:
        pooling: "max", as published, or "gem".
        pretrained: true downloads ImageNet weights, a path reads them from a file, false starts from random weights.
    """

    def __init__(self, pooling: str = "max", pretrained: bool | str = False) -> None:
        super().__init__()
        blocks = list(torchvision_network("mobilenet_v2", pretrained).get_submodule("features").children())
        self.features = Stages(*(nn.Sequential(*blocks[a:b]) for a, b in pairwise((0, 2, 4, 7, 14, 18))))
        self.pool = MultiLevelConcatenation(pooling)
        self.descriptor_dim = 32 + 96 + 320
        self.project = nn.Identity()
        self.output = nn.Identity()


class LabelEncoding(nn.Module):
    """Semantic labels as weighted one-hot maps (StructVPR, Sec. 3.2): (B, H, W) integers to (B, C, H, W) float32.

    A label that is no class, such as 255, is zero in all channels.

    Args:
        weights: the value of each class in its channel.
    """

    weights: Tensor

    def __init__(self, weights: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("weights", torch.tensor(weights, dtype=torch.float32))

    def forward(self, labels: Tensor) -> Tensor:
        classes = torch.arange(len(self.weights), device=labels.device)[:, None, None]
        return (labels[:, None] == classes) * self.weights[:, None, None]


class DepthBlock(nn.Module):
    """MobileSal's inverted residual block: its convolutions before BatchNorm, but the last, have a bias."""

    def __init__(self, cin: int, cout: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = cin * expansion
        layers: list[nn.Module] = []
        if expansion > 1:
            layers += [nn.Conv2d(cin, hidden, 1), nn.BatchNorm2d(hidden), nn.ReLU(inplace=True)]
        layers += [nn.Conv2d(hidden, hidden, 3, stride, padding=1, groups=hidden), nn.BatchNorm2d(hidden)]
        layers += [nn.ReLU(inplace=True), nn.Conv2d(hidden, cout, 1, bias=False), nn.BatchNorm2d(cout)]
        self.body = nn.Sequential(*layers)
        self.residual = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return x + out if self.residual else out


class StructVPRSeg(EmbeddingModel):
    """Semantic labels: StructVPR's seg-branch and teacher, MobileNet-L and multi-level concatenation; 480-d.

    MobileNet-L is MobileSal's depth stream (Wu et al., TPAMI 2021): five stages of two blocks, each of stride 2 and
    expansion 4 (the first 1); 480 = 64 + 96 + 320, of length one; 1,195,880 parameters with six classes.

    Args:
        class_weights: values of the classes of ``training.sessions.CLASSES`` in the encoded map.
        pooling: "max", as published, or "gem".
    """

    uses_labels = True

    def __init__(self, class_weights: Sequence[float] = CLASS_WEIGHTS, pooling: str = "max") -> None:
        super().__init__()
        if not class_weights:
            raise ConfigError("model option class_weights wants one number for each class, got none")
        self.encode = LabelEncoding(class_weights)
        widths = (len(class_weights), 16, 32, 64, 96, 320)
        self.features = Stages(
            *(
                nn.Sequential(DepthBlock(cin, cout, 2, expansion), DepthBlock(cout, cout, 1, expansion))
                for (cin, cout), expansion in zip(pairwise(widths), (1, 4, 4, 4, 4), strict=True)
            )
        )
        self.pool = MultiLevelConcatenation(pooling)
        self.descriptor_dim = sum(widths[-LEVELS:])

    def map_layers(self) -> list[nn.Module]:
        return list(self.features)

    def forward(self, images: Tensor | None, voxels: VoxelBatch | None = None, labels: Tensor | None = None) -> Tensor:
        """Labels (B, H, W), integers, to descriptors (B, C) of length one; the other inputs are ignored."""
        if labels is None:
            raise DataError("this model needs semantic labels, and the batch has none")
        descriptors: Tensor = self.pool(self.features(self.encode(labels)))
        return descriptors
