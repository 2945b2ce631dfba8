"""Rotations and the kinematic chain of a handful of joints, forward and hand-written backward.

At this size the cost is the number of torch calls, and autograd would double it. Every function runs on any device and
in any float type.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

_TINY = 1e-12


@lru_cache(maxsize=8)
def _rotation_constants(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """The linear map [3, 9] from a vector to its cross-product matrix, and the identity [3, 3]."""
    cross = torch.zeros(3, 3, 3)
    for x, y, z in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        cross[x, z, y], cross[x, y, z] = 1, -1
    return cross.view(3, 9).to(device, dtype), torch.eye(3, dtype=dtype, device=device)


@lru_cache(maxsize=8)
def _tree_constants(parents: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """D [J, J] with (D x)_j = x_j - x_parent(j), and the bottom row of homogeneous matrices [J, 1, 4]."""
    difference = torch.eye(len(parents))
    for joint, parent in enumerate(parents):
        if parent >= 0:
            difference[joint, parent] = -1
    bottom = torch.tensor([0.0, 0.0, 0.0, 1.0]).repeat(len(parents), 1, 1)
    return difference.to(device, dtype), bottom.to(device, dtype)


def rotation_matrices(axis_angle: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Rodrigues' formula R = c I + a K + b p p^T: t = |p|, K = [p]x, c = cos t, a = sin t / t, b = (1 - cos t) / t^2.

    Args:
        axis_angle: p [J, 3] radians, zero included.

    Returns:
        R [J, 3, 3], and what the backward pass needs.
    """
    cross, identity = _rotation_constants(axis_angle.dtype, axis_angle.device)
    squared = (axis_angle * axis_angle).sum(1, keepdim=True)
    angle = squared.sqrt()
    c, a = angle.cos(), torch.sinc(angle * (1 / math.pi))
    half = torch.sinc(angle * (0.5 / math.pi))
    b = 0.5 * half * half  # 1 - cos t = 2 sin^2(t / 2), without cancellation
    skew = (axis_angle @ cross).view(-1, 3, 3)
    rotation = torch.addcmul(c[:, :, None] * identity, a[:, :, None], skew)
    rotation.addcmul_(b[:, :, None], axis_angle[:, :, None] * axis_angle[:, None, :])
    return rotation, (axis_angle, squared, c, a, b)


def rotation_matrices_backward(grad: Tensor, saved: tuple[Tensor, ...]) -> Tensor:
    """d loss / d axis_angle [J, 3] from grad = d loss / d R [J, 3, 3].

    With s = t^2: dc/ds = -a / 2, da/ds = (c - a) / 2s, db/ds = (a / 2 - b) / s. The last two cancel for a small angle,
    but they are multiplied by s, so that what rounding leaves of them does not matter.
    """
    axis_angle, squared, c, a, b = saved
    cross, _ = _rotation_constants(axis_angle.dtype, axis_angle.device)
    flat = grad.reshape(-1, 9)
    axial = flat @ cross.t()  # d <grad, K> / dp
    along = ((grad + grad.transpose(1, 2)) @ axis_angle[:, :, None]).squeeze(2)  # d <grad, p p^T> / dp
    trace = flat[:, ::4].sum(1, keepdim=True)
    skew_term = (axial * axis_angle).sum(1, keepdim=True)  # <grad, K>
    outer_term = (along * axis_angle).sum(1, keepdim=True)  # 2 <grad, p p^T>
    by_square = ((c - a) * skew_term + (0.5 * a - b) * outer_term) / squared.clamp_min(_TINY) - a * trace  # 2 dL / ds
    return a * axial + b * along + by_square * axis_angle


def joint_transforms(rotations: Tensor, joints: Tensor, parents: tuple[int, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Pose a skeleton.

    Args:
        rotations: [J, 3, 3] of each joint relative to its parent.
        joints: [J, 3] rest positions.
        parents: of each joint; the root's is -1 and it comes first, a parent comes before its children.

    Returns:
        A [J, 3, 4]: a rest point p that follows joint j goes to A_j [p, 1]; and what the backward pass needs.
    """
    difference, bottom = _tree_constants(parents, joints.dtype, joints.device)
    local = torch.cat([torch.cat([rotations, (difference @ joints)[:, :, None]], 2), bottom], 1)
    steps = local.unbind()
    world = [steps[0]]
    for step, parent in zip(steps[1:], parents[1:], strict=True):
        world.append(world[parent] @ step)
    worlds = torch.stack(world)
    turn = worlds[:, :3, :3]
    shift = torch.baddbmm(worlds[:, :3, 3:], turn, joints[:, :, None], alpha=-1)
    return torch.cat([turn, shift], 2), (joints, local, worlds)


def joint_transforms_backward(
    grad: Tensor, parents: tuple[int, ...], saved: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """d loss / d rotations [J, 3, 3] and d loss / d joints [J, 3] from grad = d loss / d A [J, 3, 4]."""
    joints, local, worlds = saved
    difference, bottom = _tree_constants(parents, joints.dtype, joints.device)
    grad_shift = grad[:, :, 3:]
    grad_turn = torch.addcmul(grad[:, :, :3], grad_shift, joints[:, None, :], value=-1)
    grads = list(torch.cat([torch.cat([grad_turn, grad_shift], 2), torch.zeros_like(bottom)], 1).unbind())
    steps, world = local.unbind(), worlds.unbind()
    for joint in range(len(parents) - 1, 0, -1):  # children before parents
        grads[parents[joint]] = torch.addmm(grads[parents[joint]], grads[joint], steps[joint].t())
    children = torch.stack([world[parent] for parent in parents[1:]]).transpose(1, 2) @ torch.stack(grads[1:])
    grad_local = torch.cat([grads[0][None], children])[:, :3]
    grad_joints = difference.t() @ grad_local[:, :, 3]
    grad_joints -= (worlds[:, :3, :3].transpose(1, 2) @ grad_shift).squeeze(2)
    return grad_local[:, :, :3], grad_joints
