"""Projection: the Jacobian is the derivative, covariances are those of sampled points."""

from __future__ import annotations

import torch

from utils.maths.projection import (
    camera_centre,
    covariance_2d,
    covariance_3d,
    project,
    projection_jacobian,
    to_camera,
)
from utils.maths.rotations import axis_angle_to_matrix, normalise

INTRINSICS = torch.tensor([[500.0, 0, 260], [0, 520.0, 190], [0, 0, 1]], dtype=torch.float64)


def pose() -> torch.Tensor:
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = axis_angle_to_matrix(torch.tensor([0.3, -0.8, 0.2], dtype=torch.float64))
    matrix[:3, 3] = torch.tensor([0.1, 0.2, 1.5], dtype=torch.float64)
    return matrix


def test_the_camera_centre_is_the_origin_of_camera_space() -> None:
    torch.testing.assert_close(to_camera(camera_centre(pose()), pose()), torch.zeros(3, dtype=torch.float64))


def test_a_point_on_the_axis_is_seen_at_the_principal_point() -> None:
    assert project(torch.tensor([0.0, 0.0, 2.0], dtype=torch.float64), INTRINSICS).tolist() == [260.0, 190.0]


def test_the_jacobian_is_the_derivative_of_the_projection_inside_the_image() -> None:
    points = torch.tensor([[0.1, -0.2, 1.0], [-0.3, 0.25, 1.4]], dtype=torch.float64)
    expected = torch.stack([torch.autograd.functional.jacobian(lambda p: project(p, INTRINSICS), p) for p in points])
    torch.testing.assert_close(projection_jacobian(points, INTRINSICS, 512, 384), expected)


def test_outside_the_image_the_jacobian_is_that_of_the_limit_on_each_side() -> None:
    # Limits of x / z: (512 - 260) / 500 and -260 / 500, each 0.3 * 256 / 500 farther out.
    for x, limit in ((9.0, (512 - 260 + 0.3 * 256) / 500), (-9.0, -(260 + 0.3 * 256) / 500)):
        found = projection_jacobian(torch.tensor([x, 0.0, 2.0], dtype=torch.float64), INTRINSICS, 512, 384)
        at_limit = torch.tensor([2 * limit, 0.0, 2.0], dtype=torch.float64)
        torch.testing.assert_close(
            found, torch.autograd.functional.jacobian(lambda p: project(p, INTRINSICS), at_limit)
        )


def test_covariances_are_those_of_sampled_points() -> None:
    g = torch.Generator().manual_seed(0)
    quat = normalise(torch.randn(4, generator=g, dtype=torch.float64))
    scales, mean = torch.tensor([1e-3, 3e-3, 5e-4], dtype=torch.float64), torch.tensor([0.05, 0.1, 0.0]).double()
    covariance = covariance_3d(quat, scales)
    points = mean + torch.randn(200_000, 3, generator=g, dtype=torch.float64) @ torch.linalg.cholesky(covariance).T
    torch.testing.assert_close(torch.cov(points.T), covariance, rtol=0.02, atol=2e-8)
    jacobian = projection_jacobian(to_camera(mean, pose()), INTRINSICS, 512, 384)
    seen = torch.cov(project(to_camera(points, pose()), INTRINSICS).T)
    torch.testing.assert_close(covariance_2d(covariance, jacobian, pose()), seen, rtol=0.02, atol=2e-3)
    assert torch.linalg.eigvalsh(covariance).sqrt().sort().values.allclose(scales.sort().values)
