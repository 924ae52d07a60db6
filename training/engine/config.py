"""What a training run is configured with; every key, its default and its unit in one place."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import jsonargparse
import yaml

from training.data.augment import CloudAugmentation, ImageAugmentation
from training.data.degrade import Degradation
from training.data.pairing import Pairing
from training.data.placing import PlacingConfig
from training.data.samplers import BatchConfig
from training.options import with_near_key
from vpr_kd_ros.errors import ConfigError

Config = TypeVar("Config")


@dataclass(frozen=True)
class ModelConfig:
    """Which network.

    Attributes:
        name: one of ``training.models.MODELS``.
        options: its constructor's arguments; an unknown one is an error.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class MethodConfig:
    """Which distillation.

    Attributes:
        name: one of ``training.distillation.METHODS``, or ``none`` for a student that learns by itself.
        options: its constructor's arguments; an unknown one is an error.
    """

    name: str = "none"
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskConfig:
    """The task loss, on places (see ``training.engine.task``).

    Attributes:
        loss: ``triplet`` (MinkLoc++, DistilVPR, StructVPR), ``ranking`` (NetVLAD, LSDNet), ``multi-similarity``
            (SciceVPR) or ``pairwise-margin`` (AdaFusion).
        margin: of the triplets, in units of the descriptors' distance; of the ranking, in its square; epsilon of the
            multi-similarity miner; the pairwise margin's a. Without a value it is the paper's: 0.2, 0.1, 0.1, 1.
        swap: of ``triplet`` alone: measure the negative from the positive where that is nearer.
        negatives: of ``ranking`` alone: so many of a query's nearest, NetVLAD's 10; LSDNet does not give its N.
        alpha, beta, base: of ``multi-similarity`` alone: sharpness for positives and negatives, and lambda.
        boundary: of ``pairwise-margin`` alone: m, the distance that parts positives from negatives.
        batch_all: of ``triplet`` alone: share of the steps, at the start, with every triplet that violates the margin
            instead of the hardest one an anchor; batch-hard from scratch on small data collapses without it.
        normalise: compare descriptors of length one; ``multi-similarity`` always does, the papers of the others not.
        weight: of the task loss in the sum.
        parts: weights of the same loss on parts of the descriptor, by the names of ``EmbeddingModel.parts``. MinkLoc++
            and DistilVPR's fusion teacher have weight 0.5 and ``cloud: 0.5``, so that the cloud learns what it would
            without the image.
        labels_weight: of a second task, 0 for none: a decoder, not kept, tells the semantic class of each pixel from
            the network's feature maps (``training.models.label_fusion.LabelDecoder``). StructVPR's multi-task has 0.1.
    """

    loss: Literal["triplet", "ranking", "multi-similarity", "pairwise-margin"] = "triplet"
    margin: float | None = None
    swap: bool = True
    negatives: int = 10
    alpha: float = 1.0
    beta: float = 50.0
    base: float = 0.0
    boundary: float = 25.0
    batch_all: float = 0.0
    normalise: bool = False
    weight: float = 1.0
    parts: dict[str, float] = field(default_factory=dict)
    labels_weight: float = 0.0

    def __post_init__(self) -> None:
        if self.batch_all > 0 and self.loss != "triplet":
            raise ConfigError(f"task: batch_all is of the triplet loss, and loss is {self.loss!r}")
        if self.margin is not None and self.margin < 0:
            raise ConfigError(f"task: margin must not be below 0, got {self.margin}")
        if min(self.alpha, self.beta, self.boundary, self.negatives) <= 0:
            raise ConfigError("task: alpha, beta, boundary and negatives must be above 0")
        if self.labels_weight < 0:
            raise ConfigError(f"task: labels_weight must not be below 0, got {self.labels_weight}")


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Attributes:
        model: the network to train.
        method: the distillation, when a teacher is given.
        placing: whether a student's teacher places drives without poses in the surveyed ones, for the task loss.
        start: a run folder whose weights the model starts from; empty for the model's own beginning.
        degradation: what is taken from the images that the model sees in training, and from the queries when
            validating; the teacher sees the originals.
        height, width: image input, pixels.
        steps: optimiser steps.
        validate_every: steps between measurements on the validation region; the best checkpoint is kept.
        patience: stop after this many validations in a row that were not the best so far; 0 for never.
        optimiser: ``adam``, ``adamw`` (StructVPR) or ``sgd`` with momentum 0.9 (LSDNet).
        learning_rate: the optimiser's, for image layers.
        cloud_learning_rate: the optimiser's, for layers that read clouds.
        weight_decay: of the optimiser.
        schedule: ``cosine`` to zero, or ``step``: times ``step_factor`` every ``step_every`` steps.
        step_factor: see ``schedule``.
        step_every: see ``schedule``; 0 for once, after two thirds of the steps, as DistilVPR (epoch 40 of 60).
        clip_norm: largest gradient norm; 0 for no limit.
        precision: as Lightning Fabric names it: ``32-true``, ``bf16-mixed``, ``16-mixed``; or ``fast``: bf16-mixed on
            GPUs and processors that have bfloat16, 32-true on others. The run's record says which it was.
        compile: whether torch.compile makes a network of images faster, for half a minute at the start.
        devices: processes of one machine, each with its own processor or GPU; every one draws a batch as configured,
            and the losses see the batches of all together.
        seed: of weights, batches and augmentation.
        radius_m: within which a match is right when validating, metres.
    """

    model: ModelConfig
    method: MethodConfig = MethodConfig()
    task: TaskConfig = TaskConfig()
    batch: BatchConfig = BatchConfig()
    pairing: Pairing = Pairing()
    placing: PlacingConfig = PlacingConfig()
    image_augmentation: ImageAugmentation = ImageAugmentation()
    cloud_augmentation: CloudAugmentation = CloudAugmentation()
    degradation: Degradation = Degradation()
    start: str = ""
    height: int = 240
    width: int = 320
    steps: int = 2000
    validate_every: int = 200
    patience: int = 0
    optimiser: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: float = 1e-4
    cloud_learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    schedule: Literal["cosine", "step"] = "cosine"
    step_factor: float = 0.1
    step_every: int = 0
    clip_norm: float = 0.0
    precision: str = "32-true"
    compile: bool = False
    devices: int = 1
    seed: int = 0
    radius_m: float = 25.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.validate_every < 1:
            raise ConfigError("training: steps and validate_every must be at least 1")
        if self.step_every < 0 or not 0 < self.step_factor <= 1:
            raise ConfigError("training: wants step_every >= 0 and 0 < step_factor <= 1")
        if self.patience < 0 or self.devices < 1:
            raise ConfigError("training: wants patience >= 0 and devices >= 1")


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain values for YAML and JSON: what was a tuple is a list."""
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return values


def from_dict(kind: type[Config], values: Mapping[str, Any]) -> Config:
    """A configuration from plain values.

    Raises:
        ConfigError: a key is unknown or missing, or a value has the wrong type.
    """
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, None)
    try:
        parsed = parser.instantiate(parser.parse_object(dict(values)))
    except (jsonargparse.ArgumentError, TypeError) as error:
        message = with_near_key(str(error), parser.get_defaults(skip_validation=True).keys())
        raise ConfigError(f"configuration: {message}") from error
    return kind(**vars(parsed))


def save_yaml(config: Any, path: Path) -> None:
    """Write the resolved configuration."""
    path.write_text(yaml.safe_dump(to_dict(config), sort_keys=False))
