"""A head-sized shell of Gaussians, and a closed triangle mesh for them to ride on."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scene.gaussian_model import GaussianModel
from scene.rigs.meshes import MeshesRig
from utils.contracts import Mesh, Motion
from utils.maths.rotations import conjugate, multiply
from utils.maths.triangle_frames import triangle_frames

AXES = np.array([0.075, 0.11, 0.095])  # metres, half axes
FREQUENCY = 22  # 20 * 22^2 = 9,680 faces, as many as a FLAME head has
CHUNK = 2_000  # rows of a distance matrix that are in memory at a time


def head_shell(n: int, seed: int = 0) -> dict[str, Tensor]:
    """n flat Gaussians on a head-sized ellipsoid (0.15 x 0.22 x 0.19 m), each as large as their spacing."""
    r = np.random.default_rng(seed)
    on_sphere = r.normal(size=(n, 3))
    on_sphere /= np.linalg.norm(on_sphere, axis=1, keepdims=True)
    normal = on_sphere / AXES
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    # Rotation that takes +z to the normal, after a random spin about z.
    tilt = np.column_stack([1 + normal[:, 2], -normal[:, 1], normal[:, 0], np.zeros(n)])
    spin = r.uniform(0, 2 * np.pi, n) / 2
    c, s = np.cos(spin), np.sin(spin)
    quats = np.column_stack(
        [tilt[:, 0] * c, tilt[:, 1] * c + tilt[:, 2] * s, tilt[:, 2] * c - tilt[:, 1] * s, tilt[:, 0] * s]
    )
    spacing = np.sqrt(4 * np.pi * np.prod(AXES) ** (2 / 3) / n)
    harmonics = 0.12 * r.normal(size=(n, 16, 3))
    harmonics[:, 0] = 1.1 * (r.uniform(size=(n, 3)) - 0.5)
    values = {
        "means": on_sphere * AXES * (1 + 0.03 * r.normal(size=(n, 1))),
        "quats": quats / np.linalg.norm(quats, axis=1, keepdims=True),
        "scales": spacing * np.array([0.8, 0.8, 0.25]) * np.exp(0.45 * r.normal(size=(n, 3))),
        "opacities": np.clip(1 / (1 + np.exp(-0.5 - 1.5 * r.normal(size=n))), 0.01, 0.98),
        "sh": harmonics,
    }
    return {name: torch.tensor(value, dtype=torch.float32) for name, value in values.items()}


def geodesic(frequency: int) -> tuple[np.ndarray, np.ndarray]:
    """An icosahedron with every edge cut into `frequency` parts, blown up to the unit sphere.

    Returns:
        vertices [V, 3] and outward faces [20 frequency^2, 3].
    """
    golden = (1 + 5**0.5) / 2
    corners = np.array([np.roll([0, a, b * golden], turn) for turn in range(3) for a in (-1, 1) for b in (-1, 1)])
    sides = [t for t in combinations(range(12), 3) if all(_near(*corners[list(e)]) for e in combinations(t, 2))]
    grid = [(i, j) for i in range(frequency + 1) for j in range(frequency + 1 - i)]
    at = {cell: row for row, cell in enumerate(grid)}
    up = [(at[i, j], at[i + 1, j], at[i, j + 1]) for i, j in grid if i + j < frequency]
    down = [(at[i + 1, j], at[i + 1, j + 1], at[i, j + 1]) for i, j in grid if i + j < frequency - 1]
    weights = np.array([(frequency - i - j, i, j) for i, j in grid]) / frequency
    points = np.concatenate([weights @ corners[_outward(corners, side)] for side in sides])
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    faces = np.concatenate([np.array(up + down) + len(grid) * side for side in range(len(sides))])
    _, first, row = np.unique(points.round(9) + 0.0, axis=0, return_index=True, return_inverse=True)
    return points[first], row.reshape(-1)[faces]


def _near(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.linalg.norm(a - b) < 2.1)  # edges of this icosahedron have length 2


def _outward(corners: np.ndarray, side: tuple[int, ...]) -> list[int]:
    a, b, c = side
    return [a, b, c] if np.linalg.det(corners[[a, b, c]]) > 0 else [a, c, b]


class MovingShell(MeshesRig):
    """One mesh whose vertices are trained: a step carries one gradient back to them, as with any moving rig."""

    def __init__(self, frequency: int = FREQUENCY) -> None:
        vertices, faces = geodesic(frequency)
        metres = torch.tensor(vertices * AXES, dtype=torch.float32)
        super().__init__(Motion({"vertices": metres[None]}, {"faces": torch.from_numpy(faces)}), Path("shell"), "cpu")
        self.vertices.requires_grad_()
        self.parameters, self.groups = {"vertices": self.vertices}, {"vertices": "trans"}

    def rest_mesh(self) -> Mesh:
        return Mesh(self.vertices[self.rest].detach(), self.faces)


def bind(splats: dict[str, Tensor], rig: MovingShell) -> GaussianModel:
    """The same Gaussians as rows of a GaussianModel: each rides on the face that lies nearest to its direction."""
    mesh = rig.rest_mesh()
    frames = triangle_frames(mesh.vertices, mesh.faces)
    axes = torch.tensor(AXES, dtype=torch.float32, device=mesh.vertices.device)
    normalise = torch.nn.functional.normalize
    centres, directions = normalise(frames.centres / axes, dim=-1), normalise(splats["means"] / axes, dim=-1)
    binding = torch.cat([(part @ centres.T).argmax(dim=1) for part in directions.split(CHUNK)])
    k = frames.scales[binding][:, None]
    away = splats["means"] - frames.centres[binding]
    columns = {
        "means": (frames.rotations[binding].transpose(1, 2) @ away[:, :, None])[:, :, 0] / k,
        "sh0": splats["sh"][:, :1].clone(),
        "shN": splats["sh"][:, 1:].clone(),
        "opacities": splats["opacities"].logit(),
        "scales": (splats["scales"] / k).log(),
        "quats": multiply(conjugate(frames.quats[binding]), splats["quats"]),
    }
    return GaussianModel({name: column.contiguous() for name, column in columns.items()}, binding, 3, rig)
