"""What every model offers to training, evaluation and export."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from torch import Tensor, nn

from training.models.voxels import VoxelBatch, VoxelSize
from vpr_kd_ros.errors import ConfigError


class EmbeddingModel(nn.Module):
    """A network from images, clouds, semantic labels or several of them to one descriptor each.

    Attributes:
        descriptor_dim: C, the size of a descriptor.
        uses_images: needs ``images``.
        uses_clouds: needs ``voxels``.
        uses_labels: needs ``labels``.
        depends_on_batch: a descriptor depends on what else is in the batch even when evaluating: a teacher only.
        voxel_size: what to quantise the clouds with, in their unit; 0 for a model that uses none.
        cloud_modules: names of the submodules that read clouds only, where they are no embedding models themselves.
        parts: columns of the descriptor that describe by themselves, by name: ``cloud`` and ``image`` of a fusion.
    """

    descriptor_dim: int
    uses_images: bool = False
    uses_clouds: bool = False
    uses_labels: bool = False
    depends_on_batch: bool = False
    voxel_size: VoxelSize = 0.0
    cloud_modules: tuple[str, ...] = ()
    parts: Mapping[str, slice] = MappingProxyType({})

    def forward(self, images: Tensor | None, voxels: VoxelBatch | None = None, labels: Tensor | None = None) -> Tensor:
        """Descriptors (B, C) float32; of length one only where the model's paper says so.

        Args:
            images: (B, 3, H, W) float32, normalised.
            voxels: of B clouds.
            labels: (B, H, W) integers, the semantic class of each pixel (``training.sessions.CLASSES``).
        """
        raise NotImplementedError

    def map_layers(self) -> list[nn.Module]:
        """The layers whose outputs are the maps (B, C, H, W) of an image, in the order of the forward pass; or none."""
        return []

    def inherit(self, teacher: EmbeddingModel) -> None:
        """Take over from the teacher what this model's paper hands over, once, before training.

        Raises:
            ConfigError: nothing is handed over between the two models.
        """
        raise ConfigError(
            f"{type(self).__name__} takes nothing over from {type(teacher).__name__}; model.name scicevpr does from a "
            "super-cricavpr: for other pairs set method.options.hand_over to false"
        )

    def initialise(self, images: Iterable[Tensor]) -> None:
        """Set, once before training, what is computed from training images and not learnt; most models have nothing.

        Args:
            images: batches of normalised images (B, 3, H, W) float32, in any order; read as far as needed.
        """


def require_positive(**values: float) -> None:
    """Refuse options that are not above 0.

    Raises:
        ConfigError: naming the option.
    """
    for name, value in values.items():
        if not value > 0:
            raise ConfigError(f"model option {name} must be above 0, got {value}")


def output_layer(output_norm: str, descriptor_dim: int) -> nn.Module:
    """What follows the descriptor: nothing ("none") or a BatchNorm without affine parameters ("batchnorm").

    The BatchNorm keeps batch-hard triplets from collapsing on normalised descriptors when training from scratch.

    Raises:
        ConfigError: another name.
    """
    if output_norm == "none":
        return nn.Identity()
    if output_norm == "batchnorm":
        return nn.BatchNorm1d(descriptor_dim, affine=False)
    raise ConfigError(f"model option output_norm must be 'none' or 'batchnorm', got {output_norm!r}")
