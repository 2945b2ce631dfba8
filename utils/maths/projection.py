"""Pinhole projection of points and of 3D Gaussians (EWA splatting: Zwicker et al., 2001).

World and camera axes, and pixels: see `utils/contracts.py`. Everything is differentiable in every tensor.
"""

from __future__ import annotations

import torch
from torch import Tensor

from utils.maths.rotations import quaternion_to_matrix

JACOBIAN_MARGIN = 0.3  # of tan(half field of view): beyond it the linearisation would explode


def to_camera(points: Tensor, world_to_camera: Tensor) -> Tensor:
    """World points [..., 3] -> camera points [..., 3], metres."""
    return points @ world_to_camera[:3, :3].T + world_to_camera[:3, 3]


def camera_centre(world_to_camera: Tensor) -> Tensor:
    """The camera's position in the world [3]."""
    return -world_to_camera[:3, :3].T @ world_to_camera[:3, 3]


def project(points: Tensor, intrinsics: Tensor) -> Tensor:
    """Camera points [..., 3] in front of the camera -> pixels [..., 2]."""
    x, y, z = points.unbind(-1)
    u = intrinsics[0, 0] * x / z + intrinsics[0, 2]
    v = intrinsics[1, 1] * y / z + intrinsics[1, 2]
    return torch.stack([u, v], dim=-1)


def covariance_3d(quats: Tensor, scales: Tensor) -> Tensor:
    """Covariances [..., 3, 3] of Gaussians with unit quaternions [..., 4] and standard deviations [..., 3]."""
    axes = quaternion_to_matrix(quats) * scales[..., None, :]
    return axes @ axes.transpose(-1, -2)


def projection_jacobian(points: Tensor, intrinsics: Tensor, width: int, height: int) -> Tensor:
    """d pixel / d camera point [..., 2, 3], at camera points [..., 3] moved back to slightly outside the image.

    Each side of the image has its own limit, so that a principal point off the centre is treated like a crop.
    """
    x, y, z = points.unbind(-1)
    fx, fy, cx, cy = intrinsics[0, 0], intrinsics[1, 1], intrinsics[0, 2], intrinsics[1, 2]
    margin_x, margin_y = JACOBIAN_MARGIN * 0.5 * width / fx, JACOBIAN_MARGIN * 0.5 * height / fy
    tx = torch.clamp(x / z, min=-(cx / fx + margin_x), max=(width - cx) / fx + margin_x)
    ty = torch.clamp(y / z, min=-(cy / fy + margin_y), max=(height - cy) / fy + margin_y)
    zero = torch.zeros_like(z)
    rows = [fx / z, zero, -fx * tx / z, zero, fy / z, -fy * ty / z]
    return torch.stack(rows, dim=-1).unflatten(-1, (2, 3))


def covariance_2d(covariance: Tensor, jacobian: Tensor, world_to_camera: Tensor) -> Tensor:
    """World covariances [..., 3, 3] -> image covariances [..., 2, 2], pixels^2."""
    linear = jacobian @ world_to_camera[:3, :3]
    return linear @ covariance @ linear.transpose(-1, -2)
