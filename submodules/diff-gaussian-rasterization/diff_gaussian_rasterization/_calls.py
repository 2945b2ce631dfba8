"""The C structures and calls of the rasteriser; mirrors csrc/rasterizer_calls.h and csrc/cuda/rasterizer_api.cu."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int32, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from ._device import Queue, device_library, on_device, queue_of
from ._library import check, check_with, library


class Settings(ctypes.Structure):
    _fields_ = [
        *[(name, c_void_p) for name in ("world_to_camera", "intrinsics", "background", "centre")],
        *[(name, c_float) for name in ("near_plane", "far_plane", "eps2d", "alpha_max", "stop")],
        *[(name, c_int32) for name in ("width", "height")],
        *[
            (name, c_int32)
            for name in ("normalise_quats", "square_extent", "clamp_passes_gradient", "antialias", "symmetric_clamp")
        ],
    ]


SPLAT_TENSORS: tuple[str, ...] = (
    "means",
    "quats",
    "scales",
    "covariances",
    "opacities",
    "sh",
    "colors",
    "screen_offsets",
    "sh0",
)


class Inputs(ctypes.Structure):
    _fields_ = [
        ("count", c_int64),
        ("sh_coefficients", c_int32),
        ("sh_degree", c_int32),
        *[(name, c_void_p) for name in (*SPLAT_TENSORS, "mesh", "binding", "vertices")],
    ]


class PictureOutputs(ctypes.Structure):
    _fields_ = [(name, c_void_p) for name in ("image", "alpha", "depth", "radii")]


class PictureInputs(ctypes.Structure):
    _fields_ = [(name, c_void_p) for name in ("g_image", "g_alpha", "g_depth", "image", "depth")]


class AllGradients(ctypes.Structure):
    _fields_ = [
        (name, c_void_p) for name in (*SPLAT_TENSORS, "vertices", "world_to_camera", "intrinsics", "background")
    ]


def address(tensor: Tensor | None) -> int | None:
    """The tensor's data pointer; None (null) for no tensor."""
    return None if tensor is None else tensor.data_ptr()


class Batch(ctypes.Structure):
    """Of the CUDA engine: how many pictures a call draws, and how."""

    _fields_ = [
        ("views", c_int32),
        ("with_backward", c_int32),
        ("pair_capacity", c_int64),  # negative: as many as it takes
        ("health", c_void_p),
    ]


class Workspace:
    """Native scratch memory, and what backward needs of one forward pass. Reused: allocating is as slow as drawing.

    On a GPU it belongs to one device and to the stream that was current when it was made.
    """

    _free: dict[Any, list[Workspace]] = {}  # by place
    _KEEP = 4  # idle workspaces kept for reuse, in each place

    def __init__(self, near: Tensor | None = None) -> None:
        self.place, self.queue = _place(near)
        native = library() if self.queue is None else device_library()
        prefix = "mien_workspace" if self.queue is None else "mien_cuda_workspace"
        create = getattr(native, f"{prefix}_create")
        create.restype = c_void_p
        self.handle = c_void_p(create())
        if not self.handle:
            raise MemoryError("no memory for the rasteriser's workspace")
        self.native, self._destroy = native, getattr(native, f"{prefix}_destroy")

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self._destroy(self.handle)
            self.handle = None

    @classmethod
    def take(cls, near: Tensor | None = None) -> Lease:
        """A workspace that nobody else uses, for tensors like this one; it goes back when the lease is garbage."""
        free = cls._free.setdefault(_place(near)[0], [])
        # The garbage collector finalises everything in a cycle, in any order: a workspace may have been given back and
        # freed in one go.
        while True:
            try:
                workspace = free.pop()
            except IndexError:  # asked beforehand, another thread may take the last one in between
                return Lease(cls(near))
            if workspace.handle:
                return Lease(workspace)

    @classmethod
    def give_back(cls, workspace: Workspace) -> None:
        free = cls._free.setdefault(workspace.place, [])
        if workspace.handle and len(free) < cls._KEEP:
            free.append(workspace)

    def work(self) -> tuple[int, int]:
        """The size of the last picture drawn here: (splat, tile) pairs, and the blocks of pixels that they reach: of
        4x4 pixels on the CPU, of 8x4 on a GPU."""
        pairs, blocks, size = c_int64(), c_int64(), c_int64()
        counts = ctypes.byref(pairs), ctypes.byref(blocks)
        if self.queue is None:
            check(self.native.mien_workspace_work(self.handle, *counts))
        else:
            queue = ctypes.byref(self.queue)
            check_with(
                self.native, self.native.mien_cuda_workspace_work(self.handle, *counts, ctypes.byref(size), queue)
            )
        return pairs.value, blocks.value

    @classmethod
    def idle(cls, near: Tensor | None = None) -> list[Workspace]:
        """Workspaces waiting for reuse where this tensor lies, the last used one at the end."""
        return list(cls._free.get(_place(near)[0], []))

    @classmethod
    def forget_idle(cls) -> None:
        """Free what waits for reuse."""
        cls._free.clear()


