"""Voxels: which cells of space the points of a batch of clouds occupy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vpr_kd_ros.errors import ConfigError, DataError

FIELD_BITS = 17
"""Bits of one coordinate in a packed key; batch, x, y, z make 12 + 3 * 17 = 63 bits of an int64."""
BIAS = 1 << (FIELD_BITS - 1)
"""Added to a coordinate before packing, so that the field is not negative; divisible by every stride in use."""
MAX_COORDINATE = 3 * BIAS // 4
"""Largest magnitude of a coordinate: what is left above it keeps kernels from reaching into the next field."""
MAX_CLOUDS = 1 << (63 - 3 * FIELD_BITS)

VoxelSize = float | tuple[float, float, float]
"""Edge of a cubic voxel, or the edges along x, y and z, in the clouds' unit."""


@dataclass(frozen=True)
class VoxelBatch:
    """The occupied voxels of a batch of clouds.

    Attributes:
        coordinates: (V, 4) int32, columns (batch, x, y, z), unique, ordered by batch, x, y, z.
        batch_size: number of clouds; one without any voxel (an empty cloud) counts too.
    """

    coordinates: Tensor
    batch_size: int

    def to(self, device: torch.device | str) -> VoxelBatch:
        """The same voxels on another device."""
        return VoxelBatch(self.coordinates.to(device, non_blocking=True), self.batch_size)


def pack(coordinates: Tensor) -> Tensor:
    """Pack (V, 4) integer coordinates (batch, x, y, z) into (V,) int64 keys that sort by batch, x, y, z."""
    batch, x, y, z = coordinates.long().unbind(1)
    keys = (batch << FIELD_BITS) + x + BIAS
    keys = (keys << FIELD_BITS) + y + BIAS
    return (keys << FIELD_BITS) + z + BIAS


def unpack(keys: Tensor) -> Tensor:
    """The inverse of ``pack``: (V,) int64 keys to (V, 4) int32 coordinates."""
    mask = (1 << FIELD_BITS) - 1
    fields = [keys >> (3 * FIELD_BITS)] + [((keys >> (i * FIELD_BITS)) & mask) - BIAS for i in (2, 1, 0)]
    return torch.stack(fields, dim=1).int()


def voxelise(clouds: Sequence[Tensor], voxel_size: VoxelSize) -> VoxelBatch:
    """Quantise clouds: every voxel that holds at least one point, once.

    The result does not depend on the order of the points. Points with a non-finite coordinate are left out.

    Args:
        clouds: tensors (M, 3) float, x, y, z, any M including 0, all on one device.
        voxel_size: of a voxel, in the clouds' unit (metres, unless the clouds were scaled).

    Raises:
        ConfigError: ``voxel_size`` is not positive.
        DataError: a cloud has another shape, a point is too far away for this voxel size, or there are too many clouds.
    """
    edges = torch.tensor(voxel_size, dtype=torch.float64)
    if not (edges > 0).all():
        raise ConfigError(f"voxel_size must be positive, got {voxel_size}")
    if not 0 < len(clouds) <= MAX_CLOUDS:
        raise DataError(f"wants 1 to {MAX_CLOUDS} clouds in a batch, got {len(clouds)}")
    for i, cloud in enumerate(clouds):
        if cloud.ndim != 2 or cloud.shape[1] != 3:
            raise DataError(f"cloud {i} of the batch has shape {tuple(cloud.shape)}, not (M, 3)")
    points = torch.cat(list(clouds))
    sizes = torch.tensor([len(cloud) for cloud in clouds], device=points.device)
    batch = torch.repeat_interleave(torch.arange(len(clouds), device=points.device), sizes)
    finite = points.isfinite().all(dim=1)
    cells = (points[finite].double() / edges.to(points.device)).floor()
    batch = batch[finite]
    too_far = (cells.abs() > MAX_COORDINATE).any(dim=1)
    if too_far.any():
        first = int(too_far.nonzero()[0, 0])
        raise DataError(
            f"cloud {int(batch[first])} of the batch has a point at {points[finite][first].tolist()}, more than "
            f"{MAX_COORDINATE} voxels of {voxel_size} from the origin: remove far points or enlarge voxel_size"
        )
    keys = pack(torch.cat([batch[:, None], cells.long()], dim=1))
    return VoxelBatch(unpack(torch.unique(keys)), len(clouds))
