"""The networks: image encoders, cloud encoders, fusion. ``build_model`` makes one from its name and options."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from training.models.adafusion import AdaFusion, AdaFusion2D, AdaFusion3D
from training.models.base import EmbeddingModel
from training.models.fusion import MinkLocFusion
from training.models.image import MinkLoc2D, MobileNetV2GeM, ResNet18GeM, ResNet50GeM, SmallResNetGeM
from training.models.label_fusion import ConcatFeature, ConcatInput
from training.models.minkfpn import MinkLoc3D
from training.models.multilevel import StructVPR, StructVPRSeg
from training.models.netvlad import NetVLADEncoder
from training.models.pca import PCA
from training.models.savlad import LSDNetEncoder
from training.models.scicevpr import SciceVPR, SuperCricaVPR
from training.models.voxels import VoxelBatch, voxelise
from training.options import build

__all__ = ["MODELS", "EmbeddingModel", "VoxelBatch", "build_model", "describe_models", "voxelise", "with_pca"]

MODELS: dict[str, type[EmbeddingModel]] = {
    "minkloc++": MinkLocFusion,
    "minkloc++3d": MinkLoc3D,
    "minkloc++2d": MinkLoc2D,
    "resnet18-gem": ResNet18GeM,
    "resnet50-gem": ResNet50GeM,
    "mobilenetv2-gem": MobileNetV2GeM,
    "small-resnet-gem": SmallResNetGeM,
    "netvlad": NetVLADEncoder,
    "lsdnet": LSDNetEncoder,
    "adafusion": AdaFusion,
    "adafusion-3d": AdaFusion3D,
    "adafusion-2d": AdaFusion2D,
    "super-cricavpr": SuperCricaVPR,
    "scicevpr": SciceVPR,
    "structvpr": StructVPR,
    "structvpr-seg": StructVPRSeg,
    "structvpr-concat-input": ConcatInput,
    "structvpr-concat-feature": ConcatFeature,
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


def with_pca(
    name: str, options: Mapping[str, Any], trained: EmbeddingModel, pca_dim: int, descriptors: Tensor
) -> EmbeddingModel:
    """A trained model followed by a PCA of its descriptors; build it again with option ``pca_dim`` to load its weights.

    Args:
        name, options: what ``trained`` was built with, without ``pca_dim``.
        trained: the model, without PCA.
        pca_dim: size to reduce the descriptors to.
        descriptors: (N, C) that ``trained`` gives for training images, N above ``pca_dim``.

    Raises:
        ConfigError: this model has no option ``pca_dim``, or it is out of range.
        DataError: see ``PCA.fit``.
    """
    # The weights are about to be loaded: a pretrained backbone need not be fetched again.
    weightless = {key: value for key, value in options.items() if key != "pretrained"}
    reduced = build_model(name, {**weightless, "pca_dim": pca_dim})
    reduced.load_state_dict(trained.state_dict(), strict=False)
    for module in reduced.modules():
        if isinstance(module, PCA):
            module.fit(descriptors)
    return reduced.train(trained.training)


def describe_models() -> dict[str, str]:
    """The models and what each is, in one line."""
    return {name: (inspect.getdoc(model) or "").splitlines()[0] for name, model in MODELS.items()}
