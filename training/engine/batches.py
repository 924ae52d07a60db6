"""The batches of a training, and the terms of the loss of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from training.data.dataset import Frames, Keyframes
from training.data.pairing import place_masks
from training.data.samplers import PlaceSampler, RelationSampler
from training.distillation.method import Context
from training.engine.config import TrainConfig
from training.engine.processes import gather_objects
from training.engine.task import TaskLoss
from training.engine.teaching import Answers, Teaching
from training.models import EmbeddingModel
from vpr_kd_ros.geometry import Ints
from vpr_kd_ros.preprocess import Preprocess


@dataclass(frozen=True)
class Batch:
    """Keyframes that are trained on together.

    Attributes:
        indices: (B,) int64 keyframe numbers.
        labelled: how many of them, at the front, are for the task loss.
    """

    indices: Ints
    labelled: int


def draw_batches(
    train: Keyframes, config: TrainConfig, rng: np.random.Generator, teaching: Teaching | None
) -> Iterator[Batch]:
    """Batches without end; between two of them, ``rng`` is all the state there is."""
    places = iter(PlaceSampler(train, config.pairing, config.batch, rng))
    if teaching is None or config.batch.anchors == 0:
        for labelled in places:
            yield Batch(labelled, len(labelled))
    else:
        # Drives without a survey are what only the teacher can use; where there is none, relations of all drives serve.
        pool = np.flatnonzero(~train.surveyed)
        pool = pool if len(pool) else np.arange(len(train))
        assert teaching.descriptors is not None
        relations = iter(RelationSampler(teaching.descriptors, train.session_of, pool, config.batch, rng))
        for labelled, related in zip(places, relations, strict=False):
            yield Batch(np.concatenate([labelled, np.setdiff1d(related, labelled)]), len(labelled))


def shuffled_images(
    train: Keyframes, preprocess: Preprocess, device: torch.device, seed: int, batch_size: int = 32
) -> Iterator[torch.Tensor]:
    """All training images once, in random order, not augmented; none is read before the first batch is asked for.

    Args:
        train: the keyframes.
        preprocess: normalises the images.
        device: of the batches.
        seed: of the run; the order is drawn from a stream of its own, which takes no chance from batches or weights.
        batch_size: B, of all batches but the last.

    Yields:
        (B, 3, H, W) float32, normalised.
    """
    (stream,) = np.random.SeedSequence(seed).spawn(1)
    order = np.random.default_rng(stream).permutation(len(train))
    for start in tqdm(range(0, len(order), batch_size), "initialising", unit="batch", leave=False):
        images = train.frames(order[start : start + batch_size], images=True).images
        assert images is not None
        yield preprocess.normalise(images.to(device))


def read(
    indices: Ints, model: EmbeddingModel, train: Keyframes, teaching: Teaching | None, config: TrainConfig
) -> Frames:
    """The frames of a batch, augmented, with what the model, its tasks and a live teacher read of them.

    Where a live teacher reads images or labels they are of its size; see ``as_seen``.
    """
    live = None if teaching is None else teaching.live
    source = train if live is None else live.keyframes
    readers = [model] if live is None else [model, live.model]
    frames = source.frames(
        indices,
        images=any(reader.uses_images for reader in readers),
        clouds=any(reader.uses_clouds for reader in readers),
        labels=config.task.labels_weight > 0 or any(reader.uses_labels for reader in readers),
    )
    return augmented(frames, config)


def as_seen(frames: Frames, preprocess: Preprocess, config: TrainConfig) -> Frames:
    """The frames as the student sees them: images and labels of its size, degraded as configured."""
    size = (preprocess.height, preprocess.width)
    images, labels = frames.images, frames.labels
    if images is not None:
        if images.shape[2:] != size:
            images = F.interpolate(images, size=size, mode="bilinear", antialias=True)
        images = config.degradation(images)
    if labels is not None and labels.shape[1:] != size:
        labels = F.interpolate(labels[:, None], size=size, mode="nearest-exact")[:, 0]
    return Frames(images, frames.clouds, labels)


def augmented(frames: Frames, config: TrainConfig) -> Frames:
    """The frames with their images and clouds changed at random; labels stay as they are."""
    return Frames(
        images=None if frames.images is None else config.image_augmentation(frames.images),
        clouds=None if frames.clouds is None else [config.cloud_augmentation(cloud) for cloud in frames.clouds],
        labels=frames.labels,
    )


def gathered(batch: Batch) -> tuple[Batch, Ints]:
    """The batches of all processes as one.

    Returns:
        The whole batch, and (N,) int64: which row of the processes' descriptors, one process after the other, each of
        its keyframes is. A keyframe that two processes drew is in it twice, each time augmented on its own.
    """
    parts = gather_objects(batch)
    labelled = np.concatenate([np.arange(len(part.indices)) < part.labelled for part in parts])
    rows = np.argsort(~labelled, kind="stable")
    return Batch(np.concatenate([part.indices for part in parts])[rows], int(labelled.sum())), rows


def loss_terms(
    batch: Batch, student: Answers, teacher: Answers | None, train: Keyframes, task: TaskLoss,
    teaching: Teaching | None, config: TrainConfig, progress: float,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """The weighted terms of the loss, scalars by name; their sum is the loss.

    Args:
        batch: the whole batch.
        student: what the student says of its keyframes.
        teacher: what a live teacher says of them; None where its descriptors are known.
        train: the keyframes.
        task: the task loss, for the labelled part.
        teaching: the distillation, for the whole batch; None without a teacher.
        config: its ``pairing``.
        progress: of the training, in [0, 1).
    """
    device = student.descriptors.device
    places = batch.indices[: batch.labelled]
    positive, negative = (
        torch.from_numpy(mask).to(device)
        for mask in place_masks(train.positions[places], train.yaws[places], train.region_of[places], config.pairing)
    )
    labelled = student.descriptors[: batch.labelled]
    terms = task.terms(labelled, positive, negative, progress)
    if teaching is not None:
        if teacher is None:
            assert teaching.descriptors is not None
            teacher = Answers(torch.from_numpy(teaching.descriptors[batch.indices]).to(device))
        context = Context(
            torch.from_numpy(batch.indices).to(device),
            task.hardest(labelled, positive, negative) if teaching.method.needs_triplets else None,
            teacher.maps,
            student.maps,
        )
        terms |= teaching.method(teacher.descriptors, student.descriptors, context)
    return terms
