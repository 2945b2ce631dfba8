"""FLAME posed in native code: blend shapes and linear blend skinning of one person, forward and backward."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ._calls import address
from ._library import NonFiniteError, check, library, thread_count
from ._rasterize import check_tensor

__all__ = ["NonFiniteError", "Poser"]

JOINTS, CORRECTIVES = 5, 36
_ARRAYS = ("rest", "joints", "basis", "joint_basis", "joint_regressor", "weights")
# In the order of the tensors that `_Pose` takes.
_SHAPES: dict[str, tuple[int | str, ...]] = {
    "expr": ("E",), "rotation": (3,), "neck_pose": (3,), "jaw_pose": (3,), "eyes_pose": (6,), "translation": (3,),
}  # fmt: skip
_PARAMETERS = (*_SHAPES, "dynamic_offset")


class _Arrays(ctypes.Structure):
    _fields_ = [
        *[(name, c_int64) for name in ("vertices", "expressions", "correctives")],
        *[(name, c_void_p) for name in (*_ARRAYS, "parents")],
    ]


class _Moment(ctypes.Structure):
    _fields_ = [("n_expr", c_int64), *[(name, c_void_p) for name in _PARAMETERS]]


class _Gradients(ctypes.Structure):
    _fields_ = [(name, c_void_p) for name in _PARAMETERS]


class Poser:
    """A person whose identity is folded in: from a moment's parameters to vertices. Everything is copied.

    Args:
        rest: [3, V] metres, the neutral mesh, coordinates first. joints: [5, 3] metres, of that mesh.
        basis: [C + E, 3 V] pose correctives (C = 36 entries of R - I of the joints after the root, or none), then
            expressions; coordinates first.
        joint_basis: [E, 15] how expressions move the joints.
        joint_regressor: [5, V]; with it the joints follow the dynamic offset. weights: [5, V] of skinning.
        parents: of the 5 joints; -1 for the root, which comes first. A parent comes before its children.
        correctives: C.

    All tensors are float32 on the CPU.

    Raises:
        ValueError: wrong type, shape, or tree. NonFiniteError: NaN or infinity. Both name the argument.
    """

    def __init__(  # noqa: PLR0913 - the arrays of the method
        self,
        *,
        rest: Tensor,
        joints: Tensor,
        basis: Tensor,
        joint_basis: Tensor,
        joint_regressor: Tensor,
        weights: Tensor,
        parents: Sequence[int],
        correctives: int,
    ) -> None:
        rest = check_tensor("rest", rest, (3, "V"))
        self.n_vertices = rest.shape[1]
        if correctives not in (0, CORRECTIVES):
            raise ValueError(f"correctives: found {correctives!r}, expected 0 or {CORRECTIVES}")
        if len(parents) != JOINTS:
            raise ValueError(f"parents: found {len(parents)}, expected {JOINTS}")
        joint_basis = check_tensor("joint_basis", joint_basis, ("E", 3 * JOINTS))
        expressions = joint_basis.shape[0]
        tensors = (
            rest,
            check_tensor("joints", joints, (JOINTS, 3)),
            check_tensor("basis", basis, (correctives + expressions, 3 * self.n_vertices)),
            joint_basis,
            check_tensor("joint_regressor", joint_regressor, (JOINTS, self.n_vertices)),
            check_tensor("weights", weights, (JOINTS, self.n_vertices)),
        )
        tree = (ctypes.c_int32 * JOINTS)(*parents)
        addresses = (tensor.data_ptr() for tensor in tensors)
        arrays = _Arrays(self.n_vertices, expressions, correctives, *addresses, ctypes.cast(tree, c_void_p))
        self._shapes: dict[str, tuple[int | str, ...]] = _SHAPES | {"dynamic_offset": (self.n_vertices, 3)}
        self.handle, native = c_void_p(), library()
        native.mien_flame_blended.restype = c_int64
        self._destroy = native.mien_flame_destroy
        check(native.mien_flame_create(ctypes.byref(arrays), ctypes.byref(self.handle)))
        self.n_blended = native.mien_flame_blended(c_int64(self.n_vertices))

    def _checked(self, name: str, tensor: Tensor, row: int | None) -> Tensor:
        shape = self._shapes[name]
        if row is None:
            return check_tensor(name, tensor, shape)
        tensor = check_tensor(name, tensor, ("T", *shape))
        if not 0 <= row < tensor.shape[0]:
            raise ValueError(f"row: found {row}, expected 0 to {tensor.shape[0] - 1}, the rows of {name}")
        return tensor

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self._destroy(self.handle)

    def pose(  # noqa: PLR0913 - the parameters of FLAME
        self,
        *,
        expr: Tensor,
        rotation: Tensor,
        neck_pose: Tensor,
        jaw_pose: Tensor,
        eyes_pose: Tensor,
        translation: Tensor,
        dynamic_offset: Tensor | None = None,
        row: int | None = None,
        threads: int | None = None,
    ) -> Tensor:
        """[V, 3] metres: expressions and offset move the neutral mesh and its joints, pose correctives its vertices;
        then linear blend skinning and the translation (Li et al. 2017, "Learning a model of facial shape and expression
        from 4D scans"). Gradients flow to every parameter. Same bits for any thread count.

        Args:
            expr: [E'] expression coefficients; missing ones count as zero, those beyond the model's do nothing.
            rotation, neck_pose, jaw_pose: [3] axis-angle. eyes_pose: [6] left, then right.
            translation: [3] metres. dynamic_offset: [V, 3] metres in rest pose.
            row: given where every parameter is a table with one dimension more in front: the row to take. Gradients of
                tables are sparse and hold that row alone.
            threads: None = one per usable CPU.

        Raises:
            ValueError: wrong type, shape or device, or no such row. NonFiniteError: NaN or infinity. Both name the
                parameter.
        """
        tensors = [expr, rotation, neck_pose, jaw_pose, eyes_pose, translation]
        if dynamic_offset is not None:
            tensors.append(dynamic_offset)
        tensors = [self._checked(name, tensor, row) for name, tensor in zip(_PARAMETERS, tensors, strict=False)]
        return _Pose.apply(self, row, thread_count(threads), *tensors)  # type: ignore[no-any-return]


class _Pose(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, poser: Poser, row: int | None, threads: int, *tensors: Tensor) -> Tensor:
        vertices = torch.empty(poser.n_vertices, 3)
        blended = torch.empty(poser.n_blended)
        check(
            library().mien_flame_pose(
                poser.handle, ctypes.byref(_moment(row, tensors)), threads, c_void_p(blended.data_ptr()),
                c_void_p(vertices.data_ptr()),
            )
        )  # fmt: skip
        ctx.poser, ctx.row, ctx.threads = poser, row, threads
        ctx.save_for_backward(blended, *tensors)
        return vertices

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        blended, *tensors = ctx.saved_tensors
        grad, row = grad.contiguous(), ctx.row
        # Each in its own memory: adding sparse gradients up trusts the stride of a single row.
        gradients = [
            torch.empty(tensor.shape if row is None else (1, *tensor.shape[1:])) if needed else None
            for tensor, needed in zip(tensors, ctx.needs_input_grad[3:], strict=True)
        ]
        wanted = _Gradients(*map(address, gradients))
        check(
            library().mien_flame_pose_backward(
                ctx.poser.handle, ctypes.byref(_moment(row, tensors)), c_void_p(blended.data_ptr()),
                c_void_p(grad.data_ptr()), ctx.threads, ctypes.byref(wanted),
            )
        )  # fmt: skip
        if row is not None:
            index = torch.full((1, 1), row)
            gradients = [
                None
                if values is None
                else torch.sparse_coo_tensor(index, values, table.shape, check_invariants=False, is_coalesced=True)
                for values, table in zip(gradients, tensors, strict=True)
            ]
        return None, None, None, *gradients


def _moment(row: int | None, tensors: Sequence[Tensor]) -> _Moment:
    """Where the parameters of the moment lie: contiguous tensors, or the row of such."""
    if row is None:
        return _Moment(tensors[0].shape[-1], *(tensor.data_ptr() for tensor in tensors))
    sizes = (tensor.numel() // tensor.shape[0] for tensor in tensors)
    places = (tensor.data_ptr() + 4 * row * size for tensor, size in zip(tensors, sizes, strict=True))
    return _Moment(tensors[0].shape[-1], *places)
