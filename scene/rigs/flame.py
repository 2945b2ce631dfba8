"""The FLAME rig: a timestep of the sequence -> the posed FLAME mesh, with the motion as trainable parameters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flame_model import FlameModel
from flame_model.posing import choose_posing
from utils.contracts import Mesh, Motion
from utils.errors import InputError
from utils.io.atomic import atomic_file
from utils.io.npz import refuse_unreadable

WIDTHS = {"rotation": 3, "neck_pose": 3, "jaw_pose": 3, "eyes_pose": 6, "translation": 3}
GROUPS = {"rotation": "pose", "neck_pose": "pose", "jaw_pose": "pose", "eyes_pose": "pose", "translation": "trans",
          "expr": "expr", "dynamic_offset": "offset"}  # fmt: skip
MOTION = ("rotation", "neck_pose", "jaw_pose", "eyes_pose", "translation", "expr")
MOTION_FILE = "flame_param.npz"


class FlameRig:
    """FLAME driven by per-timestep parameters that training may refine; identity and static offset stay fixed.

    Args:
        flame: the body model.
        motion: parameters of every timestep (see `utils.contracts.Motion`).
        source: where the motion came from, for messages.
        use_static_offset: False ignores the tracked per-vertex offset.
        train_dynamic_offset: True makes the per-timestep vertex offsets a parameter (from zero, where none is tracked).

    Raises:
        InputError: motion that does not fit the model, or is longer than an avatar's file can hold.
    """

    bound = True
    threads: int | None = None

    def __init__(
        self,
        flame: FlameModel,
        motion: Motion,
        source: str | Path,
        device: torch.device | str,
        use_static_offset: bool = True,
        train_dynamic_offset: bool = False,
    ) -> None:
        self.flame = flame
        self.faces, self.fingerprint, self.edition = flame.faces, flame.fingerprint, flame.edition
        self.regions = {name: inside.to(device) for name, inside in flame.regions.items()}
        self.parameters = {name: contiguous(motion.per_frame[name], device).requires_grad_() for name in MOTION}
        check_widths({**self.parameters, "shape": motion.static["shape"][None]}, flame, source)
        shape, offset = motion.static["shape"], motion.static.get("static_offset") if use_static_offset else None
        self.shape = shape.to(device)
        self.static_offset = fit_offset(offset, flame, source, "static_offset")
        dynamic = motion.per_frame.get("dynamic_offset")
        self.dynamic_offset = None  # as tracked, if it says anything
        if dynamic is not None and bool(dynamic.any()):
            self.dynamic_offset = fit_offset(dynamic, flame, source, "dynamic_offset")
        if train_dynamic_offset:
            start = torch.zeros(self.timesteps, flame.n_vertices, 3, device=device)
            start = start if self.dynamic_offset is None else self.dynamic_offset
            self.parameters["dynamic_offset"] = contiguous(start, device).requires_grad_()
        width = sum(self.parameters[name].shape[1] for name in MOTION) + 3 * flame.n_vertices
        refuse_unreadable(source, "timesteps", self.timesteps * width)
        self.groups = {name: GROUPS[name] for name in self.parameters}
        self.identity = flame.fold_identity(self.shape, self.static_offset)
        self.pose, self.note = choose_posing(flame, self.identity)

    @property
    def timesteps(self) -> int:
        return self.parameters["expr"].shape[0]

    def __call__(self, timestep: int) -> Mesh:
        """The mesh at a timestep, differentiable in the parameters of that timestep (with sparse gradients)."""
        tables, offsets = {name: self.parameters[name] for name in MOTION}, self.offsets
        if offsets is not None:
            tables["dynamic_offset"] = offsets
        return Mesh(self.pose(tables, timestep, self.threads), self.faces)

    @property
    def offsets(self) -> Tensor | None:
        """[T, V, 3] metres: the dynamic offsets, trained or as tracked."""
        return self.parameters.get("dynamic_offset", self.dynamic_offset)

    def rest_mesh(self) -> Mesh:
        """The person's neutral head: identity and static offset, everything else zero."""
        zero = {name: torch.zeros_like(self.parameters[name][0]) for name in MOTION}
        with torch.no_grad():
            return Mesh(self.flame.posed(self.identity, **zero), self.faces)

    def begin(self, start: Mapping[str, Tensor]) -> None:
        """Let some parameters begin with other values [T, ...] than those tracked."""
        device = self.shape.device
        self.parameters.update({name: contiguous(values, device).requires_grad_() for name, values in start.items()})

    def state_dict(self) -> dict[str, Tensor]:
        return {f"flame.{name}": values.detach() for name, values in self.parameters.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        device = self.shape.device
        self.parameters = {
            name: contiguous(state[f"flame.{name}"], device).requires_grad_() for name in self.parameters
        }

    @torch.no_grad()
    def motion(self) -> Motion:
        """The motion as it is now, refined or not; detached."""
        per_frame = {name: values.detach() for name, values in self.parameters.items()}
        if self.offsets is not None:
            per_frame["dynamic_offset"] = self.offsets.detach()
        return Motion(per_frame, {"shape": self.shape, "static_offset": self.static_offset})

    def save(self, folder: Path) -> None:
        """Write `flame_param.npz` with the keys, shapes and types of the original."""
        arrays: dict[str, Any] = {name: self.parameters[name].detach().cpu().numpy() for name in MOTION}
        arrays["shape"] = self.shape.cpu().numpy()
        arrays["static_offset"] = self.static_offset.cpu().numpy()[None]
        offsets = self.offsets
        none = np.zeros((self.timesteps, self.flame.n_vertices, 3), np.float32)
        arrays["dynamic_offset"] = none if offsets is None else offsets.detach().cpu().numpy()
        with atomic_file(folder / MOTION_FILE) as file:
            np.savez_compressed(file, **arrays)


def contiguous(values: Tensor, device: torch.device | str) -> Tensor:
    """A copy of its own, row after row: rows are read and updated in place."""
    return values.detach().to(device).clone(memory_format=torch.contiguous_format)


def check_widths(parameters: Mapping[str, Tensor], flame: FlameModel, source: str | Path) -> None:
    """Refuse motion whose parameters do not fit the model, before the first step."""
    for name, values in parameters.items():
        width = WIDTHS.get(name)
        if width is not None and list(values.shape[1:]) != [width]:
            raise InputError(source, name, f"found {list(values.shape[1:])} values a timestep, expected [{width}]")
        most = {"expr": flame.n_expr, "shape": flame.n_shape}.get(name)
        if most is not None and values.shape[1] > most:
            raise InputError(source, name, f"found {values.shape[1]} values, the model has {most} directions",
                             "Use the FLAME edition that the sequence was tracked with.")  # fmt: skip


def fit_offset(offset: Tensor | None, flame: FlameModel, source: str | Path, name: str) -> Tensor:
    """Bring a per-vertex offset [..., V', 3] to the model's vertices: one tracked without the added teeth gets zeros.

    Raises:
        InputError: an offset for more vertices than the model has, or for another topology.
    """
    n_vertices, added_teeth, device = flame.n_vertices, flame.n_added_teeth, flame.template.device
    if offset is None:
        return torch.zeros(n_vertices, 3, device=device)
    found = offset.shape[-2]
    if found not in (n_vertices, n_vertices - added_teeth):
        raise InputError(source, name, f"found {found} vertices, the model has {n_vertices}",
                         "Use the FLAME edition that the sequence was tracked with.")  # fmt: skip
    return torch.nn.functional.pad(offset.to(device), (0, 0, 0, n_vertices - found))
