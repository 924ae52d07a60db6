"""Descriptors of many keyframes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from training.data.dataset import Frames, Keyframes
from training.data.degrade import Degradation
from training.engine.config import TrainConfig
from training.models import EmbeddingModel
from training.models.voxels import VoxelBatch, voxelise
from vpr_kd_ros.geometry import Ints
from vpr_kd_ros.preprocess import Preprocess


def preprocess_of(config: TrainConfig) -> Preprocess:
    """The image pre-processing of a run."""
    return Preprocess(height=config.height, width=config.width)


def fastest_device() -> torch.device:
    """The first GPU where there is one, or else the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def model_inputs(
    model: EmbeddingModel, frames: Frames, preprocess: Preprocess, device: torch.device
) -> tuple[torch.Tensor | None, VoxelBatch | None, torch.Tensor | None]:
    """What ``model`` is called with, each None where not used.

    Returns:
        Normalised images (B, 3, H, W) float32, voxels, and semantic labels (B, H, W) uint8.
    """
    images = None
    if model.uses_images:
        assert frames.images is not None
        images = preprocess.normalise(frames.images.to(device))
    voxels = None
    if model.uses_clouds:
        assert frames.clouds is not None
        voxels = voxelise(frames.clouds, model.voxel_size).to(device)
    labels = None
    if model.uses_labels:
        assert frames.labels is not None
        labels = frames.labels.to(device)
    return images, voxels, labels


@torch.inference_mode()
def describe(
    model: EmbeddingModel,
    keyframes: Keyframes,
    preprocess: Preprocess,
    device: torch.device | str = "cpu",
    batch_size: int = 32,
    title: str = "describing",
    degradation: Degradation | None = None,
    order: Ints | None = None,
) -> NDArray[np.float32]:
    """Descriptors of all keyframes as the model gives them, not normalised: (N, C) float32.

    The model is used in evaluation mode and left in the mode it was in. A ``degradation`` takes the same from an image
    at every call. ``order``, a permutation of the keyframes, says which are described together; the rows are in the
    order of the keyframes all the same.
    """
    numbers = np.arange(len(keyframes)) if order is None else order
    device = torch.device(device)
    chance = torch.Generator().manual_seed(0)
    training = model.training
    model.eval()
    try:
        rows = []
        for start in tqdm(range(0, len(keyframes), batch_size), title, unit="batch", leave=False):
            batch = numbers[start : start + batch_size]
            frames = keyframes.frames(batch, model.uses_images, model.uses_clouds, model.uses_labels)
            if degradation is not None and frames.images is not None:
                frames = replace(frames, images=degradation(frames.images, chance))
            rows.append(model(*model_inputs(model, frames, preprocess, device)).float().cpu().numpy())
    finally:
        model.train(training)
    described = np.concatenate(rows)
    return described if order is None else described[np.argsort(order)]


def split_by_session(keyframes: Keyframes, rows: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Rows of all keyframes cut into one array per session, in the order of ``keyframes.sessions``."""
    ends = np.cumsum([len(session) for session in keyframes.sessions])
    return np.split(rows, ends[:-1])
