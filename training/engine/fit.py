"""The training loop: one for teachers and students, with a teacher's relations or without."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import lightning.fabric
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from training.data.dataset import Frames, Keyframes
from training.data.pairing import place_masks
from training.data.samplers import PlaceSampler, RelationSampler
from training.engine.config import TrainConfig
from training.engine.descriptors import describe, model_inputs, preprocess_of, split_by_session
from training.engine.runs import Run
from training.engine.task import TripletTask
from training.evaluation.protocol import Protocol, evaluate
from training.models import EmbeddingModel
from vpr_kd_ros.geometry import Ints
from vpr_kd_ros.preprocess import Preprocess

LOG_EVERY = 10


@dataclass(frozen=True)
class Teaching:
    """What a teacher brings to the training of a student.

    Attributes:
        method: a distillation method of ``training.distillation``; maps teacher and student descriptors to loss terms.
        descriptors: (N, C) float32, the teacher's, of every training keyframe, not normalised.
    """

    method: torch.nn.Module
    descriptors: NDArray[np.float32]


def fit(
    model: EmbeddingModel, config: TrainConfig, train: Keyframes, validation: Keyframes, run: Run,
    teaching: Teaching | None = None,
) -> float:  # fmt: skip
    """Train ``model`` and keep the checkpoint that is best on the validation region.

    Args:
        model: trained in place; the best checkpoint is in the run, not necessarily the last weights.
        config: of the run.
        train: labelled keyframes for the task loss, and any others that only a teacher can use.
        validation: labelled keyframes of other regions, for choosing the checkpoint.
        run: where checkpoints and metrics go.
        teaching: the teacher's relations; None for a model that learns by itself.

    Returns:
        The best AR@1 on the validation sessions, in [0, 1].

    Raises:
        DataError: nothing can be learnt from the sessions given (see the samplers).
    """
    fabric = lightning.fabric.Fabric(accelerator="auto", devices=1, precision=config.precision)
    preprocess = preprocess_of(config)
    rng = np.random.default_rng(config.seed)
    parts = torch.nn.ModuleList([model] if teaching is None else [model, teaching.method])
    optimiser = torch.optim.Adam(parameter_groups(parts, config), weight_decay=config.weight_decay)
    schedule = _schedule(optimiser, config)
    learner, optimiser = fabric.setup(model, optimiser)
    if teaching is not None:
        teaching.method.to(fabric.device)
    batches = _batches(train, config, rng, teaching)
    task = TripletTask(config.task)
    best = float("-inf")

    model.train()
    with tqdm(range(1, config.steps + 1), "training", unit="step") as bar:
        for step in bar:
            labelled, indices = next(batches)
            frames = augmented(train.frames(indices, model.uses_images, model.uses_clouds), config)
            descriptors = learner(*model_inputs(model, frames, preprocess, fabric.device))
            terms = {"task": _task_term(task, descriptors[:labelled], train, indices[:labelled], config, step)}
            if teaching is not None:
                taught = torch.from_numpy(teaching.descriptors[indices]).to(fabric.device)
                terms |= teaching.method(taught, descriptors)
            loss = torch.stack(list(terms.values())).sum()
            optimiser.zero_grad(set_to_none=True)
            fabric.backward(loss)
            if config.clip_norm > 0:
                fabric.clip_gradients(learner, optimiser, max_norm=config.clip_norm)
            optimiser.step()
            schedule.step()
            if step % LOG_EVERY == 0 or step == config.steps:
                run.log(step, {"loss": loss.item(), **{f"loss/{k}": v.item() for k, v in terms.items()}})
                bar.set_postfix(loss=f"{loss.item():.3f}", best_ar1=f"{100 * best:.1f}")
            if step % config.validate_every == 0 or step == config.steps:
                ar1 = validate(model, validation, preprocess, config, fabric.device)
                run.log(step, {"validation_ar1": ar1})
                if ar1 > best:
                    best = ar1
                    run.save_checkpoint(model, step)
    return best


def validate(
    model: EmbeddingModel, keyframes: Keyframes, preprocess: Preprocess, config: TrainConfig, device: torch.device
) -> float:
    """AR@1 in [0, 1] between the validation sessions."""
    rows = describe(model, keyframes, preprocess, device, title="validating")
    result = evaluate(keyframes.sessions, split_by_session(keyframes, rows), Protocol(config.radius_m))
    return result.ar_at_1


def parameter_groups(module: torch.nn.Module, config: TrainConfig) -> list[dict[str, object]]:
    """Parameters with the learning rate of their modality: clouds 1e-3 and images 1e-4 in the papers."""
    clouds = [p for name, p in module.named_parameters() if _reads_clouds(module, name) and p.requires_grad]
    images = [p for name, p in module.named_parameters() if not _reads_clouds(module, name) and p.requires_grad]
    return [
        group
        for group in (
            {"params": images, "lr": config.learning_rate},
            {"params": clouds, "lr": config.cloud_learning_rate},
        )
        if group["params"]
    ]


def augmented(frames: Frames, config: TrainConfig) -> Frames:
    """The frames with their images and clouds changed at random."""
    return Frames(
        images=None if frames.images is None else config.image_augmentation(frames.images),
        clouds=None if frames.clouds is None else [config.cloud_augmentation(cloud) for cloud in frames.clouds],
    )


def _reads_clouds(module: torch.nn.Module, parameter: str) -> bool:
    """Whether the innermost embedding model that owns the parameter reads clouds only."""
    owner, only_clouds = module, False
    for part in parameter.split("."):
        if isinstance(owner, EmbeddingModel):
            only_clouds = owner.uses_clouds and not owner.uses_images
        child = getattr(owner, part, None)
        if not isinstance(child, torch.nn.Module):
            break
        owner = child
    return only_clouds


def _schedule(optimiser: torch.optim.Optimizer, config: TrainConfig) -> torch.optim.lr_scheduler.LRScheduler:
    if config.schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=config.steps)
    return torch.optim.lr_scheduler.MultiStepLR(optimiser, milestones=[2 * config.steps // 3], gamma=0.1)


def _batches(
    train: Keyframes, config: TrainConfig, rng: np.random.Generator, teaching: Teaching | None
) -> Iterator[tuple[int, Ints]]:
    """Batches without end: how many keyframes, at the front, are for the task loss, and all keyframe numbers."""
    places = iter(PlaceSampler(train, config.pairing, config.batch, rng))
    if teaching is None or config.batch.anchors == 0:
        for labelled in places:
            yield len(labelled), labelled
    else:
        # Drives without poses are what only the teacher can use; where there is none, relations of all drives serve.
        pool = np.flatnonzero(~train.labelled)
        pool = pool if len(pool) else np.arange(len(train))
        relations = iter(RelationSampler(teaching.descriptors, train.session_of, pool, config.batch, rng))
        for labelled, related in zip(places, relations, strict=False):
            yield len(labelled), np.concatenate([labelled, np.setdiff1d(related, labelled)])


def _task_term(
    task: TripletTask, descriptors: torch.Tensor, train: Keyframes, indices: Ints, config: TrainConfig, step: int
) -> torch.Tensor:
    positive, negative = place_masks(
        train.positions[indices], train.yaws[indices], train.region_of[indices], config.pairing
    )
    device = descriptors.device
    return task(
        descriptors,
        torch.from_numpy(positive).to(device),
        torch.from_numpy(negative).to(device),
        (step - 1) / config.steps,
    )
