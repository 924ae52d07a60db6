"""StructVPR's alternatives to distillation: fusion of image and labels, and labels as a second task."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from support.sessions import loop_session
from support.training_runs import STUDENT, Drives, labelled_drives, metrics
from training.engine.config import ModelConfig, TaskConfig
from training.engine.jobs import teach
from training.engine.runs import Run, load_run
from training.models import build_model
from training.models.label_fusion import ConcatFeature, ConcatInput, LabelDecoder
from vpr_kd_ros.errors import ConfigError, DataError

TWO_TASKS = replace(STUDENT, task=replace(STUDENT.task, labels_weight=0.1), steps=4, validate_every=2)


@pytest.fixture(scope="module")
def drives(tmp_path_factory: pytest.TempPathFactory) -> Drives:
    return labelled_drives(tmp_path_factory.mktemp("drives"))


# --- models -------------------------------------------------------------------------------------------------------


def test_labels_are_further_channels_of_the_image() -> None:
    torch.manual_seed(0)
    model = build_model("structvpr-concat-input", {}).eval()
    assert isinstance(model, ConcatInput)
    images, labels = torch.randn(2, 3, 64, 96), torch.randint(0, 6, (2, 64, 96))
    first = model.branch.features[0][0][0]  # type: ignore[index]
    joined = torch.cat([images, torch.zeros(2, 6, 64, 96)], dim=1)
    for channel, weight in enumerate((0.5, 0.5, 1.0, 1.0, 2.0, 2.0)):
        joined[:, 3 + channel] = weight * (labels == channel)
    seen: list[torch.Tensor] = []
    first.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    described = model(images, labels=labels)
    assert torch.equal(seen[0], joined)
    # What does not listen to the labels is the rgb-branch.
    rgb = build_model("structvpr", {}).eval()
    with torch.no_grad():
        first.weight[:, 3:] = 0
        weights = {key: value for key, value in model.branch.state_dict().items() if key != "features.0.0.0.weight"}
        rgb.load_state_dict({**weights, "features.0.0.0.weight": first.weight[:, :3]})
    torch.testing.assert_close(model(images, labels=labels), rgb(images), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(described, rgb(images), atol=1e-3)


def test_the_image_weights_of_a_wider_convolution_are_the_published_ones(tmp_path: Path) -> None:
    from torchvision.models import mobilenet_v2

    torch.manual_seed(7)
    source = mobilenet_v2(weights=None)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    model = build_model("structvpr-concat-input", {"pretrained": str(tmp_path / "weights.pth")})
    first = dict(model.named_parameters())["branch.features.0.0.0.weight"]
    assert first.shape == (32, 9, 3, 3)
    assert torch.equal(first[:, :3], source.features[0][0].weight)
    assert first[:, 3:].abs().max() > 0


def test_descriptors_side_by_side_are_as_far_apart_as_the_branches_on_average() -> None:
    torch.manual_seed(0)
    model = build_model("structvpr-concat-feature", {}).eval()
    assert isinstance(model, ConcatFeature)
    images, labels = torch.randn(4, 3, 64, 96), torch.randint(0, 6, (4, 64, 96))
    whole, rgb, seg = (
        torch.cdist(x.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist") ** 2
        for x in (model(images, labels=labels), model.branch(images), model.seg(None, labels=labels))
    )
    torch.testing.assert_close(whole, (rgb + seg) / 2, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["structvpr-concat-input", "structvpr-concat-feature"])
def test_both_inputs_are_needed(name: str) -> None:
    model = build_model(name, {})
    images, labels = torch.zeros(1, 3, 64, 64), torch.zeros(1, 64, 64, dtype=torch.uint8)
    for given in ((images, None, None), (None, None, labels)):
        with pytest.raises(DataError, match="needs images and semantic labels"):
            model(*given)


# --- the decoder --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 96), (50, 75)])
def test_the_decoder_is_u_nets(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    shapes = [(4, 32, 48), (6, 16, 24), (8, 7, 11)]
    maps = [torch.randn(2, *shape) for shape in shapes]
    decoder = LabelDecoder([4, 6, 8], 5).eval()
    weights = decoder.state_dict()

    def convolved(x: torch.Tensor, step: int, layer: int) -> torch.Tensor:
        at = f"steps.{step}.{layer}"
        x = F.conv2d(x, weights[f"{at}.0.weight"], padding=1)
        x = F.batch_norm(x, *(weights[f"{at}.1.{n}"] for n in ("running_mean", "running_var", "weight", "bias")))
        return F.relu(x)

    x = maps[2]
    for step, fine in enumerate((maps[1], maps[0])):
        x = torch.cat([F.interpolate(x, size=fine.shape[2:], mode="bilinear"), fine], dim=1)
        x = convolved(convolved(x, step, 0), step, 1)
    expected = F.interpolate(F.conv2d(x, weights["tell.weight"], weights["tell.bias"]), size=size, mode="bilinear")
    torch.testing.assert_close(decoder.logits(maps, size), expected, rtol=1e-4, atol=1e-5)


def test_pixels_without_a_class_do_not_count() -> None:
    torch.manual_seed(0)
    maps = [torch.randn(3, 4, 8, 8, requires_grad=True), torch.randn(3, 6, 4, 4)]
    decoder = LabelDecoder([4, 6], 5).eval()
    labels = torch.randint(0, 5, (3, 16, 16), dtype=torch.uint8)
    labels[0, :9] = 255
    labels[1] = 5
    logits = decoder.logits(maps, (16, 16)).detach().double()
    naive = [
        -logits[b, :, y, x].log_softmax(0)[int(labels[b, y, x])]
        for b in range(3)
        for y in range(16)
        for x in range(16)
        if labels[b, y, x] < 5
    ]
    loss = decoder(maps, labels)
    assert loss.item() == pytest.approx(torch.stack(naive).mean().item(), rel=1e-5)
    nothing = decoder(maps, torch.full_like(labels, 255))
    nothing.backward()
    assert nothing.item() == 0
    assert maps[0].grad is not None
    assert maps[0].grad.abs().max() == 0


# --- trainings ----------------------------------------------------------------------------------------------------


def test_a_second_task_changes_the_encoder_and_leaves_a_plain_run(drives: Drives, tmp_path: Path) -> None:
    teach(replace(TWO_TASKS, task=replace(TWO_TASKS.task, labels_weight=0.0)), *drives, tmp_path / "plain")
    teach(TWO_TASKS, *drives, tmp_path / "two")
    lines = [line for line in metrics(tmp_path / "two") if "loss" in line]
    assert lines
    for line in lines:
        assert line["loss"] == pytest.approx(line["loss/task"] + line["loss/task/labels"], rel=1e-5)
        # Six classes told at random.
        assert 0.1 * 0.5 < line["loss/task/labels"] < 0.1 * 3
    assert not any("loss/task/labels" in line for line in metrics(tmp_path / "plain"))
    plain, two = (load_run(tmp_path / name)[0].state_dict() for name in ("plain", "two"))
    assert plain.keys() == two.keys(), "the decoder is not kept"
    assert any(not torch.equal(value, two[key]) for key, value in plain.items())


def test_the_decoder_learns_to_tell_what_the_image_shows() -> None:
    torch.manual_seed(0)
    encoder = torch.nn.ModuleList([torch.nn.Conv2d(3, 4, 3, 2, 1), torch.nn.Conv2d(4, 6, 3, 2, 1)])
    decoder = LabelDecoder([4, 6], 3)
    optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], 1e-2)
    losses = []
    for _ in range(50):
        # Coarse patches, whose class is their brightest colour.
        patches = torch.rand(4, 3, 4, 4)
        images = F.interpolate(patches, scale_factor=8, mode="nearest")
        fine = encoder[0](images)
        loss = decoder([fine, encoder[1](fine.relu())], images.argmax(dim=1))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[0] > 0.9, "three classes told at random have log 3"
    assert sum(losses[-5:]) / 5 < 0.65


def test_an_interrupted_training_of_two_tasks_goes_on_to_the_same_weights(
    drives: Drives, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_last = Run.save_last

    def stop(self: Run, state: Any) -> None:
        save_last(self, state)
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "finish", lambda self, results: None)  # which drops the last state
    teach(TWO_TASKS, *drives, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(Run, "save_last", stop)
        with pytest.raises(KeyboardInterrupt):
            teach(TWO_TASKS, *drives, tmp_path / "stopped")
    teach(TWO_TASKS, *drives, tmp_path / "stopped", resume=True)
    whole, stopped = (
        torch.load(tmp_path / name / "last.pt", weights_only=True)["training"] for name in ("whole", "stopped")
    )
    assert whole["weights"].keys() == stopped["weights"].keys()
    assert {"1.tell.weight"} < whole["weights"].keys()
    assert all(torch.equal(value, stopped["weights"][name]) for name, value in whole["weights"].items())
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "stopped")


def test_two_processes_train_two_tasks(drives: Drives, tmp_path: Path) -> None:
    teach(replace(TWO_TASKS, devices=2, steps=2), *drives, tmp_path / "run")
    assert all(line["loss/task/labels"] > 0 for line in metrics(tmp_path / "run") if "loss" in line)


def test_what_a_second_task_lacks_is_named(drives: Drives, tmp_path: Path) -> None:
    bare = loop_session(tmp_path / "bare", "bare", "train", 24, 3, clouds=False)
    with pytest.raises(DataError, match=r"semantic labels are needed.*none: bare; simulate"):
        teach(TWO_TASKS, [drives[0][0], bare], drives[1], tmp_path / "run")
    with pytest.raises(ConfigError, match="labels_weight must not be below 0"):
        TaskConfig(labels_weight=-0.1)
    train, validation = (
        [loop_session(tmp_path / part / str(i), f"{part}-{i}", part, 24, i, semantics=True) for i in range(2)]
        for part in ("train", "validation")
    )
    cloud = replace(TWO_TASKS, model=ModelConfig("minkloc++3d", {"descriptor_dim": 16, "sparse_backend": "torch"}))
    with pytest.raises(ConfigError, match="makes no feature maps of an image"):
        teach(cloud, train, validation, tmp_path / "cloud")
