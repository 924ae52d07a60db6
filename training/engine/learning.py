"""What a training changes as it goes: a step of it, and its state, from which a killed training goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

import lightning.fabric
import numpy as np
import torch
from tqdm import tqdm

from training.distillation.method import DistillationMethod
from training.engine.config import TrainConfig
from training.engine.optimisation import learning_schedule, optimiser_of
from training.engine.processes import gather_objects
from training.models import EmbeddingModel
from training.models.label_fusion import LabelDecoder
from vpr_kd_ros.errors import ConfigError


class Learning:
    """Weights, optimiser, schedule, sources of chance, and how far the training has come.

    Chance has two sources: ``rng`` draws the batches, torch's own generator the augmentation. Each process has its own.

    Attributes:
        learner: the model as it is called in training: by the precision, and of all processes together.
        method: the distillation as it is called, or None.
        decoder: of the second task as it is called, or None.
        rng: of the samplers.
        step: optimiser steps taken.
        best: highest AR@1 of a validation so far, in [0, 1]; minus infinity before the first.
        stale: validations since.
    """

    def __init__(
        self, fabric: lightning.fabric.Fabric, model: EmbeddingModel, method: DistillationMethod | None,
        config: TrainConfig, decoder: LabelDecoder | None = None,
    ) -> None:  # fmt: skip
        self._fabric = fabric
        self._config = config
        self._model = model
        self._parts = torch.nn.ModuleList(part for part in (model, method, decoder) if part is not None)
        optimiser = optimiser_of(self._parts, config)
        self._schedule = learning_schedule(optimiser, config)
        reads_maps = decoder is not None or (method is not None and method.needs_maps)
        called = compiled(model, reads_maps, fabric.device) if config.compile else model
        self.learner, self._optimiser = fabric.setup(called, optimiser)
        # An adaptor's weights are shared by the processes like the model's.
        adapts = method is not None and any(p.requires_grad for p in method.parameters())
        self.method = fabric.setup_module(method) if adapts else method
        self.decoder = None if decoder is None else fabric.setup_module(decoder)
        self.rng = np.random.default_rng(config.seed)
        if fabric.global_rank > 0:
            seeds = np.random.SeedSequence([config.seed, fabric.global_rank])
            self.rng = np.random.default_rng(seeds)
            torch.manual_seed(int(seeds.generate_state(1)[0]))
        self.step = 0
        self.best = float("-inf")
        self.stale = 0

    @property
    def finished(self) -> bool:
        """Whether all steps are taken, or the validations have not become better for long enough."""
        return self.step >= self._config.steps or 0 < self._config.patience <= self.stale

    def update(self, terms: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Take a step down the gradient of the sum of ``terms``; returns that sum."""
        loss = torch.stack(list(terms.values())).sum()
        self._optimiser.zero_grad(set_to_none=True)
        self._fabric.backward(loss)
        if self._config.clip_norm > 0:
            # 16-mixed has steps of infinite gradients, which its scaler leaves out; others show in the loss.
            self._fabric.clip_gradients(
                self.learner, self._optimiser, max_norm=self._config.clip_norm, error_if_nonfinite=False
            )
        self._optimiser.step()
        self._schedule.step()
        self.step += 1
        return loss.detach()

    def require_finite(self, loss: torch.Tensor) -> float:
        """The loss as a number.

        Raises:
            ConfigError: it is none, and so are the weights by now.
        """
        value = loss.item()
        if not np.isfinite(value):
            raise ConfigError(
                f"training: the loss is {value} at step {self.step}; lower learning_rate and cloud_learning_rate, "
                "limit the gradient with clip_norm, or use precision 32-true"
            )
        return value

    def note_validation(self, ar1: float) -> bool:
        """Take note of a validation; returns whether it is the best so far."""
        better = ar1 > self.best
        self.best, self.stale = (ar1, 0) if better else (self.best, self.stale + 1)
        return better

    def state_dict(self) -> dict[str, Any]:
        """All of it as tensors and plain values; every process must ask, the state is that of all."""
        return {
            "step": self.step,
            "best": self.best,
            "stale": self.stale,
            "weights": self._parts.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "schedule": self._schedule.state_dict(),
            "precision": self._fabric.strategy.precision.state_dict(),
            "chance": gather_objects(self._chance()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of the same configuration."""
        self.step, self.best, self.stale = state["step"], state["best"], state["stale"]
        self._parts.load_state_dict(state["weights"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._schedule.load_state_dict(state["schedule"])
        self._fabric.strategy.precision.load_state_dict(state["precision"])
        chance = state["chance"][self._fabric.global_rank]
        self.rng.bit_generator.state = json.loads(chance["numpy"])
        torch.set_rng_state(chance["torch"])
        if "cuda" in chance:
            torch.cuda.set_rng_state(chance["cuda"], self._fabric.device)

    def _chance(self) -> dict[str, Any]:
        # As JSON: the generator's integers are longer than what torch.load reads back as plain values.
        chance: dict[str, Any] = {
            "numpy": json.dumps(self.rng.bit_generator.state),
            "torch": torch.get_rng_state(),
        }
        if self._fabric.device.type == "cuda":
            chance["cuda"] = torch.cuda.get_rng_state(self._fabric.device)
        return chance


def compiled(model: EmbeddingModel, reads_maps: bool, device: torch.device) -> torch.nn.Module:
    """The model compiled for the calls of a training; it shares the weights of ``model``, which stays as it is.

    Where the machine cannot compile (it wants a C++ compiler), that is said and the model itself is returned.

    Raises:
        ConfigError: the model reads clouds, no two of which have as many voxels, or the training reads feature maps
            from inside it (``reads_maps``).
    """
    if model.uses_clouds:
        raise ConfigError(
            "compile: this network reads clouds, and only networks of images can be compiled; set it to false"
        )
    if reads_maps:
        raise ConfigError("compile: this training reads feature maps, which a compiled network hides; set it to false")
    try:
        torch.compile(torch.sin)(torch.zeros(1, device=device))
    except RuntimeError as error:
        tqdm.write(f"compile: not on this machine, training without ({str(error).splitlines()[0]})")
        return model
    # Batches with the teacher's neighbours are not all of one size; left to itself, torch finds that out by the second.
    return cast(torch.nn.Module, torch.compile(model))
