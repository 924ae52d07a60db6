"""What the Gram form of the relational distances saves: time and memory of the broadcast form against ours.

    python benchmarks/relational_losses.py
    python benchmarks/relational_losses.py --sizes 128x384 512x384 --repeats 5

Both compute the sum of the Euclidean, cosine and Poincaré matrices of a batch with itself, forward and backward: the
broadcast form as the equations are usually typed, over an N x N x C tensor of Möbius sums in float32; ours as in
`training.distillation.manifolds`, in float64. Runs are interleaved, so that a busy machine slows both alike: read the
ratio. The peak is the memory that a fresh process needs on top of what it held before its one run. The differences are
those of value and gradient, relative to the broadcast form's largest. Where the broadcast form would not fit into the
memory that is free, only ours is measured. One thread by default: with several, ours, whose operations are short, waits
at the end of each for whatever else runs on the machine.
"""

from __future__ import annotations

import math
import multiprocessing
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

# Run as a file, the checkout is not on the path, and `training` is not an installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measuring import Row, available_mb, faster, finish, in_turns, parser, spread, status_of
from training.distillation.manifolds import cosine_similarities, euclidean_distances, hyperbolic_distances

CURVATURE = 0.1
BROADCAST_TENSORS = 12
"""N x N x C float32 tensors that the broadcast form holds at its peak, with some to spare."""
BROADCAST_SECONDS = 20.0
"""Once the broadcast form has taken so long for one size, it is not repeated."""


def broadcast_form(x: Tensor) -> Tensor:
    """The three matrices over N x N x C tensors."""
    c, eye = CURVATURE, torch.eye(len(x), device=x.device, dtype=x.dtype)
    gaps = x[:, None] - x[None, :]
    euclidean = (gaps.square().sum(2) + eye).sqrt() - eye
    cosine = torch.nn.functional.cosine_similarity(x[:, None], x[None, :], dim=2)
    norm = x.norm(dim=1, keepdim=True)
    points = (math.sqrt(c) * norm).tanh() * x / (math.sqrt(c) * norm)
    p, q = -points[:, None], points[None, :]
    pq, pp, qq = (p * q).sum(2, keepdim=True), p.square().sum(2, keepdim=True), q.square().sum(2, keepdim=True)
    moebius = ((1 + 2 * c * pq + c * qq) * p + (1 - c * pp) * q) / (1 + 2 * c * pq + c**2 * pp * qq)
    length = (moebius.square().sum(2) + 1e-12).sqrt()
    hyperbolic = 2 / math.sqrt(c) * (math.sqrt(c) * length).clamp(max=1 - 1e-6).atanh()
    return torch.stack([euclidean.sum(), cosine.sum(), hyperbolic.sum()]).sum()


def gram_form(x: Tensor) -> Tensor:
    """The three matrices as training computes them."""
    matrices = euclidean_distances(x, x), cosine_similarities(x, x), hyperbolic_distances(x, x, CURVATURE)
    return torch.stack([m.sum() for m in matrices]).sum()


FORMS: dict[str, Callable[[Tensor], Tensor]] = {"broadcast": broadcast_form, "ours": gram_form}


def run_once(form: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """Value and gradient, by one forward and backward pass over descriptors (N, C)."""
    x = x.detach().requires_grad_()
    value = FORMS[form](x)
    return value.detach(), torch.autograd.grad(value, x)[0]


def descriptors(samples: int, channels: int) -> Tensor:
    """Random descriptors (N, C) of length one."""
    return torch.nn.functional.normalize(torch.randn(samples, channels, generator=torch.Generator().manual_seed(0)))


def peak_mb(form: str, samples: int, channels: int) -> float:
    """How far one run's resident peak rises above what was resident before it; meant for a fresh process."""
    run_once(form, descriptors(2, 2))
    x = descriptors(samples, channels)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = status_of("VmRSS")
    run_once(form, x)
    return (status_of("VmHWM") - before) / 1024


def measure(samples: int, channels: int, repeats: int) -> Row:
    """The row of one size."""
    x = descriptors(samples, channels)
    needs_mb = BROADCAST_TENSORS * samples**2 * channels * 4 / 2**20
    forms = list(FORMS) if needs_mb < available_mb() else ["ours"]
    for form in forms:
        run_once(form, x[:64])
    results: dict[str, tuple[Tensor, Tensor]] = {}

    def timed(form: str) -> Callable[[], None]:
        return lambda: results.update({form: run_once(form, x)})

    times = in_turns({form: timed(form) for form in forms}, repeats, warm=0, most_s=BROADCAST_SECONDS)
    peaks = {}
    for form in forms:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            peaks[form] = pool.apply(peak_mb, (form, samples, channels))
    row: Row = {"size": f"{samples}x{channels}"}
    for form in forms:
        row |= {**spread(form, times[form]), f"{form}_mb": round(peaks[form])}
    if len(forms) == 1:
        return row
    value, gradient = (
        float((ours - theirs).abs().max() / theirs.abs().max())
        for ours, theirs in zip(results["ours"], results["broadcast"], strict=True)
    )
    leaner = round(peaks["broadcast"] / max(1.0, peaks["ours"]), 1)
    speedup = faster(times, "ours", "broadcast")
    return {**row, "speedup": speedup, "leaner": leaner, "value_difference": value, "gradient_difference": gradient}


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Measure, print the table and return its rows."""
    options = parser(__doc__)
    sizes = ["128x384", "256x384", "512x384", "1024x384"]
    options.add_argument("--sizes", nargs="+", default=sizes, help="N x C of the batches")
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--threads", type=int, default=1)
    args = options.parse_args(argv)
    torch.set_num_threads(args.threads)
    rows = []
    for size in args.sizes:
        samples, channels = map(int, size.split("x"))
        rows.append(measure(samples, channels, args.repeats))
    return finish(args, "relational_losses", rows)


if __name__ == "__main__":
    main()
