"""The models: sizes of the papers, pooling by its definition, independence of the batch, options, export."""

from __future__ import annotations

import copy
import inspect
import io
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torch import Tensor

from training.models import MODELS, build_model, describe_models, voxelise
from training.models.base import EmbeddingModel
from training.models.fusion import MinkLocFusion
from training.models.image import BasicBlock, SmallResNetGeM
from training.models.multilevel import LabelEncoding
from training.models.pooling import GeM
from vpr_kd_ros.errors import ConfigError, DataError

CLOUD_OPTIONS = {"planes": [8, 16, 16], "voxel_size": 0.1, "sparse_backend": "torch"}
BOX = {"lower": [-1.0, -1.0, -1.0], "upper": [1.0, 1.0, 1.0], "voxels": [16, 16, 8]}
DINO = {"backbone": "vit_small_patch14_dinov2", "height": 56, "width": 70, "width_out": 32}
SMALL: dict[str, dict[str, object]] = {
    "minkloc++3d": CLOUD_OPTIONS,
    "minkloc++": CLOUD_OPTIONS,
    "netvlad": {"backbone": "resnet18", "clusters": 4, "trainable_blocks": 4},
    "lsdnet": {"clusters": 4, "trainable_blocks": 18},
    "adafusion": BOX,
    "adafusion-3d": BOX,
    "super-cricavpr": DINO,
    "scicevpr": DINO,
}
"""Options that make the large models quick to build."""
SIZES = {"super-cricavpr": (56, 70), "scicevpr": (56, 70)}
"""Of the images that these models are built for."""
TEACHERS = {"resnet50-gem", "super-cricavpr"}
STUDENTS = [
    name
    for name, m in MODELS.items()
    if m.uses_images and not (m.uses_clouds or m.uses_labels) and name not in TEACHERS
]
NORMED_MODELS = [name for name, model in MODELS.items() if "output_norm" in inspect.signature(model).parameters]


def small_cloud_model(**options: object) -> EmbeddingModel:
    torch.manual_seed(0)
    return build_model("minkloc++3d", {"descriptor_dim": 16, **CLOUD_OPTIONS, **options})


def clouds(*sizes: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(size, 3, generator=generator) * 2 - 1 for size in sizes]


@pytest.mark.parametrize(
    ("name", "options", "dimension", "parameters"),
    [
        ("minkloc++3d", {}, 128, 646_122),
        ("minkloc++", {"image_dim": 128}, 256, 3_461_803),
        ("minkloc++", {}, 384, 646_122 + 2_782_784 + 256 * 256 + 256 + 1),
        ("minkloc++2d", {}, 384, 2_782_784 + 256 * 384 + 384 + 1),
        ("minkloc++2d", {"descriptor_dim": 128}, 128, 3_461_803 - 646_122),
        ("minkloc++2d", {"network": "resnet50"}, 384, 8_543_296 + 1024 * 384 + 384 + 1),
        ("resnet50-gem", {"descriptor_dim": 384}, 384, 23_508_032 + 2048 * 384 + 384 + 1),
        ("adafusion", {}, 256, 2_345_586),
        ("structvpr", {}, 448, 1_811_712),
        ("structvpr-seg", {}, 480, 1_195_880),
    ],
)
def test_sizes_are_those_of_the_papers(name: str, options: dict[str, object], dimension: int, parameters: int) -> None:
    model = build_model(name, options)
    assert model.descriptor_dim == dimension
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, {}) for name in MODELS] + [(name, {"output_norm": "batchnorm"}) for name in NORMED_MODELS],
)
def test_every_model_describes_and_every_parameter_learns(name: str, options: dict[str, object]) -> None:
    torch.manual_seed(0)
    model = build_model(name, SMALL.get(name, {}) | options)
    voxels = voxelise(clouds(300, 400, 500), model.voxel_size) if model.uses_clouds else None
    labels = torch.randint(0, 6, (3, 96, 128)) if model.uses_labels else None
    out = model(torch.randn(3, 3, *SIZES.get(name, (96, 128))), voxels, labels)
    assert out.shape == (3, model.descriptor_dim)
    assert out.dtype == torch.float32
    (out * torch.randn_like(out)).sum().backward()
    learning = {key: p for key, p in model.named_parameters() if p.requires_grad}
    still = [key for key, p in learning.items() if p.grad is None or not p.grad.isfinite().all()]
    assert learning
    assert not still
    if options:
        heads = [out] if name != "minkloc++" else [out[:, :128], out[:, 128:]]
        for head in heads:
            assert head.mean(0).abs().max() < 1e-3


