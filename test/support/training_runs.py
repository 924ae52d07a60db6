"""Tiny drives and configurations that tests of the training use."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from support.sessions import loop_session
from training.data.augment import CloudAugmentation, ImageAugmentation
from training.data.pairing import Pairing
from training.data.samplers import BatchConfig
from training.engine.config import ModelConfig, TaskConfig, TrainConfig
from training.sessions import Session, load_sessions

Drives = tuple[list[Session], list[Session]]
"""Sessions to train on, and to validate on."""

STUDENT = TrainConfig(
    model=ModelConfig("small-resnet-gem", {"descriptor_dim": 16, "widths": [8, 16], "output_norm": "batchnorm"}),
    task=TaskConfig(normalise=True, batch_all=0.5),
    batch=BatchConfig(windows=2, places=3, views=2, anchors=3, neighbours=2, among=3),
    pairing=Pairing(positive_m=7.0, negative_m=15.0),
    image_augmentation=ImageAugmentation(erase=0.0),
    height=24,
    width=32,
    steps=30,
    validate_every=15,
    learning_rate=3e-3,
    radius_m=7.0,
)
TEACHER = replace(
    STUDENT,
    model=ModelConfig(
        "minkloc++3d", {"descriptor_dim": 16, "voxel_size": 2.0, "planes": [8, 16], "layers": [1, 1],
                        "sparse_backend": "torch"}
    ),
    cloud_augmentation=CloudAugmentation(block=0.0),
    steps=15,
)  # fmt: skip


def write_drives(root: Path) -> Path:
    """train: two labelled drives of one region and one without poses; validation and test: two drives each."""
    for part, names in {"train": ("sun", "overcast", "night"), "validation": ("sun", "night"), "test": "ab"}.items():
        for seed, name in enumerate(names):
            loop_session(
                root / part / name, f"{part}-{name}", part, 24, seed, labelled=(part, name) != ("train", "night"),
                condition=name,
            )  # fmt: skip
    return root


def labelled_drives(root: Path) -> Drives:
    """Two drives with semantic labels and without clouds, to train on and to validate on."""
    for part in ("train", "validation"):
        for seed, name in enumerate(("sun", "night")):
            loop_session(
                root / part / name, f"{part}-{name}", part, 24, seed, condition=name, clouds=False, semantics=True
            )
    return load_sessions([root / "train"]), load_sessions([root / "validation"])


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics, without the seconds, which no two runs share."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]
