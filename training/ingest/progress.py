"""How far an ingest is: a bar of its own, or news to the process that shows one bar for many."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
NEWS = 200
"""Pieces of news that an ingest gives at most, of each of its stages."""


class Progress:
    """A bar for each stage."""

    def of(self, stage: str, items: Iterable[Item], total: int, done: int = 0) -> Iterator[Item]:
        """Iterate and show how far it is.

        Args:
            stage: its name.
            items: what is worked through.
            total: how many there are, those that were done before among them.
            done: how many were done before.
        """
        yield from tqdm(items, total=total, initial=done, desc=stage, unit="", leave=False)


class SharedProgress(Progress):
    """Tells of each stage, as it proceeds, which part of the ingest is done, between 0 and 1.

    Args:
        tell: called with it.
        stages: names of the stages, in their order; each counts alike.
    """

    def __init__(self, tell: Callable[[float], None], stages: tuple[str, ...]) -> None:
        self._tell = tell
        self._stages = stages

    def of(self, stage: str, items: Iterable[Item], total: int, done: int = 0) -> Iterator[Item]:
        """Iterate and tell."""
        before = self._stages.index(stage)
        step = max(1, total // NEWS)
        for number, item in enumerate(items, start=done):
            if number % step == 0:
                self._tell((before + min(1.0, number / max(1, total))) / len(self._stages))
            yield item
