"""The other distillation methods against loops, and what every method must bear."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from support import naive_losses as naive
from support.contexts import prepared, terms_of
from support.largest_tensor import LargestTensor
from training.distillation import METHODS, build_method, rkd
from training.distillation.adaptor import Adaptor
from vpr_kd_ros.errors import ConfigError

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in METHODS),
    ("distilvpr", {"preset": "paper", "agents": ["tt-ss", "ts-ss", "tt-ts"]}),
    ("distilvpr", {"preset": "released"}),
    ("ickd", {"form": "lqq"}),
    ("lsdnet", {"feature_weight": 1.0, "triples": "task"}),
]


def batch(seed: int, samples: int = 5, channels: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    teacher, student = (torch.randn(samples, channels, generator=generator, dtype=torch.float64) for _ in range(2))
    return teacher, student.requires_grad_()


def softmax(x: Tensor, temperature: float) -> Tensor:
    powers = (x / temperature).exp()
    return powers / powers.sum()


def naive_kd(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    loss = torch.zeros((), dtype=torch.float64)
    for t, s in zip(teacher, student, strict=True):
        p, q = softmax(t, temperature), softmax(s, temperature)
        for a, b in zip(p, q, strict=True):
            loss = loss + temperature**2 * a * (a / b).log() / len(teacher)
    return loss


def naive_mkd(teacher: Tensor, student: Tensor, temperatures: tuple[float, ...]) -> dict[str, Tensor]:
    samples, channels = teacher.shape
    instance = sample_level = class_level = torch.zeros((), dtype=torch.float64)
    for temperature in temperatures:
        p = torch.stack([softmax(row, temperature) for row in teacher])
        q = torch.stack([softmax(row, temperature) for row in student])
        instance = instance + naive_kd(teacher, student, temperature)
        for i in range(samples):
            for j in range(samples):
                sample_level = sample_level + ((p[i] * p[j]).sum() - (q[i] * q[j]).sum()) ** 2 / samples
        for a in range(channels):
            for b in range(channels):
                class_level = class_level + ((p[:, a] * p[:, b]).sum() - (q[:, a] * q[:, b]).sum()) ** 2 / channels
    return {"instance": instance, "batch": sample_level, "class": class_level}


def naive_rkd(teacher: Tensor, student: Tensor) -> dict[str, Tensor]:
    samples = len(teacher)
    tt, ss = (naive.over_mean(naive.matrix(x, x, naive.euclidean)) for x in (teacher, student))
    return {
        "distance": naive.total(tt, ss, naive.smooth_l1) / samples**2,
        "angle": 2 * naive.angle_total(teacher, student) / samples**3,
    }


def naive_lsdnet(teacher: Tensor, student: Tensor) -> dict[str, Tensor]:
    samples = len(teacher)
    distance = angle = torch.zeros((), dtype=torch.float64)
    for q in range(samples):
        others = [r for r in range(samples) if r != q]
        p = min(others, key=lambda r: naive.euclidean(teacher[q], teacher[r]).item())
        mu_t, mu_s = (sum(naive.euclidean(x[q], x[r]) for r in others) / len(others) for x in (teacher, student))
        for n in others:
            if n == p:
                continue
            for r in (p, n):
                distance = distance + naive.smooth_l1(
                    naive.euclidean(teacher[q], teacher[r]) / mu_t, naive.euclidean(student[q], student[r]) / mu_s
                )
            angle = angle + naive.smooth_l1(
                naive.cosine(teacher[q] - teacher[p], teacher[q] - teacher[n]),
                naive.cosine(student[q] - student[p], student[q] - student[n]),
            )
    triples = samples * (samples - 2)
    return {"distance": distance / triples, "angle": angle / triples}


def naive_errors(teacher: Tensor, student: Tensor) -> Tensor:
    return sum((naive.squared(t, s).sum() for t, s in zip(teacher, student, strict=True)), start=torch.zeros(()))


ORACLES: list[tuple[str, dict[str, Any], Any]] = [
    ("kd", {}, lambda t, s: {"kl": naive_kd(t, s, 1.0)}),
    ("kd", {"temperature": 4.0, "weight": 3.0}, lambda t, s: {"kl": 3 * naive_kd(t, s, 4.0)}),
    ("mkd", {"temperatures": [1.0, 3.0]}, lambda t, s: naive_mkd(t, s, (1.0, 3.0))),
    ("rkd", {}, naive_rkd),
    ("rkd", {"angle_weight": 0.0}, lambda t, s: {"distance": naive_rkd(t, s)["distance"]}),
    ("lsdnet", {}, naive_lsdnet),
    (
        "csd",
        {},
        lambda t, s: {
            "similarity": naive.total(naive.matrix(t, t, naive.cosine), naive.matrix(t, s, naive.cosine), naive.squared)
            / len(t) ** 2
        },
    ),
    ("epcnet", {}, lambda t, s: {"descriptor": 0.1 * naive_errors(t, s)}),
    ("mse", {}, lambda t, s: {"mse": naive_errors(t, s) / t.numel()}),
    ("mse", {"scale": "scicevpr"}, lambda t, s: {"mse": naive_errors(t, s) / len(t)}),
    ("mse", {"scale": "vpr4lqq"}, lambda t, s: {"mse": naive_errors(t, s) / t.numel() * len(t) * 100}),
]


@pytest.mark.parametrize(
    ("name", "options", "oracle"), ORACLES, ids=[f"{name}-{options}" for name, options, _ in ORACLES]
)
def test_terms_and_gradients_are_those_of_the_loops(name: str, options: dict[str, Any], oracle: Any) -> None:
    teacher, student = batch(0)
    actual, expected = terms_of(prepared(name, options, teacher, student), teacher, student), oracle(teacher, student)
    assert actual.keys() == expected.keys()
    for term in expected:
        torch.testing.assert_close(actual[term], expected[term], rtol=1e-10, atol=1e-12, check_dtype=False)
        gradients = [torch.autograd.grad(terms[term], student, retain_graph=True)[0] for terms in (actual, expected)]
        torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", METHODS)
def test_loss_is_zero_where_the_student_is_the_teacher(name: str) -> None:
    teacher, _ = batch(1, samples=9)
    one_map = ((3, 4),)  # of several, AFD compares each with every other
    method = prepared(name, {}, teacher, teacher, one_map)
    assert sum(terms_of(method, teacher, teacher.clone(), one_map).values()).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_gradient_reaches_the_student_and_not_the_teacher(name: str) -> None:
    teacher, student = batch(2)
    method = prepared(name, {}, teacher, student)
    teacher.requires_grad_()
    sum(terms_of(method, teacher, student).values()).backward()
    assert teacher.grad is None
    assert student.grad.abs().max() > 0


@pytest.mark.parametrize("name", METHODS)
def test_sizes_that_differ(name: str) -> None:
    teacher, student = batch(3, channels=7)[0], batch(3)[1]
    method = prepared(name, {}, teacher, student)
    if not method.needs_equal_dims:
        assert all(term.isfinite() for term in terms_of(method, teacher, student).values())
        return
    with pytest.raises(ConfigError, match="adaptor: teacher"):
        terms_of(method, teacher, student)
    method.adaptor = Adaptor("student", teacher_dim=7, student_dim=4)
    sum(terms_of(method, teacher, student).values()).backward()
    assert student.grad.isfinite().all()
    assert method.adaptor.linear.weight.grad.abs().max() > 0


@pytest.mark.parametrize("name", ["rkd", "lsdnet"])
def test_relations_among_the_students_do_not_see_its_rotation_nor_its_scale(name: str) -> None:
    teacher, student = batch(4, samples=8)
    rotation = torch.linalg.qr(batch(5)[0][:4])[0]
    before, after = (build_method(name, {})(teacher, s) for s in (student, 7 * student @ rotation))
    for term in before:
        torch.testing.assert_close(before[term], after[term], rtol=1e-9, atol=0)


def test_lsdnet_takes_its_positives_from_the_teacher() -> None:
    """Moving a teacher's third sample next to its first changes which triples there are, and so the loss."""
    teacher = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0], [4.0, 4.0]])
    student = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0], [4.0, 4.0]])
    method = build_method("lsdnet", {})
    assert sum(method(teacher, student).values()).item() == 0
    moved = teacher.clone()
    moved[2] = torch.tensor([0.1, 0.1])
    torch.testing.assert_close(
        method(moved, student)["angle"].double(),
        naive_lsdnet(moved.double(), student.double())["angle"],
        rtol=1e-5,
        atol=0,
    )


