"""How Gaussians get from their triangles into the world: a native kernel, or PyTorch where there is none."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from utils.contracts import Mesh
from utils.maths.triangle_frames import attach, triangle_frames

NATIVE, AVAILABLE = "diff_gaussian_rasterization.rig", "diff_gaussian_rasterization._device"


@dataclass(frozen=True)
class Placed:
    """Gaussians activated and in the world."""

    means: Tensor  # [N, 3] metres
    quats: Tensor  # [N, 4] (w, x, y, z), unit
    scales: Tensor  # [N, 3] metres
    opacities: Tensor  # [N] in (0, 1)


Place = Callable[[Mesh, Tensor, Mapping[str, Tensor]], Placed]  # posed mesh, binding, columns of `GaussianModel`


def choose_placement(device: torch.device | str, threads: int | None) -> tuple[Place, str]:
    """The native kernel, or plain PyTorch where this device has none; and a line for the log that says which."""
    try:
        face_rig, why = importlib.import_module(NATIVE).FaceRig, importlib.import_module(AVAILABLE).usable(device)
        if why is None:
            return NativePlacement(face_rig, threads), "rig: native kernel"
    except (ImportError, OSError) as error:
        why = str(error)
    return place_in_torch, f"rig: PyTorch (the native kernel can't be used: {why})"


class NativePlacement:
    """Calls the native kernel; keeps what it knows of the mesh's topology until another one comes."""

    def __init__(self, face_rig: Callable[[Tensor, int], Any], threads: int | None) -> None:
        self.face_rig, self.threads = face_rig, threads
        self.faces: Tensor | None = None
        self.rig: Any = None

    def __call__(self, mesh: Mesh, binding: Tensor, columns: Mapping[str, Tensor]) -> Placed:
        if self.faces is not mesh.faces or self.rig.n_vertices != mesh.vertices.shape[0]:
            self.faces, self.rig = mesh.faces, self.face_rig(mesh.faces, mesh.vertices.shape[0])
        placed = self.rig.place(mesh.vertices, binding, columns["means"], columns["quats"], columns["scales"],
                                columns["opacities"], self.threads)  # fmt: skip
        return Placed(*placed)


def place_in_torch(mesh: Mesh, binding: Tensor, columns: Mapping[str, Tensor]) -> Placed:
    """The same on any device, in any float type."""
    frames, local_scales = triangle_frames(mesh.vertices, mesh.faces), columns["scales"].exp()
    local_quats = torch.nn.functional.normalize(columns["quats"], dim=-1)
    means, quats, scales = attach(frames, binding, columns["means"], local_quats, local_scales)
    return Placed(means, quats, scales, columns["opacities"].sigmoid())
