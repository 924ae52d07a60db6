"""The cloud encoder of MinkLoc++ on three sparse convolutions: ours in pure torch, MinkowskiEngine, im2col in torch.

    python benchmarks/sparse_convolution.py
    python benchmarks/sparse_convolution.py --clouds 1 8 32 --points 4096 --repeats 15

The network, its weights and the voxels are the same; clouds have 4096 points and are scaled to [-1, 1] with voxels of
0.01, as in the Oxford benchmark, or are in metres with voxels of 1 m. Every run voxelises nothing and searches all
neighbours anew, as a training step does. MinkowskiEngine is measured where it is installed (`make minkowski`); im2col,
which gathers all neighbours of a voxel into one row and multiplies once, is what one would write without it. Times of
one size are interleaved: read the ratio. ``difference`` is that of the descriptors, relative to the largest.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

# Run as a file, the checkout is not on the path, and `training` is not an installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measuring import Row, cores, faster, finish, in_turns, parser, spread
from training.models.kernel_maps import KernelMap, TorchGrid
from training.models.minkfpn import MinkLoc3D
from training.models.minkowski import MinkowskiGrid, minkowski_is_installed
from training.models.sparse import Grid, SparseTensor
from training.models.voxels import VoxelBatch, voxelise

SCALES = {"[-1, 1]": (1.0, 0.01), "metres": (50.0, 1.0)}
"""Reach of the clouds and edge of a voxel."""


class Im2colGrid(TorchGrid):
    """The same levels and neighbours, but (V_out, K^3 C_in) rows of neighbours and one product; backward by torch."""

    def convolve(self, features: Tensor, kernel: Tensor, from_stride: int, to_stride: int, kernel_size: int) -> Tensor:
        """See ``Grid``."""
        kmap: KernelMap = self._map(min(from_stride, to_stride), max(from_stride, to_stride), kernel_size)
        if from_stride > to_stride:
            kmap = kmap.transposed()
        volume, rows = len(kernel), len(self._keys[to_stride])
        # The row past the last one is zero: where there is no neighbour.
        neighbours = torch.full((rows, volume), len(features))
        offsets = torch.repeat_interleave(torch.arange(volume), torch.tensor(kmap.counts))
        neighbours[kmap.outputs, offsets] = kmap.inputs
        if kmap.identity is not None:
            neighbours[:, kmap.identity] = torch.arange(rows)
        padded = torch.cat([features, features.new_zeros(1, features.shape[1])])
        return padded[neighbours.flatten()].view(rows, -1) @ kernel.flatten(0, 1)


GRIDS: dict[str, Callable[[VoxelBatch], Grid]] = {"ours": TorchGrid, "im2col": Im2colGrid}


def streets(clouds: int, points: int, reach: float) -> list[Tensor]:
    """Clouds (points, 3) as a submap of a street has them: a ground of some roughness between two walls."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(clouds):
        along, across, up = torch.rand(3, points, generator=generator)
        ground = torch.rand(points, generator=generator) < 0.4
        side = torch.where(across < 0.5, -0.25, 0.25) + 0.02 * torch.randn(points, generator=generator)
        y = torch.where(ground, 0.5 * across - 0.25, side)
        z = torch.where(ground, 0.01 * torch.randn(points, generator=generator), 0.3 * up)
        made.append(reach * torch.stack([2 * along - 1, y, z], dim=1))
    return made


def measure(scale: str, clouds: int, points: int, repeats: int) -> list[Row]:
    """The rows of one batch: the forward pass, and forward and backward."""
    reach, edge = SCALES[scale]
    voxels = voxelise(streets(clouds, points, reach), edge)
    torch.manual_seed(0)
    model = MinkLoc3D(voxel_size=edge).train()
    found: dict[str, Tensor] = {}

    def turn(kind: str, backward: bool) -> Callable[[], None]:
        def run() -> None:
            with torch.set_grad_enabled(backward):
                grid = GRIDS[kind](voxels)
                occupancy = torch.ones(len(grid.batch_index(1)), 1)
                descriptors = model.output(model.pool(model.pyramid(SparseTensor(occupancy, 1, grid))))
                found[kind] = descriptors.detach()
                if backward:
                    model.zero_grad()
                    descriptors.square().sum().backward()

        return run

    rows = []
    for backward in (False, True):
        times = in_turns({kind: turn(kind, backward) for kind in GRIDS}, repeats)
        row: Row = {"clouds": clouds, "scale": scale, "voxels": len(voxels.coordinates)}
        row["pass"] = "forward and backward" if backward else "forward"
        for grid in GRIDS:
            row |= spread(grid, times[grid])
        for grid in list(GRIDS)[1:]:
            difference = (found[grid] - found["ours"]).abs().max() / found["ours"].abs().max()
            row |= {f"speedup_over_{grid}": faster(times, "ours", grid), f"{grid}_difference": float(difference)}
        rows.append(row)
    return rows


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Measure, print the table and return its rows."""
    options = parser(__doc__)
    options.add_argument("--clouds", type=int, nargs="+", default=[1, 8, 16], help="of a batch")
    options.add_argument("--points", type=int, default=4096, help="of a cloud")
    options.add_argument("--scales", nargs="+", default=list(SCALES), choices=list(SCALES))
    options.add_argument("--repeats", type=int, default=9)
    options.add_argument("--threads", type=int, default=cores())
    args = options.parse_args(argv)
    torch.set_num_threads(args.threads)
    if minkowski_is_installed():
        GRIDS["minkowski"] = MinkowskiGrid
    else:
        print("MinkowskiEngine is not installed (make minkowski builds it): ours is measured against im2col only")
    rows = [
        row
        for scale in args.scales
        for clouds in args.clouds
        for row in measure(scale, clouds, args.points, args.repeats)
    ]
    return finish(args, "sparse_convolution", rows)


if __name__ == "__main__":
    main()
