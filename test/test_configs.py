"""Every configuration that is shipped can be read and names what exists."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from training.distillation import build_method
from training.engine.config import TrainConfig, from_dict
from training.models import build_model

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIGS = sorted(
    [*(REPOSITORY / "config" / "training").glob("*.yaml"), *(REPOSITORY / "config" / "town").glob("*.yaml")]
)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_shipped_configurations_build_what_they_name(path: Path) -> None:
    config = from_dict(TrainConfig, yaml.safe_load(path.read_text()))
    options = {key: value for key, value in config.model.options.items() if key != "pretrained"}
    model = build_model(config.model.name, options)
    if config.method.name != "none":
        build_method(config.method.name, config.method.options, teacher_dim=128, student_dim=model.descriptor_dim)


def test_the_town_compares_like_with_like() -> None:
    """The distilled student differs from the plain one in the distillation alone."""
    plain, distilled = (
        yaml.safe_load((REPOSITORY / "config" / "town" / f"{name}.yaml").read_text())
        for name in ("student", "distilvpr")
    )
    for extra in ("anchors", "neighbours", "among"):
        distilled["batch"].pop(extra, None)
    distilled.pop("method")
    assert plain == distilled
