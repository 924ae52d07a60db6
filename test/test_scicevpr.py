"""SciceVPR and Super-CricaVPR: sizes of the paper, regions, batch dependence, what is frozen and handed over."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from training.models import build_model
from training.models.pooling import GeM
from training.models.scicevpr import RegionEncoder, RegionGeM, SciceVPR, SuperCricaVPR, TokenMixer
from vpr_kd_ros.errors import ConfigError, DataError

SMALL = {"backbone": "vit_small_patch14_dinov2", "height": 56, "width": 70, "width_out": 32}


def small_model(name: str, seed: int = 0, **options: object) -> RegionEncoder:
    torch.manual_seed(seed)
    model = build_model(name, {**SMALL, **options})
    assert isinstance(model, RegionEncoder)
    return model


def test_sizes_are_those_of_the_paper() -> None:
    with torch.device("meta"):
        student, teacher = build_model("scicevpr", {}), build_model("super-cricavpr", {})
    fusion = 3072 * 768 + 768 + 2 * (2 * 768 + 2 * (256 * 256 + 256)) + 1  # convolution, two mixers, p of GeM
    layer = (4 * 768 * 768 + 4 * 768) + (2 * 768 * 2048 + 2048 + 768) + 4 * 768
    for model, layers in ((student, 1), (teacher, 2)):
        assert model.descriptor_dim == 10_752
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) == fusion + layers * layer
    assert build_model("scicevpr", {**SMALL, "pca_dim": 40}).descriptor_dim == 40


def test_a_students_descriptor_does_not_depend_on_its_batch_and_a_teachers_does() -> None:
    images = torch.randn(5, 3, 56, 70, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        for name, independent in (("scicevpr", True), ("super-cricavpr", False)):
            model = small_model(name).eval()
            together = model(images)
            torch.testing.assert_close(together.norm(dim=1), torch.ones(5))
            alone = torch.cat([model(image[None]) for image in images])
            others = model(torch.cat([images[:1], torch.randn(3, 3, 56, 70)]))[:1]
            assert torch.allclose(together, alone, atol=1e-5) == independent
            assert torch.allclose(together[:1], others, atol=1e-5) == independent
            assert not torch.allclose(together[0], together[1], atol=1e-4)


def test_the_teachers_images_attend_region_by_region() -> None:
    teacher = small_model("super-cricavpr").eval()
    regions = F.normalize(torch.randn(3, 14, 32), dim=2)
    changed = regions.clone()
    changed[2, 5] = F.normalize(torch.randn(32), dim=0)
    encode = teacher.project.encoder
    difference = (encode(regions) - encode(changed)).abs().amax(dim=2)
    assert (difference[:, 5] > 1e-4).all()  # region 5 of every image sees it
    assert (difference[:, torch.arange(14) != 5] < 1e-6).all()


@pytest.mark.parametrize(("height", "width"), [(16, 16), (4, 5)])
def test_regions_are_the_whole_its_quarters_and_its_ninths(height: int, width: int) -> None:
    x = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    out = RegionGeM()(x)
    cuts = {
        4: ((0, 4), (0, 2, 4), (0, 1, 3, 4)),
        5: ((0, 5), (0, 2, 5), (0, 2, 3, 5)),
        16: ((0, 16), (0, 8, 16), (0, 5, 11, 16)),
    }
    boxes = [
        (slice(r[i], r[i + 1]), slice(c[j], c[j + 1]))
        for r, c in zip(cuts[height], cuts[width], strict=True)
        for i in range(len(r) - 1)
        for j in range(len(c) - 1)
    ]
    assert len(boxes) == 14
    for region, (rows, columns) in enumerate(boxes):
        expected = F.normalize(GeM()(x[:, :, rows, columns]), dim=1)
        torch.testing.assert_close(out[:, region], expected)


def test_a_token_mixer_mixes_places_within_a_channel() -> None:
    torch.manual_seed(0)
    mixer = TokenMixer(6, 4)
    x = torch.randn(2, 6, 4)
    out = mixer(x)
    first, _, second = mixer.mix
    for b in range(2):
        normed = torch.stack([F.layer_norm(x[b, :, place], (6,)) for place in range(4)], dim=1)
        for c in range(6):
            hidden = torch.relu(first.weight @ normed[c] + first.bias)
            torch.testing.assert_close(out[b, c], x[b, c] + second.weight @ hidden + second.bias)


def test_the_last_layers_are_joined_after_the_last_norm() -> None:
    model = small_model("scicevpr", layers=2).eval()
    backbone = model.features.backbone
    images = torch.randn(2, 3, 56, 70)
    seen: list[torch.Tensor] = []
    hooks = [block.register_forward_hook(lambda _, __, out: seen.append(out)) for block in backbone.network.blocks]
    maps = backbone(images)
    for hook in hooks:
        hook.remove()
    norm = backbone.network.norm
    expected = [norm(tokens)[:, 1:].transpose(1, 2).reshape(2, 384, 4, 5) for tokens in seen[-2:]]
    torch.testing.assert_close(maps, torch.cat(expected, dim=1))


def test_the_student_inherits_the_teachers_convolution_frozen_and_the_backbone_never_learns() -> None:
    teacher, student = small_model("super-cricavpr", seed=1), small_model("scicevpr", seed=2)
    assert isinstance(teacher, SuperCricaVPR)
    assert isinstance(student, SciceVPR)
    mixer = student.features.mixers[0].mix[0].weight.clone()
    student.inherit(teacher)
    assert torch.equal(student.features.fuse.weight, teacher.features.fuse.weight)
    assert torch.equal(student.features.mixers[0].mix[0].weight, mixer)
    student.train()
    assert not student.features.backbone.network.training
    student(torch.randn(2, 3, 56, 70))[:, :9].sum().backward()
    learning = {key for key, p in student.named_parameters() if p.grad is not None}
    assert not [key for key in learning if key.startswith(("features.backbone.", "features.fuse."))]
    assert any(key.startswith("features.mixers.") for key in learning)
    assert any(key.startswith("project.") for key in learning)
    with pytest.raises(ConfigError, match="1536 channels to 16, the student 1536 to 32"):
        student.inherit(small_model("super-cricavpr", width_out=16))  # type: ignore[arg-type]


def test_weights_of_another_image_size_come_from_a_file(tmp_path: Path) -> None:
    source = small_model("scicevpr", height=70, width=70).features.backbone.network
    torch.save(source.state_dict(), tmp_path / "dinov2.pth")
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04")
    loaded = small_model("scicevpr", seed=5, pretrained=str(tmp_path / "dinov2.pth")).features.backbone.network
    assert torch.equal(loaded.blocks[3].mlp.fc1.weight, source.blocks[3].mlp.fc1.weight)
    assert loaded.pos_embed.shape[1] == 4 * 5 + source.pos_embed.shape[1] - 25
    for file, message in (("cut.pth", "cut.pth does not hold"), ("nowhere.pth", "nowhere.pth is not a file")):
        with pytest.raises(DataError, match=message):
            small_model("scicevpr", pretrained=str(tmp_path / file))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "vit_base_patch14"}, "did you mean 'vit_base_patch14_dinov2'"),
        ({"height": 225}, "multiples of 14"),
        ({"width": 28}, "multiples of 14 from 42"),
        ({"width_out": 100}, "multiple of 16"),
    ],
)
def test_wrong_values_name_their_option(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model("scicevpr", options)


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"\(64, 64\) for a model of \(56, 70\)"):
        small_model("scicevpr")(torch.zeros(1, 3, 64, 64))
