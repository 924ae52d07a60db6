"""The one image pre-processing, shared by training and robot.

What is measured offline is what runs live: both sides resize and normalise through this module, and a student artefact
carries the settings it was trained with.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from vpr_kd_ros.errors import DataError

RESIZER = "torch.interpolate(bilinear, antialias, uint8)"

# The images of messages are read-only, and are only read here.
warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)


@dataclass(frozen=True)
class Preprocess:
    """Resize to a fixed size, scale to [0, 1], normalise by channel.

    Attributes:
        height, width: network input, pixels.
        mean, std: per channel, RGB, in units of [0, 1].
        resizer: names the resize method; resizers differ by up to 0.03 in normalised units, so another one is refused.
    """

    height: int
    width: int
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    resizer: str = RESIZER

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise DataError(f"preprocess: input size {self.height}x{self.width} is not positive")
        if len(self.mean) != 3 or not np.isfinite(self.mean).all():
            raise DataError(f"preprocess: mean {self.mean} must be three finite numbers")
        if len(self.std) != 3 or not np.isfinite(self.std).all() or min(self.std) <= 0:
            raise DataError(f"preprocess: std {self.std} must be three positive numbers")
        if self.resizer != RESIZER:
            raise DataError(f"preprocess: unknown resizer {self.resizer!r}; this version knows {RESIZER!r}")

    def resize(self, image: NDArray[np.uint8]) -> torch.Tensor:
        """Resize one RGB image, (H, W, 3) uint8, to (3, height, width) uint8."""
        return torch.from_numpy(self.resize_interleaved(image)).permute(2, 0, 1).contiguous()

    def resize_interleaved(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """``resize`` to (height, width, 3), as pixels lie in images; an image of that size may be returned itself."""
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise DataError(f"preprocess: wants an RGB image (H, W, 3) uint8, got {image.shape} {image.dtype}")
        image = np.ascontiguousarray(image)
        if image.shape[:2] == (self.height, self.width):
            return image
        # Made a batch before it is permuted, torch knows that the channels are last; else it would sort them first.
        pixels = torch.from_numpy(image)[None].permute(0, 3, 1, 2)
        resized = torch.nn.functional.interpolate(
            pixels, size=(self.height, self.width), mode="bilinear", antialias=True, align_corners=False
        )
        # NumPy permutes in half of torch's time.
        return np.asarray(resized.numpy()[0].transpose(1, 2, 0), dtype=np.uint8)

    def normalise(self, batch: torch.Tensor) -> torch.Tensor:
        """Normalise (..., 3, height, width) uint8 to float32, on the batch's device."""
        mean, scale = self._mean_and_scale(batch.device)
        return torch.sub(batch, mean).mul_(scale)

    def _mean_and_scale(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """What a pixel of 0 to 255 is reduced by, then multiplied with; (3, 1, 1) float32 each."""
        mean = torch.tensor(self.mean, device=device).mul_(255.0).view(3, 1, 1)
        scale = torch.tensor(self.std, device=device).mul_(255.0).reciprocal_().view(3, 1, 1)
        return mean, scale

    def __call__(self, image: NDArray[np.uint8]) -> torch.Tensor:
        """One RGB image, (H, W, 3) uint8, to network input, (3, height, width) float32."""
        return self.normalise(self.resize(image))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocess:
        """The inverse of ``to_dict``.

        Raises:
            DataError: a key is missing or unknown, or a value is out of range.
        """
        known = {field.name for field in fields(cls)}
        if set(values) != known:
            raise DataError(f"preprocess: wants the keys {sorted(known)}, got {sorted(values)}")
        try:
            mean_r, mean_g, mean_b = (float(value) for value in values["mean"])
            std_r, std_g, std_b = (float(value) for value in values["std"])
            return cls(
                height=int(values["height"]),
                width=int(values["width"]),
                mean=(mean_r, mean_g, mean_b),
                std=(std_r, std_g, std_b),
                resizer=str(values["resizer"]),
            )
        except (TypeError, ValueError) as error:
            raise DataError(f"preprocess: {dict(values)} does not hold what it should: {error}") from error


class BatchInput:
    """Images to network input, in buffers that are used again for the next batch.

    On the CPU each resized image is normalised straight into its row of the batch, by a table of the 256 values of each
    channel. For a CUDA device the resized bytes, a quarter of the size, are gathered in pinned memory, sent at once,
    and normalised there. Both give what ``Preprocess.normalise`` does. The CPU resizes everywhere: its pixels are those
    that the student learnt from.

    Args:
        preprocess: of the student.
        device: where the network runs.
    """

    def __init__(self, preprocess: Preprocess, device: torch.device) -> None:
        self._preprocess = preprocess
        self._device = device
        self._mean, self._scale = preprocess._mean_and_scale(device)
        self._batch = torch.empty(0)
        self._pinned = self._pixels = torch.empty(0, dtype=torch.uint8)
        self._tables = list(preprocess.normalise(torch.arange(256, dtype=torch.uint8).repeat(3, 1, 1)).numpy())
        self._planes = [np.empty((preprocess.height, preprocess.width), dtype=np.uint8) for _ in range(3)]

    def __call__(self, images: Sequence[NDArray[np.uint8]]) -> torch.Tensor:
        """Network input, (B, 3, height, width) float32 on the device, of RGB images, each (H, W, 3) uint8.

        It is valid until the next call. The device must have finished with the batch before: the student has, when it
        has read the descriptors back.

        Raises:
            DataError: an image is not RGB uint8.
        """
        self._reserve(len(images))
        batch = self._batch[: len(images)]
        if self._device.type == "cpu":
            for row, image in zip(batch.numpy(), images, strict=True):
                cv2.split(self._preprocess.resize_interleaved(image), self._planes)
                for plane, table, normalised in zip(self._planes, self._tables, row, strict=True):
                    cv2.LUT(plane, table, dst=normalised)
            return batch
        for row, image in zip(self._pinned, images, strict=False):
            row.copy_(self._preprocess.resize(image))
        pixels = self._pixels[: len(images)].copy_(self._pinned[: len(images)], non_blocking=True)
        return torch.sub(pixels, self._mean, out=batch).mul_(self._scale)

    def _reserve(self, images: int) -> None:
        if len(self._batch) < images:
            shape = (images, 3, self._preprocess.height, self._preprocess.width)
            self._batch = torch.empty(shape, device=self._device)
            if self._device.type != "cpu":
                self._pinned = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
                self._pixels = torch.empty(shape, dtype=torch.uint8, device=self._device)
