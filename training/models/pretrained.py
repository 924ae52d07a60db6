"""Networks of torchvision, with random weights, ImageNet weights, or weights from a local file."""

from __future__ import annotations

import pickle
from pathlib import Path
from urllib.error import URLError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vpr_kd_ros.errors import DataError, MissingDependencyError

# What torch raises for files that are cut, are something else, or hold other tensors.
UNREADABLE = (RuntimeError, OSError, ValueError, TypeError, AttributeError, EOFError, pickle.UnpicklingError)


def torchvision_network(name: str, pretrained: bool | str) -> nn.Module:
    """Build a torchvision classification network.

    Args:
        name: "resnet18" or "mobilenet_v2".
        pretrained: False for random weights; True for torchvision's ImageNet weights, downloaded once; or the path of a
            file with a state dict of this network (``.safetensors``, or a ``.pth`` of tensors only).

    Raises:
        MissingDependencyError: torchvision is not installed.
        DataError: the weights cannot be downloaded, read, or do not fit.
    """
    try:
        from torchvision import models
    except ImportError as error:
        raise MissingDependencyError(f"image models need torchvision ({error}): pip install torchvision") from error
    if isinstance(pretrained, str):
        network: nn.Module = models.get_model(name, weights=None)
        _load(network, Path(pretrained).expanduser(), name)
        return network
    weights = models.get_model_weights(name).DEFAULT if pretrained else None
    try:
        network = models.get_model(name, weights=weights)
    except (URLError, OSError, RuntimeError) as error:
        url = weights.url if weights is not None else ""
        raise DataError(
            f"cannot download the ImageNet weights of {name} ({error}): download {url} elsewhere and give the file's "
            "path as model option pretrained, or start from random weights with pretrained: false"
        ) from error
    return network


def _load(network: nn.Module, path: Path, name: str) -> None:
    if not path.is_file():
        raise DataError(f"model option pretrained: {path} is not a file; give a state dict of {name}, true or false")
    try:
        state: dict[str, Tensor]
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(state)
    except (*UNREADABLE, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"model option pretrained: {path} does not hold the weights of {name}: {reason}") from error
