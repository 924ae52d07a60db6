"""Sessions gain semantic labels from segmentation networks; the class maps cover their data sets."""

from __future__ import annotations

import csv
import importlib.util
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torchvision import models

from support.sessions import loop_session
from support.training_runs import STUDENT, metrics
from training.__main__ import main
from training.engine.config import ModelConfig
from training.engine.jobs import teach
from training.labelling import label as labelling
from training.labelling.class_maps import FOLDER, known_class_maps, load_class_map
from training.labelling.label import LabelConfig, label_sessions
from training.labelling.networks import Segmenter, TorchvisionSegmenter
from training.session_labels import SessionLabels
from training.sessions import CLASSES, Session, load_sessions
from vpr_kd_ros.errors import ConfigError, DataError, MissingDependencyError

NETWORK = "lraspp_mobilenet_v3_large"
SMALL = {"network": NETWORK, "short_side_px": 48}
ADE = 150
has_transformers = importlib.util.find_spec("transformers") is not None
needs_transformers = pytest.mark.skipif(not has_transformers, reason="transformers is not installed")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of 19 classes that was never trained."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "lraspp.pth"
    torch.save(models.get_model(NETWORK, weights=None, weights_backbone=None, num_classes=19).state_dict(), path)
    return path


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return loop_session(tmp_path / "sessions" / "sun", "sun", "town", 4, 0, clouds=False)


class Brightness(Segmenter):
    """Class 0 (road of cityscapes-19) where a pixel is dark, class 10 (sky) where it is bright; counts its images."""

    def __init__(self) -> None:
        self.network = torch.nn.Identity()
        self.calls = 0
        self.fail_at = -1

    def scores(self, image: np.ndarray[Any, Any]) -> torch.Tensor:
        if self.calls == self.fail_at:
            raise KeyboardInterrupt
        self.calls += 1
        bright = torch.from_numpy(image.mean(axis=2)) - 127.5
        scores = torch.full((1, 19, *image.shape[:2]), -1e3, dtype=torch.float64)
        scores[0, 0], scores[0, 10] = -bright, bright
        return scores


@pytest.fixture
def brightness(monkeypatch: pytest.MonkeyPatch) -> Brightness:
    network = Brightness()
    monkeypatch.setattr(labelling, "load_segmenter", lambda *_: network)
    return network


CITYSCAPES = LabelConfig(network="brightness", classes="cityscapes-19")


@pytest.mark.parametrize(("name", "count"), [("ade20k-150", ADE), ("cityscapes-19", 19), ("voc-21", 21)])
def test_a_class_map_has_every_class_of_its_data_set_once(name: str, count: int) -> None:
    with (FOLDER / f"{name}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["id"]) for row in rows] == list(range(count))
    assert len({row["name"] for row in rows}) == count
    found = load_class_map(name)
    assert [CLASSES[target] for target in found.targets] == [row["class"] for row in rows]
    assert found.targets.dtype == np.uint8
    assert name in known_class_maps()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "ade20k-150",
            {
                0: ("wall", "buildings"), 1: ("building", "buildings"), 2: ("sky", "sky"), 4: ("tree", "vegetation"),
                6: ("road", "ground"), 11: ("sidewalk", "ground"), 12: ("person", "dynamic"), 13: ("earth", "ground"),
                17: ("plant", "vegetation"), 20: ("car", "dynamic"), 25: ("house", "buildings"),
                43: ("signboard", "other"), 48: ("skyscraper", "buildings"), 80: ("bus", "dynamic"),
                83: ("truck", "dynamic"), 87: ("streetlight", "other"), 93: ("pole", "other"),
                102: ("van", "dynamic"), 127: ("bicycle", "dynamic"), 136: ("traffic light", "other"),
                149: ("flag", "other"),
            },
        ),
        (
            "cityscapes-19",
            {
                0: ("road", "ground"), 1: ("sidewalk", "ground"), 2: ("building", "buildings"), 5: ("pole", "other"),
                8: ("vegetation", "vegetation"), 10: ("sky", "sky"), 11: ("person", "dynamic"),
                13: ("car", "dynamic"), 18: ("bicycle", "dynamic"),
            },
        ),
        ("voc-21", {0: ("background", "other"), 7: ("car", "dynamic"), 15: ("person", "dynamic")}),
    ],
)  # fmt: skip
def test_classes_are_what_they_are(name: str, expected: dict[int, tuple[str, str]]) -> None:
    found = load_class_map(name)
    assert {i: (found.names[i], CLASSES[found.targets[i]]) for i in expected} == expected


