"""Low-quality images, as a robot sends or takes them: down-sampled, blurred, compressed.

What a student sees whose teacher has the originals (Yang et al., distillation for low-quality queries), and what it is
then measured with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from vpr_kd_ros.errors import ConfigError, MissingDependencyError

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Degradation:
    """What is taken from each image, in this order; each strength is drawn anew for every image, from low to high.

    Attributes:
        scale: the image is made smaller by this factor and enlarged again; (1, 1) leaves it.
        blur_px: standard deviation of a Gaussian blur, pixels of the network's input; (0, 0) for none.
        jpeg_quality: of JPEG compression, 1 to 100; (0, 0) for none.
        video_qp: quantisation of a key frame of x265 video, 0 (best) to 51; needs the package ``av``; (-1, -1) for
            none. The paper's indoor queries have 30 to 50.
    """

    scale: tuple[float, float] = (1.0, 1.0)
    blur_px: tuple[float, float] = (0.0, 0.0)
    jpeg_quality: tuple[int, int] = (0, 0)
    video_qp: tuple[int, int] = (-1, -1)

    def __post_init__(self) -> None:
        _require_range("scale", self.scale, 1 / 64, 1)
        _require_range("blur_px", self.blur_px, 0, 64)
        if self.jpeg_quality != (0, 0):
            _require_range("jpeg_quality", self.jpeg_quality, 1, 100)
        if self.video_qp != (-1, -1):
            _require_range("video_qp", self.video_qp, 0, 51)

    @property
    def changes(self) -> bool:
        """Whether anything is taken at all."""
        return self != Degradation()

    def __call__(self, images: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Degrade (B, 3, H, W) uint8; a new tensor of the same shape and type, or the same where nothing is taken.

        Args:
            images: RGB.
            generator: of the strengths; torch's own where None.

        Raises:
            MissingDependencyError: ``video_qp`` is wanted and the package ``av`` is not installed.
        """
        if not self.changes:
            return images
        return torch.stack([self._degrade(image, generator) for image in images])

    def _degrade(self, image: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        scale, blur, quality, qp = (
            _between(strength, generator) for strength in (self.scale, self.blur_px, self.jpeg_quality, self.video_qp)
        )
        if scale < 1:
            image = down_sampled(image, scale)
        pixels: Image = image.permute(1, 2, 0).contiguous().numpy()
        if blur > 0:
            pixels = np.asarray(cv2.GaussianBlur(pixels, (0, 0), blur), dtype=np.uint8)
        if quality > 0:
            pixels = jpeg(pixels, round(quality))
        if qp >= 0:
            pixels = video_key_frame(pixels, round(qp))
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def down_sampled(image: torch.Tensor, scale: float) -> torch.Tensor:
    """(3, H, W) uint8 made smaller by ``scale``, without aliasing, and enlarged again (bilinear)."""
    height, width = image.shape[1:]
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    small = F.interpolate(image[None], size=size, mode="bilinear", antialias=True)
    return F.interpolate(small, size=(height, width), mode="bilinear", antialias=True)[0]


def jpeg(image: Image, quality: int) -> Image:
    """(H, W, 3) RGB uint8 after JPEG of this quality, 1 to 100."""
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert decoded is not None
    return np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def video_key_frame(image: Image, qp: int) -> Image:
    """(H, W, 3) RGB uint8 after one x265 key frame of constant quantisation ``qp``, 0 to 51.

    An odd row or column at the end, which 4:2:0 video cannot hold, is repeated for the coder and cut off again.

    Raises:
        MissingDependencyError: the package ``av`` is not installed, or was built without x265.
    """
    coder, decoder = _video_coders()
    height, width = image.shape[:2]
    even = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    # The coder takes no less than a block of 32 pixels.
    even = np.pad(even, ((0, max(0, 32 - even.shape[0])), (0, max(0, 32 - even.shape[1])), (0, 0)), mode="edge")
    return np.ascontiguousarray(decoder(coder(even, qp))[:height, :width])


def _video_coders() -> tuple[Callable[[Image, int], list[Any]], Callable[[list[Any]], Image]]:
    try:
        import av
    except ImportError as error:
        raise MissingDependencyError("degradation video_qp needs the package av: pip install av") from error
    if "libx265" not in av.codecs_available:
        raise MissingDependencyError("degradation video_qp: this build of av lacks x265; install av from PyPI")

    def encode(image: Image, qp: int) -> list[Any]:
        context: Any = av.CodecContext.create("libx265", "w")
        context.height, context.width = image.shape[:2]
        context.pix_fmt, context.time_base = "yuv420p", Fraction(1, 30)
        # One thread: the frame is small, and training has other processes.
        context.options = {
            "preset": "ultrafast",
            "x265-params": f"qp={qp}:log-level=none:pools=none:frame-threads=1",
        }
        return [*context.encode(av.VideoFrame.from_ndarray(image, format="rgb24")), *context.encode(None)]

    def decode(packets: list[Any]) -> Image:
        context: Any = av.CodecContext.create("hevc", "r")
        frames = [frame for packet in packets for frame in context.decode(packet)] + context.decode(None)
        return np.asarray(frames[0].to_ndarray(format="rgb24"), dtype=np.uint8)

    return encode, decode


def _between(limits: tuple[float, float], generator: torch.Generator | None) -> float:
    low, high = limits
    return low + (high - low) * float(torch.rand((), generator=generator))


def _require_range(name: str, limits: tuple[float, float], least: float, most: float) -> None:
    low, high = limits
    if not least <= low <= high <= most:
        raise ConfigError(f"degradation: {name} wants {least:g} <= low <= high <= {most:g}, got {low:g} to {high:g}")
