"""The rig of unbound scenes: one triangle that never moves and whose frame is the world's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from utils.contracts import Mesh

# Base 1.25 along x, height 0.75, apex a quarter along the base: the frame's axes are the world's, the centre is the
# origin and the scale is (1.25 + 0.75) / 2 = 1, all exact in float32 (`utils/maths/triangle_frames.py`).
VERTICES = ((-0.5, 0.0, 0.25), (0.75, 0.0, 0.25), (-0.25, 0.0, -0.5))


class StillRig:
    """One face whose frame is the identity: local coordinates are world coordinates, every timestep is the same."""

    bound = False
    fingerprint, edition = "", ""
    note = ""
    threads: int | None = None
    timesteps = 1

    def __init__(self, device: torch.device | str) -> None:
        self.parameters: dict[str, Tensor] = {}
        self.groups: dict[str, str] = {}
        self.regions: dict[str, Tensor] = {}
        self.faces = torch.tensor([[0, 1, 2]], device=device)
        self.vertices = torch.tensor(VERTICES, device=device)

    def __call__(self, timestep: int) -> Mesh:
        return Mesh(self.vertices, self.faces)

    def rest_mesh(self) -> Mesh:
        return Mesh(self.vertices, self.faces)

    def begin(self, start: Mapping[str, Tensor]) -> None:
        """There are no parameters."""

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Nothing here changes."""

    def save(self, folder: Path) -> None:
        """Nothing here needs a file."""
