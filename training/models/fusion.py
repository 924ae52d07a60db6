"""MinkLoc++: LiDAR and camera in one descriptor (Komorowski et al., IJCNN 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from training.models.base import EmbeddingModel
from training.models.image import ImageEncoder, MinkLoc2D, SmallResNetGeM
from training.models.minkfpn import MinkLoc3D
from training.models.voxels import VoxelBatch
from vpr_kd_ros.errors import ConfigError


class MinkLocFusion(EmbeddingModel):
    """LiDAR + camera: MinkLoc++, the descriptors of a cloud and an image encoder side by side; 384-d as in DistilVPR.

    The original MinkLoc++ has image_dim 128 and 3,461,803 parameters.

    Args:
        cloud_dim, image_dim: sizes of the two descriptors; the fused one is their sum.
        image_network: "resnet18" (as published) or "small-resnet" (for small images, from scratch).
        pretrained: weights of resnet18, see ``MinkLoc2D``.
        norm: of small-resnet, see ``SmallResNetGeM``.
        voxel_size, planes, layers, top_down, first_kernel, sparse_backend: see ``MinkLoc3D``.
        output_norm: "none" or "batchnorm", of each of the two.
    """

    uses_images = True
    uses_clouds = True

    def __init__(
        self,
        cloud_dim: int = 128,
        image_dim: int = 256,
        image_network: str = "resnet18",
        pretrained: bool | str = False,
        voxel_size: float = 0.01,
        planes: Sequence[int] = (32, 64, 64),
        layers: Sequence[int] = (1, 1, 1),
        top_down: int = 1,
        first_kernel: int = 5,
        output_norm: str = "none",
        sparse_backend: str = "torch",
        norm: str = "batch",
    ) -> None:
        super().__init__()
        self.cloud = MinkLoc3D(
            cloud_dim, voxel_size, planes, layers, top_down, first_kernel, output_norm, sparse_backend
        )
        self.image: ImageEncoder
        if image_network == "resnet18":
            if norm != "batch":
                raise ConfigError("model option norm is of image_network small-resnet; leave it batch")
            self.image = MinkLoc2D(image_dim, pretrained, output_norm)
        elif image_network == "small-resnet":
            if pretrained:
                raise ConfigError("model option pretrained: small-resnet has no published weights; leave it false")
            self.image = SmallResNetGeM(image_dim, output_norm=output_norm, norm=norm)
        else:
            raise ConfigError(f"model option image_network must be 'resnet18' or 'small-resnet', got {image_network!r}")
        self.descriptor_dim = cloud_dim + image_dim
        self.parts = {"cloud": slice(0, cloud_dim), "image": slice(cloud_dim, self.descriptor_dim)}
        self.voxel_size = voxel_size

    def map_layers(self) -> list[nn.Module]:
        return self.image.map_layers()

    def forward(self, images: Tensor | None, voxels: VoxelBatch | None = None, labels: Tensor | None = None) -> Tensor:
        """Images (B, 3, H, W) and voxels of B clouds to descriptors (B, cloud_dim + image_dim)."""
        return torch.cat([self.cloud(None, voxels), self.image(images)], dim=1)