@pytest.mark.parametrize("name", STUDENTS)
def test_image_models_export_with_any_batch_size(name: str) -> None:
    torch.manual_seed(0)
    norm = {"output_norm": "batchnorm"} if name in NORMED_MODELS else {}
    model = build_model(name, SMALL.get(name, {}) | norm).eval()
    size = SIZES.get(name, (64, 64))
    exported = torch.export.export(
        model, (torch.zeros(2, 3, *size),), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)
    )
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for batch in (1, 5):
        images = torch.randn(batch, 3, *size)
        torch.testing.assert_close(loaded(images), model(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["small-resnet-gem", "minkloc++2d"])
def test_an_image_descriptor_does_not_depend_on_its_batch(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(name, {}).eval()
    images = torch.randn(4, 3, 64, 96)
    together = model(images)
    torch.testing.assert_close(together, torch.cat([model(image[None]) for image in images]), rtol=1e-4, atol=1e-5)


def test_a_cloud_descriptor_does_not_depend_on_its_batch_nor_on_the_order_of_points() -> None:
    model = small_cloud_model().eval().double()
    batch = clouds(400, 0, 1, 700)
    together = model(None, voxelise(batch, 0.1))
    alone = torch.cat([model(None, voxelise([cloud], 0.1)) for cloud in batch])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)
    shuffled = [cloud[torch.randperm(len(cloud))] for cloud in batch]
    assert torch.equal(together, model(None, voxelise(shuffled, 0.1)))
    assert not torch.allclose(together[0], together[3])


def test_an_empty_cloud_has_a_descriptor_and_finite_gradients() -> None:
    for sizes in ((0,), (0, 0), (0, 300), (1,)):
        model = small_cloud_model().train()
        out = model(None, voxelise(clouds(*sizes), 0.1))
        out.sum().backward()
        assert out.isfinite().all()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    eps = torch.full((1, 16), 1e-6)
    torch.testing.assert_close(small_cloud_model().eval()(None, voxelise(clouds(0), 0.1)), eps, rtol=1e-3, atol=0)


def test_far_coordinates_give_the_same_descriptor_as_near_ones() -> None:
    model = small_cloud_model().eval().double()
    cloud = torch.rand(300, 3, dtype=torch.float64)
    near, far = (model(None, voxelise([cloud + 0.8 * steps], 0.1)) for steps in (0, -6000))
    torch.testing.assert_close(near, far, rtol=0, atol=1e-9)


def test_gem_is_the_generalised_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    for p in (1.0, 3.0, 4.5):
        pooled = GeM(p).double()(x)
        for b in range(2):
            for c in range(3):
                cells = [max(v, 1e-6) ** p for v in x[b, c].flatten().tolist()]
                assert pooled[b, c].item() == pytest.approx((sum(cells) / len(cells)) ** (1 / p), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gem_keeps_float32_for_half_precision_features(dtype: torch.dtype) -> None:
    x = torch.full((1, 2, 3, 3), 100.0).to(dtype)  # 100^3 is beyond float16
    x[:, 1] = 0
    gem = GeM()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = gem(x)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, torch.tensor([[100.0, 1e-6]]), rtol=1e-4, atol=1e-9)
    out[:, 0].sum().backward()
    assert gem.p.grad is not None
    assert gem.p.grad.isfinite().all()


def test_models_run_under_autocast() -> None:
    cloud_model, image_model = small_cloud_model().train(), build_model("small-resnet-gem", {}).train()
    voxels, images = voxelise(clouds(300, 200), 0.1), torch.randn(2, 3, 64, 64)
    for model, args in ((cloud_model, (None, voxels)), (image_model, (images,))):
        exact = model(*args)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = model(*args)
            rough.float().sum().backward()
        assert torch.nn.functional.cosine_similarity(exact, rough.float()).min() > 0.99


def test_unknown_models_and_options_name_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"minkloc3d.*did you mean 'minkloc\+\+3d'"):
        build_model("minkloc3d", {})
    with pytest.raises(ConfigError, match=r"voxelsize.*did you mean 'voxel_size'"):
        build_model("minkloc++3d", {"voxelsize": 0.1})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("minkloc++3d", {"descriptor_dim": 0}, "descriptor_dim"),
        ("minkloc++3d", {"descriptor_dim": 12.5}, "descriptor_dim must be int"),
        ("minkloc++3d", {"descriptor_dim": True}, "descriptor_dim must be int"),
        ("minkloc++3d", {"voxel_size": "large"}, "voxel_size must be float"),
        ("minkloc++3d", {"voxel_size": float("nan")}, "voxel_size"),
        ("minkloc++3d", {"planes": [32, "64"]}, "planes"),
        ("minkloc++3d", {"planes": [32, 64]}, "planes and layers"),
        ("minkloc++3d", {"planes": [], "layers": []}, "planes and layers"),
        ("minkloc++3d", {"top_down": 4}, "top_down must be 0 to 3"),
        ("minkloc++3d", {"sparse_backend": "mink"}, "torch, minkowski"),
        ("minkloc++", {"image_network": "vgg"}, "small-resnet"),
        ("minkloc++", {"image_network": "small-resnet", "pretrained": True}, "pretrained"),
        ("small-resnet-gem", {"widths": []}, "widths"),
        ("resnet18-gem", {"output_norm": "l2"}, "'none' or 'batchnorm'"),
        ("resnet18-gem", {"pretrained": 3}, "pretrained"),
        ("minkloc++2d", {"network": "resnet5"}, "did you mean 'resnet50'"),
        ("structvpr", {"pooling": "mean"}, "there is max, gem"),
        ("structvpr-seg", {"class_weights": []}, "class_weights"),
    ],
)
def test_wrong_values_name_their_option(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model(name, options)


@pytest.mark.parametrize("pooling", ["max", "gem"])
def test_multi_level_concatenation_by_its_equations(pooling: str) -> None:
    torch.manual_seed(0)
    model = build_model("structvpr", {"pooling": pooling}).eval()
    images = torch.randn(2, 3, 64, 96)
    maps = model.features(images)
    assert [tuple(x.shape[1:]) for x in maps] == [(32, 8, 12), (96, 4, 6), (320, 2, 3)]
    for b, descriptor in enumerate(model(images)):
        levels = [x[b].amax(dim=(1, 2)) if pooling == "max" else GeM()(x)[b] for x in maps]
        joined = torch.cat([level / level.norm() for level in levels])
        torch.testing.assert_close(descriptor, joined / joined.norm(), rtol=1e-4, atol=1e-5)


def test_labels_become_weighted_one_hot_maps() -> None:
    labels = torch.tensor([[[0, 1, 2], [3, 255, 2]]], dtype=torch.uint8)
    encoded = LabelEncoding([0.5, 0.25, 1.0, 2.0])(labels)
    expected = torch.zeros(1, 4, 2, 3)
    expected[0, 0, 0, 0], expected[0, 1, 0, 1], expected[0, 3, 1, 0] = 0.5, 0.25, 2.0
    expected[0, 2, 0, 2] = expected[0, 2, 1, 2] = 1.0
    assert torch.equal(encoded, expected)


def test_the_seg_branch_sees_classes_and_not_their_numbers_alone() -> None:
    torch.manual_seed(0)
    model = build_model("structvpr-seg", {}).eval()
    labels = torch.randint(0, 6, (1, 64, 96))
    assert not torch.allclose(model(None, None, labels), model(None, None, 5 - labels), atol=1e-3)


def test_a_model_without_its_input_says_so() -> None:
    with pytest.raises(DataError, match="needs semantic labels"):
        build_model("structvpr-seg", {})(torch.zeros(1, 3, 64, 64))
    with pytest.raises(DataError, match="needs images"):
        build_model("small-resnet-gem", {})(None)
    with pytest.raises(DataError, match="needs clouds"):
        small_cloud_model()(torch.zeros(1, 3, 64, 64))


def test_pretrained_weights_come_from_a_file(tmp_path: Path) -> None:
    from safetensors.torch import save_file
    from torchvision.models import resnet18

    torch.manual_seed(7)
    source = resnet18(weights=None)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    for file in ("weights.pth", "weights.safetensors"):
        model = build_model("minkloc++2d", {"pretrained": str(tmp_path / file)})
        trunk = dict(model.named_parameters())["features.0.weight"]
        assert torch.equal(trunk, source.conv1.weight)
        with pytest.raises(DataError, match="does not hold the weights of mobilenet_v2"):
            build_model("mobilenetv2-gem", {"pretrained": str(tmp_path / file)})


def test_damaged_or_missing_weights_name_the_file(tmp_path: Path) -> None:
    for name, content in {"cut.pth": b"PK\x03\x04", "empty.pth": b"", "bad.safetensors": b"\x01\x02"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=name):
            build_model("resnet18-gem", {"pretrained": str(tmp_path / name)})
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(DataError, match=r"list\.pth"):
        build_model("resnet18-gem", {"pretrained": str(tmp_path / "list.pth")})
    with pytest.raises(DataError, match=r"nowhere\.pth is not a file"):
        build_model("resnet18-gem", {"pretrained": str(tmp_path / "nowhere.pth")})


def test_weights_that_cannot_be_downloaded_name_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(DataError, match=r"https://.*resnet18.*pretrained: false"):
        build_model("minkloc++2d", {"pretrained": True})


def test_the_small_resnet_keeps_its_promised_resolution() -> None:
    maps = SmallResNetGeM().features(torch.zeros(1, 3, 96, 128))
    assert maps.shape == (1, 192, 6, 8)


@pytest.mark.parametrize("width", [4, 6, 8, 12])
def test_a_narrow_blocks_gradients_are_those_of_float64(width: int) -> None:
    """oneDNN's for a strided convolution of 1x1 over so few channels crash, hang or are wrong."""
    chance = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    block = BasicBlock(width, 2 * width, 2, torch.nn.BatchNorm2d).eval()
    precise = copy.deepcopy(block).double()
    maps = torch.randn(32, width, 32, 32, generator=chance).contiguous(memory_format=torch.channels_last)
    pull = torch.randn(32, 2 * width, 16, 16, generator=chance)
    (block(maps) * pull).sum().backward()
    (precise(maps.double()) * pull).sum().backward()
    for (name, got), want in zip(block.named_parameters(), precise.parameters(), strict=True):
        assert got.grad is not None
        assert want.grad is not None
        assert (got.grad - want.grad).norm() < 1e-5 * want.grad.norm(), name


def test_each_model_has_one_line_of_description() -> None:
    lines = describe_models()
    assert set(lines) == set(MODELS)
    assert all(len(line) > 20 and line.endswith(".") for line in lines.values())


# --- normalisation by image ---------------------------------------------------------------------------------------


def test_a_student_that_normalises_by_image_does_not_see_exposure() -> None:
    image = 4 * torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(0)) - 2
    darker = 0.5 * image - 1.0  # half the light, and another black level
    changes = []
    for norm in ("batch", "instance"):
        torch.manual_seed(0)
        model = SmallResNetGeM(16, widths=(8, 8), norm=norm).eval()
        with torch.no_grad():
            bright, dark = model(image), model(darker)
        changes.append(((bright - dark).norm() / bright.norm()).item())
    assert changes[1] < 1e-3 < changes[0]


def test_residual_branches_but_the_last_stages_are_normalised_by_image() -> None:
    features = SmallResNetGeM(16, widths=(8, 12, 16), norm="instance").features
    kinds = [[type(m).__name__ for m in block.body if "Norm" in type(m).__name__] for block in list(features)[3:]]
    assert kinds == [["InstanceNorm2d"] * 2, ["InstanceNorm2d"] * 2, ["BatchNorm2d"] * 2]
    with pytest.raises(ConfigError, match="norm"):
        SmallResNetGeM(16, norm="layer")
    with pytest.raises(ConfigError, match="norm is of image_network small-resnet"):
        MinkLocFusion(norm="instance")
