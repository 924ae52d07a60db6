"""The training loop: one for teachers and students, with a teacher's relations or without."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import lightning.fabric
import torch
from tqdm import tqdm

from training.data.dataset import Keyframes
from training.distillation.method import DistillationMethod
from training.engine.batches import as_seen, draw_batches, gathered, loss_terms, read, shuffled_images
from training.engine.config import TrainConfig
from training.engine.descriptors import describe, preprocess_of, split_by_session
from training.engine.learning import Learning
from training.engine.runs import Run
from training.engine.task import task_loss
from training.engine.teaching import Teaching, answers, map_shapes
from training.evaluation.protocol import evaluate
from training.evaluation.results import Protocol
from training.models import EmbeddingModel
from training.models.label_fusion import LabelDecoder
from training.sessions import CLASSES
from vpr_kd_ros.errors import ConfigError
from vpr_kd_ros.preprocess import Preprocess

LOG_EVERY = 10


def fit(
    fabric: lightning.fabric.Fabric, model: EmbeddingModel, config: TrainConfig, train: Keyframes,
    validation: Keyframes, run: Run, teaching: Teaching | None = None,
) -> float:  # fmt: skip
    """Train ``model`` and keep the checkpoint whose AR@1 on the validation region is best.

    So for all methods, whatever their papers choose by (StructVPR recall@5, DistilVPR's code the test set, SciceVPR the
    number of epochs).

    Args:
        fabric: the devices to train on; every process calls this function with the same arguments but ``run``.
        model: trained in place; the best checkpoint is in the run, not necessarily the last weights.
        config: of the run.
        train: labelled keyframes for the task loss, and any others that only a teacher can use.
        validation: labelled keyframes of other regions, for choosing the checkpoint.
        run: where checkpoints and metrics go; where it resumes another, the training goes on from there.
        teaching: the teacher's relations; None for a model that learns by itself.

    Returns:
        The best AR@1 on the validation sessions, in [0, 1].

    Raises:
        DataError: nothing can be learnt from the sessions given (see the samplers and ``model.initialise``), or the
            second task wants labels and they have none.
        ConfigError: the training diverged, or the network lacks what the configured tasks read of it.
    """
    preprocess = preprocess_of(config)
    for name in config.task.parts:
        if name not in model.parts:
            there = ", ".join(model.parts) or "none"
            raise ConfigError(f"task.parts: the descriptor of {config.model.name} has no part {name!r}; it has {there}")
    last = fabric.broadcast(run.last_state())
    if last is None and model.uses_images and not config.start:
        # Before the processes share their weights, so that all start from the first one's.
        model.to(fabric.device).initialise(shuffled_images(train, preprocess, fabric.device, config.seed))
    decoder = None
    if config.task.labels_weight > 0:
        shapes = map_shapes(model, train, preprocess, fabric.device)
        decoder = LabelDecoder([channels for channels, _, _ in shapes], len(CLASSES))
    learning = Learning(fabric, model, None if teaching is None else teaching.method, config, decoder)
    if teaching is not None and learning.method is not None:
        # Fabric's wrapper passes on the attributes of what it wraps.
        teaching = replace(teaching, method=cast(DistillationMethod, learning.method.to(fabric.device)))
    if last is not None:
        learning.load_state_dict(last)
    live = None if teaching is None else teaching.live
    if live is not None:
        live.model.to(fabric.device)
    compares_maps = teaching is not None and teaching.method.needs_maps
    batches = draw_batches(train, config, learning.rng, teaching)
    task = task_loss(config.task, model.parts)

    model.train()
    with tqdm(
        total=config.steps, initial=learning.step, desc="training", unit="step", disable=not fabric.is_global_zero
    ) as bar:
        while not learning.finished:
            own = next(batches)
            frames = read(own.indices, model, train, teaching, config)
            batch, rows = gathered(own)
            seen = as_seen(frames, preprocess, config)
            own_answers = answers(
                learning.learner, model, seen, preprocess, fabric.device, compares_maps or decoder is not None
            )
            student = own_answers.gathered(rows)
            teacher = None if live is None else live.answers(frames, fabric.device, compares_maps).gathered(rows)
            progress = learning.step / config.steps
            terms = loss_terms(batch, student, teacher, train, task, teaching, config, progress)
            if learning.decoder is not None:
                # Of this process's own images: the mean over processes is that of the gradients.
                assert seen.labels is not None
                told = learning.decoder(own_answers.maps, seen.labels.to(fabric.device))
                terms["task/labels"] = config.task.labels_weight * told
            loss = learning.update(terms)
            bar.update()
            step, last_step = learning.step, learning.step == config.steps
            if step % LOG_EVERY == 0 or last_step:
                run.log(
                    step, {"loss": learning.require_finite(loss), **{f"loss/{k}": v.item() for k, v in terms.items()}}
                )
                bar.set_postfix(loss=f"{loss.item():.3f}", best_ar1=f"{100 * learning.best:.1f}")
            if step % config.validate_every == 0 or last_step:
                learning.require_finite(loss)
                ar1 = fabric.broadcast(
                    validate(model, validation, preprocess, config, fabric.device) if fabric.is_global_zero else None
                )
                run.log(step, {"validation_ar1": ar1})
                if learning.note_validation(ar1):
                    run.save_best(model, step)
                run.save_last(learning.state_dict())
    return learning.best


def validation_protocol(config: TrainConfig) -> Protocol:
    """What is right when validating; which way an answer may head is as in training."""
    return Protocol(config.radius_m, config.pairing.heading_deg)


def validate(
    model: EmbeddingModel, keyframes: Keyframes, preprocess: Preprocess, config: TrainConfig, device: torch.device
) -> float:
    """AR@1 in [0, 1] between the validation sessions, with queries degraded as configured."""
    rows = split_by_session(keyframes, describe(model, keyframes, preprocess, device, title="validating"))
    queries = None
    if config.degradation.changes:
        degraded = describe(model, keyframes, preprocess, device, 32, "validating", config.degradation)
        queries = split_by_session(keyframes, degraded)
    result = evaluate(keyframes.sessions, rows, validation_protocol(config), queries)
    return result.ar_at_1
