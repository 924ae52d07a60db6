"""A DINOv2 of four blocks in place of twelve, so that a test can train with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import timm
from torch import nn

from training.models import scicevpr

DEPTH = 4


@contextmanager
def shallow_dinov2() -> Iterator[None]:
    """While this lasts, models are built with random weights and the first blocks of the backbone they name."""

    def build(name: str, pretrained: bool | str, height: int, width: int) -> nn.Module:
        network: nn.Module = timm.create_model(name, img_size=(height, width), num_classes=0, depth=DEPTH)
        return network

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scicevpr, "dinov2_network", build)
        yield
