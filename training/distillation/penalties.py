"""The penalty l(expected, actual) that relational losses leave open, by name."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

Penalty = Callable[..., Tensor]
"""Called as ``penalty(actual, expected, reduction="mean" | "sum")``."""

PENALTIES: dict[str, Penalty] = {"smooth_l1": F.smooth_l1_loss, "mse": F.mse_loss, "l1": F.l1_loss}
