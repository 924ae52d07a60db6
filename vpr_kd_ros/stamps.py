"""Stamps that go back: a bag that starts again, a simulation that is reset, a clock that was set."""

from __future__ import annotations

JUMP_NS = 100_000_000
"""Images of one camera may be out of order by this, nanoseconds; time has jumped back beyond it."""


class NewestStamps:
    """The newest stamp of each camera, nanoseconds; their clocks need not agree."""

    def __init__(self) -> None:
        self._newest: dict[str, int] = {}

    def add(self, stamp_ns: int, camera: str = "") -> None:
        """Take in a stamp, in any order."""
        self._newest[camera] = max(stamp_ns, self._newest.get(camera, stamp_ns))

    def before_ns(self, stamp_ns: int, camera: str = "") -> int:
        """How far a stamp lies before the camera's newest, nanoseconds; 0 where it does not."""
        return max(0, self._newest.get(camera, stamp_ns) - stamp_ns)

    def jumped_back(self, stamp_ns: int, camera: str = "") -> bool:
        """Whether a stamp lies so far before the camera's newest that it is of another time."""
        return self.before_ns(stamp_ns, camera) > JUMP_NS

    def since_s(self, stamp_ns: int) -> float:
        """Seconds from the newest stamp of all cameras to this one; 0 where there is none."""
        return (stamp_ns - max(self._newest.values(), default=stamp_ns)) * 1e-9

    def clear(self) -> None:
        """Forget all stamps."""
        self._newest.clear()
