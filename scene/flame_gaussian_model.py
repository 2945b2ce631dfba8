"""FlameGaussianModel: Gaussians bound to the faces of a FLAME rig whose motion is trained with them: one avatar."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from scene.gaussian_model import GaussianModel, ModelOptions
from scene.rigs import FlameRig
from utils.maths.triangle_frames import TriangleFrames, triangle_frames

PLY, MOTION_FILE = "point_cloud.ply", "flame_param.npz"


class FlameGaussianModel(GaussianModel):
    """GaussianModel plus the rig that it rides on.

    An avatar is saved as the original saves it: `point_cloud.ply` and `flame_param.npz` in one folder.
    """

    rig: FlameRig

    @classmethod
    def on_rig(cls, rig: FlameRig, options: ModelOptions, seed: int, device: torch.device | str) -> FlameGaussianModel:
        """The start of training: one Gaussian per face."""
        model = cls.on_faces(rig.flame.faces.shape[0], options, seed, device)
        model.rig = rig
        return model

    @classmethod
    def load(cls, folder: Path, rig: FlameRig, device: torch.device | str) -> FlameGaussianModel:
        """Read the Gaussians saved in `folder`; `rig` holds the motion saved beside them.

        Raises:
            InputError: a broken file, or Gaussians bound to faces that the rig does not have.
        """
        model = cls.load_ply(folder / PLY, rig.flame.faces.shape[0], device)
        model.rig = rig
        return model

    def frames(self, timestep: int) -> TriangleFrames:
        """The triangle frames of the posed mesh, differentiable in the motion."""
        mesh = self.rig(timestep)
        return triangle_frames(mesh.vertices, mesh.faces)

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Everything that training may change, by name."""
        return {**self.columns, **self.rig.parameters}

    def save(self, folder: Path) -> None:
        """Write `point_cloud.ply` and `flame_param.npz`."""
        self.rig.save(folder / MOTION_FILE)
        self.save_ply(folder / PLY)

    def state_dict(self) -> dict[str, Tensor]:
        return {**super().state_dict(), **self.rig.state_dict()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        super().load_state_dict(state)
        self.rig.load_state_dict(state)
