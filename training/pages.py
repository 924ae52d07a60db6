"""HTML pages that are one file and open without a network."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path

import cv2
import jinja2
import numpy as np
from numpy.typing import NDArray


def template(path: Path, **filters: Callable[..., str]) -> jinja2.Template:
    """A page's template, which may include ``page.css``; a name that it asks for and is not given is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([path.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters)
    return environment.get_template(path.name)


def jpeg_uri(image: NDArray[np.uint8]) -> str:
    """An RGB picture (H, W, 3) uint8 as the source of an ``img``."""
    _, jpeg = cv2.imencode(".jpg", np.ascontiguousarray(image[:, :, ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 90])
    return data_uri("image/jpeg", jpeg.tobytes())


def data_uri(kind: str, content: bytes) -> str:
    """A file as an address that holds it."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
