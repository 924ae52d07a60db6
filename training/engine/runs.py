"""Run folders: what a training leaves behind, and how its model is loaded again.

A run is a folder with the resolved ``config.yaml``, ``metrics.jsonl`` (one line per logged step), ``best.pt`` (weights
and configuration of the best validation) and ``run.json`` (versions, commit, sessions, results; written at the end).
While it is trained, ``last.pt`` holds the whole state of the training at the last validation.
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

from training.engine.checkpoints import differing_keys, read_checkpoint, write_atomically, write_checkpoint
from training.engine.config import TrainConfig, from_dict, save_yaml, to_dict
from training.models import EmbeddingModel, build_model
from vpr_kd_ros import __version__
from vpr_kd_ros.errors import ConfigError, DataError

BEST, LAST, RECORD = "best.pt", "last.pt", "run.json"


class Run:
    """A run folder being written.

    Args:
        path: the folder.
        config: of the run.
        sources: fingerprints of what is learnt from, by name.
        resume: go on with the run in this folder, or begin where it had not come to its first validation.

    Raises:
        DataError: the folder holds another run's results, or a finished run, or what the run learns from has changed.
        ConfigError: the run in the folder has another configuration.
    """

    def __init__(
        self, path: str | Path, config: TrainConfig, sources: Mapping[str, str] | None = None, resume: bool = False
    ) -> None:
        self.path = Path(path)
        self._config = config
        self._sources = dict(sources or {})
        self._metrics = self.path / "metrics.jsonl"
        self._last: dict[str, Any] | None = None
        if resume:
            if (self.path / RECORD).exists():
                raise DataError(f"{self.path}: this run is finished; there is nothing to resume")
            self._last = self._read_last()
        elif (self.path / BEST).exists():
            mend = ", or go on with it with --resume true" if (self.path / LAST).exists() else ""
            raise DataError(f"{self.path}: holds a trained run already; remove it or choose another folder{mend}")
        self.path.mkdir(parents=True, exist_ok=True)
        for left_by_a_kill in self.path.glob(".*.pt.*"):
            left_by_a_kill.unlink()
        save_yaml(config, self.path / "config.yaml")
        seconds = self._keep_metrics(0 if self._last is None else self._last["step"])
        self._start = time.monotonic() - seconds

    def last_state(self) -> dict[str, Any] | None:
        """The state that a resumed training goes on from; None for a training from the beginning."""
        state, self._last = self._last, None  # once only, so that it does not stay in memory
        return state

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line to ``metrics.jsonl``."""
        line = {"step": step, "seconds": round(time.monotonic() - self._start, 3), **values}
        with self._metrics.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def save_best(self, model: torch.nn.Module, step: int) -> None:
        """Write weights and configuration; the old checkpoint stays whole until the new one is."""
        stored = {"config": to_dict(self._config), "step": step, "state": model.state_dict()}
        write_checkpoint(stored, self.path / BEST)

    def save_last(self, state: Mapping[str, Any]) -> None:
        """Write the state of the training, likewise."""
        stored = {"config": to_dict(self._config), "sources": self._sources, "training": dict(state)}
        write_checkpoint(stored, self.path / LAST)

    def finish(self, results: Mapping[str, Any]) -> None:
        """Write ``run.json``; the state of the training is not needed any more."""
        record = {
            "seconds": round(time.monotonic() - self._start, 1),
            "vpr_kd_ros": __version__,
            "commit": _git_commit(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "machine": platform.machine(),
            **results,
        }
        (self.path / RECORD).write_text(json.dumps(record, indent=1) + "\n")
        (self.path / LAST).unlink(missing_ok=True)

    def _read_last(self) -> dict[str, Any] | None:
        path = self.path / LAST
        if not path.exists():
            return None
        stored = read_checkpoint(path, ("config", "sources", "training"))
        # Keys that are newer than the checkpoint had their defaults.
        keys = differing_keys(to_dict(from_dict(TrainConfig, stored["config"])), to_dict(self._config))
        if keys:
            raise ConfigError(
                f"{self.path}: cannot resume, the run was started with other values of {', '.join(keys)}; give those "
                "of its config.yaml, or choose another folder"
            )
        changed = differing_keys(stored["sources"], self._sources)
        if changed:
            raise DataError(f"{self.path}: cannot resume, what the run learns from has changed: {', '.join(changed)}")
        state: dict[str, Any] = stored["training"]
        return state

    def _keep_metrics(self, last_step: int) -> float:
        """Drop the lines after ``last_step``, whose steps will be taken again; returns the seconds of the last kept."""
        kept, seconds = [], 0.0
        for text in self._metrics.read_text().splitlines() if last_step and self._metrics.exists() else ():
            try:
                line = json.loads(text)
            except ValueError:
                break  # cut off where the training was killed
            if line["step"] > last_step:
                break
            kept.append(text + "\n")
            seconds = float(line["seconds"])
        write_atomically(self._metrics, lambda work: work.write_text("".join(kept)))
        return seconds


class NoRun(Run):
    """Writes nothing: for all processes but the first."""

    def __init__(self) -> None:
        pass

    def last_state(self) -> None:
        return None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        pass

    def save_best(self, model: torch.nn.Module, step: int) -> None:
        pass

    def save_last(self, state: Mapping[str, Any]) -> None:
        pass

    def finish(self, results: Mapping[str, Any]) -> None:
        pass


def load_run(path: str | Path) -> tuple[EmbeddingModel, TrainConfig]:
    """The trained model of a run, in evaluation mode, and the configuration it was trained with.

    Raises:
        DataError: the folder holds no run, or its checkpoint is damaged.
    """
    checkpoint = Path(path) / BEST
    if not checkpoint.exists():
        raise DataError(f"{path}: not a finished run (no {BEST}); give the folder that teach or distill wrote")
    stored = read_checkpoint(checkpoint, ("config", "state"))
    config = from_dict(TrainConfig, stored["config"])
    # The weights are about to be loaded: a pretrained backbone need not be fetched again.
    options = {k: (False if k == "pretrained" else v) for k, v in config.model.options.items()}
    model = build_model(config.model.name, options)
    try:
        model.load_state_dict(stored["state"], strict=True)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise DataError(f"{checkpoint}: not a checkpoint of this version: {error}") from error
    return model.eval(), config


def trained_on(path: str | Path) -> frozenset[str]:
    """Names of the sessions that a run was trained on, with poses or without; none where its record is not there."""
    record = Path(path) / RECORD
    if not record.is_file():
        return frozenset()
    try:
        return frozenset(json.loads(record.read_text()).get("train", ()))
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise DataError(f"{record}: not the record of a run: {error}") from error


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