def degenerate(case: str) -> tuple[Tensor, Tensor]:
    teacher, student = (torch.randn(6, 8, generator=torch.Generator().manual_seed(seed)) for seed in (6, 7))
    if case == "one sample":
        return teacher[:1], student[:1]
    if case == "two samples":
        return teacher[:2], student[:2]
    if case == "all the same":
        return teacher[:1].repeat(6, 1), student[:1].repeat(6, 1)
    if case == "duplicates":
        return teacher, student[[0, 0, 1, 1, 2, 2]]
    if case == "zero vectors":
        return teacher * torch.tensor([0.0, 1, 1, 0, 1, 1])[:, None], student * torch.tensor([0.0, 0, 1, 1, 1, 1])[
            :, None
        ]
    if case == "all zero":
        return teacher * 0, student * 0
    if case == "far out":
        return teacher * 20, student * 300
    return teacher * 1e-5, student * 1e-7


CASES = ["one sample", "two samples", "all the same", "duplicates", "zero vectors", "all zero", "far out", "tiny"]


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_degenerate_batches_give_finite_losses_and_gradients(
    name: str, options: dict[str, Any], case: str, dtype: torch.dtype
) -> None:
    teacher, student = (x.to(dtype) for x in degenerate(case))
    student.requires_grad_()
    method = prepared(name, options, teacher, student)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = terms_of(method, teacher, student)
    assert all(term.dtype == torch.float32 and term.isfinite() for term in terms.values()), terms
    # As under a gradient scaler: the sums of the preset `paper` over far points exceed what float16 can hold.
    scale = 1e-3 if dtype == torch.float16 else 1.0
    (scale * sum(terms.values())).backward()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)
