"""RIGS: what can carry Gaussians. A rig turns a timestep into a mesh; its `parameters` may be trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from flame_model import FlameModel, default_model_path, load_flame, load_masks
from scene.rigs.flame import FlameRig
from utils.contracts import Mesh, Motion


@dataclass
class RigOptions:
    """The face model and whether its motion is trained."""

    flame_model: str = field(default="", metadata={"help": "FLAME model pickle (default: flame_model/assets/flame)"})
    flame_masks: str = field(default="", metadata={"help": "FLAME_masks.pkl, checked when given"})
    disable_flame_static_offset: bool = field(default=False, metadata={"help": "ignore the tracked static offset"})
    not_finetune_flame_params: bool = field(default=False, metadata={"help": "keep the tracked motion as it is"})


class Rig(Protocol):
    """What training and rendering need of a rig."""

    parameters: dict[str, Tensor]  # per-timestep parameters [T, ...] that may be trained
    timesteps: int

    def __call__(self, timestep: int) -> Mesh: ...
    def rest_mesh(self) -> Mesh: ...
    def state_dict(self) -> dict[str, Tensor]: ...
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...
    def save(self, path: Path) -> None: ...


def load_face_model(options: RigOptions, device: torch.device | str) -> FlameModel:
    """Read the FLAME file named by the options (or found in the usual places); add teeth on FLAME topology.

    Masks are checked when they are named: nothing in training needs them yet, but a broken file should not wait.

    Raises:
        InputError: a file is missing or not what it must be.
    """
    path = Path(options.flame_model) if options.flame_model else default_model_path()
    assets = load_flame(path)
    if options.flame_masks:
        load_masks(Path(options.flame_masks), assets.n_vertices)
    return FlameModel(assets.with_teeth()).to(device)


def build_flame(options: RigOptions, face: FlameModel, motion: Motion, source: Path) -> FlameRig:
    return FlameRig(face, motion, source, face.template.device, not options.disable_flame_static_offset)


RIGS = {
    "flame": build_flame,
}

__all__ = ["RIGS", "FlameRig", "Rig", "RigOptions", "load_face_model"]