def test_the_order_of_voc_is_that_of_torchvisions_weights() -> None:
    other_names = {"__background__": "background", "diningtable": "dining table", "pottedplant": "potted plant",
                   "tvmonitor": "television"}  # fmt: skip
    categories = models.get_model_weights(NETWORK).DEFAULT.meta["categories"]
    assert list(load_class_map("voc-21").names) == [other_names.get(name, name) for name in categories]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,name\n0,road\n", "the first line wants to be id,name,class"),
        ("id,name,class\n0,road,ground\n2,sky,sky\n", r"line 3: the id wants to be 1, got '2'"),
        ("id,name,class\n0,house,building\n", r"line 2: no class 'building' \(did you mean 'buildings'"),
        ("id,name,class\n", "holds no class"),
    ],
)
def test_a_class_map_of_the_users_own_is_checked(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        load_class_map(str(path))


def test_a_class_map_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'ade20k' .did you mean 'ade20k-150'.*cityscapes-19, voc-21"):
        load_class_map("ade20k")
    with pytest.raises(DataError, match=r"own\.csv: not a readable class map"):
        load_class_map(str(tmp_path / "own.csv"))


def test_labels_are_the_classes_of_the_images_pixels(session: Session, brightness: Brightness) -> None:
    before = pq.read_table(session.path / "keyframes.parquet")
    assert label_sessions([session], CITYSCAPES) == [f"{session.path}: 4 images labelled"]
    labelled = Session(session.path)
    assert labelled.has_semantics
    for index in range(4):
        bright = labelled.image(index).mean(axis=2) > 127.5
        expected = np.where(bright, CLASSES.index("sky"), CLASSES.index("ground"))
        assert np.array_equal(labelled.semantics(index), expected)
    after = pq.read_table(session.path / "keyframes.parquet")
    assert after.schema == before.schema
    assert after.drop(["labels"]) == before.drop(["labels"])
    assert sorted(path.name for path in session.path.iterdir()) == [
        "images", "keyframes.parquet", "labels", "session.json",
    ]  # fmt: skip
    source = json.loads((session.path / "labels" / "source.json").read_text())
    assert (source["network"], source["classes"]) == ("brightness", "cityscapes-19")


def test_a_session_with_labels_is_left_unless_they_are_to_be_replaced(session: Session, brightness: Brightness) -> None:
    label_sessions([session], CITYSCAPES)
    first = Session(session.path)
    assert label_sessions([first], CITYSCAPES) == [f"{session.path}: has labels already"]
    assert brightness.calls == 4
    own = session.path.parent / "own.csv"
    own.write_text("id,name,class\n" + "".join(f"{i},class {i},buildings\n" for i in range(19)))
    label_sessions([first], LabelConfig(network="brightness", classes=str(own), overwrite=True))
    assert set(np.unique(Session(session.path).semantics(0))) == {CLASSES.index("buildings")}
    assert not list(session.path.glob(".*"))


def test_an_interrupted_labelling_leaves_the_session_and_is_gone_on_with(
    session: Session, brightness: Brightness
) -> None:
    brightness.fail_at = 2
    with pytest.raises(KeyboardInterrupt):
        label_sessions([session], CITYSCAPES)
    assert not Session(session.path).has_semantics
    assert not (session.path / "labels").exists()
    (session.path / ".labels.partial" / ".000002.png").write_bytes(b"half of a")  # as a killed process leaves it
    brightness.fail_at = -1
    report = label_sessions([Session(session.path)], CITYSCAPES)
    assert report == [f"{session.path}: 2 images labelled, 2 before"]
    assert brightness.calls == 4
    assert Session(session.path).has_semantics
    assert sorted(path.name for path in (session.path / "labels").iterdir()) == [
        "000000.png", "000001.png", "000002.png", "000003.png", "source.json",
    ]  # fmt: skip


def test_half_of_the_labels_of_another_network_is_not_kept(session: Session, brightness: Brightness) -> None:
    brightness.fail_at = 3
    with pytest.raises(KeyboardInterrupt):
        label_sessions([session], CITYSCAPES)
    brightness.fail_at = -1
    assert label_sessions([session], replace(CITYSCAPES, network="other"))[0].endswith(": 4 images labelled")


def test_labels_whose_folder_was_lost_between_two_steps_are_written_again(
    session: Session, brightness: Brightness
) -> None:
    label_sessions([session], CITYSCAPES)
    shutil.move(session.path / "labels", session.path / ".labels.partial")
    assert label_sessions([Session(session.path)], CITYSCAPES) == [f"{session.path}: 0 images labelled, 4 before"]
    assert Session(session.path).semantics(3) is not None


def test_what_is_no_label_image_is_refused(session: Session) -> None:
    labels = SessionLabels(session, {})
    for wrong in (np.zeros((4, 4)), np.full((4, 4), 6, np.uint8), np.zeros((4, 4, 3), np.uint8)):
        with pytest.raises(DataError, match="labels of keyframe 0"):
            labels.add(0, wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no labels of the keyframes"):
        labels.finish()
    assert not Session(session.path).has_semantics


def test_a_network_of_torchvision_from_a_file(session: Session, weights: Path) -> None:
    config = LabelConfig(weights=str(weights), classes="cityscapes-19", **SMALL)
    label_sessions([session], config)
    classes = load_class_map("cityscapes-19")
    network = models.get_model(NETWORK, weights=None, weights_backbone=None, num_classes=19).eval()
    network.load_state_dict(torch.load(weights, weights_only=True))
    image = torch.from_numpy(session.image(2)).permute(2, 0, 1)[None].float() / 255
    image = torch.nn.functional.interpolate(image, size=(48, 64), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(x)[:, None, None] for x in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    with torch.no_grad():
        scores = network((image - mean) / std)["out"]
    found = torch.nn.functional.interpolate(scores, size=(24, 32), mode="bilinear")[0].argmax(0).numpy()
    written = Session(session.path).semantics(2)
    # Images of whole numbers round: where two classes are as good as one another they may change places.
    assert (written == classes.targets[found]).mean() > 0.95


def test_labels_feed_the_segmentation_teacher(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("train", "validation"):
        for seed, name in enumerate(("sun", "night")):
            loop_session(tmp_path / part / name, f"{part}-{name}", part, 12, seed, clouds=False)
    paths = [str(tmp_path / "train"), str(tmp_path / "validation")]
    command = ["label", *paths, "--network", NETWORK, "--weights", str(weights), "--classes", "cityscapes-19",
               "--short_side_px", "48"]  # fmt: skip
    assert main(command) == 0
    assert capsys.readouterr().out.count("12 images labelled") == 4
    config = replace(STUDENT, model=ModelConfig("structvpr-seg"), pairing=replace(STUDENT.pairing, positive_m=22.0,
                     negative_m=30.0), height=32, width=32, steps=2, validate_every=2)  # fmt: skip
    teach(config, load_sessions([paths[0]]), load_sessions([paths[1]]), tmp_path / "run")
    assert np.isfinite(metrics(tmp_path / "run")[0]["loss"])


@needs_transformers
def test_a_network_of_transformers_from_a_folder(session: Session, tmp_path: Path) -> None:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

    torch.manual_seed(1)
    network = SegformerForSemanticSegmentation(
        SegformerConfig(
            num_labels=ADE, depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 16, 16], num_attention_heads=[1, 1, 2, 2],
            decoder_hidden_size=16,
        )
    ).eval()  # fmt: skip
    network.save_pretrained(tmp_path / "segformer")
    processor = SegformerImageProcessor(size={"height": 64, "width": 96})
    processor.save_pretrained(tmp_path / "segformer")
    label_sessions([session], LabelConfig(network=str(tmp_path / "segformer"), classes="ade20k-150"))
    with torch.no_grad():
        outputs = network(**processor(images=session.image(1), return_tensors="pt"))
    (found,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[(24, 32)])
    assert np.array_equal(Session(session.path).semantics(1), load_class_map("ade20k-150").targets[found.numpy()])
    with pytest.raises(ConfigError, match=r"tells 150 classes, and the class map cityscapes-19 is of 19"):
        label_sessions([session], LabelConfig(network=str(tmp_path / "segformer"), classes="cityscapes-19"))


@needs_transformers
def test_a_network_that_cannot_be_fetched_says_what_to_bring(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(DataError, match=r"hf download owner/network --local-dir FOLDER.*--network FOLDER"):
        label_sessions([session], LabelConfig(network="owner/network", classes="ade20k-150"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: the folder holds no segmentation network"):
        label_sessions([session], LabelConfig(network=str(tmp_path / "empty"), classes="ade20k-150"))


def test_without_transformers_the_install_line_is_given(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingDependencyError, match="pip install transformers"):
        label_sessions([session], LabelConfig(network="owner/network", classes="ade20k-150"))


def test_torchvisions_weights_that_cannot_be_downloaded_are_named(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(DataError, match=r"no network.*download https://\S+\.pth elsewhere.*--weights"):
        label_sessions([session], LabelConfig(classes="voc-21", **SMALL))


def test_networks_weights_and_classes_that_do_not_fit_name_the_mend(
    session: Session, weights: Path, tmp_path: Path
) -> None:
    junk = tmp_path / "junk.pth"
    junk.write_bytes(b"not weights")
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"classes": "ade20k-150"}, ConfigError, "the 21 classes of VOC.*--classes voc-21"),
        ({"classes": "ade20k-150", "weights": str(weights)}, DataError, "with the 150 classes of ade20k-150: .*size"),
        ({"classes": "cityscapes-19", "weights": str(junk)}, DataError, r"junk\.pth does not hold those of lraspp"),
        ({"classes": "cityscapes-19", "weights": str(tmp_path / "no.pth")}, DataError, r"no\.pth is not a file"),
        ({"classes": "voc-21", "network": "lraspp_mobilenet_v3"}, ConfigError, "did you mean 'lraspp_mobilenet_v3_l"),
        ({"classes": "voc-21", "network": "a/b", "weights": str(weights)}, ConfigError, "brings its own"),
    ]
    for options, error, message in wrong:
        with pytest.raises(error, match=message):
            label_sessions([session], LabelConfig(**{**SMALL, **options}))
    with pytest.raises(ConfigError, match="short_side_px must be at least 32"):
        LabelConfig(network=NETWORK, classes="voc-21", short_side_px=3)
    assert not list(session.path.glob(".*")), "nothing is begun"


def test_weights_with_a_second_classifier_are_taken(tmp_path: Path) -> None:
    torch.manual_seed(2)
    for auxiliary in (True, False):
        network = models.get_model(
            "deeplabv3_mobilenet_v3_large", weights=None, weights_backbone=None, num_classes=19, aux_loss=auxiliary
        )
        torch.save(network.state_dict(), tmp_path / "deeplab.pth")
        segment = TorchvisionSegmenter(
            "deeplabv3_mobilenet_v3_large", str(tmp_path / "deeplab.pth"), load_class_map("cityscapes-19"), 64,
            torch.device("cpu"),
        )  # fmt: skip
        classes = segment(np.zeros((40, 30, 3), dtype=np.uint8))
        assert classes.shape == (40, 30)
        assert classes.dtype == np.int64
