"""SciceVPR and its teacher Super-CricaVPR: features of several DINOv2 layers, described region by region."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.models.base import EmbeddingModel, require_positive
from training.models.image import ImageEncoder
from training.models.pca import optional_pca
from training.models.pooling import GeM
from training.models.pretrained import dinov2_network
from training.options import choice
from vpr_kd_ros.errors import ConfigError

BACKBONES = {"vit_small_patch14_dinov2": 384, "vit_base_patch14_dinov2": 768, "vit_large_patch14_dinov2": 1024}
"""Channels of a token of each backbone, as timm names them."""
PATCH = 14
REGIONS = 1 + 4 + 9
HEADS = 16


class FrozenDINOv2(nn.Module):
    """The patch tokens of the last layers of a DINOv2 that does not learn: (B, 3, H, W) to (B, layers C, H/14, W/14).

    Every layer's tokens pass through the network's last LayerNorm (Eq. 4); the class token is left out.
    """

    def __init__(self, name: str, pretrained: bool | str, height: int, width: int, layers: int) -> None:
        super().__init__()
        self.network = dinov2_network(name, pretrained, height, width).requires_grad_(False).eval()
        self.size = (height, width)
        self.layers = layers

    def train(self, mode: bool = True) -> FrozenDINOv2:
        super().train(mode)
        self.network.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Raises:
        ConfigError: the images have another size than the position embedding.
        """
        if tuple(images.shape[-2:]) != self.size:
            raise ConfigError(
                f"images of {tuple(images.shape[-2:])} for a model of {self.size}: the run's height and width must be "
                "those of the model's options"
            )
        maps = self.network.forward_intermediates(  # type: ignore[operator]
            images, indices=self.layers, norm=True, output_fmt="NCHW", intermediates_only=True
        )
        return torch.cat(maps, dim=1)


