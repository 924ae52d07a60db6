"""What a model takes from training images before it is trained."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from support.training_runs import STUDENT, TEACHER, write_drives
from training.data.dataset import Keyframes
from training.engine import fit
from training.engine.config import ModelConfig
from training.engine.descriptors import preprocess_of
from training.engine.jobs import teach
from training.engine.runs import load_run
from training.models import build_model
from training.models.image import SmallResNetGeM
from training.models.netvlad import NetVLAD, VLADEncoder
from training.sessions import Session, load_sessions

Drives = tuple[list[Session], list[Session]]
NETVLAD = replace(
    STUDENT, model=ModelConfig("netvlad", {"backbone": "resnet18", "clusters": 4}), learning_rate=1e-6, steps=4,
    validate_every=2,
)  # fmt: skip
PLAIN = replace(STUDENT, steps=3, validate_every=3)


@pytest.fixture(scope="module")
def drives(tmp_path_factory: pytest.TempPathFactory) -> Drives:
    root = write_drives(tmp_path_factory.mktemp("drives"))
    return load_sessions([root / "train"]), load_sessions([root / "validation"])


def same(one: Path, other: Path) -> bool:
    ours, theirs = load_run(one)[0].state_dict(), load_run(other)[0].state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_the_clusters_of_netvlad_are_those_of_the_training_images(drives: Drives, tmp_path: Path) -> None:
    for name in ("once", "again"):
        teach(NETVLAD, *drives, tmp_path / name)
    assert same(tmp_path / "once", tmp_path / "again")

    torch.manual_seed(NETVLAD.seed)
    before = build_model(NETVLAD.model.name, NETVLAD.model.options).eval()
    assert isinstance(before, VLADEncoder)
    preprocess = preprocess_of(NETVLAD)
    images = Keyframes([session for session in drives[0] if session.labelled], preprocess).images
    with torch.no_grad():
        features = F.normalize(before.features(preprocess.normalise(images)).flatten(2), dim=1)
    rows = features.transpose(1, 2).flatten(0, 1)

    def spread(pool: NetVLAD) -> float:
        """Mean squared distance of the local features to the nearest centre."""
        return float(torch.cdist(rows, pool.centroids.detach()).square().amin(dim=1).mean())

    trained = load_run(tmp_path / "once")[0]
    assert isinstance(trained, VLADEncoder)
    alone = float((rows - rows.mean(dim=0)).square().sum(dim=1).mean())
    assert spread(trained.pool) < 0.8 * alone < spread(before.pool), "nearer than one centre, their mean, would be"
    assert trained.pool.sharpness != before.pool.sharpness


def test_a_resumed_run_keeps_its_clusters(drives: Drives, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teach(NETVLAD, *drives, tmp_path / "whole")
    log = fit.Run.log

    def killed(run: fit.Run, step: int, values: dict[str, float]) -> None:
        if step == 4:
            raise KeyboardInterrupt
        log(run, step, values)

    with monkeypatch.context() as patch:
        patch.setattr(fit.Run, "log", killed)
        with pytest.raises(KeyboardInterrupt):
            teach(NETVLAD, *drives, tmp_path / "resumed")
    with monkeypatch.context() as patch:
        patch.setattr(VLADEncoder, "initialise", lambda *_: pytest.fail("the clusters were there"))
        teach(NETVLAD, *drives, tmp_path / "resumed", resume=True)
    assert same(tmp_path / "whole", tmp_path / "resumed")


def test_looking_at_the_images_changes_nothing_else(
    drives: Drives, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []

    def look(model: SmallResNetGeM, images: Iterable[torch.Tensor]) -> None:
        seen.append(torch.cat(list(images)))

    teach(PLAIN, *drives, tmp_path / "without")
    monkeypatch.setattr(SmallResNetGeM, "initialise", look)
    teach(PLAIN, *drives, tmp_path / "with")
    assert same(tmp_path / "without", tmp_path / "with")

    preprocess = preprocess_of(PLAIN)
    images = Keyframes([session for session in drives[0] if session.labelled], preprocess).images
    expected = preprocess.normalise(images)
    (found,) = seen
    nearest = torch.cdist(found.flatten(1), expected.flatten(1)).argmin(dim=1)
    assert sorted(nearest.tolist()) == list(range(len(expected))), "each image once"
    assert nearest.tolist() != list(range(len(expected))), "in random order"
    assert torch.equal(found, expected[nearest])


def test_images_that_the_model_does_not_use_are_not_read(
    drives: Drives, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Keyframes, "images", property(lambda _: pytest.fail("images were read")))
    teach(replace(TEACHER, steps=1), *drives, tmp_path / "run")
