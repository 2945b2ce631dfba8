"""Gaussians that ride on the triangles of a mesh: from vertices and local columns to world splats, in native code."""

from __future__ import annotations

import ctypes
from ctypes import c_int64, c_void_p
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ._calls import address
from ._device import device_call, device_library, on_device, queue_of
from ._library import check, library, thread_count
from ._rasterize import check_tensor

_FRAME_FLOATS, _SLOT_FLOATS, _CORNER_FLOATS = 16, 8, 4  # kRigFrame, kRigSlot, kRigCorner of csrc/rig.h


class Placed(NamedTuple):
    """Gaussians activated and in the world."""

    means: Tensor  # [N, 3]
    quats: Tensor  # [N, 4] (w, x, y, z), unit
    scales: Tensor  # [N, 3] standard deviations
    opacities: Tensor  # [N] in [0, 1]


class _Pointers(ctypes.Structure):
    """Mirrors a structure of csrc/rig.h: one pointer after the other."""

    @classmethod
    def of(cls, *tensors: Tensor | None) -> Any:
        return cls(*(address(tensor) for tensor in tensors))


class _Columns(_Pointers):
    _fields_ = [(name, c_void_p) for name in ("means", "quats", "log_scales", "opacity_logits")]


class _Placed(_Pointers):
    _fields_ = [(name, c_void_p) for name in Placed._fields]


class _Handle:
    """A native object that is constant once made; freed with this. It lies where `near` does."""

    def __init__(self, kind: str, *arguments: Any, near: Tensor | None = None) -> None:
        self.value = c_void_p()
        arguments = (*arguments, ctypes.byref(self.value))
        if near is not None and on_device(near):
            self._destroy = getattr(device_library(), f"mien_cuda_rig_{kind}_destroy")
            device_call(f"rig_{kind}_create", *arguments, near=near)
        else:
            self._destroy = getattr(library(), f"mien_rig_{kind}_destroy")
            check(getattr(library(), f"mien_rig_{kind}_create")(*arguments))

    def __del__(self) -> None:
        if self.value:
            self._destroy(self.value)


def _place_of(tensor: Tensor) -> tuple[Any, int] | None:
    """Where handles for tensors like this one lie; None: with the CPU engine."""
    return (device_library()._name, queue_of(tensor).device) if on_device(tensor) else None


class FaceRig:
    """The triangles of one mesh topology, for tensors on the CPU and on GPUs.

    Args:
        faces: [F, 3] int64 on the CPU or a GPU, indices in [0, n_vertices). They are copied.
        n_vertices: of the mesh.

    Raises:
        ValueError: wrong type or shape, or an index out of range; names the row.
    """

    def __init__(self, faces: Tensor, n_vertices: int) -> None:
        self._indices = _check_indices("faces", faces, (3,))
        if isinstance(n_vertices, bool) or not isinstance(n_vertices, int) or n_vertices < 0:
            raise ValueError(f"n_vertices: found {n_vertices!r}, expected an integer from 0")
        self.n_faces, self.n_vertices = faces.shape[0], n_vertices
        self.mesh = self._make_mesh(None)
        self._on_devices: dict[Any, _Handle] = {}
        self._bound: tuple[Tensor, int, Any, _Handle] | None = None

    def _make_mesh(self, near: Tensor | None) -> _Handle:
        indices = c_void_p(self._indices.data_ptr())
        return _Handle("mesh", indices, c_int64(self.n_faces), c_int64(self.n_vertices), near=near)

    def mesh_near(self, tensor: Tensor) -> _Handle:
        """The triangles' native form where this tensor lies."""
        place = _place_of(tensor)
        if place is None:
            return self.mesh
        if place not in self._on_devices:
            self._on_devices[place] = self._make_mesh(tensor)
        return self._on_devices[place]

    def place(  # noqa: PLR0913 - the columns of a Gaussian
        self,
        vertices: Tensor,
        binding: Tensor,
        means: Tensor,
        quats: Tensor,
        scales_log: Tensor,
        opacity_logit: Tensor,
        threads: int | None = None,
    ) -> Placed:
        """Carry Gaussians from their triangles into the world (GaussianAvatars, CVPR 2024, section 3.2).

        For a triangle (v0, v1, v2): a0 = unit(v1 - v0), a1 = unit(a0 x (v2 - v0)), R = [a0 a1 a0 x a1], T = mean of the
        corners, k = (|v1 - v0| + |a0 x (v2 - v0)|) / 2. A Gaussian appears at k R mean + T, turned by R, sized k s. A
        triangle without area gets finite frames (missing axes are zero) and passes no rotation gradient on. Everything
        is float32, on the CPU or on one GPU; gradients flow to the vertices and to every column. Same bits for any
        thread count.

        Args:
            vertices: [V, 3].
            binding: [N] int64, the face of each Gaussian, on the CPU or a GPU. What it says is looked at once, until
                another tensor (or the same one, changed) is given.
            means: [N, 3] in triangle scales. quats: [N, 4] of any length. scales_log: [N, 3] log of triangle scales.
            opacity_logit: [N].
            threads: of the CPU; None = one per usable CPU.

        Raises:
            ValueError: wrong type, shape or device, or a face that is not there; names the argument.
        """
        posed = check_tensor("vertices", vertices, (self.n_vertices, 3), vertices)
        handle = self.bind(binding, posed)
        count = binding.shape[0]
        tensors = (
            posed,
            check_tensor("means", means, (count, 3), posed),
            check_tensor("quats", quats, (count, 4), posed),
            check_tensor("scales_log", scales_log, (count, 3), posed),
            check_tensor("opacity_logit", opacity_logit, (count,), posed),
        )
        placed = _Place.apply(self.mesh_near(posed), handle, self.n_faces, thread_count(threads), *tensors)
        return Placed(*placed)  # type: ignore[misc]

    def bind(self, binding: Tensor, near: Tensor | None = None) -> _Handle:
        """The native form of a binding [N] int64 where `near` lies (else the binding), made anew if it is another
        tensor than last time or was changed. Waits for the GPU that the binding is on."""
        known, place = self._bound, _place_of(binding if near is None else near)
        if known is not None and known[0] is binding and known[1:3] == (binding._version, place):
            return known[3]
        indices = _check_indices("binding", binding, ())
        sizes = c_int64(binding.shape[0]), c_int64(self.n_faces)
        handle = _Handle("binding", c_void_p(indices.data_ptr()), *sizes, near=binding if near is None else near)
        self._bound = (binding, binding._version, place, handle)
        return handle


