"""Losses between feature maps against loops over samples, channels and places; what they do not see; what they bear."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from support import naive_losses as naive
from training.distillation import DistillationMethod, build_method
from training.distillation.afd import MapAttention, map_distances
from training.distillation.feature_maps import NormalisedLinear
from training.distillation.ickd import lqq_loss, original_loss
from training.distillation.lsdnet import feature_loss
from training.distillation.method import Context
from vpr_kd_ros.errors import ConfigError

TEACHER_SHAPES = ((3, 6, 8), (5, 3, 4), (7, 2, 2))
STUDENT_SHAPES = ((4, 5, 7), (6, 3, 3))
ONE_NETWORK = ((3, 4, 5), (6, 2, 3))
TRIPLETS = (torch.tensor([0, 1, 3]), torch.tensor([1, 0, 4]), torch.tensor([2, 4, 0]))
Shapes = Sequence[tuple[int, int, int]]
Oracle = Callable[[DistillationMethod, Context, Tensor, Tensor], dict[str, Tensor]]


def random_maps(seed: int, shapes: Shapes, samples: int = 5) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(samples, *shape, generator=generator, dtype=torch.float64) for shape in shapes)


def descriptors(seed: int, samples: int = 5) -> Tensor:
    return torch.randn(samples, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def begun(name: str, options: dict[str, Any], teacher: Shapes, student: Shapes) -> DistillationMethod:
    torch.manual_seed(3)
    method = build_method(name, options)
    if method.needs_maps:
        method.begin_maps(teacher, student)
    for parameter in method.parameters():
        nn.init.normal_(parameter, std=0.7)
    return method.double()


def length(values: Sequence[Tensor]) -> Tensor:
    return sum((v * v for v in values), start=torch.zeros((), dtype=torch.float64)).sqrt()


def naive_layer(layer: nn.Module, rows: Sequence[Tensor]) -> list[Tensor]:
    """Each row through the linear layer, then less the mean and over the deviation of all rows."""
    assert isinstance(layer, NormalisedLinear)
    mapped = [layer.linear.weight @ row for row in rows]
    mean = sum(mapped[1:], start=mapped[0]) / len(mapped)
    variance = sum(((m - mean) ** 2 for m in mapped), start=torch.zeros_like(mean)) / len(mapped)
    return [(m - mean) / (variance + layer.norm.eps).sqrt() * layer.norm.weight + layer.norm.bias for m in mapped]


def naive_attention(attention: MapAttention, teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
    samples, dim = len(teacher[0]), attention.teacher_positions.shape[1]
    means_t, means_s = ([[m.flatten(1).mean(1) for m in maps] for maps in each] for each in (teacher, student))
    queries = [naive_layer(layer, rows) for layer, rows in zip(attention.queries, means_t, strict=True)]
    keys = [[k.clamp(min=0) for k in naive_layer(la, rows)] for la, rows in zip(attention.keys, means_s, strict=True)]
    order = [(s, n) for s in range(len(student)) for n in range(samples)]
    turned = dict(zip(order, naive_layer(attention.bilinear, [keys[s][n] for s, n in order]), strict=True))
    weights = torch.zeros(samples, len(teacher), len(student), dtype=torch.float64)
    for n in range(samples):
        for t in range(len(teacher)):
            exponents = []
            for s in range(len(student)):
                product = (queries[t][n] * turned[s, n][t * dim : (t + 1) * dim]).sum()
                place = (attention.teacher_positions[t] * attention.student_positions[s]).sum()
                exponents.append(((product + place) / dim**0.5).exp())
            for s in range(len(student)):
                weights = weights.index_put(
                    tuple(torch.tensor(i) for i in (n, t, s)), exponents[s] / sum(exponents[1:], start=exponents[0])
                )
    return weights


def pooled(grid: Tensor, height: int, width: int) -> list[Tensor]:
    """Means of a grid's (H, W) parts, row by row: part i of n is from floor(i H / n) to ceil((i + 1) H / n)."""
    parts = []
    for i in range(height):
        for j in range(width):
            rows = range(i * grid.shape[0] // height, -(-(i + 1) * grid.shape[0] // height))
            columns = range(j * grid.shape[1] // width, -(-(j + 1) * grid.shape[1] // width))
            cells = [grid[y, x] for y in rows for x in columns]
            parts.append(sum(cells[1:], start=cells[0]) / len(cells))
    return parts


def naive_afd(method: DistillationMethod, context: Context, teacher: Tensor, student: Tensor) -> dict[str, Tensor]:
    assert isinstance(method.attention, MapAttention)
    weights = naive_attention(method.attention, context.teacher_maps, context.student_maps)
    loss = torch.zeros((), dtype=torch.float64)
    for t, taught in enumerate(context.teacher_maps):
        for s, learnt in enumerate(context.student_maps):
            for n in range(len(taught)):
                expected = [v for row in (taught[n] ** 2).mean(0) for v in row]
                actual = pooled((learnt[n] ** 2).mean(0), *taught.shape[2:])
                scales = length(actual), length(expected)
                squares = [(a / scales[0] - e / scales[1]) ** 2 for a, e in zip(actual, expected, strict=True)]
                loss = loss + weights[n, t, s] * sum(squares[1:], start=squares[0]) / len(squares) / len(taught)
    return {"attended": 200 * loss}


def naive_correlations(image: Tensor, unit_channels: bool) -> list[list[Tensor]]:
    channels = [channel.flatten() for channel in image]
    if unit_channels:
        channels = [c / length(list(c)) for c in channels]
    rows = [[(a * b).sum() for b in channels] for a in channels]
    return [[value / length(row) for value in row] for row in rows]


def naive_ickd(teacher: Tensor, student: Tensor, unit_channels: bool) -> Tensor:
    """The sum of squared differences, not yet normalised."""
    total = torch.zeros((), dtype=torch.float64)
    for t, s in zip(teacher, student, strict=True):
        pairs = zip(naive_correlations(t, unit_channels), naive_correlations(s, unit_channels), strict=True)
        for expected, actual in pairs:
            total = total + sum((a - e) ** 2 for a, e in zip(actual, expected, strict=True))
    return total


def original(method: DistillationMethod, context: Context, teacher: Tensor, student: Tensor) -> dict[str, Tensor]:
    taught, learnt = context.teacher_maps[-1], context.student_maps[-1]
    if isinstance(method.embed, NormalisedLinear):
        places = [(n, y, x) for n in range(len(learnt)) for y in range(learnt.shape[2]) for x in range(learnt.shape[3])]
        rows = naive_layer(method.embed, [learnt[n, :, y, x] for n, y, x in places])
        learnt = torch.stack(rows).reshape(len(learnt), *learnt.shape[2:], -1).permute(0, 3, 1, 2)
    return {"correlation": naive_ickd(taught, learnt, False) / (len(taught) * taught.shape[1])}


def lqq(method: DistillationMethod, context: Context, teacher: Tensor, student: Tensor) -> dict[str, Tensor]:
    total = naive_ickd(context.teacher_maps[-1], context.student_maps[-1], True)
    return {"correlation": 2 * total.sqrt() / 1000}


def low_quality(method: DistillationMethod, context: Context, teacher: Tensor, student: Tensor) -> dict[str, Tensor]:
    errors = [(a - b) ** 2 for t, s in zip(teacher, student, strict=True) for a, b in zip(t, s, strict=True)]
    mse = sum(errors[1:], start=errors[0]) / len(errors) * len(teacher) * 100
    return {"mse": mse} | {
        "correlation": naive_ickd(context.teacher_maps[-1], context.student_maps[-1], True) ** 0.5 / 1000
    }


def naive_features(context: Context, tuples: Sequence[Sequence[int]]) -> Tensor:
    """LSDNet, Eq. 7, of local features of length one."""
    loss = torch.zeros((), dtype=torch.float64)
    for images in tuples:
        squares = []
        for n in images:
            taught, learnt = (
                torch.stack([torch.stack([image[:, y, x].sum() / length(list(image[:, y, x])) / len(image)
                                          for x in range(image.shape[2])]) for y in range(image.shape[1])])
                for image in (context.teacher_maps[-1][n], context.student_maps[-1][n])
            )  # fmt: skip
            actual = [v for row in learnt for v in row]
            squares += [a - e for a, e in zip(actual, pooled(taught, *learnt.shape), strict=True)]
        loss = loss + length(squares) / len(tuples)
    return loss


def naive_triples(x: Tensor, triples: Sequence[Sequence[int]]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """|q - p| and |q - n| over their mean, and the cosine between the two, of each triple."""
    result = []
    for q, p, n in triples:
        near, far = naive.euclidean(x[q], x[p]), naive.euclidean(x[q], x[n])
        mu = (near + far) / 2
        result.append((near / mu, far / mu, naive.cosine(x[q] - x[p], x[q] - x[n])))
    return result


def lsdnet_of_task(method: DistillationMethod, context: Context, teacher: Tensor, student: Tensor) -> dict[str, Tensor]:
    triples = list(zip(*(rows.tolist() for rows in TRIPLETS), strict=True))
    distance = angle = torch.zeros((), dtype=torch.float64)
    for expected, actual in zip(naive_triples(teacher, triples), naive_triples(student, triples), strict=True):
        for i in (0, 1):
            distance = distance + naive.smooth_l1(actual[i], expected[i]) / len(triples)
        angle = angle + naive.smooth_l1(actual[2], expected[2]) / len(triples)
    return {"distance": 2 * distance, "angle": 2 * angle, "feature": 3 * naive_features(context, triples)}


def lsdnet_of_teacher(
    method: DistillationMethod, context: Context, teacher: Tensor, student: Tensor
) -> dict[str, Tensor]:
    return {"feature": 3 * naive_features(context, [range(len(teacher))])}


ORACLES: list[tuple[str, dict[str, Any], Shapes, Shapes, Oracle]] = [
    ("afd", {"dim": 6}, TEACHER_SHAPES, STUDENT_SHAPES, naive_afd),
    ("ickd", {}, ONE_NETWORK, ONE_NETWORK, original),
    ("ickd", {}, TEACHER_SHAPES, STUDENT_SHAPES, original),
    ("ickd", {"form": "lqq", "weight": 2.0}, ONE_NETWORK, ((6, 3, 4),), lqq),
    ("low-quality", {}, ONE_NETWORK, ONE_NETWORK, low_quality),
    ("lsdnet", {"weight": 2.0, "feature_weight": 3.0, "triples": "task"}, TEACHER_SHAPES[:2], STUDENT_SHAPES[:2],
     lsdnet_of_task),
    ("lsdnet", {"feature_weight": 3.0}, TEACHER_SHAPES[:1], STUDENT_SHAPES[:1], lsdnet_of_teacher),
]  # fmt: skip
IDS = [f"{name}-{options}-{teacher == student}" for name, options, teacher, student, _ in ORACLES]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("name", "options", "teacher", "student", "oracle"), ORACLES, ids=IDS)
def test_terms_and_gradients_are_those_of_the_loops(
    name: str, options: dict[str, Any], teacher: Shapes, student: Shapes, oracle: Oracle, dtype: torch.dtype
) -> None:
    method = begun(name, options, teacher, student)
    taught, learnt = random_maps(0, teacher), [x.requires_grad_() for x in random_maps(1, student)]
    rows_t, rows_s = descriptors(2), descriptors(3).requires_grad_()
    triplets = TRIPLETS if method.needs_triplets else None
    expected = oracle(method, Context(triplets=triplets, teacher_maps=taught, student_maps=learnt), rows_t, rows_s)
    inputs = [*learnt, rows_s, *method.parameters()]
    wanted = torch.autograd.grad(torch.stack(list(expected.values())).sum(), inputs, allow_unused=True)

    method.to(dtype)
    cast = [x.detach().to(dtype).requires_grad_() for x in [*learnt, rows_s]]
    maps = [x.to(dtype) for x in taught]
    actual = method(
        rows_t.to(dtype), cast[-1], Context(triplets=triplets, teacher_maps=maps, student_maps=cast[:-1])
    )  # fmt: skip
    exact = dtype == torch.float64
    assert expected.keys() <= actual.keys()
    for term, value in expected.items():
        assert actual[term].dtype == dtype
        torch.testing.assert_close(actual[term].double(), value, rtol=1e-10 if exact else 2e-4, atol=1e-12)
    of_these = torch.stack([actual[term] for term in expected]).sum()
    got = torch.autograd.grad(of_these, [*cast, *method.parameters()], allow_unused=True)
    for a, e in zip(got, wanted, strict=True):
        assert (a is None) == (e is None)
        if a is not None and e is not None:
            tolerance = 1e-9 if exact else 2e-3 * float(e.abs().max()) + 1e-5
            torch.testing.assert_close(a.double(), e, rtol=1e-7 if exact else 2e-3, atol=tolerance)


def test_the_attention_of_each_teacher_map_sums_to_one_over_the_students() -> None:
    torch.manual_seed(0)
    attention = MapAttention([3, 5, 7], [4, 6], dim=6)
    weights = attention(random_maps(0, TEACHER_SHAPES), random_maps(1, STUDENT_SHAPES))
    assert weights.shape == (5, 3, 2)
    torch.testing.assert_close(weights.sum(2), torch.ones(5, 3))
    assert weights.min() > 0
    assert weights.std(dim=0).min() > 0, "it depends on the sample"


def test_attention_learns_to_look_where_the_student_is_near() -> None:
    """A student whose second map is the teacher's own: trained on the loss, the attention goes there."""
    method = begun("afd", {"dim": 8}, [(3, 4, 4)], [(3, 4, 4), (3, 4, 4)])
    taught, other = random_maps(0, [(3, 4, 4)] * 2, samples=16)
    context = Context(teacher_maps=[taught], student_maps=[other, taught])
    optimiser = torch.optim.Adam(method.parameters(), 0.05)
    losses = []
    for _ in range(60):
        loss = method(descriptors(0, 16), descriptors(1, 16), context)["attended"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    assert isinstance(method.attention, MapAttention)
    assert method.attention([taught], [other, taught])[:, 0, 1].mean() > 0.8


def test_afd_sees_neither_the_scale_nor_the_order_of_channels() -> None:
    taught, learnt = random_maps(0, TEACHER_SHAPES), random_maps(1, STUDENT_SHAPES)
    changed = [3.0 * x.flip(1) for x in learnt]
    torch.testing.assert_close(map_distances(taught, changed), map_distances(taught, learnt))
    assert map_distances(taught, taught).diagonal(dim1=1, dim2=2).abs().max() < 1e-30


@pytest.mark.parametrize("loss", [original_loss, lqq_loss])
def test_correlations_see_no_places(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Moving the places about, the same way in every channel, or repeating each, changes nothing."""
    (taught,), (learnt,) = random_maps(0, [(6, 4, 5)]), random_maps(1, [(6, 4, 5)])
    assert loss(taught, taught).item() == 0
    order = torch.randperm(20, generator=torch.Generator().manual_seed(2))
    moved = learnt.flatten(2)[:, :, order].reshape(5, 6, 10, 2)
    finer = learnt.repeat_interleave(2, dim=2).repeat_interleave(3, dim=3)
    for changed in (moved, finer, 7 * learnt):
        torch.testing.assert_close(loss(taught, changed), loss(taught, learnt))
    apart = torch.cat([learnt[:, :1].flip(2), learnt[:, 1:]], dim=1)
    assert loss(taught, apart) != loss(taught, learnt), "channels that no longer fire together"


def test_low_quality_correlations_do_not_see_the_scale_of_a_channel() -> None:
    (taught,), (learnt,) = random_maps(0, [(6, 4, 5)]), random_maps(1, [(6, 4, 5)])
    scales = torch.linspace(0.1, 9, 6, dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(lqq_loss(taught, scales * learnt), lqq_loss(taught, learnt))
    assert not torch.isclose(original_loss(taught, scales * learnt), original_loss(taught, learnt))


def test_lsdnet_compares_maps_of_any_size_image_by_image() -> None:
    (taught,), (finer,) = random_maps(0, [(6, 4, 6)]), random_maps(0, [(6, 4, 6)])
    finer = finer.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert feature_loss(finer, taught, None).item() == pytest.approx(0, abs=1e-12)
    assert feature_loss(finer, 5 * taught, TRIPLETS).item() == pytest.approx(0, abs=1e-12)
    assert feature_loss(finer, taught.flip(0), None) > 0.1, "the images of a tuple are not averaged"


DEGENERATE = {
    "all zero": (5, 0.0),
    "one sample": (1, 1.0),
    "one sample of zeros": (1, 0.0),
    "tiny": (5, 1e-12),
    "huge": (5, 1e7),
}


@pytest.mark.parametrize(("name", "options", "teacher", "student", "_oracle"), ORACLES, ids=IDS)
@pytest.mark.parametrize("case", DEGENERATE)
@pytest.mark.parametrize("places", [True, False], ids=["maps", "single places"])
def test_degenerate_maps_give_finite_losses_and_gradients(
    name: str, options: dict[str, Any], teacher: Shapes, student: Shapes, _oracle: Oracle, case: str, places: bool
) -> None:
    samples, scale = DEGENERATE[case]
    if not places:
        teacher, student = ([(shape[0], 1, 1) for shape in shapes] for shapes in (teacher, student))
    method = begun(name, options, teacher, student).float()
    taught = [(scale * x).float() for x in random_maps(0, teacher, samples)]
    learnt = [(scale * x).float().requires_grad_() for x in random_maps(1, student, samples)]
    triplets = tuple(rows[: 3 if samples > 1 else 0] for rows in TRIPLETS)
    context = Context(triplets=triplets, teacher_maps=taught, student_maps=learnt)  # type: ignore[arg-type]
    rows = descriptors(3, samples).float().requires_grad_()
    terms = method(descriptors(2, samples).float(), rows, context)
    assert all(term.isfinite() for term in terms.values()), terms
    sum(terms.values()).backward()
    gradients = [x.grad for x in [*learnt, rows, *method.parameters()] if x.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize(("name", "options", "teacher", "student", "_oracle"), ORACLES, ids=IDS)
def test_half_precision_maps_are_compared_in_float32(
    name: str, options: dict[str, Any], teacher: Shapes, student: Shapes, _oracle: Oracle
) -> None:
    method = begun(name, options, teacher, student).float()
    triplets = TRIPLETS if method.needs_triplets else None
    half = Context(
        None, triplets, *([x.bfloat16() for x in random_maps(i, s)] for i, s in enumerate((teacher, student)))
    )
    full = Context(None, triplets, *([x.float() for x in maps] for maps in (half.teacher_maps, half.student_maps)))
    plain = method(descriptors(2).float(), descriptors(3).float(), full)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert method(descriptors(2).float(), descriptors(3).float(), half) == plain


def test_a_batch_of_one_is_normalised_by_those_before() -> None:
    torch.manual_seed(0)
    layer = NormalisedLinear(4, 3)
    for seed in range(200):
        layer(descriptors(seed, samples=32))
    row = descriptors(999, samples=1)
    expected = naive_layer(
        layer, [r for seed in range(1000, 1010) for r in descriptors(seed, 32).float()] + [row[0].float()]
    )
    torch.testing.assert_close(layer(row)[0], expected[-1], rtol=0.1, atol=0.1)


def test_the_layer_is_a_convolution_on_maps() -> None:
    layer = NormalisedLinear(6, 4).double()
    convolution = nn.Sequential(nn.Conv2d(6, 4, 1, bias=False), nn.BatchNorm2d(4)).double()
    convolution[0].weight.data = layer.linear.weight.data[:, :, None, None]
    (maps,) = random_maps(0, [(6, 3, 4)])
    torch.testing.assert_close(layer(maps), convolution(maps))


def test_methods_say_what_they_cannot_compare() -> None:
    different = ([(3, 4, 4)], [(5, 4, 4)])
    with pytest.raises(ConfigError, match=r"has 3 channels and the student's 5; set its option `form: original`"):
        build_method("ickd", {"form": "lqq"}).begin_maps(*different)
    with pytest.raises(ConfigError, match=r"low-quality: .* 3 channels .* take one network for both"):
        build_method("low-quality", {}).begin_maps(*different)
    for name in ("afd", "ickd"):
        with pytest.raises(ConfigError, match="leave its option `adaptor` out"):
            build_method(name, {"adaptor": "teacher"}, teacher_dim=4, student_dim=3)
    with pytest.raises(ConfigError, match="no form 'lq'"):
        build_method("ickd", {"form": "lq"})
    with pytest.raises(ConfigError, match="there is teacher, task"):
        build_method("lsdnet", {"triples": "tasks"})
    with pytest.raises(ConfigError, match="at least 1"):
        build_method("afd", {"dim": 0})
    with pytest.raises(ValueError, match="no feature maps"):
        build_method("ickd", {})(descriptors(0), descriptors(1))
    with pytest.raises(ValueError, match="no triplets"):
        build_method("lsdnet", {"triples": "task"})(descriptors(0), descriptors(1))


def test_low_quality_without_correlations_needs_no_maps() -> None:
    terms = build_method("low-quality", {"ickd_weight": 0.0})(descriptors(0), descriptors(1))
    assert terms.keys() == {"mse"}


def test_a_batch_without_triples_still_reaches_an_adaptor() -> None:
    """Processes that train together wait for the gradient of every weight."""
    method = build_method("lsdnet", {"triples": "task", "adaptor": "teacher"}, teacher_dim=4, student_dim=4)
    none = torch.arange(0)
    terms = method(descriptors(0), descriptors(1).requires_grad_(), Context(triplets=(none, none, none)))
    loss = torch.stack(list(terms.values())).sum()
    assert loss.item() == 0
    torch.autograd.backward(loss)
    assert all(p.grad is not None and not p.grad.any() for p in method.parameters())
