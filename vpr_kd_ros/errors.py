"""The one family of errors that a user can mend.

Every error of this family names the file, topic, field or key at fault and what to do about it. Command lines and
nodes print its text without a traceback; anything else that is raised is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class VprError(Exception):
    """Something outside the program is wrong, and the message says what and how to mend it."""


class DataError(VprError):
    """A file, a folder or a message does not hold what it should."""


class ConfigError(VprError):
    """A configuration key or value is wrong."""


class MissingDependencyError(VprError):
    """An optional package is not installed; the message holds the line that installs it."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the nearest of ``known``, or an empty string where none is near."""
    near = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else ""
