"""FLAME posed in native code: blend shapes and linear blend skinning of one person, forward and backward."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_int32, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ._calls import address
from ._device import device_library, on_device, queue_of
from ._library import NonFiniteError, check, check_with, library, thread_count
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


class _DeviceMoments(ctypes.Structure):
    """Mirrors FlameMoments of csrc/cuda/pieces.h."""

    _fields_ = [
        ("views", c_int32),
        ("rows", c_void_p),
        ("tables", c_void_p * len(_PARAMETERS)),
        ("n_expr", c_int64),
        ("state", c_void_p),
        ("vertices", c_void_p),
    ]


class _DeviceGradients(ctypes.Structure):
    """Mirrors FlameMomentGradients."""

    _fields_ = [
        ("g_vertices", c_void_p),
        ("tables", c_void_p * len(_PARAMETERS)),
        ("scratch", c_void_p),
        ("health", c_void_p),
    ]


class _OnCpu:
    """A person among the CPU kernels."""

    place = "cpu"

    def __init__(self, arrays: _Arrays, near: Tensor) -> None:
        self.handle, native = c_void_p(), library()
        native.mien_flame_blended.restype = c_int64
        self._destroy = native.mien_flame_destroy
        check(native.mien_flame_create(ctypes.byref(arrays), ctypes.byref(self.handle)))
        self._kept = native.mien_flame_blended(c_int64(arrays.vertices))

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self._destroy(self.handle)

    def pose(self, moment: _Moment, vertices: Tensor, threads: int) -> Tensor:
        """Writes `vertices` and returns what the way back needs."""
        kept = torch.empty(self._kept)
        check(
            library().mien_flame_pose(
                self.handle, ctypes.byref(moment), threads, c_void_p(kept.data_ptr()), c_void_p(vertices.data_ptr())
            )
        )
        return kept

    def pose_backward(self, moment: _Moment, kept: Tensor, grad: Tensor, threads: int, out: _Gradients) -> None:
        check(
            library().mien_flame_pose_backward(
                self.handle, ctypes.byref(moment), c_void_p(kept.data_ptr()), c_void_p(grad.data_ptr()), threads,
                ctypes.byref(out),
            )
        )  # fmt: skip


class _OnDevice:
    """A person among the CUDA kernels, on the device of `near`. Nothing is read back."""

    def __init__(self, arrays: _Arrays, near: Tensor) -> None:
        self.place = str(near.device) if near.is_cuda else "emulated"
        self.handle, self._native = c_void_p(), device_library()
        state, scratch = c_int64(), c_int64()
        self._call("flame_create", ctypes.byref(arrays), ctypes.byref(self.handle), ctypes.byref(queue_of(near)))
        self._call("flame_sizes", self.handle, ctypes.byref(state), ctypes.byref(scratch))
        self._state, self._scratch = state.value, scratch.value

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self._native.mien_cuda_flame_destroy(self.handle)

    def _call(self, function: str, *arguments: Any) -> None:
        check_with(self._native, getattr(self._native, f"mien_cuda_{function}")(*arguments))

    def pose(self, moment: _Moment, vertices: Tensor, threads: int) -> Tensor:
        state = vertices.new_empty(self._state)
        moments = _on_device(moment, state, vertices)
        self._call("flame_pose", self.handle, ctypes.byref(moments), ctypes.byref(queue_of(vertices)))
        return state

    def pose_backward(self, moment: _Moment, kept: Tensor, grad: Tensor, threads: int, out: _Gradients) -> None:
        moments, scratch = _on_device(moment, kept, grad), grad.new_empty(self._scratch)
        gradients = _DeviceGradients(grad.data_ptr(), _pointers(out), scratch.data_ptr(), None)
        self._call(
            "flame_pose_backward", self.handle, ctypes.byref(moments), ctypes.byref(gradients),
            ctypes.byref(queue_of(grad)),
        )  # fmt: skip


def _pointers(fields: _Moment | _Gradients) -> Any:
    return (c_void_p * len(_PARAMETERS))(*(getattr(fields, name) for name in _PARAMETERS))


def _on_device(moment: _Moment, state: Tensor, vertices: Tensor) -> _DeviceMoments:
    """One view; the pointers are those of its rows already."""
    return _DeviceMoments(1, None, _pointers(moment), moment.n_expr, state.data_ptr(), vertices.data_ptr())


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

    All tensors are float32 and lie on one device: the CPU, or one of CUDA, whose kernels then do the work.

    Attributes:
        n_vertices: V. place: "cpu", "cuda:0" or the like, or "emulated".
        handle: of the native person; on a device it is a FlameDevice* (csrc/cuda/pieces.h).

    Raises:
        ValueError: wrong type, shape, device or tree. NonFiniteError: NaN or infinity. Both name the argument.
        ImportError: a CUDA device, but this build has no CUDA kernels.
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
        rest = check_tensor("rest", rest, (3, "V"), like=rest)
        self.n_vertices = rest.shape[1]
        if correctives not in (0, CORRECTIVES):
            raise ValueError(f"correctives: found {correctives!r}, expected 0 or {CORRECTIVES}")
        if len(parents) != JOINTS:
            raise ValueError(f"parents: found {len(parents)}, expected {JOINTS}")
        joint_basis = check_tensor("joint_basis", joint_basis, ("E", 3 * JOINTS), like=rest)
        expressions = joint_basis.shape[0]
        tensors = (
            rest,
            check_tensor("joints", joints, (JOINTS, 3), like=rest),
            check_tensor("basis", basis, (correctives + expressions, 3 * self.n_vertices), like=rest),
            joint_basis,
            check_tensor("joint_regressor", joint_regressor, (JOINTS, self.n_vertices), like=rest),
            check_tensor("weights", weights, (JOINTS, self.n_vertices), like=rest),
        )
        tree = (ctypes.c_int32 * JOINTS)(*parents)
        on_host = [tensor.detach().cpu() for tensor in tensors]
        addresses = (tensor.data_ptr() for tensor in on_host)
        arrays = _Arrays(self.n_vertices, expressions, correctives, *addresses, ctypes.cast(tree, c_void_p))
        self._shapes: dict[str, tuple[int | str, ...]] = _SHAPES | {"dynamic_offset": (self.n_vertices, 3)}
        self.kernels = (_OnDevice if on_device(rest) else _OnCpu)(arrays, rest)
        self.handle, self.place = self.kernels.handle, self.kernels.place
        self._like = rest.new_empty(0)

    def _checked(self, name: str, tensor: Tensor, row: int | None) -> Tensor:
        shape = self._shapes[name]
        if row is None:
            return check_tensor(name, tensor, shape, like=self._like)
        tensor = check_tensor(name, tensor, ("T", *shape), like=self._like)
        if not 0 <= row < tensor.shape[0]:
            raise ValueError(f"row: found {row}, expected 0 to {tensor.shape[0] - 1}, the rows of {name}")
        return tensor

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

        On a CUDA device the call returns before the work is done, and parameters are not looked at: what is not finite
        shows in the vertices and in the gradients.

        Args:
            expr: [E'] expression coefficients; missing ones count as zero, those beyond the model's do nothing.
            rotation, neck_pose, jaw_pose: [3] axis-angle. eyes_pose: [6] left, then right.
            translation: [3] metres. dynamic_offset: [V, 3] metres in rest pose.
            row: given where every parameter is a table with one dimension more in front: the row to take. Gradients of
                tables are sparse and hold that row alone.
            threads: None = one per usable CPU. Without meaning on a CUDA device.

        Raises:
            ValueError: wrong type, shape or device, or no such row. NonFiniteError: NaN or infinity, on the CPU. Both
                name the parameter.
        """
        tensors = [expr, rotation, neck_pose, jaw_pose, eyes_pose, translation]
        if dynamic_offset is not None:
            tensors.append(dynamic_offset)
        tensors = [self._checked(name, tensor, row) for name, tensor in zip(_PARAMETERS, tensors, strict=False)]
        return _Pose.apply(self, row, thread_count(threads), *tensors)  # type: ignore[no-any-return]


class _Pose(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, poser: Poser, row: int | None, threads: int, *tensors: Tensor) -> Tensor:
        vertices = tensors[0].new_empty(poser.n_vertices, 3)
        kept = poser.kernels.pose(_moment(row, tensors), vertices, threads)
        ctx.poser, ctx.row, ctx.threads = poser, row, threads
        ctx.save_for_backward(kept, *tensors)
        return vertices

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        kept, *tensors = ctx.saved_tensors
        grad, row = grad.contiguous(), ctx.row
        # Each in its own memory: adding sparse gradients up trusts the stride of a single row.
        gradients = [
            grad.new_empty(tensor.shape if row is None else (1, *tensor.shape[1:])) if needed else None
            for tensor, needed in zip(tensors, ctx.needs_input_grad[3:], strict=True)
        ]
        wanted = _Gradients(*map(address, gradients))
        ctx.poser.kernels.pose_backward(_moment(row, tensors), kept, grad, ctx.threads, wanted)
        if row is not None:
            index = torch.full((1, 1), row, device=grad.device)
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
