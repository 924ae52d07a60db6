"""A teacher's descriptors of the training keyframes, computed once and kept in ``cache/`` of the teacher's run.

A file of the cache is named by what its descriptors depend on: the teacher's weights and options, the code of the
models, the image pre-processing, and the sessions. Where any of them changes, the name does, and the descriptors are
computed anew; files that nothing asks for any more may be deleted at any time. A damaged file is replaced.

The frames are described as they are. DistilVPR's released code describes them augmented at random, once.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tqdm import tqdm

import training.models
from training.data.dataset import Keyframes
from training.engine.checkpoints import write_atomically
from training.engine.config import ModelConfig, to_dict
from training.engine.descriptors import describe
from training.engine.fingerprints import fingerprint, sessions_fingerprint, weights_fingerprint
from training.models import EmbeddingModel
from vpr_kd_ros.errors import DataError
from vpr_kd_ros.preprocess import Preprocess

FOLDER = "cache"


def teacher_descriptors(
    run: Path, teacher: EmbeddingModel, config: ModelConfig, keyframes: Keyframes, preprocess: Preprocess,
    device: torch.device,
) -> NDArray[np.float32]:  # fmt: skip
    """The teacher's descriptors of all keyframes, not normalised: (N, C) float32, from the cache where it has them.

    Args:
        run: the teacher's run folder.
        teacher: its model.
        config: what the model was built from.
        keyframes: in their order.
        preprocess: of the teacher's images.
        device: to compute them on.

    Raises:
        DataError: the descriptors are not finite.
    """
    key = _key(teacher, config, keyframes, preprocess)
    path = run / FOLDER / f"{key}.safetensors"
    shape = (len(keyframes), teacher.descriptor_dim)
    if path.exists():
        try:
            return _read(path, shape)
        except DataError as error:
            tqdm.write(f"{error}; computing the descriptors again")
    descriptors = describe(teacher.to(device), keyframes, preprocess, device, title="teacher")
    teacher.cpu()
    if not np.isfinite(descriptors).all():
        raise DataError(f"{run}: the teacher gives descriptors that are not finite")
    try:
        path.parent.mkdir(exist_ok=True)
        metadata = {"sha256": _checksum(descriptors)}
        write_atomically(path, lambda work: save_file({"descriptors": descriptors}, work, metadata))
    except (OSError, SafetensorError) as error:
        tqdm.write(f"{path}: the teacher's descriptors cannot be kept for the next run: {error}")
    return descriptors


def _key(teacher: EmbeddingModel, config: ModelConfig, keyframes: Keyframes, preprocess: Preprocess) -> str:
    code = hashlib.sha256()
    for file in sorted(Path(training.models.__file__).parent.glob("*.py")):
        code.update(file.read_bytes())
    return fingerprint(
        {
            "weights": weights_fingerprint(teacher),
            "model": to_dict(config),
            "code": code.hexdigest(),
            "preprocess": dataclasses.asdict(preprocess),
            "sessions": sessions_fingerprint(keyframes.sessions, times=True),
        }
    )


def _read(path: Path, shape: tuple[int, int]) -> NDArray[np.float32]:
    try:
        with safe_open(path, framework="numpy") as file:
            descriptors: NDArray[np.float32] = file.get_tensor("descriptors")
            checksum = (file.metadata() or {}).get("sha256")
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: damaged ({error})") from error
    if descriptors.dtype != np.float32 or descriptors.shape != shape or _checksum(descriptors) != checksum:
        raise DataError(f"{path}: damaged (its content is not what was written)")
    return descriptors


def _checksum(descriptors: NDArray[np.float32]) -> str:
    return hashlib.sha256(descriptors.tobytes()).hexdigest()
