"""Every configuration that is shipped can be read and names what exists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from training.__main__ import main
from training.data.augment import ImageAugmentation
from training.distillation import METHODS, build_method
from training.engine.config import TrainConfig, from_dict
from training.models import build_model
from vpr_kd_ros.errors import ConfigError

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
        teacher_dim = 128 if "adaptor" in config.method.options else model.descriptor_dim
        build_method(
            config.method.name, config.method.options, teacher_dim=teacher_dim, student_dim=model.descriptor_dim
        )


def test_the_town_compares_like_with_like() -> None:
    """The distilled student differs from the plain one in what the teacher gives and in how colours are changed."""
    plain, distilled = (
        yaml.safe_load((REPOSITORY / "config" / "town" / f"{name}.yaml").read_text())
        for name in ("student", "distilvpr")
    )
    for extra in ("anchors", "neighbours", "among"):
        distilled["batch"].pop(extra, None)
    for what_the_teacher_gives in ("method", "placing"):
        distilled.pop(what_the_teacher_gives)
    # Each with the change of colour that serves it best (on the validation region), and nothing blanked in either.
    for change in ("brightness", "contrast", "saturation"):
        assert plain["image_augmentation"].pop(change) > getattr(ImageAugmentation, change)
    assert plain == distilled


def test_every_method_has_a_configuration_of_its_name() -> None:
    for name in METHODS:
        config = yaml.safe_load((REPOSITORY / "config" / "training" / f"{name}.yaml").read_text())
        assert config["method"]["name"] == name


def test_what_a_method_says_that_it_needs_is_what_it_needs() -> None:
    for name, kind in METHODS.items():
        method = build_method(name, {})
        assert len(kind.paper) > 3
        assert ("adaptor" in kind.needs) == method.needs_equal_dims, name
        assert ("in every batch" in kind.needs) == method.same_batch, name
        if method.needs_maps:
            assert "feature maps" in kind.needs, name


def test_the_readmes_table_of_methods_is_the_list_of_methods() -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in (REPOSITORY / "README.md").read_text().splitlines()
        if "config/training/" in line and line.startswith("|")
    ]
    expected = [
        [f"`{name}`", kind.paper, kind.needs, f"`distill --config config/training/{name}.yaml`"]
        for name, kind in METHODS.items()
    ]
    assert rows == expected


@pytest.mark.parametrize(
    ("values", "near"),
    [
        ({"stepz": 3}, "steps"),
        ({"batch": {"windowz": 3}}, "batch.windows"),
        ({"task": {"lozs": "triplet"}}, "task.loss"),
        ({"image_augmentation": {"brightnezs": 0.1}}, "image_augmentation.brightness"),
    ],
)
def test_unknown_keys_are_refused_with_the_near_one(
    values: dict[str, Any], near: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a file, in a stored run, and on the command line."""
    with pytest.raises(ConfigError, match=f"did you mean '{near}'"):
        from_dict(TrainConfig, {"model": {"name": "minkloc++2d"}, **values})
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"model": {"name": "minkloc++2d"}, **values}))
    places = ["--train", "a", "--validation", "b", "--out", "c"]
    ((key, value),) = values.items()
    flag, given = (f"--{key}.{next(iter(value))}", "1") if isinstance(value, dict) else (f"--{key}", str(value))
    for arguments in (["--config", str(tmp_path / "c.yaml")], ["--model.name", "minkloc++2d", flag, given]):
        assert main(["teach", *places, *arguments]) == 2
        error = capsys.readouterr().err
        assert f"did you mean '{near}'" in error
        assert len(error.splitlines()) == 2, "without the list of all options"
