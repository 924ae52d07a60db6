"""The networks: image encoders, cloud encoders, fusion. ``build_model`` makes one from its name and options."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from training.models.base import EmbeddingModel
from training.models.fusion import MinkLocFusion
from training.models.image import MinkLoc2D, MobileNetV2GeM, ResNet18GeM, SmallResNetGeM
from training.models.minkfpn import MinkLoc3D
from training.models.voxels import VoxelBatch, voxelise
from training.options import build

__all__ = ["MODELS", "EmbeddingModel", "VoxelBatch", "build_model", "describe_models", "voxelise"]

MODELS: dict[str, type[EmbeddingModel]] = {
    "minkloc++": MinkLocFusion,
    "minkloc++3d": MinkLoc3D,
    "minkloc++2d": MinkLoc2D,
    "resnet18-gem": ResNet18GeM,
    "mobilenetv2-gem": MobileNetV2GeM,
    "small-resnet-gem": SmallResNetGeM,
}


def build_model(name: str, options: Mapping[str, Any]) -> EmbeddingModel:
    """Build the model ``name`` of ``MODELS`` with the options of its constructor.

    Raises:
        ConfigError: an unknown name or option, or a value of the wrong type or out of range.
        DataError: pretrained weights cannot be had.
        MissingDependencyError: a package the model needs is not installed.
    """
    model: EmbeddingModel = build("model", MODELS, name, options)
    return model


def describe_models() -> dict[str, str]:
    """The models and what each is, in one line."""
    return {name: (inspect.getdoc(model) or "").splitlines()[0] for name, model in MODELS.items()}
