"""Run folders: what a training leaves behind, and how its model is loaded again.

A run is a folder with the resolved ``config.yaml``, ``metrics.jsonl`` (one line per logged step), ``best.pt`` (weights
and configuration of the best validation) and ``run.json`` (versions, commit, sessions, results).
"""

from __future__ import annotations

import json
import platform
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from training.engine.config import TrainConfig, from_dict, save_yaml, to_dict
from training.models import EmbeddingModel, build_model
from vpr_kd_ros import __version__
from vpr_kd_ros.errors import DataError

CHECKPOINT = "best.pt"


class Run:
    """A run folder being written.

    Raises:
        DataError: the folder holds another run's results.
    """

    def __init__(self, path: str | Path, config: TrainConfig) -> None:
        self.path = Path(path)
        self.config = config
        if (self.path / CHECKPOINT).exists():
            raise DataError(f"{self.path}: holds a trained run already; remove it or choose another folder")
        self.path.mkdir(parents=True, exist_ok=True)
        save_yaml(config, self.path / "config.yaml")
        self._metrics = self.path / "metrics.jsonl"
        self._metrics.write_text("")
        self._start = time.monotonic()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line to ``metrics.jsonl``."""
        line = {"step": step, "seconds": round(time.monotonic() - self._start, 3), **values}
        with self._metrics.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def save_checkpoint(self, model: torch.nn.Module, step: int) -> None:
        """Write weights and configuration; the old checkpoint stays whole until the new one is."""
        work = self.path / f".{CHECKPOINT}"
        torch.save({"config": to_dict(self.config), "step": step, "state": model.state_dict()}, work)
        work.replace(self.path / CHECKPOINT)

    def finish(self, results: Mapping[str, Any]) -> None:
        """Write ``run.json``."""
        record = {
            "seconds": round(time.monotonic() - self._start, 1),
            "vpr_kd_ros": __version__,
            "commit": _git_commit(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "machine": platform.machine(),
            **results,
        }
        (self.path / "run.json").write_text(json.dumps(record, indent=1) + "\n")


def load_run(path: str | Path) -> tuple[EmbeddingModel, TrainConfig]:
    """The trained model of a run, in evaluation mode, and the configuration it was trained with.

    Raises:
        DataError: the folder holds no run, or its checkpoint is damaged.
    """
    checkpoint = Path(path) / CHECKPOINT
    if not checkpoint.exists():
        raise DataError(f"{path}: not a finished run (no {CHECKPOINT}); give the folder that teach or distill wrote")
    try:
        stored = torch.load(checkpoint, map_location="cpu", weights_only=True)
        config = from_dict(TrainConfig, stored["config"])
        # The weights are about to be loaded: a pretrained backbone need not be fetched again.
        options = {k: (False if k == "pretrained" else v) for k, v in config.model.options.items()}
        model = build_model(config.model.name, options)
        model.load_state_dict(stored["state"], strict=True)
    except (RuntimeError, KeyError, EOFError, OSError) as error:
        raise DataError(f"{checkpoint}: not a checkpoint of this version: {error}") from error
    return model.eval(), config


def _git_commit() -> str:
    """The checkout's commit, with ``+`` where files differ from it; empty outside a checkout."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"], cwd=here, capture_output=True, text=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit + ("+" if changed else "")