def test_autocast_does_not_change_the_loss(name: str, options: dict[str, Any]) -> None:
    teacher, student = (x.float().detach() for x in batch(8))
    method = prepared(name, options, teacher, student)
    plain = terms_of(method, teacher, student)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert terms_of(method, teacher, student) == plain


def test_autocast_does_not_reach_the_adaptor() -> None:
    teacher, student = batch(8, channels=7)[0].float(), batch(8)[1].detach().float()
    method = build_method("mse", {"adaptor": "teacher"}, teacher_dim=7, student_dim=4)
    plain = method(teacher, student)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert method(teacher, student) == plain


def test_shapes_that_are_no_batch_of_pairs_are_refused() -> None:
    method = build_method("mse", {})
    for teacher, student in ((3, 4), (0, 0)):
        with pytest.raises(ValueError, match="expected"):
            method(torch.zeros(teacher, 2), torch.zeros(student, 2))
    with pytest.raises(ValueError, match="expected"):
        method(torch.zeros(2), torch.zeros(2))


def largest(name: str, options: dict[str, Any], samples: int, channels: int) -> int:
    teacher, student = batch(9, samples, channels)
    method = prepared(name, options, teacher, student)
    with LargestTensor() as mode:
        sum(terms_of(method, teacher, student).values()).backward()
    return mode.entries


OF_DESCRIPTORS = [(name, options) for name, options in VARIANTS if not build_method(name, options).needs_maps]


@pytest.mark.parametrize(("name", "options"), OF_DESCRIPTORS, ids=str)
def test_nothing_of_pairs_times_channels_is_held(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rkd, "BLOCK_ENTRIES", 1)
    samples, channels = 40, 60
    allowed = max(samples * channels, channels * channels if name == "mkd" else 0)
    assert largest(name, options, samples, channels) <= allowed


def test_blocks_of_angles_add_up_to_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, student = batch(10, samples=11)
    results = []
    for block in (2**22, 3 * 11**2, 1):
        monkeypatch.setattr(rkd, "BLOCK_ENTRIES", block)
        loss = rkd.angle_loss(teacher, student)
        results.append((loss, torch.autograd.grad(loss, student)[0]))
    for loss, gradient in results[1:]:
        torch.testing.assert_close(loss, results[0][0])
        torch.testing.assert_close(gradient, results[0][1])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("distilvr", {}, "no distillation method 'distilvr' .did you mean 'distilvpr'"),
        ("kd", {"temprature": 2.0}, "has no option 'temprature' .did you mean 'temperature'"),
        ("kd", {"temperature": 0.0}, "must be positive"),
        ("mkd", {"temperatures": []}, "at least one"),
        ("mse", {"scale": "sum"}, "there is mean, scicevpr, vpr4lqq"),
    ],
)
def test_wrong_names_and_options_name_the_mend(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_method(name, options)


def test_an_adaptor_names_its_sides() -> None:
    with pytest.raises(ConfigError, match="no side of the adaptor 'left'"):
        build_method("mse", {"adaptor": "left"}, teacher_dim=4, student_dim=3)


def test_kd_compares_shapes_and_not_levels() -> None:
    """Adding a constant to a descriptor leaves its softmax, so KD cannot see it."""
    teacher, student = batch(11)
    before, after = (build_method("kd", {})(teacher, s)["kl"].item() for s in (student, student + math.pi))
    assert before == pytest.approx(after, rel=1e-12)
