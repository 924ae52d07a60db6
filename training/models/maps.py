"""The feature maps inside a network, for methods that compare them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from training.models.base import EmbeddingModel
from vpr_kd_ros.errors import ConfigError


@contextmanager
def captured_maps(model: EmbeddingModel) -> Iterator[list[Tensor]]:
    """While the context lasts, a forward pass fills the list: the last map (B, C, H, W) of each resolution, fine first.

    The maps are part of the graph: gradients flow back through them. Each pass replaces those of the one before.

    Raises:
        ConfigError: the model makes no maps of an image.
    """
    layers = model.map_layers()
    if not layers:
        raise ConfigError(
            f"{type(model).__name__} makes no feature maps of an image, which this training reads; take a teacher and "
            "a student that read images, or leave out what reads maps (method.name, task.labels_weight)"
        )
    maps: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        if module is layers[0]:
            maps.clear()
        if not isinstance(output, Tensor) or output.ndim != 4:
            return
        if maps and maps[-1].shape[2:] == output.shape[2:]:
            maps.pop()
        maps.append(output)

    handles = [layer.register_forward_hook(keep) for layer in layers]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()
