"""The coordinate frame of every triangle, and Gaussians that ride on it (GaussianAvatars, CVPR 2024, section 3.2).

For a triangle (v0, v1, v2):
    a0 = unit(v1 - v0), a1 = unit(a0 x (v2 - v0)) is the normal, a2 = a0 x a1 points away from v2
    R = [a0 a1 a2] as columns, T = mean of the vertices, k = (base length |v1 - v0| + height |a2 . (v2 - v0)|) / 2
A Gaussian with local mean mu, rotation r and scale s appears in the world at k R mu + T, turned by R r, sized k s.

Both functions run in every training step, so their derivatives are written out. Inside, tensors are component-major
([3, F] instead of [F, 3]): one operation then handles one component of all faces at memory speed. Sums over faces and
vertices run in index order, so on the CPU they give the same bits every time (on CUDA they do under
`torch.use_deterministic_algorithms`). The derivation stands at `_Frames.backward`.

Legend: p corner positions, e1 = v1 - v0, e2 = v2 - v0, base = |e1|, height = |a0 x e2|, along = a0 . e2,
g_x = d loss / d x.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from utils.maths.rotations import quaternion_row

TINY = 1e-20  # lower bound of lengths that are divided by; the original's value


@dataclass(frozen=True)
class TriangleFrames:
    """Frames of F triangles in world space. The tensors may be strided views; gradients flow to the vertices."""

    rotations: Tensor  # [F, 3, 3] columns a0, a1 (normal), a2
    quats: Tensor  # [F, 4] the same rotations as unit (w, x, y, z)
    centres: Tensor  # [F, 3] metres
    scales: Tensor  # [F] metres


def triangle_frames(vertices: Tensor, faces: Tensor) -> TriangleFrames:
    """Frames of a mesh's triangles.

    A triangle without area gets finite frames (missing axes are zero) and passes no rotation gradient on.

    Args:
        vertices: [V, 3] metres, world, floating point.
        faces: [F, 3] int64.
    """
    return TriangleFrames(*_Frames.apply(vertices, faces))  # pyright: ignore[reportArgumentType]


def triangle_areas(vertices: Tensor, faces: Tensor) -> Tensor:
    """[F] areas of the triangles of a mesh [V, 3], [F, 3], in the square of its unit."""
    a, b, c = vertices[faces].unbind(1)
    return torch.linalg.cross(b - a, c - a).norm(dim=-1) / 2


def attach(
    frames: TriangleFrames, binding: Tensor, local_means: Tensor, local_quats: Tensor, local_scales: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Carry Gaussians from their triangles' frames into the world.

    Args:
        frames: of F triangles.
        binding: [N] int64, the triangle of each Gaussian.
        local_means: [N, 3] in triangle scales.
        local_quats: [N, 4] unit (w, x, y, z).
        local_scales: [N, 3] standard deviations in triangle scales.

    Returns:
        means [N, 3] metres, quats [N, 4] unit, scales [N, 3] metres.
    """
    return _Attach.apply(
        frames.rotations, frames.quats, frames.centres, frames.scales, binding, local_means, local_quats, local_scales
    )  # pyright: ignore[reportReturnType]


def _rows(columns: Tensor) -> Tensor:
    """[N, C] -> [C, N] in memory; for few columns four times as fast as `columns.t().contiguous()`."""
    return torch.stack(columns.unbind(1))


def _columns(rows: Tensor) -> Tensor:
    """[C, N] -> [N, C] in memory, likewise."""
    columns = rows.new_empty(rows.shape[1], rows.shape[0])
    for column, row in zip(columns.unbind(1), rows.unbind(0), strict=True):
        column.copy_(row)
    return columns


