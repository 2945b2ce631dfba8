"""Rotations as unit quaternions, matrices and axis-angle vectors.

Quaternions are (w, x, y, z); axis-angle vectors are in radians; matrices act on column vectors. Every function takes
any batch shape and is differentiable wherever it is defined, the identity included.
"""

from __future__ import annotations

import torch
from torch import Tensor

SMALL_ANGLE_SQUARED = 1e-4  # rad^2; below it the first omitted series term is under 1e-16 of the value
TINY = 1e-20


def normalise(q: Tensor) -> Tensor:
    """Quaternions [..., 4] of any length -> unit quaternions [..., 4]; zero stays zero."""
    return torch.nn.functional.normalize(q, dim=-1, eps=TINY)


def conjugate(q: Tensor) -> Tensor:
    """The inverse rotation of unit quaternions [..., 4]."""
    return q * q.new_tensor([1.0, -1.0, -1.0, -1.0])


def multiply(p: Tensor, q: Tensor) -> Tensor:
    """Hamilton product of quaternions [..., 4]: the rotation that applies q first, then p."""
    pw, px, py, pz = p.unbind(-1)
    qw, qx, qy, qz = q.unbind(-1)
    return torch.stack(
        [
            pw * qw - px * qx - py * qy - pz * qz,
            pw * qx + px * qw + py * qz - pz * qy,
            pw * qy - px * qz + py * qw + pz * qx,
            pw * qz + px * qy - py * qx + pz * qw,
        ],
        dim=-1,
    )


def quaternion_to_matrix(q: Tensor) -> Tensor:
    """Unit quaternions [..., 4] -> rotation matrices [..., 3, 3]."""
    w, x, y, z = q.unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def matrix_to_quaternion(matrix: Tensor) -> Tensor:
    """Rotation matrices [..., 3, 3] -> unit quaternions [..., 4]; the sign is that of the branch taken.

    The symmetric matrix 4 q q^T is linear in the rotation matrix. Its row with the largest diagonal entry, which is at
    least 1, is parallel to q: normalising that row never divides by a small number, at any angle
    (Shepperd 1978; branches by Mike Day, "Converting a Rotation Matrix to a Quaternion").
    """
    q = quaternion_row(matrix.flatten(-2).movedim(-1, 0))
    return normalise(q.movedim(0, -1))


def quaternion_row(m: Tensor) -> Tensor:
    """Rows-first core of `matrix_to_quaternion`: m [9, ...] (row-major matrix entries) -> [4, ...], not normalised."""
    m00, m01, m02, m10, m11, m12, m20, m21, m22 = m.unbind(0)
    x, y, z = m21 - m12, m02 - m20, m10 - m01
    xy, xz, yz = m01 + m10, m02 + m20, m12 + m21
    total, difference = m00 + m11, m00 - m11
    up, down = 1 + m22, 1 - m22
    # Exactly one of these is 1. A sum of four products costs half of three nested `where`.
    back = (m22 < 0).to(m.dtype)
    pick_x = back * (difference > 0)
    pick_y = back - pick_x
    pick_z = (1 - back) * (total < 0)
    pick_w = 1 - back - pick_z
    row = torch.stack([up + total, x, y, z]) * pick_w
    row = torch.addcmul(row, torch.stack([x, down + difference, xy, xz]), pick_x)
    row = torch.addcmul(row, torch.stack([y, xy, down - difference, yz]), pick_y)
    return torch.addcmul(row, torch.stack([z, xz, yz, up - total]), pick_z)


def axis_angle_to_matrix(axis_angle: Tensor) -> Tensor:
    """Axis-angle vectors [..., 3] (radians) -> rotation matrices [..., 3, 3], smooth at zero (Rodrigues' formula)."""
    squared = (axis_angle * axis_angle).sum(-1)
    small = squared < SMALL_ANGLE_SQUARED
    # The unused branch still gets a gradient, so it must not see the zero.
    safe = torch.where(small, torch.ones_like(squared), squared)
    angle = safe.sqrt()
    sine = torch.where(small, 1 - squared / 6 * (1 - squared / 20 * (1 - squared / 42)), angle.sin() / angle)
    cosine = torch.where(small, 0.5 - squared / 24 * (1 - squared / 30 * (1 - squared / 56)), (1 - angle.cos()) / safe)
    x, y, z = axis_angle.unbind(-1)
    sx, sy, sz = sine * x, sine * y, sine * z
    cx, cy, cz = cosine * x, cosine * y, cosine * z
    xx, yy, zz, xy, xz, yz = cx * x, cy * y, cz * z, cx * y, cx * z, cy * z
    rows = [1 - yy - zz, xy - sz, xz + sy, xy + sz, 1 - xx - zz, yz - sx, xz - sy, yz + sx, 1 - xx - yy]
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def axis_angle_to_quaternion(axis_angle: Tensor) -> Tensor:
    """Axis-angle vectors [..., 3] (radians) -> unit quaternions [..., 4], smooth at zero."""
    squared = (axis_angle * axis_angle).sum(-1, keepdim=True)
    small = squared < SMALL_ANGLE_SQUARED
    angle = torch.where(small, torch.ones_like(squared), squared).sqrt()
    quarter = squared / 4
    w = torch.where(small, 1 - quarter / 2 * (1 - quarter / 12 * (1 - quarter / 30)), (angle / 2).cos())
    ratio = torch.where(
        small, 0.5 * (1 - quarter / 6 * (1 - quarter / 20 * (1 - quarter / 42))), (angle / 2).sin() / angle
    )
    return torch.cat([w, ratio * axis_angle], dim=-1)


def quaternion_to_axis_angle(q: Tensor) -> Tensor:
    """Unit quaternions [..., 4] -> axis-angle vectors [..., 3] (radians, at most pi long), smooth at the identity."""
    q = torch.where(q[..., :1] < 0, -q, q)
    w, v = q[..., :1], q[..., 1:]
    squared = (v * v).sum(-1, keepdim=True)
    small = squared < SMALL_ANGLE_SQUARED
    length = torch.where(small, torch.ones_like(squared), squared).sqrt()
    # atan(s / w) / s as a series in (s / w)^2; where it is used, w is near 1.
    t = squared / torch.where(small, w * w, torch.ones_like(w))
    series = (1 - t / 3 + t * t / 5 - t * t * t / 7) / torch.where(small, w, torch.ones_like(w))
    return 2 * torch.where(small, series, torch.atan2(length, w) / length) * v


def matrix_to_axis_angle(matrix: Tensor) -> Tensor:
    """Rotation matrices [..., 3, 3] -> axis-angle vectors [..., 3] (radians, at most pi long), smooth at identity."""
    return quaternion_to_axis_angle(matrix_to_quaternion(matrix))
