"""Networks of torchvision and timm, with random weights, published weights, or weights from a local file."""

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
        name: as torchvision names it: "resnet18", "resnet50", "mobilenet_v2", "vgg16".
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


def dinov2_network(name: str, pretrained: bool | str, height: int, width: int) -> nn.Module:
    """Build a DINOv2 vision transformer of timm for one image size.

    Args:
        name: as timm names it: "vit_small_patch14_dinov2", "vit_base_patch14_dinov2", "vit_large_patch14_dinov2".
        pretrained: as in ``torchvision_network``; files may be timm's or those of the DINOv2 authors. Their position
            embedding is resampled to the image size.
        height, width: of the images, multiples of 14.

    Raises:
        MissingDependencyError: timm is not installed.
        DataError: the weights cannot be downloaded, read, or do not fit.
    """
    try:
        import timm
    except ImportError as error:
        raise MissingDependencyError(f"DINOv2 needs timm ({error}): pip install timm") from error
    size = {"img_size": (height, width), "num_classes": 0}
    if isinstance(pretrained, str):
        path = Path(pretrained).expanduser()
        try:
            overlay = {"state_dict": _read(path, name)}
            local: nn.Module = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **size)
        except (*UNREADABLE, SafetensorError, KeyError) as error:
            raise _unfit(path, name, error) from error
        return local
    try:
        network: nn.Module = timm.create_model(name, pretrained=pretrained, **size)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"cannot download the weights of {name} ({error}): download them elsewhere and give the file's path as "
            "model option pretrained, or start from random weights with pretrained: false"
        ) from error
    return network


def _read(path: Path, name: str) -> dict[str, Tensor]:
    if not path.is_file():
        raise DataError(f"model option pretrained: {path} is not a file; give a state dict of {name}, true or false")
    if path.suffix == ".safetensors":
        state: dict[str, Tensor] = load_file(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
    return state


def _unfit(path: Path, name: str, error: Exception) -> DataError:
    reason = " ".join(str(error).split())[:300]
    return DataError(f"model option pretrained: {path} does not hold the weights of {name}: {reason}")


def _load(network: nn.Module, path: Path, name: str) -> None:
    try:
        network.load_state_dict(_read(path, name))
    except (*UNREADABLE, SafetensorError) as error:
        raise _unfit(path, name, error) from error
