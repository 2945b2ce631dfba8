"""The rig of a tracker's own meshes: a timestep -> the mesh that was recorded; nothing of it is trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from utils.contracts import Mesh, Motion
from utils.errors import InputError
from utils.io.atomic import atomic_file
from utils.io.npz import Array, read_npz, refuse_unreadable

MESHES_FILE = "meshes.npz"
SCHEMA = {"vertices": Array(("T", "V", 3)), "faces": Array(("F", 3))}
LIMITS = {"T": 1_000_000, "V": 1_000_000, "F": 2_000_000}


class MeshesRig:
    """Recorded meshes of one topology.

    The rest mesh is the recorded one that is nearest to the mean of all (least squares over the vertices, the first of
    equals): the mean itself would shrink a head that turns.

    Args:
        motion: per_frame vertices [T, V, 3] in metres, static faces [F, 3].
        source: where the motion came from, for messages.
    Raises:
        InputError: no meshes, faces that name vertices which are not there, or more than an avatar's file can hold.
    """

    bound = True
    fingerprint, edition = "", ""  # there is no face model
    threads: int | None = None
    note = ""  # nothing is posed

    def __init__(self, motion: Motion, source: str | Path, device: torch.device | str) -> None:
        for name, kind, found in (("vertices", "per_frame", motion.per_frame), ("faces", "static", motion.static)):
            if name not in found:
                raise InputError(source, name, f"is missing in {kind}", "This rig needs the tracker's own meshes.")
        self.parameters: dict[str, Tensor] = {}
        self.groups: dict[str, str] = {}
        self.regions: dict[str, Tensor] = {}
        self.vertices = motion.per_frame["vertices"].to(device, torch.float32)
        self.faces = motion.static["faces"].to(device, torch.int64)
        check_faces(self.faces, self.vertices.shape[1], source)
        refuse_unreadable(source, "vertices", self.vertices.numel() + self.faces.numel())
        self.rest = nearest_to_mean(self.vertices)

    @property
    def timesteps(self) -> int:
        return self.vertices.shape[0]

    def __call__(self, timestep: int) -> Mesh:
        """The mesh at a timestep."""
        return Mesh(self.vertices[timestep], self.faces)

    def rest_mesh(self) -> Mesh:
        """The mesh of the timestep `rest`."""
        return Mesh(self.vertices[self.rest], self.faces)

    def motion(self) -> Motion:
        """What it was made of."""
        return Motion({"vertices": self.vertices}, {"faces": self.faces})

    def begin(self, start: Mapping[str, Tensor]) -> None:
        """There are no parameters."""

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Nothing here changes."""

    def save(self, folder: Path) -> None:
        """Write `meshes.npz`: vertices float32 [T, V, 3], faces int32 [F, 3]."""
        with atomic_file(folder / MESHES_FILE) as file:
            np.savez(file, vertices=self.vertices.cpu().numpy(), faces=self.faces.cpu().numpy().astype(np.int32))


def read_meshes(path: Path) -> Motion:
    """The motion that `MeshesRig.save` left.

    Raises:
        InputError: names the file, the array and what is wrong with it.
    """
    arrays = read_npz(path, SCHEMA, LIMITS)
    faces = torch.from_numpy(arrays["faces"]).to(torch.int64)  # exact: float32 holds integers up to 2^24
    if not bool((faces == torch.from_numpy(arrays["faces"])).all()):
        raise InputError(path, "faces", "found fractions, expected numbers of vertices")
    check_faces(faces, arrays["vertices"].shape[1], path)
    return Motion({"vertices": torch.from_numpy(arrays["vertices"])}, {"faces": faces})


def check_faces(faces: Tensor, count: int, source: str | Path) -> None:
    """Refuse faces [F, 3] that name a vertex outside 0 to count - 1."""
    if not (0 <= int(faces.min()) and int(faces.max()) < count):
        problem = f"found vertices {int(faces.min())} to {int(faces.max())}, expected 0 to {count - 1}"
        raise InputError(source, "faces", problem)


def nearest_to_mean(vertices: Tensor) -> int:
    """Which of the meshes [T, V, 3] is nearest to their mean."""
    mean = vertices.mean(dim=0, dtype=torch.float64)
    return int(torch.stack([(mesh - mean).square().sum() for mesh in vertices]).argmin())
