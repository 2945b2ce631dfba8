"""The C structures and calls of the rasteriser; mirrors csrc/rasterizer_api.cpp."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int32, c_int64, c_void_p
from typing import Any

from torch import Tensor

from ._library import check, library


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


class Workspace:
    """Native scratch memory, and what backward needs of one forward pass. Reused: allocating is as slow as drawing."""

    _free: list[Workspace] = []
    _KEEP = 4  # idle workspaces kept for reuse

    def __init__(self) -> None:
        native = library()
        native.mien_workspace_create.restype = c_void_p
        self.handle = c_void_p(native.mien_workspace_create())
        if not self.handle:
            raise MemoryError("no memory for the rasteriser's workspace")
        self._destroy = native.mien_workspace_destroy

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self._destroy(self.handle)
            self.handle = None

    @classmethod
    def take(cls) -> Lease:
        """A workspace that nobody else uses; it goes back when the lease is garbage."""
        # The garbage collector finalises everything in a cycle, in any order: a workspace may have been given back and
        # freed in one go.
        while True:
            try:
                workspace = cls._free.pop()
            except IndexError:  # asked beforehand, another thread may take the last one in between
                return Lease(cls())
            if workspace.handle:
                return Lease(workspace)

    @classmethod
    def give_back(cls, workspace: Workspace) -> None:
        if workspace.handle and len(cls._free) < cls._KEEP:
            cls._free.append(workspace)

    def work(self) -> tuple[int, int]:
        """The size of the last picture drawn here: (splat, tile) pairs, and the 4x4 pixel blocks that they reach."""
        pairs, blocks = c_int64(), c_int64()
        check(library().mien_workspace_work(self.handle, ctypes.byref(pairs), ctypes.byref(blocks)))
        return pairs.value, blocks.value

    @classmethod
    def idle(cls) -> list[Workspace]:
        """Workspaces waiting for reuse, the last used one at the end."""
        return list(cls._free)


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
