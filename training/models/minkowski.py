"""The ``Grid`` on MinkowskiEngine 0.5.4: the same layers and weights as in pure PyTorch, its kernels."""

from __future__ import annotations

import collections
import collections.abc
import importlib
import importlib.util
from functools import lru_cache
from types import ModuleType
from typing import Any

from torch import Tensor

from training.models.kernel_maps import TorchGrid
from training.models.sparse import Grid
from training.models.voxels import VoxelBatch
from vpr_kd_ros.errors import ConfigError, MissingDependencyError

BACKENDS = ("torch", "minkowski")
INSTALL = (
    "apt install libopenblas-dev; pip install MinkowskiEngine==0.5.4 --no-build-isolation "
    '"--config-settings=--global-option=--cpu_only --blas=openblas '
    '--blas_include_dirs=/usr/include/x86_64-linux-gnu/openblas-pthread"'
)


@lru_cache(maxsize=1)
def minkowski_is_installed() -> bool:
    """Whether MinkowskiEngine can be found; does not import it."""
    return importlib.util.find_spec("MinkowskiEngine") is not None


def import_minkowski() -> ModuleType:
    """Import MinkowskiEngine.

    Raises:
        MissingDependencyError: it is not installed.
    """
    # It looks for a name that Python 3.10 moved to collections.abc.
    if not hasattr(collections, "Sequence"):
        collections.Sequence = collections.abc.Sequence  # type: ignore[attr-defined]
    try:
        import MinkowskiEngine
    except ImportError as error:
        raise MissingDependencyError(
            f"sparse_backend 'minkowski' needs MinkowskiEngine ({error}): {INSTALL}; or use sparse_backend 'torch', "
            "which has the same results"
        ) from error
    module: ModuleType = MinkowskiEngine
    return module


def check_backend(name: str) -> None:
    """Refuse a backend that is unknown or not there.

    Raises:
        ConfigError: an unknown name.
        MissingDependencyError: ``minkowski`` is asked for and not installed.
    """
    if name not in BACKENDS:
        raise ConfigError(f"model option sparse_backend must be one of {', '.join(BACKENDS)}, got {name!r}")
    if name == "minkowski":
        import_minkowski()


def make_grid(backend: str, voxels: VoxelBatch) -> Grid:
    """Place voxels on the grid of a backend.

    Args:
        backend: "torch" or "minkowski". A batch without any voxel goes to PyTorch: MinkowskiEngine cannot hold it.

    Raises:
        MissingDependencyError: ``minkowski`` is asked for and is not installed, or not built for the GPU in use.
    """
    if backend == "torch" or len(voxels.coordinates) == 0:
        return TorchGrid(voxels)
    if voxels.coordinates.is_cuda and not import_minkowski().is_cuda_available():
        raise MissingDependencyError(
            "this MinkowskiEngine was built without CUDA and the model runs on a GPU: use sparse_backend 'torch', "
            "which has the same results, or build MinkowskiEngine with CUDA"
        )
    return MinkowskiGrid(voxels)


class MinkowskiGrid:
    """A ``Grid`` whose levels and neighbourhoods a MinkowskiEngine coordinate manager keeps."""

    def __init__(self, voxels: VoxelBatch) -> None:
        self._engine = import_minkowski()
        self._mode = importlib.import_module("MinkowskiEngineBackend._C").ConvolutionMode.DEFAULT
        self.batch_size = voxels.batch_size
        types = self._engine.CoordinateMapType
        on = types.CUDA if voxels.coordinates.is_cuda else types.CPU
        self._manager = self._engine.CoordinateManager(D=3, coordinate_map_type=on)
        key, _ = self._manager.insert_and_map(voxels.coordinates.int().contiguous(), [1, 1, 1])
        self._keys: dict[int, Any] = {1: key}

    def coordinates(self, stride: int) -> Tensor:
        """See ``Grid``; the order of the rows is the engine's own."""
        coordinates: Tensor = self._manager.get_coordinates(self._keys[stride])
        return coordinates

    def batch_index(self, stride: int) -> Tensor:
        """See ``Grid``."""
        return self.coordinates(stride)[:, 0].long()

    def convolve(self, features: Tensor, kernel: Tensor, from_stride: int, to_stride: int, kernel_size: int) -> Tensor:
        """See ``Grid``."""
        engine = self._engine
        ratio = max(from_stride, to_stride) // min(from_stride, to_stride)
        if to_stride not in self._keys:
            self._keys[to_stride] = self._manager.stride(self._keys[from_stride], [ratio] * 3)
        generator = engine.KernelGenerator(kernel_size=kernel_size, stride=ratio, dimension=3)
        transposed = from_stride > to_stride
        function = engine.MinkowskiConvolutionTransposeFunction if transposed else engine.MinkowskiConvolutionFunction
        out: Tensor = function.apply(
            features,
            kernel,
            generator,
            self._mode,
            self._keys[from_stride],
            self._keys[to_stride],
            self._manager,
        )
        return out