class _Place(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mesh: _Handle, binding: _Handle, n_faces: int, threads: int, *tensors: Any) -> Any:
        vertices, means, quats, scales_log, opacity_logit = tensors
        frames = vertices.new_empty(n_faces, _FRAME_FLOATS)
        placed = Placed(
            torch.empty_like(means),
            torch.empty_like(quats),
            torch.empty_like(scales_log),
            torch.empty_like(opacity_logit),
        )
        columns, results = _Columns.of(means, quats, scales_log, opacity_logit), _Placed.of(*placed)
        structures = ctypes.byref(columns), ctypes.byref(results)
        handles, at = (mesh.value, binding.value), c_void_p(vertices.data_ptr())
        if on_device(vertices):
            frames_at = c_void_p(frames.data_ptr())
            device_call("rig_place", *handles, at, structures[0], frames_at, structures[1], near=vertices)
        else:
            check(
                library().mien_rig_place(
                    *handles, at, structures[0], threads, c_void_p(frames.data_ptr()), structures[1]
                )
            )
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(vertices, means, quats, scales_log, opacity_logit, frames, placed.opacities)
        ctx.mesh, ctx.binding, ctx.threads = mesh, binding, threads
        return tuple(placed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        vertices, *column_tensors, frames, opacities = ctx.saved_tensors
        received = [None if grad is None else grad.contiguous() for grad in grads]
        wanted = ctx.needs_input_grad[4:]
        g_vertices, *g_columns = (
            torch.empty_like(tensor) if needed else None
            for tensor, needed in zip((vertices, *column_tensors), wanted, strict=True)
        )
        structures = _Columns.of(*column_tensors), _Placed.of(*received), _Columns.of(*g_columns)
        columns, g_placed, outputs = (ctypes.byref(structure) for structure in structures)
        kept = c_void_p(opacities.data_ptr()), c_void_p(frames.data_ptr())
        handles, g_at = (ctx.mesh.value, ctx.binding.value), c_void_p(address(g_vertices))
        if on_device(vertices):
            floats = _SLOT_FLOATS * len(opacities) + 3 * _CORNER_FLOATS * len(frames)
            scratch = vertices.new_empty(0 if g_vertices is None else floats)
            device_call(
                "rig_place_backward", *handles, columns, *kept, g_placed, outputs, g_at, c_void_p(scratch.data_ptr()),
                near=vertices,
            )  # fmt: skip
        else:
            native = library()
            check(native.mien_rig_place_backward(*handles, columns, *kept, g_placed, ctx.threads, outputs, g_at))
        return None, None, None, None, g_vertices, *g_columns


def _check_indices(name: str, indices: Tensor, row: tuple[int, ...]) -> Tensor:
    """The same on the CPU, contiguous."""
    if not isinstance(indices, Tensor) or indices.dtype != torch.int64:
        found = getattr(indices, "dtype", type(indices).__name__)
        raise ValueError(f"{name}: found {found}, expected a torch.int64 tensor")
    if not (indices.is_cpu or indices.is_cuda):
        raise ValueError(f"{name}: is on {indices.device}, expected the CPU or a GPU")
    if indices.dim() != 1 + len(row) or tuple(indices.shape[1:]) != row:
        expected = ", ".join(["n", *map(str, row)])
        raise ValueError(f"{name}: found shape {list(indices.shape)}, expected [{expected}]")
    return indices.cpu().contiguous()
