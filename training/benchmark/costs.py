"""What networks cost on the robot: parameters, multiply-adds and latency of one image. Nothing is trained for it."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from training.engine.config import ModelConfig
from training.models import EmbeddingModel, build_model
from training.sessions import CLASSES
from vpr_kd_ros.errors import ConfigError

RUNS, LONGEST_S = 20, 4.0
"""The latency is the median of so many runs, or of as many as fit into so many seconds, three at least."""


@dataclass(frozen=True)
class Cost:
    """What one network costs; NaN where the paper does not say.

    Attributes:
        milliseconds: of one image on a processor, median.
        trainable, parameters: how many weights learn, and how many there are.
        multiply_adds: of one image, in thousand millions; many papers call them FLOPs.
    """

    milliseconds: float = math.nan
    trainable: float = math.nan
    parameters: float = math.nan
    multiply_adds: float = math.nan


@dataclass(frozen=True)
class CostTable:
    """A table of costs as a suite asks for it.

    Attributes:
        height, width: of the images, pixels.
        networks: name to ``model`` (as in ``TrainConfig``) and ``paper`` (keys of ``Cost``).
    """

    title: str
    height: int
    width: int
    networks: dict[str, tuple[ModelConfig, Cost]] = field(default_factory=dict)
    note: str = ""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> CostTable:
        """From the YAML of a suite.

        Raises:
            ConfigError: a network has unknown keys.
        """
        networks = {}
        for name, entry in values["networks"].items():
            if unknown := set(entry) - {"model", "paper"} | set(entry.get("paper", {})) - {
                f.name for f in fields(Cost)
            }:
                raise ConfigError(f"costs: {name}: unknown key {', '.join(sorted(unknown))}")
            networks[name] = (ModelConfig(**entry["model"]), Cost(**entry.get("paper", {})))
        return cls(**{**values, "networks": networks})


def measure(table: CostTable) -> dict[str, Cost]:
    """What the networks of a table cost on this machine's processor, with torch's threads as they are."""
    found = {}
    for name, (model, _) in tqdm(table.networks.items(), "costs", unit="network", leave=False):
        # The weights do not matter here, and published ones would have to be fetched.
        options = {key: value for key, value in model.options.items() if key != "pretrained"}
        found[name] = cost_of(build_model(model.name, options), table.height, table.width)
    return found


@torch.no_grad()
def cost_of(model: EmbeddingModel, height: int, width: int) -> Cost:
    """What it costs to describe one image of random pixels, with random labels where the model reads them.

    Raises:
        ConfigError: the model reads clouds: its cost is that of the cloud.
    """
    if model.uses_clouds:
        raise ConfigError(f"costs: {type(model).__name__} reads clouds, and no two of them cost the same")
    chance = torch.Generator().manual_seed(0)
    images = torch.randn(1, 3, height, width, generator=chance) if model.uses_images else None
    labels = torch.randint(len(CLASSES), (1, height, width), generator=chance) if model.uses_labels else None
    model.eval()
    with FlopCounterMode(display=False) as counter:
        model(images, None, labels)
    times: list[float] = []
    while len(times) < 3 or (len(times) < RUNS and sum(times) < LONGEST_S):
        start = time.perf_counter()
        model(images, None, labels)
        times.append(time.perf_counter() - start)
    return Cost(
        milliseconds=1000 * statistics.median(times),
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        parameters=sum(p.numel() for p in model.parameters()),
        multiply_adds=counter.get_total_flops() / 2e9,  # which counts a multiplication and an addition as two
    )
