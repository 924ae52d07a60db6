"""The cloud encoder of MinkLoc++ (Komorowski et al., IJCNN 2021): a sparse feature pyramid, pooled."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from training.models.base import EmbeddingModel, output_layer, require_positive
from training.models.minkowski import check_backend, make_grid
from training.models.pooling import SparseGeM
from training.models.sparse import SparseBatchNorm, SparseBlock, SparseConv, SparseReLU, SparseTensor
from training.models.voxels import VoxelBatch
from vpr_kd_ros.errors import ConfigError, DataError


class MinkFPN(nn.Module):
    """Bottom-up: a wide first convolution, then stages of stride 2 with residual blocks. Top-down: transposed
    convolutions added to 1x1x1 lateral ones. See ``MinkLoc3D`` for the arguments.
    """

    def __init__(
        self, planes: Sequence[int], layers: Sequence[int], top_down: int, first_kernel: int, out_dim: int
    ) -> None:
        super().__init__()
        self.first = nn.Sequential(SparseConv(1, planes[0], first_kernel), SparseBatchNorm(planes[0]), SparseReLU())
        self.stages = nn.ModuleList()
        width = planes[0]
        for plane, count in zip(planes, layers, strict=True):
            blocks = [SparseBlock(width if i == 0 else plane, plane) for i in range(count)]
            down = SparseConv(width, width, kernel_size=2, stride=2)
            self.stages.append(nn.Sequential(down, SparseBatchNorm(width), SparseReLU(), *blocks))
            width = plane
        widths = [planes[0], *planes]  # of the first convolution and of each stage
        self.lateral = nn.ModuleList(SparseConv(widths[-1 - i], out_dim, 1) for i in range(top_down + 1))
        self.up = nn.ModuleList(
            SparseConv(out_dim, out_dim, kernel_size=2, stride=2, transposed=True) for _ in range(top_down)
        )

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Occupancy (V, 1) to features (V', out_dim), ``top_down`` levels below the coarsest one."""
        maps: list[SparseTensor] = [self.first(x)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        out: SparseTensor = self.lateral[0](maps[-1])
        for i, up in enumerate(self.up):
            out = up(out) + self.lateral[i + 1](maps[-2 - i])
        return out


class MinkLoc3D(EmbeddingModel):
    """LiDAR: the cloud encoder of MinkLoc++ (MinkFPN with channel attention, GeM); 646,122 parameters at 128-d.

    Args:
        descriptor_dim: of the descriptor; also the width of the pyramid.
        voxel_size: edge of a voxel in the clouds' unit: 0.01 for clouds scaled to [-1, 1] (Oxford), 1.0 m for Boreas.
        planes: widths of the stages; each has half the resolution of the one before.
        layers: residual blocks of each stage.
        top_down: how many levels the pyramid climbs back up.
        first_kernel: voxels per axis of the first convolution.
        output_norm: "none" or "batchnorm" (see ``output_layer``).
        sparse_backend: "torch" or "minkowski" (see ``make_grid``). Both share their weights.
    """

    uses_clouds = True

    def __init__(
        self,
        descriptor_dim: int = 128,
        voxel_size: float = 0.01,
        planes: Sequence[int] = (32, 64, 64),
        layers: Sequence[int] = (1, 1, 1),
        top_down: int = 1,
        first_kernel: int = 5,
        output_norm: str = "none",
        sparse_backend: str = "torch",
    ) -> None:
        super().__init__()
        require_positive(descriptor_dim=descriptor_dim, voxel_size=voxel_size, first_kernel=first_kernel)
        if not planes or len(planes) != len(layers) or min(*planes, *layers) < 1:
            raise ConfigError(
                "model options planes and layers want one number above 0 for each stage, "
                f"got {list(planes)} and {list(layers)}"
            )
        if not 0 <= top_down <= len(planes):
            raise ConfigError(
                f"model option top_down must be 0 to {len(planes)} (the number of stages), got {top_down}"
            )
        self.descriptor_dim = descriptor_dim
        self.voxel_size = voxel_size
        check_backend(sparse_backend)
        self.sparse_backend = sparse_backend
        self.pyramid = MinkFPN(planes, layers, top_down, first_kernel, descriptor_dim)
        self.pool = SparseGeM()
        self.output = output_layer(output_norm, descriptor_dim)

    def forward(self, images: Tensor | None, voxels: VoxelBatch | None = None, labels: Tensor | None = None) -> Tensor:
        """Voxels of B clouds to descriptors (B, C); ``images`` and ``labels`` are ignored."""
        if voxels is None:
            raise DataError("this model needs clouds, and the batch has none")
        grid = make_grid(self.sparse_backend, voxels)
        occupancy = torch.ones(len(grid.batch_index(1)), 1, device=voxels.coordinates.device, dtype=self.pool.p.dtype)
        descriptors: Tensor = self.output(self.pool(self.pyramid(SparseTensor(occupancy, 1, grid))))
        return descriptors
