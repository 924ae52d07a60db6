"""Two processes train as one with the batches of both."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning.fabric
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from support.contexts import maps_of, prepared
from support.training_runs import STUDENT, TEACHER, metrics, write_drives
from training.data.dataset import Keyframes
from training.distillation import METHODS
from training.engine.batches import Batch, gathered, loss_terms
from training.engine.config import MethodConfig, TaskConfig, TrainConfig
from training.engine.jobs import distill, teach
from training.engine.learning import Learning
from training.engine.processes import gather_rows, run_processes
from training.engine.runs import load_run
from training.engine.task import TripletTask
from training.engine.teaching import Answers, Teaching
from training.models import EmbeddingModel
from training.sessions import load_sessions
from vpr_kd_ros.errors import ConfigError, DataError

# Weights large enough that no relation is near zero; no batch normalisation, which each process does on its own.
Array = NDArray[np.float32]
CONFIG = replace(STUDENT, task=TaskConfig(margin=5.0), devices=2)
PARTS = (Batch(np.array([24, 25, 48, 49, 12], dtype=np.int64), 4), Batch(np.array([33, 57, 49, 22, 2, 13, 7]), 3))
"""What two processes drew: different numbers of keyframes, some with poses (24 to 71) at the front, one drawn twice."""
ADAPTED = {"adaptor": "teacher"}
OPTIONS: dict[str, dict[str, Any]] = {
    "afd": {"dim": 4},
    "ickd": {},
    "structvpr": {**ADAPTED, "weights": [8.0, 4.0, 2.0, 1.0]},
}
"""Of the methods that want others than an adaptor; every group of StructVPR's counts."""
VARIANTS: dict[str, dict[str, Any]] = {
    **{name: OPTIONS.get(name, ADAPTED) for name in METHODS},
    "lsdnet, of maps and the task's triples": {**ADAPTED, "feature_weight": 1.0, "triples": "task"},
}


class Linear(EmbeddingModel):
    """Descriptors that are a linear map of one number for each of twelve inputs."""

    descriptor_dim = 6
    uses_images = True

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(12, 6)

    def forward(self, images: torch.Tensor | None, voxels: Any = None) -> torch.Tensor:
        assert images is not None
        out: torch.Tensor = self.linear(images)
        return out


def terms_and_gradients(
    fabric: lightning.fabric.Fabric, drives: Path, name: str, options: dict[str, Any], config: TrainConfig
) -> dict[str, Array]:
    """One step on both parts, each in its process or one after the other in a single one."""
    train = Keyframes(load_sessions([drives / "train"]), None)
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(len(train), 12, generator=generator)
    taught = torch.randn(len(train), 8, generator=generator)
    torch.manual_seed(1)
    model, method = Linear(), prepared(name, options, taught, inputs, teacher_dim=8, student_dim=6)
    learning = Learning(fabric, model, method, config)
    parts = [PARTS[fabric.global_rank]] if fabric.world_size == 2 else list(PARTS)
    described = torch.cat([learning.learner(inputs[part.indices]) for part in parts])
    batch, rows = gathered(parts[0])
    if fabric.world_size == 1:
        rows = np.array([0, 1, 2, 3, 5, 6, 7, 4, 8, 9, 10, 11])
        batch = Batch(np.concatenate([part.indices for part in parts])[rows], 7)
    student = Answers(described, maps_of(described) if method.needs_maps else ()).gathered(rows)
    of_parts = taught[np.concatenate([part.indices for part in parts])]
    live = Answers(of_parts, maps_of(of_parts)).gathered(rows) if method.needs_maps else None
    assert learning.method is not None
    teaching = Teaching(learning.method, taught.numpy())
    terms = loss_terms(batch, student, live, train, TripletTask(config.task), teaching, config, 0.0)
    learning.update(terms)
    gradients = {f"gradient/{k}": v.grad.clone() for k, v in model.named_parameters() if v.grad is not None}
    adaptor = {f"adaptor/{k}": v.grad.clone() for k, v in method.named_parameters() if v.grad is not None}
    weights = {f"weight/{k}": v.detach().clone() for k, v in torch.nn.ModuleList([model, method]).named_parameters()}
    found = {**{k: v.detach() for k, v in terms.items()}, **gradients, **adaptor, **weights}
    return {key: value.numpy() for key, value in found.items()}