def _place(near: Tensor | None) -> tuple[Any, Queue | None]:
    """What distinguishes workspaces, and the queue of one on a device."""
    if near is None or not on_device(near):
        return None, None
    queue = queue_of(near)
    return (device_library()._name, queue.device, queue.stream), queue


class Lease:
    """Holds a workspace until the autograd graph that needs it is gone."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace

    def __del__(self) -> None:
        Workspace.give_back(self.workspace)


def call(function: str, workspace: Workspace, *structures: Any, threads: int) -> None:
    """Call a `mien_rasterize_*` function; raise what its status code means."""
    arguments = [ctypes.byref(structure) for structure in structures]
    check(getattr(library(), function)(workspace.handle, *arguments, ctypes.c_int(threads)))


def call_batch(function: str, workspace: Workspace, *structures: Any) -> None:
    """Call a `mien_cuda_rasterize_*` function on the workspace's device and stream, likewise; a `Batch` comes last.

    Raises:
        MemoryError: the device has not enough, even without what PyTorch and idle workspaces keep for reuse.
    """
    queue: Any = workspace.queue
    arguments = [workspace.handle, *(ctypes.byref(structure) for structure in structures), ctypes.byref(queue)]
    native_function = getattr(workspace.native, f"mien_cuda_{function}")
    try:
        check_with(workspace.native, native_function(*arguments))
    except MemoryError:
        Workspace.forget_idle()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        check_with(workspace.native, native_function(*arguments))


def draw(
    workspace: Workspace, settings: Settings, inputs: Inputs, outputs: PictureOutputs, threads: int, keep: bool
) -> None:
    """One picture; `keep`: a backward pass will come."""
    if workspace.queue is None:
        call("mien_rasterize_forward", workspace, settings, inputs, outputs, threads=threads)
    else:
        _call_device("rasterize_forward", workspace, (settings, inputs, outputs), Batch(1, keep, -1, None))


def draw_backward(  # noqa: PLR0913 - one structure for each of its meanings
    workspace: Workspace,
    settings: Settings,
    inputs: Inputs,
    pictures: PictureInputs,
    gradients: AllGradients,
    threads: int,
) -> None:
    """The way back of the picture that was drawn last with this workspace."""
    if workspace.queue is None:
        call("mien_rasterize_backward", workspace, settings, inputs, pictures, gradients, threads=threads)
    else:
        structures = settings, inputs, pictures, gradients
        _call_device("rasterize_backward", workspace, structures, Batch(1, True, -1, None))


def _call_device(function: str, workspace: Workspace, structures: tuple[Any, ...], batch: Batch) -> None:
    try:
        call_batch(function, workspace, *structures, batch)
    except MemoryError as error:
        settings, inputs = structures[:2]
        size = f"{inputs.count} Gaussians, {settings.width} x {settings.height} pixels"
        raise MemoryError(f"{error} ({size})") from None
