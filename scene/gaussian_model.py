"""GaussianModel: 3D Gaussians in the local frames of a mesh's triangles, as named columns.

Frame of a triangle, and how a Gaussian rides on it: `utils/maths/triangle_frames.py` (GaussianAvatars, section 3.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from utils.contracts import Mesh, Splats
from utils.errors import InputError
from utils.io.ply import read_gaussian_ply, write_gaussian_ply
from utils.maths.random import generator
from utils.maths.triangle_frames import TriangleFrames, attach, triangle_frames

COLUMNS = ("means", "sh0", "shN", "opacities", "scales", "quats")


@dataclass
class ModelOptions:
    """What the Gaussians are and how they start."""

    sh_degree: int = field(default=3, metadata={"help": "highest spherical-harmonics degree of colour"})
    init_opacity: float = field(default=0.1, metadata={"help": "opacity of the first Gaussian of every face"})
    init_scale: float = field(default=1.0, metadata={"help": "local standard deviation of the first Gaussians"})


class GaussianModel:
    """Gaussians bound to the faces of a mesh.

    Columns (all float32, N rows, local to the bound triangle, before activation):
        means [N, 3] in triangle scales; sh0 [N, 1, 3]; shN [N, K - 1, 3]; opacities [N] logit; scales [N, 3] log of
        triangle scales; quats [N, 4] (w, x, y, z), any length.
    `binding` [N] int64 is the face of each Gaussian. `sh_degree` is the degree in use, raised during training.
    """

    def __init__(self, columns: Mapping[str, Tensor], binding: Tensor, sh_degree: int) -> None:
        self.columns = {name: columns[name].requires_grad_() for name in COLUMNS}
        self.binding = binding
        self.sh_degree = sh_degree

    @classmethod
    def on_faces(cls, n_faces: int, options: ModelOptions, seed: int, device: torch.device | str) -> Self:
        """One Gaussian per face, at its centre, as large as the face, nearly grey (GaussianAvatars, section 3.2)."""
        coefficients = (options.sh_degree + 1) ** 2
        grey = generator(seed, "initial colour").random((n_faces, 1, 3)) / 255.0
        opacity = float(np.log(options.init_opacity / (1.0 - options.init_opacity)))
        columns = {
            "means": torch.zeros(n_faces, 3),
            "sh0": torch.from_numpy((grey - 0.5 / 255.0).astype(np.float32)),
            "shN": torch.zeros(n_faces, coefficients - 1, 3),
            "opacities": torch.full((n_faces,), opacity),
            "scales": torch.full((n_faces, 3), float(np.log(options.init_scale))),
            "quats": torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(n_faces, 1),
        }
        on_device = {name: column.to(device) for name, column in columns.items()}
        return cls(on_device, torch.arange(n_faces, device=device), 0)

    def __len__(self) -> int:
        return self.binding.shape[0]

    @property
    def max_sh_degree(self) -> int:
        """The degree that the stored coefficients reach."""
        return round((1 + self.columns["shN"].shape[1]) ** 0.5) - 1

    @property
    def local_scales(self) -> Tensor:
        """[N, 3] standard deviations in triangle scales."""
        return self.columns["scales"].exp()

    @property
    def opacity(self) -> Tensor:
        """[N] in (0, 1)."""
        return self.columns["opacities"].sigmoid()

    def place(self, frames: TriangleFrames) -> Splats:
        """World-space splats of the Gaussians on the triangles of a posed mesh."""
        local_quats = torch.nn.functional.normalize(self.columns["quats"], dim=-1)
        means, quats, scales = attach(frames, self.binding, self.columns["means"], local_quats, self.local_scales)
        sh = torch.cat([self.columns["sh0"], self.columns["shN"]], dim=1)
        return Splats(means, quats, scales, self.opacity, sh, self.sh_degree)

    def place_on(self, mesh: Mesh) -> Splats:
        """`place` for a mesh whose triangle frames nobody else needs."""
        return self.place(triangle_frames(mesh.vertices, mesh.faces))

    def face_scales(self, frames: TriangleFrames) -> Tensor:
        """[N] metres: the scale of each Gaussian's triangle."""
        return frames.scales.index_select(0, self.binding)

    def world_scales(self, mesh: Mesh) -> Tensor:
        """[N, 3] standard deviations in metres on a posed mesh."""
        return self.local_scales * self.face_scales(triangle_frames(mesh.vertices, mesh.faces))[:, None]

    def save_ply(self, path: Path) -> None:
        """Write the original's PLY layout (local coordinates, `binding_0` last)."""
        detached = {name: column.detach().cpu().numpy() for name, column in self.columns.items()}
        write_gaussian_ply(path, detached, self.binding.cpu().numpy())

    @classmethod
    def load_ply(cls, path: Path, n_faces: int, device: torch.device | str) -> Self:
        """Read such a PLY.

        Raises:
            InputError: not such a file, or a binding that the mesh does not have.
        """
        columns, binding = read_gaussian_ply(path, n_faces)
        if binding is None:
            raise InputError(path, "binding_0", "is missing, expected Gaussians bound to a mesh")
        tensors = {name: torch.from_numpy(np.ascontiguousarray(columns[name])).to(device) for name in COLUMNS}
        degree = round((1 + tensors["shN"].shape[1]) ** 0.5) - 1
        return cls(tensors, torch.from_numpy(binding).to(device), degree)

    def state_dict(self) -> dict[str, Tensor]:
        return {**{f"columns.{name}": column.detach() for name, column in self.columns.items()},
                "binding": self.binding, "sh_degree": torch.tensor(self.sh_degree)}  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        device = self.binding.device
        self.columns = {name: state[f"columns.{name}"].to(device).requires_grad_() for name in COLUMNS}
        self.binding = state["binding"].to(device)
        self.sh_degree = int(state["sh_degree"])
