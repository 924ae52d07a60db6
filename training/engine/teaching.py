"""What a teacher brings to the training of a student: descriptors known beforehand, or answers to the batch itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from training.data.dataset import Frames, Keyframes
from training.distillation.method import DistillationMethod, MapShape
from training.engine.descriptors import model_inputs
from training.engine.processes import gather_rows
from training.models import EmbeddingModel
from training.models.maps import captured_maps
from vpr_kd_ros.geometry import Ints
from vpr_kd_ros.preprocess import Preprocess


@dataclass(frozen=True)
class Answers:
    """What a network says of a batch.

    Attributes:
        descriptors: (B, C), not normalised.
        maps: feature maps (B, C_i, H_i, W_i), fine first; none where nobody compares them.
    """

    descriptors: torch.Tensor
    maps: Sequence[torch.Tensor] = ()

    def gathered(self, rows: Ints) -> Answers:
        """Those of all processes, as the rows (N,) of their batches joined."""
        return Answers(gather_rows(self.descriptors)[rows], tuple(gather_rows(x)[rows] for x in self.maps))


def answers(
    network: torch.nn.Module, model: EmbeddingModel, frames: Frames, preprocess: Preprocess, device: torch.device,
    maps: bool,
) -> Answers:  # fmt: skip
    """What a network says of the frames.

    Args:
        network: the model as it is called.
        model: itself.
        frames: with what the model reads.
        preprocess: of its images.
        device: of the network.
        maps: whether feature maps are wanted.
    """
    inputs = model_inputs(model, frames, preprocess, device)
    if not maps:
        return Answers(network(*inputs))
    with captured_maps(model) as found:
        descriptors = network(*inputs)
        return Answers(descriptors, tuple(found))


@torch.no_grad()
def map_shapes(
    model: EmbeddingModel, keyframes: Keyframes, preprocess: Preprocess, device: torch.device
) -> list[MapShape]:
    """Channels, height and width of the model's feature maps, fine first, found by describing one keyframe.

    The model is moved to the device; its statistics and the sources of chance stay as they were.

    Raises:
        ConfigError: the model makes no maps of an image.
    """
    training = model.training
    model.to(device).eval()
    try:
        frames = keyframes.frames([0], model.uses_images, model.uses_clouds, model.uses_labels)
        found = answers(model, model, frames, preprocess, device, maps=True).maps
    finally:
        model.train(training)
    return [(x.shape[1], x.shape[2], x.shape[3]) for x in found]


class LiveTeacher:
    """A teacher that describes each batch anew: for feature maps, which are too many to keep, or where its descriptor
    depends on the batch (``EmbeddingModel.depends_on_batch``).

    It is in evaluation mode, and sees the frames as they were augmented for the student, but not degraded.

    Args:
        model: the teacher.
        preprocess: of its images.
        keyframes: the training keyframes, with images and labels of its size.
    """

    def __init__(self, model: EmbeddingModel, preprocess: Preprocess, keyframes: Keyframes) -> None:
        self.model = model.eval()
        self.preprocess = preprocess
        self.keyframes = keyframes

    @torch.no_grad()
    def answers(self, frames: Frames, device: torch.device, maps: bool) -> Answers:
        """What it says of the frames, and its feature maps where they are wanted."""
        return answers(self.model, self.model, frames, self.preprocess, device, maps)


@dataclass(frozen=True)
class Teaching:
    """What a teacher brings to the training of a student.

    Attributes:
        method: maps teacher and student descriptors to loss terms.
        descriptors: (N, C) float32, the teacher's, of every training keyframe, not normalised; None where only its
            answers to the batches count.
        live: the teacher itself, where the method needs its answer to the batch.
    """

    method: DistillationMethod
    descriptors: NDArray[np.float32] | None
    live: LiveTeacher | None = None
