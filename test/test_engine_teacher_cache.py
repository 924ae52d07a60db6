"""A teacher's descriptors are computed once, and again as soon as anything they depend on has changed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support.sessions import loop_session
from training.data.dataset import Keyframes
from training.engine import teacher_cache
from training.engine.config import ModelConfig
from training.engine.descriptors import describe
from training.engine.teacher_cache import teacher_descriptors
from training.models import EmbeddingModel, build_model
from training.sessions import Session
from vpr_kd_ros.errors import DataError
from vpr_kd_ros.preprocess import Preprocess

MODEL = ModelConfig("small-resnet-gem", {"descriptor_dim": 5, "widths": [4]})
SIZE = Preprocess(height=12, width=16)


class Setting:
    """A teacher, its run folder, sessions, and a count of the times that the teacher had to describe them."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run = root / "teacher"
        self.run.mkdir()
        for seed, name in enumerate("ab"):
            loop_session(root / name, name, "region", 6, seed)
        self.paths = [root / "a", root / "b"]
        torch.manual_seed(0)
        self.teacher: EmbeddingModel = build_model(MODEL.name, MODEL.options).eval()
        self.computed = 0

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.computed += 1
            return describe(*args, **kwargs)

        monkeypatch.setattr(teacher_cache, "describe", counted)

    def keyframes(self, preprocess: Preprocess = SIZE) -> Keyframes:
        return Keyframes([Session(path) for path in self.paths], preprocess)

    def descriptors(self, preprocess: Preprocess = SIZE, model: ModelConfig = MODEL) -> Any:
        """From the cache or not; they must be those of a fresh computation either way."""
        found = teacher_descriptors(
            self.run, self.teacher, model, self.keyframes(preprocess), preprocess, torch.device("cpu")
        )
        np.testing.assert_array_equal(found, describe(self.teacher, self.keyframes(preprocess), preprocess))
        return found

    @property
    def files(self) -> list[Path]:
        return list((self.run / "cache").iterdir())


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    return Setting(tmp_path, monkeypatch)


def test_the_second_time_they_are_read(setting: Setting) -> None:
    first = setting.descriptors()
    again = setting.descriptors()
    assert setting.computed == 1
    assert first.dtype == again.dtype == np.float32
    assert again.shape == (12, 5)
    assert [path.suffix for path in setting.files] == [".safetensors"]


def change_a_weight(setting: Setting) -> None:
    with torch.no_grad():
        next(iter(setting.teacher.parameters())).view(-1)[0] += 1e-3


def change_a_buffer(setting: Setting) -> None:
    next(b for b in setting.teacher.buffers() if b.dtype == torch.float32).view(-1)[0] += 1e-3


def change_a_session(setting: Setting) -> None:
    path = setting.paths[0] / "session.json"
    path.write_text(path.read_text().replace('"sun"', '"rain"'))


def change_the_order(setting: Setting) -> None:
    setting.paths.reverse()


def fewer_sessions(setting: Setting) -> None:
    setting.paths.pop()


def change_the_size_of_an_image(setting: Setting) -> None:
    image = next((setting.paths[0] / "images").iterdir())
    image.write_bytes(image.read_bytes() + b"\0")


def replace_an_image_by_one_of_the_same_size(setting: Setting) -> None:
    image = next((setting.paths[0] / "images").iterdir())
    whole = image.read_bytes()
    image.write_bytes(whole[:-40] + bytes(40))
    os.utime(image, ns=(image.stat().st_atime_ns, image.stat().st_mtime_ns + 1_000_000_000))


@pytest.mark.parametrize(
    "change",
    [
        change_a_weight, change_a_buffer, change_a_session, change_the_order, fewer_sessions,
        change_the_size_of_an_image, replace_an_image_by_one_of_the_same_size,
    ],
)  # fmt: skip
def test_a_change_is_never_answered_with_what_was_before(setting: Setting, change: Any) -> None:
    setting.descriptors()
    change(setting)
    setting.descriptors()
    assert setting.computed == 2


def test_another_input_size_or_option_has_its_own_file(setting: Setting) -> None:
    setting.descriptors()
    setting.descriptors(Preprocess(height=24, width=32))
    setting.descriptors(model=ModelConfig(MODEL.name, {**MODEL.options, "output_norm": "none"}))
    assert setting.computed == len(setting.files) == 3


def test_a_damaged_file_is_computed_again_with_a_notice(setting: Setting, capsys: pytest.CaptureFixture[str]) -> None:
    setting.descriptors()
    (file,) = setting.files
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[-3] ^= 1
    for number, damaged in enumerate((whole[:50], whole[:-4], bytes(flipped), b"", b"\xff" * 200), start=2):
        file.write_bytes(damaged)
        setting.descriptors()
        assert setting.computed == number
        assert "damaged" in capsys.readouterr().out
        assert file.read_bytes() == whole
    setting.descriptors()
    assert setting.computed == 6, "the file was put right"


def test_where_nothing_can_be_kept_the_training_goes_on(setting: Setting, capsys: pytest.CaptureFixture[str]) -> None:
    (setting.run / "cache").write_text("in the way")
    setting.descriptors()
    assert "cannot be kept" in capsys.readouterr().out


def test_descriptors_that_are_not_finite_are_refused_and_not_kept(setting: Setting) -> None:
    with torch.no_grad():
        next(iter(setting.teacher.parameters())).view(-1)[0] = torch.nan
    with pytest.raises(DataError, match="not finite"):
        setting.descriptors()
    assert not (setting.run / "cache").exists()