def gather_uneven(fabric: lightning.fabric.Fabric) -> tuple[list[Any], list[Any]]:
    rank = fabric.global_rank
    own = (torch.arange(2 * (1 + 2 * rank), dtype=torch.float64).reshape(-1, 2) + 100 * rank).requires_grad_()
    rows = gather_rows(own)
    # Both processes have the same loss: each row's gradient comes twice, and DDP's mean halves it.
    (rows * torch.arange(rows.numel()).reshape(rows.shape)).sum().backward()
    assert own.grad is not None
    return rows.tolist(), (gather_rows(own.grad) / fabric.world_size).tolist()


def everything(
    fabric: lightning.fabric.Fabric, drives: Path, config: TrainConfig
) -> tuple[dict[str, dict[str, Array]], tuple[list[Any], list[Any]]]:
    """All that the tests compare, because processes start slowly."""
    torch.set_num_threads(1)
    found = {
        name: terms_and_gradients(fabric, drives, name.partition(",")[0], options, config)
        for name, options in VARIANTS.items()
    }
    return found, gather_uneven(fabric)


@pytest.fixture(scope="module")
def drives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_drives(tmp_path_factory.mktemp("drives"))


def test_two_processes_have_the_losses_and_gradients_of_one_with_both_batches(drives: Path) -> None:
    two, (rows, gradient) = run_processes(CONFIG, partial(everything, drives=drives, config=CONFIG))
    assert rows == [[0, 1], [100, 101], [102, 103], [104, 105]], "in order, whatever their number"
    assert gradient == [[0, 1], [2, 3], [4, 5], [6, 7]]
    alone = replace(CONFIG, devices=1)
    one, _ = run_processes(alone, partial(everything, drives=drives, config=alone))
    for name in VARIANTS:
        assert two[name].keys() == one[name].keys()
        assert {"task", "gradient/linear.weight"} < set(two[name])
        assert "adaptor" not in VARIANTS[name] or "adaptor/adaptor.linear.weight" in two[name]
        for key, expected in one[name].items():
            assert np.abs(expected).max() > 0 or key.startswith("adaptor"), f"{name} {key}: nothing is compared"
            assert two[name][key].shape == expected.shape
            np.testing.assert_allclose(two[name][key], expected, rtol=2e-5, atol=1e-6, err_msg=f"{name} {key}")


def fail(fabric: lightning.fabric.Fabric, error: type[Exception]) -> None:
    raise error("drives/sun: a file is missing; copy it")


def test_an_error_in_a_process_is_the_error_of_the_training() -> None:
    with pytest.raises(DataError, match=r"^drives/sun: a file is missing; copy it$"):
        run_processes(CONFIG, partial(fail, error=DataError))


def test_a_precision_or_device_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="bf15"):
        run_processes(replace(CONFIG, devices=1, precision="bf15"), partial(fail, error=DataError))


def test_two_processes_train_a_student_and_one_writes_the_run(drives: Path, tmp_path: Path) -> None:
    train, validation = load_sessions([drives / "train"]), load_sessions([drives / "validation"])
    config = replace(
        STUDENT, method=MethodConfig("distilvpr", {"adaptor": "teacher"}), steps=4, validate_every=2, devices=2
    )
    teach(replace(TEACHER, steps=2), train, validation, tmp_path / "teacher")
    distill(config, train, validation, tmp_path / "run", tmp_path / "teacher")
    assert [line["step"] for line in metrics(tmp_path / "run")] == [2, 4, 4], "only one process writes"
    weights = load_run(tmp_path / "run")[0].state_dict()
    assert all(torch.isfinite(value).all() for value in weights.values())
    assert len(list((tmp_path / "teacher" / "cache").iterdir())) == 1
    assert not (tmp_path / "run" / "last.pt").exists()
