"""StructVPR's two stages, from the shipped configurations on small drives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from support.sessions import loop_session
from support.training_runs import metrics
from training.data.dataset import Keyframes
from training.data.pairing import Pairing
from training.distillation.structvpr import StructVPR
from training.engine.config import TrainConfig, from_dict
from training.engine.descriptors import describe, preprocess_of
from training.engine.jobs import distill, teach
from training.engine.runs import Run, load_run
from training.sessions import Session, load_sessions
from vpr_kd_ros.errors import ConfigError

CONFIGS = Path(__file__).resolve().parents[1] / "config" / "training"
PAIRING = Pairing(positive_m=12.0, negative_m=25.0)
Drives = tuple[list[Session], list[Session]]


def small(name: str, **changes: Any) -> TrainConfig:
    """The shipped configuration with images, batches and steps for a test."""
    config = from_dict(TrainConfig, yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()))
    options = {key: value for key, value in config.model.options.items() if key != "pretrained"}
    return replace(
        config, model=replace(config.model, options=options), batch=replace(config.batch, windows=3), pairing=PAIRING,
        height=32, width=32, steps=4, validate_every=2, **changes,
    )  # fmt: skip


@pytest.fixture(scope="module")
def drives(tmp_path_factory: pytest.TempPathFactory) -> Drives:
    root = tmp_path_factory.mktemp("drives")
    for part, names in {"train": ("sun", "night", "unsurveyed"), "validation": ("sun", "night")}.items():
        for seed, name in enumerate(names):
            loop_session(
                root / part / name, f"{part}-{name}", part, 20, seed, labelled=name != "unsurveyed", condition=name,
                clouds=False, semantics=True,
            )  # fmt: skip
    return load_sessions([root / "train"]), load_sessions([root / "validation"])


@pytest.fixture(scope="module")
def branches(drives: Drives, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Stage I."""
    root = tmp_path_factory.mktemp("runs")
    for name in ("seg", "rgb"):
        teach(small(f"structvpr-{name}"), *drives, root / name)
    return root / "seg", root / "rgb"


def test_the_second_stage_distils_what_the_branches_rank(
    drives: Drives, branches: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seg, rgb = branches
    ranked: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]] = []
    ranks = StructVPR.ranks

    def watched(self: StructVPR, queries: torch.Tensor, positives: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = ranks(self, queries, positives)
        ranked.append((queries, positives, x, y))
        return x, y

    monkeypatch.setattr(StructVPR, "ranks", watched)
    distill(small("structvpr", start=str(rgb)), *drives, tmp_path / "run", seg)
    losses = [line["loss/feature"] for line in metrics(tmp_path / "run") if "loss/feature" in line]
    assert losses
    assert all(loss > 0 for loss in losses)
    # The branches as stage I left them rank the positives, of the surveyed drives alone.
    described = []
    for run in (seg, rgb):
        model, config = load_run(run)
        preprocess = preprocess_of(config)
        rows = torch.from_numpy(describe(model, Keyframes(drives[0], preprocess), preprocess)).double()
        described.append(rows / rows.norm(dim=1, keepdim=True))
    assert len(ranked) == 4
    for queries, positives, *both in ranked:
        assert len(queries) > 0
        assert max(queries.max(), positives.max()) < 40
        for rows, found in zip(described, both, strict=True):
            for q, p, rank in zip(queries.tolist(), positives.tolist(), found.tolist(), strict=True):
                drive = [i for i in range(p // 20 * 20, p // 20 * 20 + 20) if i != q]
                assert rank == sum(bool(rows[q] @ rows[i] >= rows[q] @ rows[p] - 1e-9) for i in drive)


def test_an_interrupted_second_stage_goes_on_to_the_same_weights(
    drives: Drives, branches: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seg, rgb = branches
    config = small("structvpr", start=str(rgb))
    save_last = Run.save_last

    def stop(self: Run, state: Any) -> None:
        save_last(self, state)
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "finish", lambda self, results: None)  # which drops the last state
    distill(config, *drives, tmp_path / "whole", seg)
    with monkeypatch.context() as patch:
        patch.setattr(Run, "save_last", stop)
        with pytest.raises(KeyboardInterrupt):
            distill(config, *drives, tmp_path / "stopped", seg)
    distill(config, *drives, tmp_path / "stopped", seg, resume=True)
    whole, stopped = (
        torch.load(tmp_path / name / "last.pt", weights_only=True)["training"] for name in ("whole", "stopped")
    )
    assert whole["step"] == stopped["step"] == 4
    assert whole["weights"].keys() == stopped["weights"].keys()
    assert {"1.adaptor.linear.weight"} < whole["weights"].keys()
    assert all(torch.equal(value, stopped["weights"][name]) for name, value in whole["weights"].items())
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "stopped")


def test_the_papers_sizes_need_the_papers_linear_layer(
    drives: Drives, branches: tuple[Path, Path], tmp_path: Path
) -> None:
    config = small("structvpr", start=str(branches[1]))
    options = {key: value for key, value in config.method.options.items() if key != "adaptor"}
    with pytest.raises(ConfigError, match=r"480 channels and the student's 448.*`student`"):
        distill(replace(config, method=replace(config.method, options=options)), *drives, tmp_path / "run", branches[0])
