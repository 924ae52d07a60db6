"""What a page of one file says, and the pictures that are in it."""

from __future__ import annotations

import base64
import re

DATA_URI = re.compile(r"data:image/(png|jpeg);base64,([A-Za-z0-9+/=]+)")


def without_pictures(page: str) -> str:
    """The page's own text: a picture in base64 holds any four letters sooner or later."""
    return DATA_URI.sub("", page)


def pictures(page: str) -> list[tuple[str, bytes]]:
    """Kind ("png" or "jpeg") and content of each picture, in the page's order."""
    return [(kind, base64.b64decode(content, validate=True)) for kind, content in DATA_URI.findall(page)]
