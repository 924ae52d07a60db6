"""What the Gram form of the relational distances saves: time and memory of the broadcast form against ours.

    python benchmarks/relational_losses.py
    python benchmarks/relational_losses.py --sizes 128x384 512x384 --repeats 5

Both compute the sum of the Euclidean, cosine and Poincaré matrices of a batch with itself, forward and backward: the
broadcast form as the equations are usually typed, over an N x N x C tensor of Möbius sums in float32; ours as in
`training.distillation.manifolds`, in float64. Runs are interleaved, so that a busy machine slows both alike: read the
ratio. The peak is the memory that a fresh process needs on top of what it held before its one run.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

# Run as a file, the checkout is not on the path, and `training` is not an installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from training.distillation.manifolds import cosine_similarities, euclidean_distances, hyperbolic_distances

CURVATURE = 0.1


def broadcast_form(x: Tensor) -> Tensor:
    """The three matrices over N x N x C tensors."""
    c, eye = CURVATURE, torch.eye(len(x), device=x.device)
    gaps = x[:, None] - x[None, :]
    euclidean = (gaps.square().sum(2) + eye).sqrt()
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


def run_once(form: str, samples: int, channels: int) -> float:
    """Seconds for one forward and backward pass over normalised descriptors."""
    x = torch.nn.functional.normalize(torch.randn(samples, channels)).requires_grad_()
    start = time.perf_counter()
    torch.autograd.grad(FORMS[form](x), x)
    return time.perf_counter() - start


def resident_kb(entry: str) -> int:
    """An entry of this process's memory status: VmRSS, resident now, or VmHWM, its peak (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(entry)).split()[1])


def peak_mb(form: str, samples: int, channels: int) -> float:
    """How far one run's resident peak rises above what was resident before it; meant for a fresh process."""
    run_once(form, 2, 2)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = resident_kb("VmRSS")
    run_once(form, samples, channels)
    return (resident_kb("VmHWM") - before) / 1024


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["128x384", "256x384", "512x384"], help="N x C of the batches")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, python {sys.version.split()[0]}")
    print("| N x C | broadcast ms (min-max) | ours ms (min-max) | ratio | broadcast peak MB | ours peak MB |")
    print("|---|---|---|---|---|---|")
    context = multiprocessing.get_context("spawn")
    for size in args.sizes:
        samples, channels = map(int, size.split("x"))
        seconds: dict[str, list[float]] = {form: [] for form in FORMS}
        for form in FORMS:
            run_once(form, min(samples, 64), channels)
        for _ in range(args.repeats):
            for form in FORMS:
                seconds[form].append(run_once(form, samples, channels))
        ms = {form: [1000 * s for s in sorted(values)] for form, values in seconds.items()}
        medians = {form: statistics.median(values) for form, values in ms.items()}
        times = [f"{medians[form]:.1f} ({ms[form][0]:.1f}-{ms[form][-1]:.1f})" for form in FORMS]
        peaks = []
        for form in FORMS:
            with context.Pool(1) as pool:
                peaks.append(f"{pool.apply(peak_mb, (form, samples, channels)):.0f}")
        ratio = medians["broadcast"] / medians["ours"]
        print("|", " | ".join([size, *times, f"{ratio:.0f}", *peaks]), "|", flush=True)


if __name__ == "__main__":
    main()
