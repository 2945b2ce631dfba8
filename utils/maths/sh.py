"""Real spherical harmonics up to degree 3, as colour that depends on the viewing direction.

Order and signs are those of 3D Gaussian splatting files: degree by degree, m = -l ... l, with the Condon-Shortley phase
(x, y and z are Cartesian components of the unit direction from the camera to the point).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SH_0 = 0.5 / math.sqrt(math.pi)
_1 = math.sqrt(3 / (4 * math.pi))
_2 = (math.sqrt(15 / (4 * math.pi)), math.sqrt(5 / (16 * math.pi)), math.sqrt(15 / (16 * math.pi)))
_3 = (
    math.sqrt(35 / (32 * math.pi)),
    math.sqrt(105 / (4 * math.pi)),
    math.sqrt(21 / (32 * math.pi)),
    math.sqrt(7 / (16 * math.pi)),
    math.sqrt(105 / (16 * math.pi)),
)


def sh_coefficients(degree: int) -> int:
    """How many coefficients a degree needs: (degree + 1)^2."""
    return (degree + 1) ** 2


def sh_basis(directions: Tensor, degree: int) -> Tensor:
    """Basis functions of unit directions [..., 3] -> [..., (degree + 1)^2].

    Raises:
        ValueError: the degree is not 0, 1, 2 or 3.
    """
    if degree not in (0, 1, 2, 3):
        raise ValueError(f"spherical harmonics have degree 0, 1, 2 or 3 here, found {degree}")
    x, y, z = directions.unbind(-1)
    basis = [torch.full_like(x, SH_0)]
    if degree >= 1:
        basis += [-_1 * y, _1 * z, -_1 * x]
    xx, yy, zz = x * x, y * y, z * z
    if degree >= 2:
        basis += [
            _2[0] * x * y,
            -_2[0] * y * z,
            _2[1] * (2 * zz - xx - yy),
            -_2[0] * x * z,
            _2[2] * (xx - yy),
        ]
    if degree >= 3:
        basis += [
            -_3[0] * y * (3 * xx - yy),
            _3[1] * x * y * z,
            -_3[2] * y * (4 * zz - xx - yy),
            _3[3] * z * (2 * zz - 3 * xx - 3 * yy),
            -_3[2] * x * (4 * zz - xx - yy),
            _3[4] * z * (xx - yy),
            -_3[0] * x * (xx - 3 * yy),
        ]
    return torch.stack(basis, dim=-1)


def eval_sh(sh: Tensor, directions: Tensor, degree: int) -> Tensor:
    """Sum of basis functions: coefficients [..., K, C] (K may exceed what the degree needs), unit directions [..., 3].

    Returns:
        [..., C]; add 0.5 and clamp below at 0 to get colour.
    """
    basis = sh_basis(directions, degree)
    return (basis[..., None] * sh[..., : basis.shape[-1], :]).sum(-2)


def rgb_to_sh0(rgb: Tensor) -> Tensor:
    """Colour in [0, 1] -> the coefficient of degree 0 that shows it from everywhere."""
    return (rgb - 0.5) / SH_0


def sh0_to_rgb(sh0: Tensor) -> Tensor:
    """The inverse of `rgb_to_sh0`."""
    return sh0 * SH_0 + 0.5
