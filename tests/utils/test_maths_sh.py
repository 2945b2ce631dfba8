"""Spherical harmonics: orthonormal, in the files' order and signs, and rotation-invariant in power."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from utils.maths.rotations import axis_angle_to_matrix
from utils.maths.sh import eval_sh, rgb_to_sh0, sh0_to_rgb, sh_basis, sh_coefficients


def sphere_quadrature(order: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Points and weights that integrate polynomials up to degree 2 * order - 1 over the sphere exactly."""
    z, w = np.polynomial.legendre.leggauss(order)
    phi = 2 * np.pi * np.arange(2 * order) / (2 * order)
    r = np.sqrt(1 - z**2)[:, None]
    points = np.stack(np.broadcast_arrays(r * np.cos(phi), r * np.sin(phi), z[:, None]), -1).reshape(-1, 3)
    return torch.from_numpy(points), torch.from_numpy(np.repeat(w * np.pi / order, 2 * order))


def test_the_basis_is_orthonormal() -> None:
    points, weights = sphere_quadrature()
    basis = sh_basis(points, 3)
    torch.testing.assert_close(basis.T @ (weights[:, None] * basis), torch.eye(16, dtype=torch.float64))


def test_order_and_signs_are_those_of_the_associated_legendre_functions() -> None:
    # Y(l, -m) ~ sin(m phi), Y(l, m) ~ cos(m phi), times P(l, m)(z) with the phase (-1)^m.
    g = torch.Generator().manual_seed(0)
    d = torch.nn.functional.normalize(torch.randn(50, 3, generator=g, dtype=torch.float64), dim=-1)
    phi, z = torch.atan2(d[:, 1], d[:, 0]), d[:, 2].numpy()
    basis = sh_basis(d, 3)
    for degree in range(4):
        for m in range(-degree, degree + 1):
            a = abs(m)
            legendre = np.polynomial.legendre.Legendre.basis(degree).deriv(a)(z) * (1 - z**2) ** (a / 2)
            factorials = math.factorial(degree - a) / math.factorial(degree + a)
            norm = math.sqrt((2 * degree + 1) / (4 * math.pi) * factorials * (2 if m else 1))
            wave = torch.sin(a * phi) if m < 0 else torch.cos(a * phi)
            expected = (-1) ** a * norm * torch.from_numpy(legendre) * wave
            torch.testing.assert_close(basis[:, degree * degree + degree + m], expected)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_a_lower_degree_is_the_start_of_a_higher_one_and_power_is_invariant(degree: int) -> None:
    d = torch.nn.functional.normalize(torch.randn(9, 3, generator=torch.Generator().manual_seed(1)).double(), dim=-1)
    k = sh_coefficients(degree)
    torch.testing.assert_close(sh_basis(d, degree), sh_basis(d, 3)[:, :k])
    turned = d @ axis_angle_to_matrix(torch.tensor([0.3, 1.0, -0.2], dtype=torch.float64)).T
    band = slice(degree * degree, k)
    power = sh_basis(d, 3)[:, band].square().sum(-1), sh_basis(turned, 3)[:, band].square().sum(-1)
    torch.testing.assert_close(*power)


def test_eval_uses_only_the_degree_asked_for() -> None:
    sh = torch.randn(5, 16, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    d = torch.nn.functional.normalize(torch.randn(5, 3, generator=torch.Generator().manual_seed(3)).double(), dim=-1)
    torch.testing.assert_close(eval_sh(sh, d, 0) + 0.5, sh0_to_rgb(sh[:, 0]))
    expected = torch.einsum("nk,nkc->nc", sh_basis(d, 2), sh[:, :9])
    torch.testing.assert_close(eval_sh(sh, d, 2), expected)


def test_colour_of_degree_0_there_and_back() -> None:
    rgb = torch.rand(10, 3, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(sh0_to_rgb(rgb_to_sh0(rgb)), rgb)


@pytest.mark.parametrize("degree", [-1, 4])
def test_other_degrees_are_refused(degree: int) -> None:
    with pytest.raises(ValueError, match="degree 0, 1, 2 or 3"):
        sh_basis(torch.zeros(1, 3), degree)
