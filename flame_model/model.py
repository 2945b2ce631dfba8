"""The FLAME body model in torch: identity folded once, a step costs only the expression basis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from flame_model import skinning
from flame_model.flame_assets import FlameAssets
from flame_model.regions import face_regions

_CORRECTIVES = 36  # 4 non-root joints x 9 entries of (R - I)


@dataclass(frozen=True)
class Identity:
    """A person in rest pose with a neutral face. Carries gradients to shape and static offset if they want them."""

    planar: Tensor  # [3, V] metres: coordinates first, the layout in which skinning is fast
    joints: Tensor  # [5, 3] metres

    @property
    def vertices(self) -> Tensor:
        """[V, 3] metres."""
        return self.planar.t()


class FlameModel(nn.Module):
    """FLAME (Li et al. 2017, "Learning a model of facial shape and expression from 4D scans").

    Order: template + shape + expression + offsets -> joints of that mesh -> pose correctives of the 4 non-root joints
    -> linear blend skinning over 5 joints -> translation. The root rotation turns about the root joint.
    Metres, axis-angle radians, FLAME axes. float32 buffers; `.to(device)` and `.double()` work as for any module.

    Args:
        masks: name -> vertex ids (`load_masks`); they become `regions`, name -> [F] bool, on the CPU.
        joints_follow_offset: False places the joints before the static offset is added, as some trackers do.
    """

    template: Tensor  # [3, V]
    shape_basis: Tensor  # [S, 3V]
    basis: Tensor  # [K, 3V] pose correctives, if the model has any, then the expressions in use
    joint_basis: Tensor  # [E', 15] how the expressions in use move the joints
    joint_regressor: Tensor  # [5, V]
    weights: Tensor  # [5, V]
    faces: Tensor  # [F, 3] int64

    def __init__(
        self, assets: FlameAssets, masks: Mapping[str, np.ndarray] | None = None, joints_follow_offset: bool = True
    ) -> None:
        super().__init__()
        self.n_vertices, self.n_added_teeth = assets.n_vertices, assets.added_teeth
        self.n_shape, self.n_expr = assets.shape_dirs.shape[2], assets.expr_dirs.shape[2]
        self.fingerprint, self.edition = assets.fingerprint, assets.edition
        belongs = face_regions(masks, assets.faces) if masks else {}
        self.regions = {name: torch.from_numpy(inside) for name, inside in belongs.items()}
        self.joints_follow_offset = joints_follow_offset
        self.parents = tuple(int(parent) for parent in assets.parents)
        used = np.flatnonzero(assets.expr_dirs.any((0, 1)))
        self.n_used_expr = int(used[-1]) + 1 if len(used) else 0  # trailing directions may all be zero
        self.n_correctives = _CORRECTIVES if assets.pose_dirs.any() else 0

        expr_dirs = assets.expr_dirs[:, :, : self.n_used_expr]
        basis = np.concatenate([assets.pose_dirs[:, :, : self.n_correctives], expr_dirs], 2)
        joint_basis = np.einsum("jv,vck->kjc", assets.joint_regressor, expr_dirs, dtype=np.float64, optimize=True)
        buffers = {
            "template": assets.template.T,
            "shape_basis": assets.shape_dirs.transpose(2, 1, 0).reshape(self.n_shape, -1),
            "basis": basis.transpose(2, 1, 0).reshape(basis.shape[2], 3 * self.n_vertices),
            "joint_basis": joint_basis.reshape(self.n_used_expr, 3 * len(self.parents)),
            "joint_regressor": assets.joint_regressor,
            "weights": assets.weights.T,
        }
        for name, array in buffers.items():
            # A copy in torch's own, aligned memory: the bits of a matrix product may depend on the alignment.
            copy = torch.from_numpy(np.ascontiguousarray(array, np.float32)).clone()
            self.register_buffer(name, copy, persistent=False)
        self.register_buffer("faces", torch.from_numpy(assets.faces).clone(), persistent=False)

    def fold_identity(self, shape: Tensor, static_offset: Tensor | None = None) -> Identity:
        """The rest mesh of one person.

        Args:
            shape: [S'] identity coefficients, S' <= n_shape; the rest count as zero.
            static_offset: [V', 3] metres, V' = n_vertices, or that without the added teeth (which then get zeros).

        Raises:
            ValueError: another shape.
        """
        if shape.ndim != 1 or len(shape) > self.n_shape:
            raise ValueError(f"shape is {list(shape.shape)}, expected at most [{self.n_shape}]")
        planar = self.template + (shape @ self.shape_basis[: len(shape)]).view(3, -1)
        if static_offset is not None:
            offset = self._padded(static_offset, "static_offset").t()
            if not self.joints_follow_offset:
                return Identity(planar + offset, self.joint_regressor @ planar.t())
            planar = planar + offset
        return Identity(planar, self.joint_regressor @ planar.t())

    def posed(
        self,
        identity: Identity,
        *,
        expr: Tensor,
        rotation: Tensor,
        neck_pose: Tensor,
        jaw_pose: Tensor,
        eyes_pose: Tensor,
        translation: Tensor,
        dynamic_offset: Tensor | None = None,
    ) -> Tensor:
        """[V, 3] world vertices, with gradients to every argument that wants them.

        Args:
            identity: from `fold_identity`.
            expr: [E'] expression coefficients, E' <= n_expr; the rest count as zero.
            rotation, neck_pose, jaw_pose: [3] axis-angle.
            eyes_pose: [6] left, then right.
            translation: [3] metres.
            dynamic_offset: [V', 3] metres in rest pose, like `static_offset` but of this moment.

        Raises:
            ValueError: a wrong shape.
        """
        if expr.ndim != 1 or len(expr) > self.n_expr:
            raise ValueError(f"expr is {list(expr.shape)}, expected at most [{self.n_expr}]")
        poses = {"rotation": rotation, "neck_pose": neck_pose, "jaw_pose": jaw_pose, "eyes_pose": eyes_pose}
        for name, value, size in zip(poses, poses.values(), (3, 3, 3, 6), strict=True):
            if value.shape != (size,):
                raise ValueError(f"{name} is {list(value.shape)}, expected [{size}]")
        if translation.shape != (3,):
            raise ValueError(f"translation is {list(translation.shape)}, expected [3]")
        planar, joints = identity.planar, identity.joints
        if dynamic_offset is not None:
            offset = self._padded(dynamic_offset, "dynamic_offset")
            planar, joints = planar + offset.t(), joints + self.joint_regressor @ offset
        posed = _Posed.apply(self, planar, joints, translation, expr, rotation, neck_pose, jaw_pose, eyes_pose)
        return cast(Tensor, posed)

    def _padded(self, offset: Tensor, name: str) -> Tensor:
        if offset.shape == (self.n_vertices, 3):
            return offset
        without_teeth = self.n_vertices - self.n_added_teeth
        if offset.shape == (without_teeth, 3):
            return torch.cat([offset, offset.new_zeros(self.n_added_teeth, 3)])
        other = f" or [{without_teeth}, 3]" if self.n_added_teeth else ""
        raise ValueError(f"{name} is {list(offset.shape)}, expected [{self.n_vertices}, 3]{other}")


class _Posed(torch.autograd.Function):
    """Blend shapes and skinning with a hand-written backward: one matrix-vector product with the basis in each pass.

    With homogeneous rest vertices h [4, V], blended transforms B [3, 4, V] = sum_j w_j A_j: out_i = sum_k B_ik h_k.
    """

    @staticmethod
    def forward(
        ctx: Any, model: FlameModel, rest: Tensor, rest_joints: Tensor, translation: Tensor, expr: Tensor, *pose: Tensor
    ) -> Tensor:
        used = expr[: model.n_used_expr]
        axis_angle = torch.cat(pose).view(-1, 3)
        rotations, turned = skinning.rotation_matrices(axis_angle)
        joints = rest_joints + (used @ model.joint_basis[: len(used)]).view(-1, 3)
        transforms, chain = skinning.joint_transforms(rotations, joints, model.parents)
        coefficients = used
        if model.n_correctives:
            correctives = rotations[1:] - torch.eye(3, dtype=rotations.dtype, device=rotations.device)
            coefficients = torch.cat([correctives.flatten(), used])
        homogeneous = torch.ones(4, model.n_vertices, dtype=rest.dtype, device=rest.device)
        flat = homogeneous[:3].view(-1)
        torch.addmv(rest.reshape(-1), model.basis[: len(coefficients)].t(), coefficients, out=flat)
        blended = (transforms.view(-1, 12).t() @ model.weights).view(3, 4, -1)
        planar = (blended * homogeneous).sum(1)
        ctx.model, ctx.n_expr, ctx.n_pose = model, len(expr), [len(part) for part in pose]
        ctx.n_turned = len(turned)
        ctx.save_for_backward(homogeneous, blended, *turned, *chain)
        return torch.add(planar.t(), translation, out=torch.empty_like(planar).view(-1, 3))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        model: FlameModel = ctx.model
        homogeneous, blended, *small = ctx.saved_tensors
        turned, chain = tuple(small[: ctx.n_turned]), tuple(small[ctx.n_turned :])
        planar = grad.t().contiguous()
        grad_blended = planar[:, None, :] * homogeneous  # [3, 4, V]
        grad_transforms = (grad_blended.view(12, -1) @ model.weights.t()).t().view(-1, 3, 4)
        grad_rest = (blended[:, :3] * planar[:, None, :]).sum(0)
        n_used = min(ctx.n_expr, model.n_used_expr)
        grad_coefficients = torch.mv(model.basis[: model.n_correctives + n_used], grad_rest.view(-1))

        grad_rotations, grad_joints = skinning.joint_transforms_backward(grad_transforms, model.parents, chain)
        if model.n_correctives:
            grad_rotations[1:] += grad_coefficients[:_CORRECTIVES].view(-1, 3, 3)
        grad_pose = skinning.rotation_matrices_backward(grad_rotations, turned).view(-1)
        grad_expr = grad_coefficients.new_zeros(ctx.n_expr)
        torch.addmv(
            grad_coefficients[model.n_correctives :],
            model.joint_basis[:n_used],
            grad_joints.view(-1),
            out=grad_expr[:n_used],
        )
        return None, grad_rest, grad_joints, planar.sum(1), grad_expr, *grad_pose.split(ctx.n_pose)
