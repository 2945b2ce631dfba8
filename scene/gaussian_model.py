"""GaussianModel: 3D Gaussians in the local frames of a rig's triangles, as named columns. One avatar or one scene.

Frame of a triangle, and how a Gaussian rides on it: `utils/maths/triangle_frames.py` (GaussianAvatars, section 3.2);
who computes it: `scene/placement.py`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from scene.placement import choose_placement
from scene.rigs import Rig
from utils.contracts import Mesh, Points, RiggedSplats, Splats
from utils.errors import InputError
from utils.io.ply import read_gaussian_ply, write_gaussian_ply
from utils.maths.random import generator
from utils.maths.sh import rgb_to_sh0

PLY = "point_cloud.ply"
COLUMNS = ("means", "sh0", "shN", "opacities", "scales", "quats")


@dataclass
class ModelOptions:
    """What the Gaussians are and how they start."""

    sh_degree: int = field(default=3, metadata={"help": "highest spherical-harmonics degree of colour"})
    init_opacity: float = field(default=0.1, metadata={"help": "opacity of the first Gaussian of every face"})
    init_scale: float = field(default=1.0, metadata={"help": "local standard deviation of the first Gaussians"})


class GaussianModel:
    """Gaussians bound to the faces of a rig's mesh; those of an unbound scene ride on the one face of `StillRig`.

    Columns (all float32, N rows, local to the bound triangle, before activation):
        means [N, 3] in triangle scales; sh0 [N, 1, 3]; shN [N, K - 1, 3]; opacities [N] logit; scales [N, 3] log of
        triangle scales; quats [N, 4] (w, x, y, z), any length.
    `binding` [N] int64 is the face of each Gaussian. `sh_degree` is the degree in use, raised during training.
    """

    def __init__(self, columns: Mapping[str, Tensor], binding: Tensor, sh_degree: int, rig: Rig) -> None:
        self.columns = {name: columns[name].requires_grad_() for name in COLUMNS}
        self.binding = binding
        self.sh_degree = sh_degree
        self.rig = rig
        self.use_threads(None)

    @classmethod
    def on_rig(
        cls, rig: Rig, options: ModelOptions, seed: int, device: torch.device | str, points: Points | None = None
    ) -> Self:
        """The start of training: one Gaussian per face, or per point of an unbound scene.

        On faces: at the centre, as large as the face, nearly grey (GaussianAvatars, section 3.2). On points: as large
        as the mean distance to the three nearest others, in the point's colour (3DGS, section 5).
        """
        n_faces = rig.faces.shape[0]
        count = n_faces if points is None else points.positions.shape[0]
        coefficients = (options.sh_degree + 1) ** 2
        if points is None:
            grey = generator(seed, "initial colour").random((count, 1, 3)) / 255.0
            means, sh0 = torch.zeros(count, 3), torch.from_numpy((grey - 0.5 / 255.0).astype(np.float32))
            scales, binding = torch.full((count, 3), float(np.log(options.init_scale))), torch.arange(n_faces)
        else:
            means, sh0 = points.positions.clone(), rgb_to_sh0(points.colours)[:, None, :]
            distance = neighbour_distance(points.positions) * options.init_scale
            scales, binding = distance.log()[:, None].repeat(1, 3), torch.zeros(count, dtype=torch.int64)
        columns = {
            "means": means,
            "sh0": sh0,
            "shN": torch.zeros(count, coefficients - 1, 3),
            "opacities": torch.full((count,), float(np.log(options.init_opacity / (1.0 - options.init_opacity)))),
            "scales": scales,
            "quats": torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(count, 1),
        }
        on_device = {name: column.to(device) for name, column in columns.items()}
        return cls(on_device, binding.to(device), 0, rig)

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

    def use_threads(self, threads: int | None) -> None:
        """Pose and place with so many threads from now on; None: one per CPU. The result is the same."""
        self.rig.threads = threads
        self.place, self.note = choose_placement(self.binding.device, threads)

    def on(self, mesh: Mesh) -> RiggedSplats:
        """What a renderer draws: the Gaussians on the triangles of a posed mesh, differentiable in its vertices."""
        return RiggedSplats(
            mesh, self.binding, **self.columns, sh_degree=self.sh_degree, world=lambda: self.place_on(mesh)
        )

    def place_on(self, mesh: Mesh) -> Splats:
        """World-space splats on a posed mesh."""
        placed = self.place(mesh, self.binding, self.columns)
        sh = torch.cat([self.columns["sh0"], self.columns["shN"]], dim=1)
        return Splats(placed.means, placed.quats, placed.scales, placed.opacities, sh, self.sh_degree)

    def world_scales(self, mesh: Mesh) -> Tensor:
        """[N, 3] standard deviations in metres on a posed mesh."""
        return self.place(mesh, self.binding, self.columns).scales

    def local(self, mesh: Mesh) -> dict[str, Any]:
        """What the losses look at beside the picture: fields of `utils.losses.LossContext`."""
        return {"local_means": self.columns["means"], "local_scales": self.local_scales, "mesh": mesh,
                "binding": self.binding, "bound": self.rig.bound, "motion": self.rig.parameters}  # fmt: skip

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Everything that training may change, by name."""
        return {**self.columns, **self.rig.parameters}

    def save(self, folder: Path) -> None:
        """Write the motion, if the rig has any, and then `point_cloud.ply`."""
        self.rig.save(folder)
        self.save_ply(folder / PLY)

    def save_ply(self, path: Path) -> None:
        """Write the original's PLY layout: local coordinates and `binding_0` last; without it if nothing is bound."""
        detached = {name: column.detach().cpu().numpy() for name, column in self.columns.items()}
        write_gaussian_ply(path, detached, self.binding.cpu().numpy() if self.rig.bound else None)

    @classmethod
    def load(cls, folder: Path, rig: Rig, device: torch.device | str) -> Self:
        """Read the Gaussians saved in `folder`; `rig` holds the motion saved beside them.

        Raises:
            InputError: a broken file, or Gaussians bound to faces that the rig does not have.
        """
        return cls.load_ply(folder / PLY, rig, device)

    @classmethod
    def load_ply(cls, path: Path, rig: Rig, device: torch.device | str) -> Self:
        """Read a PLY that `save_ply`, the original or (for an unbound scene) any 3DGS program wrote.

        Raises:
            InputError: not such a file, or a binding that the rig does not have.
        """
        columns, binding = read_gaussian_ply(path, rig.faces.shape[0])
        if (binding is not None) != rig.bound:
            problem = "is missing, expected Gaussians bound to a mesh" if rig.bound else "is there, expected none"
            raise InputError(path, "binding_0", problem, "--bind_to_mesh says which of the two it is.")
        tensors = {name: torch.from_numpy(np.ascontiguousarray(columns[name])).to(device) for name in COLUMNS}
        degree = round((1 + tensors["shN"].shape[1]) ** 0.5) - 1
        faces = np.zeros(len(columns["means"]), np.int64) if binding is None else binding
        return cls(tensors, torch.from_numpy(faces).to(device), degree, rig)

    def state_dict(self) -> dict[str, Tensor]:
        return {**{f"columns.{name}": column.detach() for name, column in self.columns.items()},
                "binding": self.binding, "sh_degree": torch.tensor(self.sh_degree),
                **self.rig.state_dict()}  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over a state; ValueError for a binding or a degree that can't be."""
        n_faces, binding, degree = self.rig.faces.shape[0], state["binding"], int(state["sh_degree"])
        if not bool(((binding >= 0) & (binding < n_faces)).all()):
            raise ValueError(f"binding: found a face outside the mesh, expected 0 to {n_faces - 1}")
        if not 0 <= degree <= self.max_sh_degree:
            raise ValueError(f"sh_degree: found {degree}, expected 0 to {self.max_sh_degree}")
        device = self.binding.device
        self.columns = {name: state[f"columns.{name}"].to(device).requires_grad_() for name in COLUMNS}
        self.binding = state["binding"].to(device)
        self.sh_degree = int(state["sh_degree"])
        self.rig.load_state_dict(state)


def neighbour_distance(positions: Tensor) -> Tensor:
    """[N] root of the mean squared distance to the three nearest other points, at least 1e-4."""
    simple_knn = importlib.import_module("simple_knn._C")
    return simple_knn.distCUDA2(positions).clamp_min(1e-8).sqrt()
