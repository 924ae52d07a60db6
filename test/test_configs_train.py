"""Every configuration in config/training trains, by the command in its head, from the teacher that the command names.

The sessions are a small simulated town; networks, images and batches are made small by options behind the command.
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from support.shallow import shallow_dinov2
from training.__main__ import main
from training.commands import distill
from training.commands._options import config_of
from training.distillation import build_method
from training.distillation.distilvpr import AGENTS, DISTANCES, DistilVPR
from training.engine.config import TrainConfig
from training.engine.runs import load_run
from training.simulation.camera import CameraConfig
from training.simulation.dataset import SimulationConfig, plan, write_drive
from training.simulation.lidar import LidarConfig
from training.simulation.town import TownConfig
from training.simulation.traverse import DriveConfig

FOLDER = Path(__file__).resolve().parents[1] / "config" / "training"
CONFIGS = sorted(FOLDER.rglob("*.yaml"))
TOWN = SimulationConfig(
    training_regions=1,
    validation_regions=1,
    test_regions=0,
    labelled=("sun", "overcast"),
    unlabelled=("night",),
    held_out=(),
    town=TownConfig(loop_length_m=160.0, zone_length_m=50.0),
    camera=CameraConfig(height=48, width=48),
    lidar=LidarConfig(beams=6, columns=60),
    drive=DriveConfig(spacing_m=20.0),
)
SIDE = 56
SMALL_RUN = {
    "height": SIDE, "width": SIDE, "steps": 2, "validate_every": 2, "batch.windows": 3, "pairing.negative_m": 25.0,
}  # fmt: skip
RELATIONAL = {"batch.anchors": 2, "batch.neighbours": 1, "batch.among": 2}
SMALL_OPTIONS: dict[str, dict[str, Any]] = {
    "adafusion": {"image_widths": [8, 8, 8], "cloud_widths": [8, 8, 8], "voxels": [8, 8, 8]},
    "scicevpr": {"backbone": "vit_small_patch14_dinov2", "height": SIDE, "width": SIDE, "width_out": 16},
    "super-cricavpr": {"backbone": "vit_small_patch14_dinov2", "height": SIDE, "width": SIDE, "width_out": 16},
    "netvlad": {"clusters": 2},
    "lsdnet": {"clusters": 2},
}
"""Options of a model beside those that `shrink` finds by their name."""


def commands(path: Path) -> list[list[str]]:
    """The commands in the comments at the head of a configuration, each as its arguments after ``training``."""
    head = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        head.append(line.removeprefix("#").strip())
    lines = "\n".join(head).replace("\\\n", "").splitlines()
    return [shlex.split(line)[3:] for line in lines if line.startswith("python -m training ")]


def makers() -> dict[str, list[str]]:
    """The command that makes each run, by the run's name."""
    every = [command for path in CONFIGS for command in commands(path)]
    named = [(value(command, "--out"), command) for command in every if command[0] in ("teach", "distill")]
    return {out.removeprefix("runs/"): command for out, command in named if out}


def value(command: list[str], option: str) -> str | None:
    return command[command.index(option) + 1] if option in command else None


