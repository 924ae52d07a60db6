"""Distances on manifolds against literal formulas, geoopt and arbitrary precision; their behaviour at the edges."""

from __future__ import annotations

from collections.abc import Callable

import geoopt
import mpmath
import pytest
import torch
from torch import Tensor

from support import naive_losses as naive
from support.largest_tensor import LargestTensor
from training.distillation import manifolds

C = 0.1
FORMS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "euclidean": (manifolds.euclidean_distances, naive.euclidean),
    "cosine": (manifolds.cosine_similarities, naive.cosine),
    "hyperbolic": (
        lambda x, y: manifolds.hyperbolic_distances(x, y, C),
        lambda x, y: naive.hyperbolic(x, y, C),
    ),
    "released": (
        lambda x, y: manifolds.hyperbolic_distances_released(x, y, C),
        lambda x, y: naive.hyperbolic_released(x, y, C),
    ),
}


def descriptors(seed: int, rows: int, channels: int = 6, dtype: torch.dtype = torch.float64) -> Tensor:
    """Rows whose norms run from 0.05 to 6: beyond, the literal artanh formula itself loses digits."""
    directions = torch.randn(rows, channels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    norms = torch.logspace(-1.3, 0.78, rows, dtype=torch.float64)[:, None]
    return (directions / directions.norm(dim=1, keepdim=True) * norms).to(dtype)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_values_and_gradients_are_those_of_the_formula(form: str, dtype: torch.dtype) -> None:
    fast, literal = FORMS[form]
    x, y = descriptors(0, 5, dtype=dtype).requires_grad_(), descriptors(1, 4, dtype=dtype).requires_grad_()
    weights = torch.randn(5, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    actual = fast(x, y)
    gradients = torch.autograd.grad((weights * actual).sum(), (x, y))

    x64, y64 = x.detach().double().requires_grad_(), y.detach().double().requires_grad_()
    expected = torch.stack([torch.stack([literal(a, b) for b in y64]) for a in x64])
    expected_gradients = torch.autograd.grad((weights * expected).sum(), (x64, y64))

    assert actual.dtype == torch.float64
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10)
    for gradient, exact in zip(gradients, expected_gradients, strict=True):
        assert gradient.dtype == dtype
        tolerance = 1e-8 if dtype == torch.float64 else 1e-6
        torch.testing.assert_close(gradient.double(), exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("form", FORMS)
def test_a_batch_with_itself_has_an_exact_diagonal_and_the_gradient_of_the_rest(form: str) -> None:
    fast, literal = FORMS[form]
    x = descriptors(3, 5).requires_grad_()
    actual = fast(x, x)
    expected = torch.stack([torch.stack([literal(a, b) for b in x]) for a in x])
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10)
    if form != "cosine":
        assert torch.equal(actual.diagonal(), torch.zeros(5, dtype=torch.float64))
    torch.testing.assert_close(
        torch.autograd.grad(actual.square().sum(), x)[0], torch.autograd.grad(expected.square().sum(), x)[0]
    )


@pytest.mark.parametrize("curvature", [0.1, 1.0])
def test_geoopt_agrees_on_the_exponential_map_and_the_distance(curvature: float) -> None:
    ball = geoopt.PoincareBall(c=torch.tensor(curvature, dtype=torch.float64))
    x, y = descriptors(4, 6) / 3, descriptors(5, 6) / 3
    p, q = ball.expmap0(x), ball.expmap0(y)
    torch.testing.assert_close(manifolds.exp_map_origin(x, curvature), p, rtol=1e-9, atol=1e-12)
    expected = ball.dist(p[:, None], q[None, :])
    torch.testing.assert_close(manifolds.hyperbolic_distances(x, y, curvature), expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("norm", [1e-3, 5.0, 25.0, 60.0, 120.0])
@pytest.mark.parametrize("gap", [1e-4, 0.3, 3.0])
def test_hyperbolic_distance_at_the_edge_of_the_ball_is_exact(norm: float, gap: float) -> None:
    """Out there 1 - c |p|² is far below float64's epsilon; 500 digits show what Eq. 14 and 15 give."""
    x = torch.tensor([[norm, 0.0, 0.0]], dtype=torch.float64)
    y = torch.tensor([[norm * 0.9, norm * gap, 0.1 * norm]], dtype=torch.float64)
    with mpmath.workdps(500):
        c = mpmath.mpf(C)
        p, q = ([mpmath.mpf(v) for v in row[0].tolist()] for row in (x, y))
        for point in (p, q):
            length = mpmath.sqrt(sum(v * v for v in point))
            point[:] = [mpmath.tanh(mpmath.sqrt(c) * length) * v / (mpmath.sqrt(c) * length) for v in point]
        p = [-v for v in p]
        pq, pp, qq = sum(a * b for a, b in zip(p, q, strict=True)), sum(v * v for v in p), sum(v * v for v in q)
        bottom = 1 + 2 * c * pq + c * c * pp * qq
        top = [(1 + 2 * c * pq + c * qq) * a + (1 - c * pp) * b for a, b in zip(p, q, strict=True)]
        between = mpmath.sqrt(sum((v / bottom) ** 2 for v in top))
        expected = float(2 / mpmath.sqrt(c) * mpmath.atanh(mpmath.sqrt(c) * between))
    assert manifolds.hyperbolic_distances(x, y, C).item() == pytest.approx(expected, rel=1e-9)


def test_hyperbolic_gradient_does_not_die_where_the_released_one_does() -> None:
    x, y = (30 * descriptors(seed, 1) / 0.05 for seed in (6, 7))
    for form, alive in (("hyperbolic", True), ("released", False)):
        scale = torch.ones((), dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(FORMS[form][0](scale * x, y).sum(), scale)
        assert (slope.abs() > 1) == alive, form


def test_released_points_stop_at_the_published_projection() -> None:
    x, y = (10 * descriptors(seed, 5) for seed in (13, 14))
    expected = torch.stack([torch.stack([naive.hyperbolic_released(a, b, C) for b in y]) for a in x])
    torch.testing.assert_close(manifolds.hyperbolic_distances_released(x, y, C), expected, rtol=1e-9, atol=1e-10)
    norms = manifolds.exp_map_origin(x, C).norm(dim=1) * C**0.5
    assert norms[-1].item() == pytest.approx(1 - 1e-3, rel=1e-12)


def test_released_distances_stop_where_the_published_ones_do() -> None:
    x = torch.tensor([[500.0, 0.0]])
    assert manifolds.hyperbolic_distances_released(x, -x, C).item() == pytest.approx(38.59, abs=0.01)


def test_a_zero_vector_has_the_gradient_of_its_limit() -> None:
    at_zero = torch.zeros(1, 6, dtype=torch.float64, requires_grad=True)
    near = torch.full((1, 6), 1e-7, dtype=torch.float64, requires_grad=True)
    y = descriptors(8, 3)
    for distances in (FORMS["hyperbolic"][0], FORMS["euclidean"][0]):
        zero_gradient, near_gradient = (torch.autograd.grad(distances(x, y).sum(), x)[0] for x in (at_zero, near))
        torch.testing.assert_close(zero_gradient, near_gradient, rtol=1e-5, atol=1e-5)


def test_near_pairs_of_float32_keep_their_distance() -> None:
    x = torch.nn.functional.normalize(torch.randn(1, 256, generator=torch.Generator().manual_seed(9)))
    y = x + 1e-3 / 16 * torch.sign(torch.randn(1, 256, generator=torch.Generator().manual_seed(10)))
    exact = (x.double() - y.double()).norm().item()
    assert manifolds.euclidean_distances(x, y).item() == pytest.approx(exact, rel=1e-8)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("channels", [1, 384, 8192])
def test_duplicates_are_one_point_with_a_finite_gradient(form: str, channels: int) -> None:
    x = 20 * torch.randn(3, channels, generator=torch.Generator().manual_seed(11)).repeat(5, 1)
    x.requires_grad_()
    y = x.detach().clone().flip(0).requires_grad_()
    actual = FORMS[form][0](x, y)
    same = torch.arange(15)[:, None] % 3 == torch.arange(14, -1, -1)[None, :] % 3
    if form != "cosine":
        assert (actual[same] == 0).all()
    if form in ("euclidean", "hyperbolic"):
        assert (actual[~same] > 0).all()
    for gradient in torch.autograd.grad(actual.sum(), (x, y)):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("form", FORMS)
def test_nan_is_not_hidden(form: str) -> None:
    x = descriptors(12, 4)
    x[2, 3] = torch.nan
    actual = FORMS[form][0](x, x)
    assert actual[2].isnan().all()
    assert actual[:2, :2].isfinite().all()


@pytest.mark.parametrize("form", FORMS)
def test_nothing_of_pairs_times_channels_is_held(form: str) -> None:
    x, y = (torch.randn(40, 100, dtype=torch.float64, requires_grad=True) for _ in range(2))
    with LargestTensor() as largest:
        FORMS[form][0](x, y).sum().backward()
    assert 40 * 40 <= largest.entries <= 40 * 100
