"""DistilVPR against the paper's sums written as loops: every preset, agent, distance and option."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from support import naive_losses as naive
from training.distillation import build_method
from training.distillation.adaptor import Adaptor
from training.distillation.distilvpr import DISTANCES, PRESETS, DistilVPR
from vpr_kd_ros.errors import ConfigError

C = 0.1
ALL_AGENTS = ("tt-ss", "ts-ss", "tt-ts")
PREFIX = {"tt-ss": "self", "ts-ss": "cross", "tt-ts": "teacher_cross"}


def batch(seed: int, samples: int = 4, channels: int = 5, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    teacher = torch.randn(samples, channels, generator=generator, dtype=torch.float64)
    student = 2 * torch.randn(samples, channels, generator=generator, dtype=torch.float64)
    return teacher.to(dtype), student.to(dtype).requires_grad_()


def naive_term(settings: dict[str, Any], agents: str, distance: str, teacher: Tensor, student: Tensor) -> Tensor:
    """One unweighted term, by loops; ``settings`` are those of `Settings`."""
    own = agents == "tt-ss"
    if settings["normalise_self" if own else "normalise_cross"]:
        teacher, student = naive.unit(teacher), naive.unit(student)
    if own and distance == "cosine" and settings["self_cosine"] == "angle":
        loss = naive.angle_total(teacher, student)
        return loss / len(teacher) ** 3 if settings["reduction"] == "mean" else loss
    hyperbolic = naive.hyperbolic if settings["hyperbolic"] == "exact" else naive.hyperbolic_released
    pairwise = {
        "euclidean": naive.euclidean,
        "cosine": naive.cosine,
        "hyperbolic": lambda x, y: hyperbolic(x, y, C),
    }[distance]
    tt, ts, ss = (naive.matrix(x, y, pairwise) for x, y in ((teacher, teacher), (teacher, student), (student, student)))
    if own and settings["divide_by_mean"] and distance != "cosine":
        tt, ss = naive.over_mean(tt), naive.over_mean(ss)
    if agents == "ts-ss" and settings["detach_cross"]:
        ts = [[r.detach() for r in row] for row in ts]
    first, second = {"tt-ss": (tt, ss), "ts-ss": (ts, ss), "tt-ts": (tt, ts)}[agents]
    penalties = {"smooth_l1": naive.smooth_l1, "mse": naive.squared, "l1": lambda a, b: (a - b).abs()}
    loss = naive.total(first, second, penalties[settings["penalty" if own else "cross_penalty"]])
    return loss / len(teacher) ** 2 if settings["reduction"] == "mean" else loss


OPTIONS: list[dict[str, Any]] = [
    {"preset": "paper"},
    {"preset": "released"},
    {"preset": "scaled"},
    {"preset": "scaled", "detach_cross": False, "reduction": "sum", "lambda_self": 2.0},
    {"preset": "paper", "penalty": "l1", "cross_penalty": "mse", "divide_by_mean": True},
    {"preset": "released", "hyperbolic": "exact", "self_cosine": "cosine", "normalise_self": True},
    {"preset": "paper", "self_cosine": "angle"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_terms_and_their_gradients_are_those_of_the_sums(options: dict[str, Any], dtype: torch.dtype) -> None:
    teacher, student = batch(0, dtype=dtype)
    method = DistilVPR(**options, agents=ALL_AGENTS)
    settings = vars(PRESETS[options["preset"]]) | {key: value for key, value in options.items() if key != "preset"}
    terms = method(teacher, student)

    names = {}
    for agents in ALL_AGENTS:
        for distance in DISTANCES:
            angle = agents == "tt-ss" and distance == "cosine" and settings["self_cosine"] == "angle"
            names[f"{PREFIX[agents]}/{'angle' if angle else distance}"] = (agents, distance)
    assert terms.keys() == names.keys()

    tolerance = 1e-9 if dtype == torch.float64 else 1e-5
    exact_student = student.detach().double().requires_grad_()
    for name, (agents, distance) in names.items():
        weight = settings["lambda_self" if agents == "tt-ss" else "lambda_cross"]
        expected = weight * naive_term(settings, agents, distance, teacher.double(), exact_student)
        assert terms[name].dtype == dtype
        torch.testing.assert_close(terms[name].double(), expected, rtol=tolerance, atol=tolerance, msg=name)
        (gradient,) = torch.autograd.grad(terms[name], student, retain_graph=True)
        (exact,) = torch.autograd.grad(expected, exact_student, retain_graph=True)
        torch.testing.assert_close(gradient.double(), exact, rtol=10 * tolerance, atol=10 * tolerance, msg=name)


@pytest.mark.parametrize("preset", PRESETS)
def test_loss_is_zero_where_the_student_is_the_teacher(preset: str) -> None:
    teacher, _ = batch(1, samples=12)
    student = teacher.clone().requires_grad_()
    loss = sum(DistilVPR(preset, agents=ALL_AGENTS)(teacher, student).values())
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert torch.autograd.grad(loss, student)[0].abs().max() < 1e-10


@pytest.mark.parametrize("preset", PRESETS)
def test_self_agents_do_not_see_a_rotation_of_the_student_and_cross_agents_do(preset: str) -> None:
    teacher, student = batch(2, samples=10)
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3)))[0]
    method = DistilVPR(preset)
    before, after = method(teacher, student), method(teacher, student @ rotation)
    for name in before:
        same = torch.isclose(before[name], after[name], rtol=1e-9, atol=0)
        assert same == name.startswith("self/"), name


def test_scale_of_the_student_matters_to_the_paper_and_not_to_the_scaled_preset() -> None:
    teacher, student = batch(4, samples=10)
    for preset, blind in (
        ("paper", {"self/cosine", "cross/cosine"}),
        ("released", {"self/euclidean", "self/angle", "cross/euclidean", "cross/cosine", "cross/hyperbolic"}),
        ("scaled", {f"{agents}/{distance}" for agents in ("self", "cross") for distance in DISTANCES}),
    ):
        before, after = DistilVPR(preset)(teacher, student), DistilVPR(preset)(teacher, 3 * student)
        assert {name for name in before if torch.isclose(before[name], after[name], rtol=1e-9, atol=0)} == blind, preset


def test_means_do_not_grow_with_the_batch_and_sums_do() -> None:
    teacher, student = batch(5, samples=8)
    twice = torch.cat([teacher, teacher]), torch.cat([student, student])
    for reduction, factor in (("mean", 1), ("sum", 4)):
        method = DistilVPR("paper", reduction=reduction)
        before, after = method(teacher, student), method(*twice)
        for name in before:
            torch.testing.assert_close(after[name], factor * before[name])


def test_no_gradient_reaches_the_teacher() -> None:
    teacher, student = batch(6)
    teacher.requires_grad_()
    sum(DistilVPR("paper", agents=ALL_AGENTS)(teacher, student).values()).backward()
    assert teacher.grad is None
    assert student.grad is not None


def test_sizes_that_differ_need_an_adaptor_only_across_agents() -> None:
    teacher, _ = batch(7, channels=9)
    _, student = batch(7)
    assert DistilVPR(agents=("tt-ss",))(teacher, student).keys() == {"self/euclidean", "self/cosine", "self/hyperbolic"}
    with pytest.raises(ConfigError, match=r"9 channels and the student's 5.*adaptor"):
        DistilVPR()(teacher, student)
    with pytest.raises(ConfigError, match="adaptor"):
        build_method("distilvpr", {}, teacher_dim=9, student_dim=5)


@pytest.mark.parametrize("side", ["teacher", "student"])
def test_adaptor_makes_sizes_meet_and_learns(side: str) -> None:
    torch.manual_seed(0)
    teacher, _ = batch(8, samples=16, channels=9, dtype=torch.float32)
    teacher.requires_grad_()
    _, student = batch(8, samples=16, dtype=torch.float32)
    method = build_method("distilvpr", {"preset": "paper", "adaptor": side}, teacher_dim=9, student_dim=5)
    (adaptor,) = (module for module in method.modules() if isinstance(module, Adaptor))
    assert adaptor.linear.weight.shape == ((5, 9) if side == "teacher" else (9, 5))

    optimiser = torch.optim.Adam([*method.parameters(), student], lr=0.05)
    losses = []
    for _ in range(60):
        optimiser.zero_grad()
        loss = sum(method(teacher, student).values())
        loss.backward()
        losses.append(loss.item())
        assert adaptor.linear.weight.grad.abs().max() > 0
        optimiser.step()
    assert losses[-1] < losses[0] / 3
    assert teacher.grad is None


@pytest.mark.parametrize("side", ["teacher", "student"])
@pytest.mark.parametrize("agents", [["tt-ss"], ["ts-ss"], ["tt-ts"]])
@pytest.mark.parametrize("preset", PRESETS)
def test_an_adaptor_learns_under_every_preset_from_every_pair_of_agents(
    preset: str, agents: list[str], side: str
) -> None:
    torch.manual_seed(0)
    teacher, _ = batch(8, channels=9, dtype=torch.float32)
    _, student = batch(8, dtype=torch.float32)
    options = {"preset": preset, "agents": agents, "adaptor": side}
    method = build_method("distilvpr", options, teacher_dim=9, student_dim=5)
    sum(method(teacher, student).values()).backward()
    assert method.adaptor is not None
    gradient = method.adaptor.linear.weight.grad
    assert gradient is not None
    assert gradient.abs().max() > 0


def test_minimising_the_scaled_loss_gives_the_student_the_teachers_relations() -> None:
    teacher, student = batch(9, samples=12, dtype=torch.float32)
    method = DistilVPR("scaled", agents=("tt-ss",))
    optimiser = torch.optim.Adam([student], lr=0.05)
    for _ in range(300):
        optimiser.zero_grad()
        sum(method(teacher, student).values()).backward()
        optimiser.step()
    teacher, student = (torch.nn.functional.normalize(x.detach()) for x in (teacher, student))
    torch.testing.assert_close(student @ student.T, teacher @ teacher.T, rtol=0, atol=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "papers"}, "no preset of distilvpr 'papers' .did you mean 'paper'"),
        ({"agents": ["tt-tt"]}, "no agents 'tt-tt'"),
        ({"distances": ["cosin"]}, "did you mean 'cosine'"),
        ({"distances": []}, "at least one"),
        ({"curvature": 0.0}, "must be positive"),
        ({"reduction": "average"}, "no reduction 'average'"),
        ({"penalty": "huber"}, "there is smooth_l1, mse, l1"),
        ({"lamda_self": 3.0}, "has no option 'lamda_self' .did you mean 'lambda_self'"),
        ({"adaptor": "teacher"}, "needs the sizes"),
    ],
)
def test_wrong_options_name_the_mend(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_method("distilvpr", options)