def _cross(a: Tensor, b: Tensor) -> Tensor:
    """Cross product of component-major vectors [3, N]."""
    ax, ay, az = a.unbind(0)
    bx, by, bz = b.unbind(0)
    return torch.stack([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx])


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Dot product of component-major vectors [3, N] -> [N]; faster than a reduction over so few terms."""
    ab = a * b
    return ab[0] + ab[1] + ab[2]


def _length(a: Tensor) -> Tensor:
    return _dot(a, a).sqrt_().clamp_(min=TINY)


class _Frames(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vertices: Tensor, faces: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        corners = _rows(faces).view(-1)
        p = _rows(vertices).index_select(1, corners).view(3, 3, -1)  # [axis, corner, face]
        e1, e2 = p[:, 1] - p[:, 0], p[:, 2] - p[:, 0]
        base = _length(e1)
        a0 = e1 / base
        normal = _cross(a0, e2)
        height = _length(normal)
        a1 = normal / height
        rotations = torch.stack([a0, a1, _cross(a0, a1)], dim=1).view(9, -1)
        q = quaternion_row(rotations)
        q /= (q * q).sum(0).sqrt_().clamp_(min=TINY)
        centres = (p[:, 0] + p[:, 1] + p[:, 2]).div_(3)
        scales = (base + height).mul_(0.5)
        ctx.save_for_backward(corners, rotations, q, base, height, _dot(a0, e2))
        ctx.n_vertices = vertices.shape[0]
        return rotations.view(3, 3, -1).permute(2, 0, 1), q.t(), centres.t(), scales

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None]:
        """Through the triangle's angular velocity.

        R stays a rotation, so R and q depend on the vertices only through omega, where da_i = omega x a_i. In the
        frame's own axes, from the definitions of a0 and a1:
            omega_2 = a1.de1 / base,   omega_1 = -a2.de1 / base,   omega_0 = (a1.de2 - along / base * a1.de1) / height
            d base = a0.de1,           d height = along / base * a2.de1 - a2.de2
        The transposed map takes the torque t (d loss = t . omega) and g_scale to g_e1 and g_e2.
        """
        corners, rotations, q, base, height, along = ctx.saved_tensors
        g_rotations, g_quats, g_centres, g_scales = grads
        frame = rotations.view(3, 3, -1)
        t0, t1, t2 = _torque(frame, g_rotations.permute(1, 2, 0), q, g_quats.t())
        # Without extent there is no direction: 1 / TINY would be a gradient of 1e20.
        per_base = torch.where(base > TINY, 1 / base, 0)
        t0 = t0 * torch.where(height > TINY, 1 / height, 0)
        slant = along * per_base
        half_scale = 0.5 * g_scales
        a0, a1, a2 = frame[:, 0], frame[:, 1], frame[:, 2]
        g_e1 = a0 * half_scale + a1 * (t2 * per_base - t0 * slant) + a2 * (half_scale * slant - t1 * per_base)
        g_e2 = a1 * t0 - a2 * half_scale
        third = g_centres.t() / 3
        g_p = torch.stack([third - g_e1 - g_e2, third + g_e1, third + g_e2], dim=1).view(3, -1)
        g_vertices = g_p.new_zeros(3, ctx.n_vertices).index_add_(1, corners, g_p)
        return _columns(g_vertices), None


def _torque(frame: Tensor, g_frame: Tensor, q: Tensor, g_q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """d loss / d omega in the frame's own axes, from gradients to R [3, 3, F] and to its quaternion [4, F].

    dR = R [omega]x and dq = q (0, omega) / 2.
    """

    def along(i: int, j: int) -> Tensor:
        return _dot(frame[:, i], g_frame[:, j])

    w, x, y, z = (0.5 * q).unbind(0)
    gw, gx, gy, gz = g_q.unbind(0)
    t0 = along(2, 1) - along(1, 2) + (w * gx - x * gw + z * gy - y * gz)
    t1 = along(0, 2) - along(2, 0) + (w * gy - y * gw + x * gz - z * gx)
    t2 = along(1, 0) - along(0, 1) + (w * gz - z * gw + y * gx - x * gy)
    return t0, t1, t2


class _Attach(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0913 - autograd hands over every tensor as an argument of its own
        ctx: Any,
        rotations: Tensor,
        quats: Tensor,
        centres: Tensor,
        scales: Tensor,
        binding: Tensor,
        local_means: Tensor,
        local_quats: Tensor,
        local_scales: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        matrices = rotations.permute(1, 2, 0).reshape(9, -1)  # a view, as `triangle_frames` stores them
        frame = matrices.index_select(1, binding).view(3, 3, -1)
        q = quats.t().index_select(1, binding)
        k = scales.index_select(0, binding)
        mu, r, s = _rows(local_means), _rows(local_quats), _rows(local_scales)
        turned = frame[:, 0] * mu[0] + frame[:, 1] * mu[1] + frame[:, 2] * mu[2]
        means = centres.t().index_select(1, binding).addcmul_(turned, k.expand_as(turned))
        ctx.save_for_backward(frame, q, k, binding, mu, r, s, turned)
        ctx.n_faces = scales.shape[0]
        return _columns(means), _columns(_product(q, r)), _columns(s * k)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        frame, q, k, binding, mu, r, s, turned = ctx.saved_tensors
        g_means, g_quats, g_scales = (_rows(g) for g in grads)
        pull = g_means * k  # gradient of R mu
        g_mu = torch.stack([_dot(frame[:, i], pull) for i in range(3)])
        g_r = _product(_conjugate(q), g_quats)
        locals_ = (_columns(g_mu), _columns(g_r), _columns(g_scales * k))
        if not any(ctx.needs_input_grad[:4]):
            return None, None, None, None, None, *locals_

        # One row per component of a frame, so that a single pass sums over the Gaussians of every face, in order.
        per_gaussian = torch.cat(
            [
                (pull[:, None] * mu[None]).view(9, -1),
                _product(g_quats, _conjugate(r)),
                g_means,
                (_dot(g_means, turned) + _dot(g_scales, s))[None],
            ]
        )
        faces = per_gaussian.new_zeros(17, ctx.n_faces).index_add_(1, binding, per_gaussian)
        g_rotations = faces[:9].view(3, 3, -1).permute(2, 0, 1)
        return g_rotations, faces[9:13].t(), faces[13:16].t(), faces[16], None, *locals_


def _product(p: Tensor, q: Tensor) -> Tensor:
    """Hamilton product of component-major quaternions [4, N]."""
    pw, px, py, pz = p.unbind(0)
    qw, qx, qy, qz = q.unbind(0)
    return torch.stack(
        [
            pw * qw - px * qx - py * qy - pz * qz,
            pw * qx + px * qw + py * qz - pz * qy,
            pw * qy - px * qz + py * qw + pz * qx,
            pw * qz + px * qy - py * qx + pz * qw,
        ]
    )


def _conjugate(q: Tensor) -> Tensor:
    """Inverse of component-major unit quaternions [4, N]."""
    return torch.cat([q[:1], -q[1:]])
