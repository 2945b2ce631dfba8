"""A whole training step on the device: recorded once in a CUDA graph, launched again and again, nothing read back."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence
from ctypes import c_double, c_float, c_int64, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass
from enum import IntFlag
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._calls import address
from ._device import device_call, device_library, on_device
from ._rasterize import check_tensor
from ._rules import RULES
from .flame import Poser
from .rig import FaceRig

__all__ = ["COLUMNS", "MOST_VIEWS", "MOTION", "TERMS", "Cameras", "Column", "Health", "Limits", "MotionTable", "Reason",
           "StepTables", "TrainingStep"]  # fmt: skip

MOST_VIEWS = 8
COLUMNS = ("means", "quats", "scales", "opacities", "sh0", "shN")
MOTION = ("expr", "rotation", "neck_pose", "jaw_pose", "eyes_pose", "translation", "dynamic_offset")
TERMS: tuple[str, ...] = ("l1", "ssim", "xyz", "scale", "total")


class Reason(IntFlag):
    """Why steps stopped changing things; mirrors csrc/cuda/stages.h."""

    TOO_MANY_PAIRS = 1
    BAD_INPUT = 2
    BAD_TERM = 4
    BAD_GRADIENT = 8


class Health(NamedTuple):
    """What a look at the device finds."""

    stopped: Reason  # empty: all is well
    step: int  # the first step that changed nothing; 0: none
    bad_row: int  # the first Gaussian of that step that could not be drawn, if any could not
    pairs: int  # the most (splat, tile) pairs that a step since the last `clear` needed


class Column(NamedTuple):
    """One column of the Gaussians, float32 [N, ...], contiguous: changed in place, but for the gradient, an output."""

    values: Tensor
    gradient: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor


class MotionTable(NamedTuple):
    """One parameter of the motion, float32 [T, ...]. Not trained where there is no gradient.

    gradient: [B, ...] output, a row a view. steps: [T] how often each row was updated, where rows count for themselves;
    else dense: [T, ...] scratch, and every row is updated at every step.
    """

    values: Tensor
    gradient: Tensor | None = None
    exp_avg: Tensor | None = None
    exp_avg_sq: Tensor | None = None
    steps: Tensor | None = None
    dense: Tensor | None = None
    rate: float = 0.0


@dataclass(frozen=True)
class Cameras:
    """Of n frames, all of one size: world_to_camera [n, 4, 4], intrinsics [n, 3, 3], backgrounds [n, 3] float32, rows
    [n] int64 of the motion or the meshes."""

    world_to_camera: Tensor
    intrinsics: Tensor
    backgrounds: Tensor
    rows: Tensor
    width: int
    height: int
    near: float
    far: float


class Limits(NamedTuple):
    """As of `binding_limits`; weight 0: not wanted."""

    threshold_xyz: float = 0.0
    threshold_scale: float = 0.0
    weight_xyz: float = 0.0
    weight_scale: float = 0.0


@dataclass(frozen=True)
class StepTables:
    """What a step works on. All tensors lie on the device of the first column, contiguous, and stay where they are.

    columns: by the names of `COLUMNS`: as of `rasterize_rigged`, its scales_log and opacity_logit as scales, opacities.
    mesh, binding: likewise. poser and motion (by the names of `MOTION`), or meshes [T, V, 3].
    store: uint8, photographs as planes of red, green and blue, anywhere in it.
    statistics: [N] gradient, seen, radius as of `add_view`; influence [N]: sum of |opacity * d loss / d opacity|; None:
    not gathered.
    image [B, 3, H, W], terms [B, 5] (`TERMS`): outputs of the last step; B is the number of views of a step.
    pair_capacity: (splat, tile) pairs of all views together for which there is room.
    """

    columns: Mapping[str, Column]
    sh_degree: int
    mesh: FaceRig
    binding: Tensor
    poser: Poser | None
    motion: Mapping[str, MotionTable]
    meshes: Tensor | None
    cameras: Cameras
    store: Tensor
    statistics: tuple[Tensor, Tensor, Tensor] | None
    influence: Tensor | None
    image: Tensor
    terms: Tensor
    limits: Limits
    lambda_dssim: float
    betas: tuple[float, float]
    eps: float
    pair_capacity: int


class _Column(ctypes.Structure):
    _fields_ = [*[(name, c_void_p) for name in ("values", "gradient", "mean", "mean_square")], ("count", c_int64)]


class _Motion(ctypes.Structure):
    _fields_ = [
        *[(name, c_void_p) for name in ("table", "gradient", "mean", "mean_square", "steps", "dense")],
        ("width", c_int64),
        ("rate", c_double),
    ]


class _Tables(ctypes.Structure):
    """Mirrors StepTables of csrc/cuda/step.h."""

    _fields_ = [
        *[(name, c_int64) for name in ("views", "frames", "timesteps", "width", "height", "count", "sh_degree",
                                       "sh_coefficients", "pair_capacity")],
        ("column", _Column * len(COLUMNS)),
        *[(name, c_void_p) for name in ("mesh", "binding", "person")],
        ("n_expr", c_int64),
        ("motion", _Motion * len(MOTION)),
        *[(name, c_void_p) for name in ("meshes", "world_to_camera", "intrinsics", "backgrounds", "timestep", "store",
                                        "gradient", "seen", "radius", "influence", "image", "terms")],
        *[(name, c_float) for name in ("near_plane", "far_plane", "eps2d", "alpha_max", "stop", "lambda_dssim",
                                       "threshold_xyz", "threshold_scale", "weight_xyz", "weight_scale")],
        *[(name, c_double) for name in ("beta1", "beta2", "eps")],
    ]  # fmt: skip


class _Request(ctypes.Structure):
    """Mirrors StepRequest."""

    _fields_ = [
        ("step", c_int64),
        ("count", c_int64),
        ("frame", c_int64 * MOST_VIEWS),
        ("offset", c_int64 * MOST_VIEWS),
        ("rate", c_double * len(COLUMNS)),
    ]


class _Health(ctypes.Structure):
    """Mirrors Health of csrc/cuda/stages.h."""

    _fields_ = [*[(name, c_uint32) for name in ("stopped", "step", "bad_row", "bad_terms")], ("pairs", c_uint64)]


class TrainingStep:
    """Pictures of some frames, losses, gradients and Adam in one launch.

    Each step: the motion's rows pose the mesh (or the recorded one is taken); `rasterize_rigged` draws every view over
    its background by the rules "ours"; l1 and ssim as of `l1_ssim`, weighted (1 - lambda) and lambda, and the limits as
    of `binding_limits`, mean over the views; gradients to the columns and to the motion; the statistics; `adam_steps`
    of the columns and `adam_rows` (or `adam_steps`) of the motion. A step in which something is not finite, or that
    needs more pairs than there is room for, and every step after it, changes nothing until `clear`.

    The same bits for the same tables and requests, however often `poll` is called. One step at a time, on one stream.

    Args:
        near: a tensor on the device.

    Raises:
        DeviceFault, MemoryError: the GPU refuses. ImportError: this build has no CUDA kernels.
    """

    def __init__(self, near: Tensor) -> None:
        if not on_device(near):
            raise ValueError(f"near: is on {near.device}, expected a CUDA device")
        self.near, self.handle, self.tables, self.bytes = near, c_void_p(), None, 0
        self._destroy = device_library().mien_cuda_step_destroy
        self._request, self._health = _Request(), _Health()
        self._call("step_create", ctypes.byref(self.handle), handle=False)

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self._destroy(self.handle)
            self.handle = None

    def _call(self, function: str, *arguments: Any, handle: bool = True) -> None:
        device_call(function, *((self.handle,) if handle else ()), *arguments, near=self.near)

    def bind(self, tables: StepTables) -> None:
        """Make room for these tables and record the step anew. Waits for the device.

        Raises:
            ValueError: a tensor of another shape, type or device, or an option out of range; names it.
            MemoryError, DeviceFault: the GPU refuses; nothing is bound then.
        """
        self.tables = None
        taken, handles = c_int64(), (tables.mesh.mesh_near(self.near), tables.mesh.bind(tables.binding, self.near))
        self._call("step_bind", ctypes.byref(_tables(tables, *handles)), ctypes.byref(taken))
        self.tables, self._handles, self.bytes = tables, handles, taken.value  # kept: the device works on them

    def enqueue(
        self, step: int, count: int, frames: Sequence[int], offsets: Sequence[int], rates: Mapping[str, float]
    ) -> None:
        """Ask for one step; returns before it is done.

        Args:
            step: its number from 1, for `Health`. count: Adam's, from 1.
            frames: one for each view. offsets: where in `store` their photographs begin, bytes.
            rates: learning rates by the names of `COLUMNS`.

        Raises:
            ValueError: nothing is bound, another number of views, no such frame or photograph, or a rate that is
                negative or not finite.
        """
        if self.tables is None:
            raise ValueError("step: nothing is bound")
        views, store = self.tables.image.shape[0], self.tables.store.numel()
        if len(frames) != views or len(offsets) != views:
            raise ValueError(f"frames: found {len(frames)} and {len(offsets)} offsets, expected {views}")
        planes = 3 * self.tables.cameras.width * self.tables.cameras.height
        if min(offsets) < 0 or max(offsets) + planes > store:
            raise ValueError(f"offsets: found {min(offsets)} to {max(offsets)}, expected 0 to {store - planes}")
        request = self._request
        request.step, request.count = step, count
        request.frame[:views], request.offset[:views] = frames, offsets
        request.rate[:] = [_rate(name, rates[name]) for name in COLUMNS]
        self._call("step_enqueue", ctypes.byref(request))

    def poll(self) -> Health:
        """Wait for the device and say how the steps since the last `clear` went."""
        self._call("step_poll", ctypes.byref(self._health))
        found = self._health
        return Health(Reason(found.stopped), int(found.step), int(found.bad_row), int(found.pairs))

    def clear(self) -> None:
        """Forget what went wrong: steps enqueued from now on change things again."""
        self._call("step_clear")


def _rate(name: str, rate: float) -> float:
    if not (math.isfinite(rate) and rate >= 0.0):
        raise ValueError(f"rates: {name}: found {rate}, expected a finite number, not negative")
    return rate


def _check(name: str, tensor: Tensor, shape: tuple[int | str, ...], like: Tensor, dtype: torch.dtype) -> int | None:
    """The address of a tensor, if it is what it must be; ValueError otherwise."""
    if dtype is torch.float32:
        check_tensor(name, tensor, shape, like=like)
    elif tensor.dtype is not dtype or tensor.device != like.device or tensor.shape != shape:
        found = f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"
        raise ValueError(f"{name}: found {found}, expected {dtype} {list(shape)} on {like.device}")
    if not tensor.is_contiguous():
        raise ValueError(f"{name}: is not contiguous")
    return address(tensor)


def _tables(t: StepTables, mesh: Any, binding: Any) -> _Tables:
    like, count, cameras = t.columns["means"].values, len(t.columns["means"].values), t.cameras
    views, frames = t.image.shape[0], cameras.rows.shape[0]
    if not 1 <= views <= MOST_VIEWS:
        raise ValueError(f"image: found {views} views, expected 1 to {MOST_VIEWS}")
    if t.sh_degree not in range(4):
        raise ValueError(f"sh_degree must be 0, 1, 2 or 3, got {t.sh_degree!r}")
    if not all(math.isfinite(value) for value in (*t.limits, t.lambda_dssim)):
        raise ValueError(f"limits: found {t.limits} and lambda_dssim {t.lambda_dssim}, expected finite numbers")
    float32 = torch.float32
    fields: dict[str, Any] = {
        "world_to_camera": _check("world_to_camera", cameras.world_to_camera, (frames, 4, 4), like, float32),
        "intrinsics": _check("intrinsics", cameras.intrinsics, (frames, 3, 3), like, float32),
        "backgrounds": _check("backgrounds", cameras.backgrounds, (frames, 3), like, float32),
        "timestep": _check("rows", cameras.rows, (frames,), like, torch.int64),
        "store": _check("store", t.store, (t.store.numel(),), like, torch.uint8),
        "image": _check("image", t.image, (views, 3, cameras.height, cameras.width), like, float32),
        "terms": _check("terms", t.terms, (views, len(TERMS)), like, float32),
    }
    for name, tensor in zip(("gradient", "seen", "radius"), t.statistics or (), strict=False):
        fields[name] = _check(name, tensor, (count,), like, float32)
    if t.influence is not None:
        fields["influence"] = _check("influence", t.influence, (count,), like, float32)
    rules = RULES["ours"]
    return _Tables(
        views=views, frames=frames, width=cameras.width, height=cameras.height, count=count, sh_degree=t.sh_degree,
        sh_coefficients=1 + t.columns["shN"].values.shape[1], pair_capacity=t.pair_capacity,
        column=(_Column * len(COLUMNS))(*[_column(name, t.columns[name], count, like) for name in COLUMNS]),
        mesh=mesh.value, binding=binding.value, near_plane=cameras.near, far_plane=cameras.far,
        eps2d=rules.eps2d, alpha_max=rules.alpha_max, stop=rules.stop, lambda_dssim=t.lambda_dssim,
        **t.limits._asdict(), beta1=t.betas[0], beta2=t.betas[1], eps=t.eps, **_motion(t, like, views), **fields,
    )  # fmt: skip


def _column(name: str, column: Column, count: int, like: Tensor) -> _Column:
    shape = {"means": (3,), "quats": (4,), "scales": (3,), "opacities": (), "sh0": (1, 3)}.get(name)
    shape = (count, *(column.values.shape[1:] if shape is None else shape))
    addresses = [
        _check(f"{name}: {part}", getattr(column, part), shape, like, torch.float32) for part in Column._fields
    ]
    return _Column(*addresses, column.values.numel())


def _motion(t: StepTables, like: Tensor, views: int) -> dict[str, Any]:
    """The fields that say where the meshes come from."""
    if t.poser is None:
        if t.meshes is None:
            raise ValueError("meshes: found none, expected them where there is no poser")
        shape = (t.meshes.shape[0], t.mesh.n_vertices, 3)
        return {"meshes": _check("meshes", t.meshes, shape, like, torch.float32), "timesteps": shape[0]}
    place = str(like.device) if like.is_cuda else "emulated"
    if t.poser.place != place:  # its handle would be taken for what it isn't
        raise ValueError(f"poser: is on {t.poser.place}, expected {place}")
    rows = t.motion["expr"].values.shape[0]
    tables = (_Motion * len(MOTION))()
    for k, name in enumerate(MOTION):
        if name in t.motion:
            tables[k] = _motion_table(name, t.motion[name], rows, views, like)
    return {"person": t.poser.handle, "n_expr": t.motion["expr"].values.shape[1], "motion": tables, "timesteps": rows}


def _motion_table(name: str, table: MotionTable, rows: int, views: int, like: Tensor) -> _Motion:
    width = table.values.shape[1:]
    shapes = {"values": (rows, *width), "gradient": (views, *width), "exp_avg": (rows, *width),
              "exp_avg_sq": (rows, *width), "steps": (rows,), "dense": (rows, *width)}  # fmt: skip
    given = {part: getattr(table, part) for part in shapes if getattr(table, part) is not None}
    addresses = {part: _check(f"{name}: {part}", tensor, shapes[part], like, torch.float32)
                 for part, tensor in given.items()}  # fmt: skip
    return _Motion(*(addresses.get(part) for part in shapes), math.prod(width), _rate(name, table.rate))
