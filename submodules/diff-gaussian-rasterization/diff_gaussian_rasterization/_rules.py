"""The points in which rasterisers of 3D Gaussians differ, and the three sets of them that matter."""

from __future__ import annotations

from dataclasses import dataclass

import torch


def _next_float32(value: float) -> float:
    return float(torch.nextafter(torch.tensor(value, dtype=torch.float32), torch.tensor(float("inf"))))


@dataclass(frozen=True)
class Rules:
    """How a splat becomes pixels.

    alpha_max: upper clamp of a splat's opacity at a pixel.
    clamp_passes_gradient: the clamp is ignored by the derivative; otherwise the derivative is zero where it acts.
    stop: a pixel takes a splat only if its transmittance is still >= stop afterwards.
    eps2d: pixels^2, added to both variances of the 2D covariance (low-pass filter).
    normalise_quats: rotations are normalised, with the derivative of that; otherwise the caller has done it.
    square_extent: a splat ends at the tiles of its 3 sigma square; otherwise it reaches as far as alpha >= 1/255.
    symmetric_clamp: x/z is clamped inside the Jacobian to 1.3 tan(fov / 2) on both sides, wherever the principal point
        lies.
    antialias: a splat's opacity is lowered by what the low-pass filter widens it.
    """

    alpha_max: float = 0.99
    clamp_passes_gradient: bool = False
    stop: float = 1e-4
    eps2d: float = 0.3
    normalise_quats: bool = True
    square_extent: bool = False
    symmetric_clamp: bool = False
    antialias: bool = False


RULES = {
    "ours": Rules(),
    "dgr": Rules(clamp_passes_gradient=True, normalise_quats=False, square_extent=True, symmetric_clamp=True),
    "gsplat15": Rules(alpha_max=0.999, stop=_next_float32(1e-4)),
}
