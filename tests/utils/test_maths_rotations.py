"""Rotations as axioms, against roma, and near the angles where naive formulas break."""

from __future__ import annotations

import math

import pytest
import roma
import torch
from torch import Tensor

from utils.maths import rotations as so3


def vectors(n: int = 64, seed: int = 0, scale: float = 1.5) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return scale * torch.randn(n, 3, generator=g, dtype=torch.float64)


def quaternions(n: int = 64, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return so3.normalise(torch.randn(n, 4, generator=g, dtype=torch.float64))


def xyzw(q: Tensor) -> Tensor:
    return q.roll(-1, -1)


def same_rotation(p: Tensor, q: Tensor, tolerance: float = 1e-12) -> bool:
    return bool(((p * q).sum(-1).abs() - 1).abs().max() < tolerance)


def test_against_roma() -> None:
    v, p, q = vectors(), quaternions(seed=1), quaternions(seed=2)
    torch.testing.assert_close(so3.axis_angle_to_matrix(v), roma.rotvec_to_rotmat(v))
    torch.testing.assert_close(so3.quaternion_to_matrix(q), roma.unitquat_to_rotmat(xyzw(q)))
    torch.testing.assert_close(xyzw(so3.multiply(p, q)), roma.quat_product(xyzw(p), xyzw(q)))
    assert same_rotation(xyzw(so3.matrix_to_quaternion(so3.quaternion_to_matrix(q))), xyzw(q))
    torch.testing.assert_close(so3.quaternion_to_axis_angle(q), roma.unitquat_to_rotvec(xyzw(q)))
    assert same_rotation(xyzw(so3.axis_angle_to_quaternion(v)), roma.rotvec_to_unitquat(v))


def test_product_is_composition_and_conjugate_is_inverse() -> None:
    p, q = quaternions(seed=1), quaternions(seed=2)
    both = so3.quaternion_to_matrix(p) @ so3.quaternion_to_matrix(q)
    torch.testing.assert_close(so3.quaternion_to_matrix(so3.multiply(p, q)), both)
    identity = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64).expand(64, 4)
    torch.testing.assert_close(so3.multiply(q, so3.conjugate(q)), identity)
    torch.testing.assert_close(so3.multiply(q, identity), q)


@pytest.mark.parametrize("shape", [(), (5,), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_batch_shape_and_type(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    v = vectors(1).to(dtype)[0].expand(*shape, 3)
    r, q = so3.axis_angle_to_matrix(v), so3.axis_angle_to_quaternion(v)
    assert r.shape == (*shape, 3, 3) and q.shape == (*shape, 4) and r.dtype == q.dtype == dtype
    assert so3.matrix_to_quaternion(r).shape == q.shape and so3.matrix_to_axis_angle(r).shape == v.shape
    torch.testing.assert_close(so3.quaternion_to_matrix(q), r)


@pytest.mark.parametrize("angle", [1e-12, 1e-6, 9.99e-3, 1.001e-2, 0.5, 3.0, math.pi - 1e-6])
def test_axis_angle_there_and_back(angle: float) -> None:
    v = torch.nn.functional.normalize(vectors(), dim=-1) * angle
    for back in (
        so3.matrix_to_axis_angle(so3.axis_angle_to_matrix(v)),
        so3.quaternion_to_axis_angle(so3.axis_angle_to_quaternion(v)),
    ):
        torch.testing.assert_close(back, v, rtol=1e-9, atol=1e-15)


def test_float32_matrices_give_accurate_quaternions_at_every_angle() -> None:
    # Half turns about any axis are where formulas through the trace lose all digits.
    axes = torch.nn.functional.normalize(vectors(200, scale=1.0), dim=-1)
    axes = torch.cat([axes, torch.eye(3, dtype=torch.float64), torch.tensor([[1.0, 1.0, 0.0]]).double() / math.sqrt(2)])
    for angle in (0.0, 1e-4, 1.0, math.pi / 2, 2 * math.pi / 3, 3.1, math.pi):
        exact = so3.axis_angle_to_quaternion(axes * angle)
        found = so3.matrix_to_quaternion(so3.quaternion_to_matrix(exact).float()).double()
        sign = (found * exact).sum(-1, keepdim=True).sign()
        assert (found * sign - exact).abs().max() < 3e-7
        assert (found.norm(dim=-1) - 1).abs().max() < 3e-7


@pytest.mark.parametrize("angle", [0.0, 1e-9, 5e-3, 0.9, 3.1])
def test_gradients_equal_finite_differences(angle: float) -> None:
    v = (torch.nn.functional.normalize(vectors(6), dim=-1) * angle).requires_grad_()
    assert torch.autograd.gradcheck(so3.axis_angle_to_matrix, v)
    assert torch.autograd.gradcheck(so3.axis_angle_to_quaternion, v)
    q = so3.axis_angle_to_quaternion(v.detach()).requires_grad_()
    assert torch.autograd.gradcheck(so3.quaternion_to_axis_angle, q)
    assert torch.autograd.gradcheck(so3.quaternion_to_matrix, q)
    assert torch.autograd.gradcheck(so3.matrix_to_quaternion, so3.quaternion_to_matrix(q).detach().requires_grad_())


def test_second_derivative_exists_at_zero() -> None:
    v = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(so3.axis_angle_to_matrix, v)


def test_zero_quaternion_stays_zero_with_finite_gradient() -> None:
    q = torch.zeros(1, 4, requires_grad=True)
    so3.normalise(q).sum().backward()
    assert q.grad is not None and not so3.normalise(q).any()
