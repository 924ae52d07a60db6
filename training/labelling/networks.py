"""Segmentation networks: torchvision's by name, transformers' by folder or by their name on its hub."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.nn import functional as F

from training.labelling.class_maps import ClassMap
from vpr_kd_ros.errors import ConfigError, DataError, MissingDependencyError, did_you_mean
from vpr_kd_ros.geometry import Ints
from vpr_kd_ros.preprocess import Preprocess

UNREADABLE = (RuntimeError, OSError, ValueError, TypeError, AttributeError, EOFError, pickle.UnpicklingError)


class Segmenter:
    """A network that says of each pixel which class of its data set it is.

    Attributes:
        network: in evaluation mode.
    """

    network: torch.nn.Module

    def __call__(self, image: NDArray[np.uint8]) -> Ints:
        """Classes (H, W) int64 of an RGB image (H, W, 3) uint8."""
        with torch.inference_mode():
            scores = self.scores(image)
            size = image.shape[:2]
            if scores.shape[2:] != size:
                scores = F.interpolate(scores, size=size, mode="bilinear", align_corners=False)
            classes: Ints = scores[0].argmax(dim=0).cpu().numpy()
        return classes

    def scores(self, image: NDArray[np.uint8]) -> torch.Tensor:
        """Scores (1, K, h, w) of the image, of a size of the network's choice."""
        raise NotImplementedError


class TorchvisionSegmenter(Segmenter):
    """A network of ``torchvision.models.segmentation``, on images normalised as for ImageNet.

    Args:
        name: as torchvision names it.
        weights: file of a state dict (``.safetensors``, or a ``.pth`` of tensors only); empty downloads torchvision's
            own, which know the 21 classes of VOC.
        classes: what its outputs are.
        short_side_px: images are resized to this.
        device: to compute on.

    Raises:
        DataError: the weights cannot be downloaded, read, or do not fit.
        ConfigError: ``classes`` has another number of classes than torchvision's weights.
    """

    def __init__(
        self, name: str, weights: str, classes: ClassMap, short_side_px: int, device: torch.device
    ) -> None:  # fmt: skip
        network = _own(name, Path(weights).expanduser(), classes) if weights else _published(name, classes)
        self.network = network.to(device).eval()
        self._short_side = short_side_px
        self._device = device

    def scores(self, image: NDArray[np.uint8]) -> torch.Tensor:
        """See ``Segmenter``."""
        scale = self._short_side / min(image.shape[:2])
        preprocess = Preprocess(*(round(scale * side) for side in image.shape[:2]))
        resized = preprocess.normalise(preprocess.resize(image)[None].to(self._device))
        scores: torch.Tensor = self.network(resized)["out"]
        return scores


class TransformersSegmenter(Segmenter):
    """A network for semantic segmentation of the transformers library, with the image processor that comes with it.

    Args:
        network: folder that ``save_pretrained`` or ``hf download`` wrote, or a name on the hub.
        classes: what its outputs are.
        device: to compute on.

    Raises:
        MissingDependencyError: transformers is not installed.
        DataError: the network cannot be downloaded or read.
        ConfigError: it tells another number of classes than ``classes`` has.
    """

    def __init__(self, network: str, classes: ClassMap, device: torch.device) -> None:
        try:
            from transformers import AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation
        except ImportError as error:
            raise MissingDependencyError(
                f"segmentation networks from folders or the hub need transformers ({error}): pip install transformers"
            ) from error
        try:
            # First what is small: where there is no connection, each file is asked for again and again for 20 s.
            count = AutoConfig.from_pretrained(network).num_labels
            if count != len(classes):
                raise ConfigError(
                    f"network {network} tells {count} classes, and the class map {classes.name} is of {len(classes)}: "
                    "choose another with --classes"
                )
            self._processor: Any = AutoImageProcessor.from_pretrained(network)
            model: torch.nn.Module = AutoModelForSemanticSegmentation.from_pretrained(network)
        except (*UNREADABLE, SafetensorError) as error:
            raise _not_loaded(network, error) from error
        self.network = model.to(device).eval()
        self._device = device

    def scores(self, image: NDArray[np.uint8]) -> torch.Tensor:
        """See ``Segmenter``."""
        inputs = self._processor(images=image, return_tensors="pt", input_data_format="channels_last")
        scores: torch.Tensor = self.network(pixel_values=inputs["pixel_values"].to(self._device)).logits
        return scores


def load_segmenter(
    network: str, weights: str, classes: ClassMap, short_side_px: int, device: torch.device
) -> Segmenter:  # fmt: skip
    """The network of that name; see ``TorchvisionSegmenter`` and ``TransformersSegmenter``.

    Raises:
        ConfigError: there is no such network, it takes no weights, or it has other classes.
        DataError: it cannot be downloaded, read, or does not fit.
        MissingDependencyError: its library is not installed.
    """
    known = torchvision_names()
    if network in known:
        return TorchvisionSegmenter(network, weights, classes, short_side_px, device)
    if "/" not in network and not Path(network).is_dir():
        raise ConfigError(
            f"no network {network!r}{did_you_mean(network, known)}; there is {', '.join(known)} of torchvision, or "
            "give the folder or hub name (owner/name) of a segmentation network of transformers"
        )
    if weights:
        raise ConfigError(f"weights: the network {network} brings its own; give its folder as --network alone")
    return TransformersSegmenter(str(Path(network).expanduser()), classes, device)


def torchvision_names() -> list[str]:
    """The segmentation networks of torchvision."""
    from torchvision import models

    names: list[str] = models.list_models(module=models.segmentation)
    return names


def _not_loaded(network: str, error: Exception) -> DataError:
    reason = " ".join(str(error).split())[:300]
    if Path(network).is_dir():
        return DataError(
            f"network {network}: the folder holds no segmentation network of transformers with its "
            f"preprocessor_config.json: {reason}"
        )
    return DataError(
        f"network {network}: cannot be loaded ({reason}); where there is a network connection, run "
        f"`hf download {network} --local-dir FOLDER`, bring the folder here and give --network FOLDER"
    )


def _published(name: str, classes: ClassMap) -> torch.nn.Module:
    from torchvision import models

    weights = models.get_model_weights(name).DEFAULT
    count = len(weights.meta["categories"])
    if count != len(classes):
        raise ConfigError(
            f"torchvision's weights of {name} tell the {count} classes of VOC, and the class map {classes.name} is of "
            f"{len(classes)}: use --classes voc-21, or give the file of your own --weights"
        )
    try:
        network: torch.nn.Module = models.get_model(name, weights=weights)
    except (URLError, OSError, RuntimeError) as error:
        raise DataError(
            f"cannot download the weights of {name} ({error}): download {weights.url} elsewhere and give the file's "
            "path as --weights"
        ) from error
    return network


def _own(name: str, path: Path, classes: ClassMap) -> torch.nn.Module:
    from torchvision import models

    if not path.is_file():
        raise DataError(f"weights: {path} is not a file; give a state dict of {name}")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
        # The training's second classifier is in some files and not in others.
        auxiliary = {"aux_loss": True} if any(key.startswith("aux_classifier.") for key in state) else {}
        network: torch.nn.Module = models.get_model(
            name, weights=None, weights_backbone=None, num_classes=len(classes), **auxiliary
        )
        network.load_state_dict(state)
    except (*UNREADABLE, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(
            f"weights: {path} does not hold those of {name} with the {len(classes)} classes of {classes.name}: {reason}"
        ) from error
    return network
