"""RIGS: what can carry Gaussians. A rig turns a timestep into a mesh; its `parameters` may be trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from flame_model import FlameModel, default_model_path, load_flame, load_masks
from scene.datasets.flame_params import read_motion_file
from scene.rigs.flame import MOTION_FILE, FlameRig
from scene.rigs.meshes import MESHES_FILE, MeshesRig, read_meshes
from scene.rigs.still import StillRig
from utils.contracts import Mesh, Motion

__all__ = [
    "MOTION_FILE",
    "RIGS",
    "FlameRig",
    "MeshesRig",
    "Rig",
    "RigEntry",
    "RigOptions",
    "StillRig",
    "load_face_model",
]


@dataclass
class RigOptions:
    """The face model and whether its motion is trained."""

    flame_model: str = field(default="", metadata={"help": "FLAME model pickle (default: flame_model/assets/flame)"})
    flame_masks: str = field(default="", metadata={"help": "FLAME_masks.pkl: where eyes, mouth ... are"})
    joints_without_static_offset: bool = field(
        default=False, metadata={"help": "for trackers that place the joints before they add the static offset"}
    )
    disable_flame_static_offset: bool = field(default=False, metadata={"help": "ignore the tracked static offset"})
    not_finetune_flame_params: bool = field(default=False, metadata={"help": "keep the tracked motion as it is"})
    train_dynamic_offset: bool = field(default=False, metadata={"help": "train vertex offsets of every timestep too"})


class Rig(Protocol):
    """What training and rendering need of a rig."""

    parameters: dict[str, Tensor]  # per-timestep parameters [T, ...] that may be trained
    groups: dict[str, str]  # parameter -> the learning rate that it follows: pose, trans, expr or offset
    faces: Tensor  # [F, 3] int64
    bound: bool  # False: Gaussians are free in the world, so that limits in triangle scales mean nothing
    fingerprint: str  # of the face model's file; empty: there is none
    edition: str  # what that model calls itself
    threads: int | None  # of native kernels; None: one per CPU
    regions: dict[str, Tensor]  # name -> [F] bool, of --flame_masks; empty: none were given
    note: str  # for the log: what poses the mesh; empty: nothing does

    @property
    def timesteps(self) -> int: ...
    def __call__(self, timestep: int) -> Mesh: ...
    def rest_mesh(self) -> Mesh: ...
    def begin(self, start: Mapping[str, Tensor]) -> None: ...  # other values [T, ...] of some parameters
    def state_dict(self) -> dict[str, Tensor]: ...
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...
    def save(self, folder: Path) -> None: ...


def load_face_model(options: RigOptions, device: torch.device | str) -> FlameModel:
    """Read the FLAME file named by the options (or found in the usual places); add teeth on FLAME topology.

    Masks, if they are named, become the model's regions; what needs them asks for them (`flame_model.regions`).

    Raises:
        InputError: a file is missing or not what it must be.
    """
    path = Path(options.flame_model) if options.flame_model else default_model_path()
    assets = load_flame(path)
    masks = load_masks(Path(options.flame_masks), assets.n_vertices) if options.flame_masks else None
    return FlameModel(assets.with_teeth(), masks, not options.joints_without_static_offset).to(device)


def build_flame(options: RigOptions, face: FlameModel, motion: Motion, source: Path) -> FlameRig:
    device, offset = face.template.device, not options.disable_flame_static_offset
    return FlameRig(face, motion, source, device, offset, options.train_dynamic_offset)


def build_meshes(options: RigOptions, device: torch.device | str, motion: Motion, source: Path) -> MeshesRig:
    return MeshesRig(motion, source, device)


def build_still(options: RigOptions, device: torch.device | str, motion: Motion | None, source: Path) -> StillRig:
    return StillRig(device)


@dataclass(frozen=True)
class RigEntry:
    """A row of RIGS.

    load(options, device) -> model: reads what the rig needs besides the dataset (early: it may be missing).
    build(options, model, motion, source) -> Rig.
    file, read: the file that `Rig.save` leaves in an avatar's folder, and how it becomes a Motion again.
    """

    load: Callable[[RigOptions, torch.device | str], Any]
    build: Callable[[RigOptions, Any, Any, Path], Rig]
    file: str = ""
    read: Callable[[Path], Motion] | None = None


RIGS: dict[str, RigEntry] = {
    "flame": RigEntry(load_face_model, build_flame, MOTION_FILE, read_motion_file),
    "meshes": RigEntry(lambda options, device: device, build_meshes, MESHES_FILE, read_meshes),
    "still": RigEntry(lambda options, device: device, build_still),
}
