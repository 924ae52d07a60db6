"""NetVLAD, SAVLAD and the PCA layer by their definitions; the sizes of LSDNet's Table III."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import sklearn.decomposition
import torch
from torch import Tensor

from training.models import build_model, with_pca
from training.models.netvlad import NetVLAD, VLADEncoder
from training.models.pca import PCA
from training.models.savlad import SAVLAD
from training.models.trunks import Trunk
from vpr_kd_ros.errors import ConfigError, DataError


def random_map(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def soft_assignment(pool: NetVLAD, x: np.ndarray) -> np.ndarray:
    """Of one local feature, by the definition: exp(-a |x - c|^2), or the 1x1 convolution."""
    if pool.assign is None:
        distance = ((x - pool.centroids.detach().numpy()) ** 2).sum(axis=1)
        scores = np.exp(-float(pool.sharpness) * distance)
    else:
        weight = pool.assign.weight.detach().numpy()[:, :, 0, 0]
        scores = np.exp(weight @ x + pool.assign.bias.detach().numpy())
    return scores / scores.sum()


def residuals(pool: NetVLAD, features: np.ndarray) -> np.ndarray:
    """(N, K, D): a_k(x_i) (x_i - c_k)."""
    centroids = pool.centroids.detach().numpy()
    rows = [unit(x) for x in features]
    return np.stack([soft_assignment(pool, x)[:, None] * (x[None] - centroids) for x in rows])


@pytest.mark.parametrize("assignment", ["tied", "untied"])
def test_netvlad_is_the_sum_of_softly_assigned_residuals(assignment: str) -> None:
    torch.manual_seed(0)
    pool = NetVLAD(6, 3, assignment).double()
    x = random_map(2, 6, 4, 5)
    out = pool(x).detach().numpy()
    for b in range(2):
        words = residuals(pool, x[b].flatten(1).T.numpy()).sum(axis=0)
        expected = unit(np.concatenate([unit(word) for word in words]))
        np.testing.assert_allclose(out[b], expected, atol=1e-12)


@pytest.mark.parametrize("attention_input", ["features", "residuals"])
def test_savlad_refines_residuals_before_summing_them(attention_input: str) -> None:
    torch.manual_seed(0)
    pool = SAVLAD(6, 3, attention_dim=4, attention_input=attention_input).double()
    with torch.no_grad():
        pool.gamma.copy_(torch.tensor([0.5, 2.0, 1.0]))
        for layer in (pool.query, pool.key):
            layer.weight *= 5  # so that attention is far from even
    x = random_map(2, 6, 3, 4)
    out = pool(x).detach().numpy()
    even = NetVLAD.weights(pool, torch.nn.functional.normalize(x, dim=1)).detach()
    for b in range(2):
        features = x[b].flatten(1).T.numpy()
        r = residuals(pool, features)
        flat = r.reshape(len(r), -1)
        places = flat if attention_input == "residuals" else np.stack([unit(row) for row in features])
        query, key = (
            places @ layer.weight.detach().numpy().T + layer.bias.detach().numpy() for layer in (pool.query, pool.key)
        )
        attention = np.exp(query @ key.T / math.sqrt(4))
        attention /= attention.sum(axis=1, keepdims=True)
        words = (attention @ flat).reshape(r.shape).sum(axis=0)
        saliency = unit(np.array([0.5, 2.0, 1.0]))
        expected = np.concatenate([s * unit(word) for s, word in zip(saliency, words, strict=True)])
        np.testing.assert_allclose(out[b], expected, atol=1e-12)
        assert np.linalg.norm(out[b]) == pytest.approx(1)
    assert not torch.allclose(pool.weights(torch.nn.functional.normalize(x, dim=1)), even, atol=1e-2)


@pytest.mark.parametrize("assignment", ["tied", "untied"])
def test_clustering_finds_the_clusters_and_the_sharpness_of_the_authors(assignment: str) -> None:
    generator = torch.Generator().manual_seed(1)
    centres = torch.nn.functional.normalize(torch.randn(4, 16, generator=generator), dim=1)
    rows = centres.repeat(100, 1) * 3 + 0.05 * torch.randn(400, 16, generator=generator)
    pool = NetVLAD(16, 4, assignment)
    pool.init_from_descriptors(rows)
    near = torch.cdist(centres, pool.centroids.detach()).min(dim=1).values
    assert near.max() < 0.05
    units = torch.nn.functional.normalize(rows, dim=1)
    top = pool.weights(units[:, :, None, None])[:, :, 0, 0].log().topk(2, dim=1).values
    assert (top[:, 0] - top[:, 1]).mean().item() == pytest.approx(math.log(100), rel=1e-3)
    again = NetVLAD(16, 4, assignment)
    again.init_from_descriptors(rows)
    assert torch.equal(again.centroids, pool.centroids)


@pytest.mark.parametrize("rows", [torch.ones(50, 16), torch.randn(3, 16), torch.full((50, 16), torch.nan)])
def test_clustering_of_unusable_features_says_why(rows: Tensor) -> None:
    with pytest.raises(DataError, match="clustering"):
        NetVLAD(16, 4).init_from_descriptors(rows)


def test_an_encoder_initialises_from_images_without_changing_its_mode_or_backbone() -> None:
    torch.manual_seed(0)
    model = build_model("lsdnet", {"clusters": 4, "trainable_blocks": 18}).train()
    assert isinstance(model, VLADEncoder)
    before = copy.deepcopy(model.features.state_dict())
    model.initialise(iter([torch.randn(2, 3, 96, 96)]))
    assert model.training
    after = model.features.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    features = torch.nn.functional.normalize(model.eval().features(torch.randn(1, 3, 96, 96)), dim=1)
    assert torch.cdist(features.flatten(2)[0].T, model.pool.centroids).min() < 0.9
    with pytest.raises(DataError, match="clustering"):
        model.initialise([])


@pytest.mark.parametrize(
    ("name", "options", "dimension", "learnt", "total"),
    [
        ("netvlad", {}, 32_768, 7_112_192, 14_747_456),
        ("netvlad", {"backbone": "resnet18"}, 16_384, 2_116_096, 2_799_168),
        ("netvlad", {"backbone": "mobilenetv2"}, 20_480, 494_400, 1_832_192),
        ("lsdnet", {}, 20_480, 609_960 + 64, 1_947_752 + 64),  # the table leaves out the 64 cluster weights
    ],
)
def test_sizes_are_those_of_the_table(name: str, options: dict, dimension: int, learnt: int, total: int) -> None:
    model = build_model(name, options)
    assert model.descriptor_dim == dimension
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == learnt
    assert sum(p.numel() for p in model.parameters()) == total


def test_frozen_blocks_keep_weights_and_statistics_while_training() -> None:
    torch.manual_seed(0)
    model = build_model("netvlad", {"backbone": "resnet18", "clusters": 4, "trainable_blocks": 2}).train()
    assert isinstance(model.features, Trunk)
    before = copy.deepcopy(model.state_dict())
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(torch.randn(4, 3, 64, 64)).square()[:, 0].sum().backward()
    optimiser.step()
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert not [key for key in changed if key.startswith(("features.0.", "features.1."))]
    for block in ("features.2.", "features.3."):
        assert any(key.startswith(block) and key.endswith("conv1.weight") for key in changed)
        assert any(key.startswith(block) and key.endswith("running_mean") for key in changed)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("netvlad", {"backbone": "vgg"}, "did you mean 'vgg16'"),
        ("netvlad", {"backbone": "resnet18", "trainable_blocks": 5}, "0 to 4"),
        ("netvlad", {"backbone": "resnet18", "clusters": 1}, "clusters must be at least 2"),
        ("netvlad", {"backbone": "resnet18", "assignment": "tie"}, "did you mean 'tied'"),
        ("lsdnet", {"attention_input": "feature"}, "did you mean 'features'"),
        ("lsdnet", {"clusters": 2, "pca_dim": 641}, "pca_dim must be 1 to 640"),
    ],
)
def test_wrong_values_name_their_option(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model(name, options)


@pytest.mark.parametrize(("rows", "dim"), [(200, 12), (9, 30)])
@pytest.mark.parametrize("whiten", [True, False])
def test_pca_is_scikit_learns_up_to_signs(rows: int, dim: int, whiten: bool) -> None:
    rng = np.random.default_rng(0)
    data = rng.normal(size=(rows, dim)) @ rng.normal(size=(dim, dim)) + rng.normal(size=dim)
    layer = PCA(dim, 5, whiten).double()
    layer.fit(torch.from_numpy(data))
    ours = layer(torch.from_numpy(data)).numpy()
    theirs = sklearn.decomposition.PCA(5, whiten=whiten, svd_solver="full").fit_transform(data)
    np.testing.assert_allclose(np.abs(ours), np.abs(theirs), rtol=1e-5, atol=1e-6)
    if whiten:
        np.testing.assert_allclose(np.cov(ours.T), np.eye(5), atol=1e-6)


def test_pca_refuses_what_it_cannot_learn_from() -> None:
    layer = PCA(6, 3, whiten=True)
    with pytest.raises(DataError, match="not fitted"):
        layer(torch.zeros(1, 6))
    with pytest.raises(DataError, match="more than 3 descriptors of size 6"):
        layer.fit(torch.randn(3, 6))
    flat = torch.randn(50, 6)
    flat[:, 2:] = 0
    with pytest.raises(DataError, match="2 directions only"):
        layer.fit(flat)
    with pytest.raises(DataError, match="finite"):
        layer.fit(torch.full((9, 6), torch.inf))


def test_a_trained_model_gets_a_pca_and_exports_with_it() -> None:
    torch.manual_seed(0)
    options = {"clusters": 4, "attention_dim": 8}
    trained = build_model("lsdnet", options).eval()
    images = torch.randn(24, 3, 64, 64)
    with torch.no_grad():
        descriptors = trained(images)
    model = with_pca("lsdnet", options, trained, 7, descriptors)
    assert model.descriptor_dim == 7
    torch.testing.assert_close(model.project(descriptors), model(images), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(torch.cov(model.project(descriptors).T), torch.eye(7), rtol=0, atol=1e-3)
    reloaded = build_model("lsdnet", {**options, "pca_dim": 7}).eval()
    reloaded.load_state_dict(model.state_dict())
    exported = torch.export.export(
        reloaded, (images[:2],), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},), strict=False
    )
    torch.testing.assert_close(exported.module()(images[:5]), model(images[:5]), rtol=1e-3, atol=1e-3)
    with pytest.raises(ConfigError, match="no option 'pca_dim'"):
        with_pca("small-resnet-gem", {}, build_model("small-resnet-gem", {}), 7, descriptors)
