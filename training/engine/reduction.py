"""PCA after training: the run of a model whose descriptors are too long to keep becomes one of shorter descriptors."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from training.data.dataset import Keyframes
from training.engine.checkpoints import read_checkpoint
from training.engine.config import ModelConfig
from training.engine.descriptors import describe, preprocess_of
from training.engine.runs import BEST, Run, load_run
from training.models import MODELS, EmbeddingModel, with_pca
from training.models.pca import PCA
from training.sessions import Session
from vpr_kd_ros.errors import ConfigError, DataError

OPTION = "pca_dim"


@dataclass(frozen=True)
class Reduction:
    """What a reduction came to.

    Attributes:
        before, after: sizes of a descriptor.
        keyframes: how many the PCA was fitted to.
        variance: share of their variance that is kept, in [0, 1].
    """

    before: int
    after: int
    keyframes: int
    variance: float


def reduce_run(run: Path, out: Path, sessions: Sequence[Session], dim: int) -> Reduction:
    """Fit a PCA to a trained model's descriptors and write model and PCA as a new run.

    SciceVPR goes to 4096 numbers so, LSDNet with whitening (the model knows). Poses are not used: sessions without any
    will do, best those that were trained on.

    Args:
        run: folder of a finished run of a model that has the option ``pca_dim``.
        out: the run folder to write.
        sessions: to fit the PCA to; more than ``dim`` keyframes.
        dim: size to reduce a descriptor to.

    Raises:
        ConfigError: the model has no PCA, or has one fitted already, or ``dim`` is not in 1 to its descriptor's size.
        DataError: no finished run, too few keyframes, or descriptors that vary in fewer than ``dim`` directions.
    """
    model, config = load_run(run)
    name, options = config.model.name, config.model.options
    _check(run, name, options.get(OPTION, 0), model, dim)
    preprocess = preprocess_of(config)
    keyframes = Keyframes(sessions, preprocess)
    if len(keyframes) <= dim:
        raise DataError(
            f"a PCA to {dim} wants more than {dim} keyframes, and the sessions hold {len(keyframes)}: give more of "
            "them, or a smaller --dim"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = torch.from_numpy(describe(model.to(device), keyframes, preprocess, device))
    reduced = with_pca(name, options, model.cpu(), dim, rows)
    variance = _kept_variance(reduced, rows)
    writer = Run(out, replace(config, model=ModelConfig(name, {**options, OPTION: dim})))
    writer.save_best(reduced, read_checkpoint(run / BEST, ("step",))["step"])
    writer.finish(
        {
            "reduced_from": str(run),
            "variance_kept": variance,
            "keyframes": {"all": len(keyframes)},
            "sessions": [session.name for session in sessions],
        }
    )
    return Reduction(model.descriptor_dim, dim, len(keyframes), variance)


def _check(run: Path, name: str, fitted: int, model: EmbeddingModel, dim: int) -> None:
    able = [other for other, kind in MODELS.items() if OPTION in inspect.signature(kind).parameters]
    if name not in able:
        raise ConfigError(f"{run}: its model {name!r} has no PCA; these have: {', '.join(able)}")
    if fitted:
        raise ConfigError(
            f"{run}: its descriptors were reduced to {fitted} already; give the run that it was made from"
        )
    if not 1 <= dim <= model.descriptor_dim:
        raise ConfigError(f"--dim must be 1 to {model.descriptor_dim}, the size of its descriptors; got {dim}")


def _kept_variance(reduced: EmbeddingModel, rows: torch.Tensor) -> float:
    (pca,) = (module for module in reduced.modules() if isinstance(module, PCA))
    centred = rows.double() - pca.mean
    directions = torch.nn.functional.normalize(pca.weight.double(), dim=1)
    return float((centred @ directions.T).square().sum() / centred.square().sum())