class TokenMixer(nn.Module):
    """A residual two-layer perceptron over the places of a map, the same for all channels (Eq. 8): (B, C, N) as before.

    The LayerNorm before it is over the channels of each place, as in the authors' code.
    """

    def __init__(self, channels: int, places: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        first, second = nn.Linear(places, places), nn.Linear(places, places)
        for layer in (first, second):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        self.mix = nn.Sequential(first, nn.ReLU(inplace=True), second)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.mix(self.norm(x.transpose(1, 2)).transpose(1, 2))
        return x + mixed


class MultiLayerFusion(nn.Module):
    """Fusion of DINOv2's layers over channels, then over places (Fig. 5): images to (B, C, H/14, W/14)."""

    def __init__(self, backbone: FrozenDINOv2, cin: int, cout: int, mixers: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.fuse = nn.Conv2d(cin, cout, kernel_size=1)
        places = (backbone.size[0] // PATCH) * (backbone.size[1] // PATCH)
        self.mixers = nn.Sequential(*(TokenMixer(cout, places) for _ in range(mixers)))

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.fuse(self.backbone(images)))
        mixed: Tensor = self.mixers(x.flatten(2))
        return mixed.reshape(x.shape)


class RegionGeM(nn.Module):
    """GeM of the whole map, its quarters and its ninths, each of length one: (B, C, H, W) to (B, 14, C).

    Rows and columns are cut at the nearest whole place: at 8 of 16, at 5 and 11 of 16.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gem = GeM()

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        regions: list[Tensor] = []
        for parts in (1, 2, 3):
            rows = [round(i * height / parts) for i in range(parts + 1)]
            columns = [round(i * width / parts) for i in range(parts + 1)]
            regions += [
                self.gem(x[:, :, rows[i] : rows[i + 1], columns[j] : columns[j + 1]])
                for i in range(parts)
                for j in range(parts)
            ]
        return F.normalize(torch.stack(regions, dim=1), dim=2)


class CrossImageEncoder(nn.Module):
    """Two transformer layers along the images of the batch, region by region: (B, 14, C) to (B, 14 C) of length one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.encoder = _transformer(channels, layers=2)

    def forward(self, regions: Tensor) -> Tensor:
        return F.normalize(self.encoder(regions).flatten(1), dim=1)


class SelfEnhancedEncoder(nn.Module):
    """One transformer layer on each region by itself: (B, 14, C) to (B, 14 C) of length one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.encoder = _transformer(channels, layers=1)

    def forward(self, regions: Tensor) -> Tensor:
        alone = regions.flatten(0, 1)[None]  # a sequence of one, 14 B times
        return F.normalize(self.encoder(alone).reshape(regions.shape[0], -1), dim=1)


def _transformer(channels: int, layers: int) -> nn.TransformerEncoder:
    """Takes (sequence, batch, channels)."""
    layer = nn.TransformerEncoderLayer(channels, HEADS, dim_feedforward=2048, dropout=0.1, activation="gelu")
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)


class RegionEncoder(ImageEncoder):
    """What teacher and student share; they differ in the encoder of the regions.

    DINOv2 does not learn. Descriptors are of length one where there is no PCA.

    Args:
        backbone: "vit_small_patch14_dinov2", "vit_base_patch14_dinov2" or "vit_large_patch14_dinov2".
        height, width: of the images, multiples of 14, at least 42.
        layers: last layers of the backbone to join.
        width_out: channels after the fusion, a multiple of 16; the descriptor has 14 times as many.
        mixers: token mixers.
        pretrained: true downloads DINOv2's weights, a path reads them from a file, false starts from random weights.
        pca_dim: size that a PCA reduces the descriptor to, after training (published: 4096); 0 for no PCA.
    """

    features: MultiLayerFusion
    region_encoder: type[CrossImageEncoder | SelfEnhancedEncoder]

    def __init__(
        self,
        backbone: str = "vit_base_patch14_dinov2",
        height: int = 224,
        width: int = 224,
        layers: int = 4,
        width_out: int = 768,
        mixers: int = 2,
        pretrained: bool | str = False,
        pca_dim: int = 0,
    ) -> None:
        super().__init__()
        choice("backbone", backbone, BACKBONES)
        require_positive(layers=layers, width_out=width_out)
        if height % PATCH or width % PATCH or min(height, width) < 3 * PATCH:
            least = 3 * PATCH
            raise ConfigError(
                f"model options height and width must be multiples of {PATCH} from {least}, got {height} and {width}"
            )
        if width_out % HEADS:
            raise ConfigError(f"model option width_out must be a multiple of {HEADS}, got {width_out}")
        network = FrozenDINOv2(backbone, pretrained, height, width, layers)
        self.features = MultiLayerFusion(network, layers * BACKBONES[backbone], width_out, mixers)
        self.pool = RegionGeM()
        self.project = self.region_encoder(width_out)
        self.output, self.descriptor_dim = optional_pca(REGIONS * width_out, pca_dim, whiten=False)


class SuperCricaVPR(RegionEncoder):
    """Camera, teacher only: Super-CricaVPR, regions that attend to the same region of other images; 10,752-d.

    A descriptor depends on the batch that it is computed in. See ``RegionEncoder`` for the options.
    """

    depends_on_batch = True
    region_encoder = CrossImageEncoder


class SciceVPR(RegionEncoder):
    """Camera: SciceVPR, the student of Super-CricaVPR; a descriptor depends on its own image only; 10,752-d.

    See ``RegionEncoder`` for the options.
    """

    region_encoder = SelfEnhancedEncoder

    def inherit(self, teacher: EmbeddingModel) -> None:
        """Take over the teacher's 1x1 convolution over DINOv2's layers and freeze it, as published; before training.

        Raises:
            ConfigError: the teacher is no Super-CricaVPR, or its convolution has another size.
        """
        if not isinstance(teacher, SuperCricaVPR):
            raise ConfigError(
                f"SciceVPR inherits from super-cricavpr only, and the teacher is {type(teacher).__name__}; set "
                "method.options.hand_over to false for it"
            )
        ours, theirs = self.features.fuse, teacher.features.fuse
        if ours.weight.shape != theirs.weight.shape:
            raise ConfigError(
                f"the teacher fuses {theirs.in_channels} channels to {theirs.out_channels}, the student "
                f"{ours.in_channels} to {ours.out_channels}: give both the same backbone, layers and width_out"
            )
        ours.load_state_dict(theirs.state_dict())
        ours.requires_grad_(False)
