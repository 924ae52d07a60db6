"""Relations between descriptors: matrices of pairwise distances on manifolds of zero, positive and negative curvature.

DistilVPR (Wang et al., AAAI 2024), section 3.4. Every function takes x (N, C) and y (M, C), of any floating type, and
returns an (N, M) float64 matrix. All are built from the Gram matrix x yᵀ, so neither they nor their backward pass
holds anything of N x M x C. Float64 keeps what the Gram form cancels (in float32, 10 % of a distance of 1e-3 between
unit vectors), and neither autocast nor TF32 touches it.

Values and gradients are finite for every finite input. Where a distance is zero its gradient is taken as zero: pairs
nearer to each other than about 1e-7 of their norms, which is the resolution of a float32 descriptor, count as one
point. NaN stays NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Relation = Callable[[Tensor, Tensor], Tensor]
"""r(x, y) of the papers, for whole batches: (N, C) and (M, C) -> (N, M)."""

SAME_POINT = 64 * torch.finfo(torch.float64).eps
"""Squared distance, relative to the squared norms, below which the Gram form holds rounding only."""

LARGEST_RADIUS = 150.0
"""Largest sqrt(c) |v| that the hyperbolic distance tells apart: twice its square stays inside float64's exponent."""


def root_or_zero(squared: Tensor, floor: Tensor | float = 0.0) -> Tensor:
    """Square root, with value and gradient zero where ``squared <= floor``."""
    # The inner `where` keeps the infinite slope at zero out of the backward pass: inf times 0 would be NaN.
    # The comparison is this way round so that NaN is passed on.
    zero = squared <= floor
    return torch.where(zero, 0.0, torch.where(zero, 1.0, squared).sqrt())


def normalise_rows(x: Tensor) -> Tensor:
    """Rows divided by their norm; zero rows, and their gradient, stay zero."""
    norm = root_or_zero(x.square().sum(dim=1, keepdim=True))
    return x / torch.where(norm == 0, 1.0, norm)


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_j|²; exactly zero for rows that are the same point."""
    x, y = x.double(), y.double()
    norms = x.square().sum(dim=1)[:, None] + y.square().sum(dim=1)[None, :]
    squared = norms - 2 * x @ y.T
    return torch.where(squared <= SAME_POINT * norms, 0.0, squared)


def euclidean_distances(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_j|, Eq. 6."""
    return root_or_zero(squared_distances(x, y))


def cosine_similarities(x: Tensor, y: Tensor) -> Tensor:
    """<x_i, y_j> / (|x_i| |y_j|), Eq. 9 (which the paper calls a distance); 0 where either is the zero vector."""
    return normalise_rows(x.double()) @ normalise_rows(y.double()).T


def hyperbolic_distances(x: Tensor, y: Tensor, curvature: float) -> Tensor:
    """Poincaré distance between exp_0(x_i) and exp_0(y_j), Eq. 12-15, on the ball c |p|² < 1 with c = ``curvature``.

    Eq. 15 is read with the left Möbius inverse, |(-p) (+) q|, without which it is no distance (d(p, p) would not be 0).

    Putting the exponential map of Eq. 14 into the distance and writing a = sqrt(c) |x|, b = sqrt(c) |y| and t for the
    angle between x and y gives, by sinh²(artanh z) = z² / (1 - z²),

        d = (2 / sqrt(c)) asinh sqrt( sinh²(a - b) + sinh(2a) sinh(2b) (1 - cos t) / 2 )

    which has no pole at the edge of the ball: points far out neither need clipping nor lose their gradient. Beyond
    sqrt(c) |x| = LARGEST_RADIUS a row counts as lying at that radius.
    """
    x, y = x.double(), y.double()
    root_c = math.sqrt(curvature)
    # Smoothed by 1e-12, so that a zero vector has the gradient of its limit: the distance is smooth there.
    norm_x = (x.square().sum(dim=1, keepdim=True) + 1e-24).sqrt()
    norm_y = (y.square().sum(dim=1, keepdim=True) + 1e-24).sqrt()
    a = (root_c * norm_x).clamp(max=LARGEST_RADIUS)
    b = (root_c * norm_y.T).clamp(max=LARGEST_RADIUS)
    one_minus_cos = squared_distances(x / norm_x, y / norm_y) / 2
    squared = (a - b).sinh().square() + (2 * a).sinh() * (2 * b).sinh() * one_minus_cos / 2
    return 2 / root_c * root_or_zero(squared, SAME_POINT * (a.square() + b.square())).asinh()


def exp_map_origin(v: Tensor, curvature: float) -> Tensor:
    """Eq. 14 as released: tangent vectors v (N, C) at the origin -> points (N, C) of the Poincaré ball, float64.

    The argument of tanh is limited to 15, and the points to the norm (1 - 1e-3) / sqrt(c).
    """
    v = v.double()
    norm = (v.square().sum(dim=1, keepdim=True) + 1e-24).sqrt()
    radius = (math.sqrt(curvature) * norm).clamp(max=15.0).tanh().clamp(max=1 - 1e-3)
    return radius * v / (math.sqrt(curvature) * norm)


def hyperbolic_distances_released(x: Tensor, y: Tensor, curvature: float) -> Tensor:
    """Eq. 12-15 as the authors' published code computes them, with its limits.

    The points are those of `exp_map_origin`; the denominator of the Möbius sum carries + 1e-5, and the argument of
    artanh is limited to 1 - 1e-5, so that no distance exceeds 12.2 / sqrt(c). The + 1e-5 shortens distances near the
    edge of the ball (17 % at radius 0.999), and a row of norm above about 3.8 / sqrt(c) (12 at c = 0.1) has no radial
    gradient. Kept for comparison; `hyperbolic_distances` is the same distance without these.
    """
    p, q = exp_map_origin(x, curvature), exp_map_origin(y, curvature)
    c = curvature
    norm_p, norm_q = p.square().sum(dim=1)[:, None], q.square().sum(dim=1)[None, :]
    squared = squared_distances(p, q)
    # |(-p) (+) q|² = |p - q|² / denominator, and 2 <p, q> = |p|² + |q|² - |p - q|².
    denominator = (1 - c * norm_p) * (1 - c * norm_q) + c * squared
    moebius = root_or_zero(squared * denominator) / (denominator + 1e-5)
    return 2 / math.sqrt(c) * (math.sqrt(c) * moebius).clamp(max=1 - 1e-5).atanh()
