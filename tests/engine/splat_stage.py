"""The splat stage of the CUDA engine, emulated, on tensors; the CPU engine's on the same; and scenes for both."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.engine.tile_stage import HEALTH, SLOT, SUMS, TILE, VIEW, Sizes
from utils.maths.rotations import quaternion_to_matrix

FRAME, FRAME_SLOT, CAMERA, CPU_BLOCK, THREADS = 16, 8, 24, 512, 64
COLUMNS = ("means", "quats", "scales", "covariances", "opacities", "sh", "colors", "screen_offsets", "sh0")
FLAGS = ("normalise_quats", "square_extent", "clamp_passes_gradient", "antialias", "symmetric_clamp")
BAD_INPUT, BAD_GRADIENT = 2, 8


def _pointers(*names: str) -> list[tuple[str, type]]:
    return [(name, ctypes.c_void_p) for name in names]


class Gaussians(ctypes.Structure):
    _fields_ = [("count", ctypes.c_int64), ("sh_coefficients", ctypes.c_int32), ("sh_degree", ctypes.c_int32)]
    _fields_ += _pointers(*COLUMNS, "frames", "face")


class SplatGradients(ctypes.Structure):
    _fields_ = [*_pointers(*COLUMNS, "camera", "frame_slots", "slot_of"), ("stream_sh", ctypes.c_bool)]


class CameraTables(ctypes.Structure):
    _fields_ = _pointers("world_to_camera", "intrinsics", "background", "centre")
    _fields_ += [(name, ctypes.c_float) for name in ("near_plane", "far_plane", "eps2d", "alpha_max", "stop")]
    _fields_ += [(name, ctypes.c_int32) for name in FLAGS]


class SplatTables(ctypes.Structure):
    _fields_ = [*_pointers("views"), ("in_", Gaussians), ("faces", ctypes.c_int64)]
    _fields_ += _pointers("records", "rects", "counts", "keys", "radii", "health")


class SplatGradientTables(ctypes.Structure):
    _fields_ = [*_pointers("views"), ("in_", Gaussians), ("faces", ctypes.c_int64)]
    _fields_ += [*_pointers("counts", "first_slot", "slots"), ("out", SplatGradients)]
    _fields_ += _pointers("screen_offsets", "frame_slots", "camera", "pair_total", "health")


@dataclass(frozen=True)
class Scene:
    """Gaussians in the world, or on a mesh (with `frames`), and the cameras of B views."""

    tensors: dict[str, Tensor]  # by the names of COLUMNS, those that are given
    cameras: dict[str, Tensor]  # world_to_camera [B, 4, 4], intrinsics [B, 3, 3], background [B, 3]
    width: int
    height: int
    degree: int
    rules: dict[str, float]
    frames: Tensor | None = None  # [B, F, FRAME]
    face: Tensor | None = None  # [N] int32
    slot_of: Tensor | None = None  # [N] int32

    @property
    def views(self) -> int:
        return len(self.cameras["intrinsics"])

    @property
    def count(self) -> int:
        return len(self.tensors["means"])

    @property
    def sizes(self) -> Sizes:
        tiles = (-(-self.width // TILE), -(-self.height // TILE))
        return Sizes(self.views, self.count, self.width, self.height, *tiles, 1 << 30)

    def view(self, b: int) -> Scene:
        """One of the views alone."""
        tensors = dict(self.tensors)
        if "screen_offsets" in tensors:
            tensors["screen_offsets"] = tensors["screen_offsets"].view(self.views, -1, 2)[b].clone()
        frames = None if self.frames is None else self.frames[b : b + 1].clone()
        cameras = {name: value[b : b + 1].clone() for name, value in self.cameras.items()}
        return replace(self, tensors=tensors, cameras=cameras, frames=frames)

    def gaussians(self) -> Gaussians:
        sh = self.tensors.get("sh")
        coefficients = 0 if sh is None else sh.shape[1] + ("sh0" in self.tensors)
        pointers = {name: address(self.tensors.get(name)) for name in COLUMNS}
        return Gaussians(
            self.count, coefficients, self.degree, **pointers, frames=address(self.frames), face=address(self.face)
        )


def address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def make_scene(  # noqa: PLR0913 - what a scene may differ in
    count: int = 150,
    views: int = 1,
    seed: int = 0,
    *,
    mesh: bool = False,
    shape: str = "quats",
    colour: str = "apart",
    degree: int = 3,
    coefficients: int = 16,
    size: float = 0.03,
    **rules: float,
) -> Scene:
    """Random Gaussians a metre before turned cameras, a few behind, some beside the picture. `colour`: "colors", "sh",
    or "apart": the first coefficient in an array of its own."""
    r = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=r)  # noqa: E731
    tensors = {"means": normal(count, 3) * 0.25, "opacities": torch.rand(count, generator=r)}
    tensors["means"][5::11, 2] -= 2.0
    if shape == "covariances":
        root = normal(count, 3, 3) * size
        tensors["covariances"] = (root @ root.mT)[:, [0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]].contiguous()
    else:
        tensors |= {"quats": 2 * normal(count, 4), "scales": size * (0.5 * normal(count, 3)).exp()}
    if not mesh and shape == "quats" and not rules.get("normalise_quats", 1):
        tensors["quats"] = torch.nn.functional.normalize(tensors["quats"], dim=1)
    harmonics = 0.3 * normal(count, coefficients, 3)
    if colour == "apart":
        tensors |= {"sh0": harmonics[:, :1].clone(), "sh": harmonics[:, 1:].clone()}
    else:
        tensors[colour] = harmonics if colour == "sh" else torch.rand(count, 3, generator=r)
    tensors["screen_offsets"] = 0.01 * normal(views * count, 2)
    scene = Scene(tensors, _cameras(views, r), 75, 52, degree, rules)
    return _on_mesh(scene, r, size) if mesh else scene


def _cameras(views: int, r: torch.Generator) -> dict[str, Tensor]:
    pose = torch.eye(4).repeat(views, 1, 1)
    turn = torch.tensor([1.0, 0, 0, 0]) + 0.1 * torch.randn(views, 4, generator=r)
    pose[:, :3, :3] = quaternion_to_matrix(torch.nn.functional.normalize(turn, dim=1))
    pose[:, :3, 3] = torch.tensor([0.01, -0.02, 1.0]) + 0.05 * torch.randn(views, 3, generator=r)
    intrinsics = torch.tensor([[70.0, 0, 40], [0, 75, 24], [0, 0, 1]]).repeat(views, 1, 1)
    intrinsics[:, :2] += torch.rand(views, 2, 3, generator=r)
    return {"world_to_camera": pose, "intrinsics": intrinsics, "background": torch.rand(views, 3, generator=r)}


def _on_mesh(scene: Scene, r: torch.Generator, size: float) -> Scene:
    faces, count, views = 40, scene.count, scene.views
    quat = torch.nn.functional.normalize(torch.randn(views, faces, 4, generator=r), dim=2)
    turn = quaternion_to_matrix(quat)
    lengths = size * (1 + torch.rand(views, faces, 3, generator=r))
    centre = 0.25 * torch.randn(views, faces, 3, generator=r)
    frames = torch.cat([turn[..., 0], turn[..., 1], quat, centre, lengths], 2).contiguous()
    tensors = dict(scene.tensors)
    tensors["means"] = tensors["means"] * 4
    tensors["scales"] = 0.4 * torch.randn(count, 3, generator=r) - 0.2
    tensors["opacities"] = 2 * torch.randn(count, generator=r)
    face = torch.randint(0, faces, (count,), generator=r, dtype=torch.int32)
    slot_of = torch.randperm(count, generator=r).int()
    return replace(scene, tensors=tensors, frames=frames, face=face, slot_of=slot_of)


class Stage:
    """Both engines' splat stage by the emulated library."""

    def __init__(self, path: Path) -> None:
        self.native = ctypes.CDLL(str(path))
        self.native.mien_last_error.restype = ctypes.c_char_p

    def call(self, name: str, *arguments: Any) -> None:
        given = [ctypes.byref(a) if isinstance(a, ctypes.Structure) else a for a in arguments]
        given = [ctypes.c_void_p(address(a)) if isinstance(a, Tensor) else a for a in given]
        if getattr(self.native, f"mien_test_{name}")(*given) != 0:
            raise RuntimeError(self.native.mien_last_error().decode())

    def cameras(self, scene: Scene) -> CameraTables:
        numbers = {"near_plane": 0.2, "far_plane": 10.0, "eps2d": 0.3, "alpha_max": 0.99, "stop": 1e-4} | scene.rules
        flags = {name: int(numbers.pop(name, name == "normalise_quats")) for name in FLAGS}
        return CameraTables(**{name: address(value) for name, value in scene.cameras.items()}, **numbers, **flags)

    def make_views(self, scene: Scene, health: Tensor | None = None) -> Tensor:
        views = torch.zeros(scene.views, VIEW.itemsize, dtype=torch.uint8)
        self.call("make_views", scene.sizes, self.cameras(scene), views, ctypes.c_void_p(address(health)))
        return views

    def prepare(self, scene: Scene, health: Tensor | None = None) -> dict[str, Tensor]:
        """records [B * N, 16], rects [B * N, 4], counts, keys, radii."""
        rows, views = scene.views * scene.count, self.make_views(scene)
        found = {"records": torch.full((rows, 16), math.nan), "rects": torch.full((rows, 4), -1, dtype=torch.int16)}
        found |= {name: torch.full((rows,), -7, dtype=torch.int32) for name in ("counts", "keys", "radii")}
        pointers = {name: address(value) for name, value in found.items()}
        faces = 0 if scene.frames is None else scene.frames.shape[1]
        tables = SplatTables(
            views=address(views), in_=scene.gaussians(), faces=faces, **pointers, health=address(health)
        )
        self.call("prepare_splats", scene.sizes, tables)
        return found

    def prepare_on_cpu(self, scene: Scene) -> tuple[dict[str, Tensor], bool]:
        """The same of one view, without counts and keys; and whether all was finite."""
        assert scene.views == 1
        count = scene.count
        found = {"records": torch.zeros(count + 1, 16), "rects": torch.zeros(count, 4, dtype=torch.int16)}
        found["radii"] = torch.zeros(count, dtype=torch.int32)
        finite = ctypes.c_int32()
        self.call("cpu_prepare", self.make_views(scene), scene.gaussians(), *found.values(), ctypes.byref(finite))
        return found | {"records": found["records"][:count]}, bool(finite.value)

    def backward(
        self,
        scene: Scene,
        counts: Tensor,
        first_slot: Tensor,
        slots: Tensor,
        *,
        capacity: int = 1 << 30,
        health: Tensor | None = None,
        camera: bool = True,
    ) -> dict[str, Tensor]:
        """All gradients: by the names of COLUMNS summed over views, screen_offsets and frame_slots by view, partial
        sums of cameras [B, blocks, CAMERA]."""
        views, sizes = self.make_views(scene), scene.sizes
        sizes.pair_capacity = capacity
        rows, blocks = scene.views * scene.count, -(-scene.count // THREADS)
        out = {name: torch.full_like(value, math.nan) for name, value in scene.tensors.items()}
        if camera:
            out["camera"] = torch.full((scene.views, blocks, CAMERA), math.nan)
        if scene.frames is not None:
            out["frame_slots"] = torch.full((rows, FRAME_SLOT), math.nan)
        columns = {name: address(out.get(name)) for name in COLUMNS if name != "screen_offsets"}
        others = {name: address(out.get(name)) for name in ("screen_offsets", "frame_slots", "camera")}
        tables = SplatGradientTables(
            views=address(views),
            in_=scene.gaussians(),
            faces=0 if scene.frames is None else scene.frames.shape[1],
            counts=address(counts),
            first_slot=address(first_slot),
            slots=address(slots),
            out=SplatGradients(**columns, slot_of=address(scene.slot_of)),
            **others,
            health=address(health),
        )
        self.call("splats_backward", sizes, tables)
        return out

    def backward_on_cpu(self, scene: Scene, counts: Tensor, slots: Tensor) -> dict[str, Tensor]:
        """The same of one view, from slots that lie one splat behind the other."""
        out = {name: torch.full_like(value, math.nan) for name, value in scene.tensors.items()}
        out["camera"] = torch.zeros(1, -(-scene.count // CPU_BLOCK), CAMERA)
        if scene.frames is not None:
            out["frame_slots"] = torch.full((scene.count, FRAME_SLOT), math.nan)
        pointers = {name: address(out.get(name)) for name in (*COLUMNS, "camera", "frame_slots")}
        gradients = SplatGradients(**pointers, slot_of=address(scene.slot_of))
        self.call("cpu_backward", self.make_views(scene), scene.gaussians(), counts, slots, gradients)
        return out


def make_slots(counts: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random sums of pairs [P, SLOT], splat by splat, and every splat's first one."""
    pairs = int(counts.sum())
    slots = torch.randn(pairs, SLOT, generator=torch.Generator().manual_seed(seed))
    slots[:, SUMS:] = math.nan  # unused
    return slots, (counts.cumsum(0) - counts).int()


def shuffled(counts: Tensor, slots: Tensor, first_slot: Tensor, seed: int = 3) -> tuple[Tensor, Tensor]:
    """The same slots with the splats in another order, as depth gives it, and a splat's first one there."""
    order = torch.randperm(len(counts), generator=torch.Generator().manual_seed(seed))
    begin = torch.zeros_like(first_slot)
    begin[order] = (counts[order].cumsum(0) - counts[order]).int()
    rows = [torch.arange(int(first_slot[i]), int(first_slot[i] + counts[i])) for i in order]
    return slots[torch.cat(rows)].contiguous() if len(slots) else slots, begin


def new_health() -> Tensor:
    """As the host clears it."""
    health = np.zeros(1, HEALTH)
    health["bad_row"] = 0xFFFFFFFF
    return torch.from_numpy(health.view(np.int32))