def shrink(command: list[str]) -> list[str]:
    """The options that make the command's training small."""
    config = yaml.safe_load((FOLDER.parents[1] / str(value(command, "--config"))).read_text())
    model = config["model"]
    options = dict(model.get("options", {}))
    for i, argument in enumerate(command):
        if argument.startswith("--model.options."):
            options[argument.removeprefix("--model.options.")] = yaml.safe_load(command[i + 1])
    small: dict[str, Any] = {key: number // 32 for key, number in options.items() if key.endswith("_dim")}
    small |= {
        key: small_value for key, small_value in (("pretrained", False), ("network", "resnet18")) if key in options
    }
    small |= SMALL_OPTIONS.get(model["name"], {})
    settings = {**SMALL_RUN, **{f"model.options.{key}": v for key, v in small.items()}}
    if config.get("batch", {}).get("anchors"):
        settings |= RELATIONAL
    return [part for key, v in settings.items() for part in (f"--{key}", v if isinstance(v, str) else json.dumps(v))]


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("town")
    for drive in plan(TOWN):
        write_drive(root, TOWN, drive)
    return root


@pytest.fixture(scope="module")
def run_of(sessions: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """Trains the run of a name, after the runs that it starts from."""
    folder, made = tmp_path_factory.mktemp("runs"), makers()

    def run(name: str) -> Path:
        out = folder / name
        if out.exists():
            return out
        command = made[name]
        small = shrink(command)
        teacher = value(command, "--teacher")
        if teacher is not None:
            small += ["--teacher", str(run(teacher.removeprefix("runs/")))]
        start = yaml.safe_load((FOLDER.parents[1] / str(value(command, "--config"))).read_text()).get("start")
        if start:
            small += ["--start", str(run(start.removeprefix("runs/")))]
        places = ["--train", f"{sessions}/train", "--validation", f"{sessions}/validation", "--out", str(out)]
        kept = [part for part in command if part != "..."]
        for option in ("--train", "--validation"):
            kept.remove(option)
        assert main([*kept, *small, *places]) == 0
        return out

    with shallow_dinov2(), pytest.MonkeyPatch.context() as patch:
        patch.chdir(FOLDER.parents[1])
        yield run
    shutil.rmtree(folder)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.relative_to(FOLDER).with_suffix("").as_posix())
def test_a_configuration_trains_by_the_command_in_its_head(path: Path, run_of: Callable[[str], Path]) -> None:
    own = [command for command in commands(path) if value(command, "--config") == f"config/training/{path.name}"]
    assert len(own) == 1, "the head of the file names the command that trains it"
    assert value(own[0], "--out") == f"runs/{path.stem}"
    run = run_of(path.stem)
    weights = load_run(run)[0].state_dict()
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    distilled = [key for key in line if key.startswith("loss/") and not key.startswith("loss/task")]
    assert bool(distilled) == (own[0][0] == "distill")
    record = json.loads((run / "run.json").read_text())
    assert (record["teacher"] is not None) == (own[0][0] == "distill")


def rows(path: Path) -> list[dict[str, Any]]:
    """What the rows of a table in the head of a configuration give to ``method.options``."""
    found = []
    for line in path.read_text().splitlines():
        if line.startswith("#   --method.options") or (line.startswith("#   ") and " --method.options" in line):
            option, given = line[line.index("--method") :].split("'")[:2]
            found.append({option.strip().removeprefix("--method.options."): given})
    return found


@pytest.mark.parametrize(("table", "key"), [("distilvpr-table4", "agents"), ("distilvpr-table5", "distances")])
def test_the_rows_of_distilvprs_tables_are_options_of_their_files(table: str, key: str) -> None:
    path = FOLDER / f"{table}.yaml"
    found = []
    for row in rows(path):
        options = [part for name, given in row.items() for part in (f"--method.options.{name}", given)]
        arguments = ["--train", "a", "--validation", "b", "--out", "c", "--teacher", "d"]
        parsed = distill.parser().parse_args(["--config", str(path), *options, *arguments])
        method = config_of(TrainConfig, distill.parser(), parsed).method
        built = build_method(method.name, method.options, teacher_dim=384, student_dim=384)
        assert isinstance(built, DistilVPR)
        found.append(getattr(built, key))
        assert built.settings == replace(built.settings, lambda_self=1.0, lambda_cross=0.1)
    if key == "agents":
        assert found == [("tt-ss",), ("ts-ss",), ("tt-ts",), ("tt-ss", "ts-ss")]
        assert {name for agents in found for name in agents} == set(AGENTS)
    else:
        assert found == [chosen for count in (1, 2, 3) for chosen in combinations(DISTANCES, count)]
