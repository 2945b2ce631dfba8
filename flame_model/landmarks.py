"""Landmarks on the mesh (68 of the face, 2 irises), from `landmark_embedding_with_eyes.npy`, never unpickled."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flame_model.pickle_globals import LANDMARK_GLOBALS
from flame_model.pickle_reader import Call, read_bytes, read_pickle
from flame_model.pickled_arrays import ArrayFields
from utils.errors import InputError

_MAGIC = re.compile(rb"\x93NUMPY(?:\x01\x00(?P<short>..)|[\x02\x03]\x00(?P<long>....))", re.DOTALL)
_OBJECT_HEADER = re.compile(rb"\{'descr': '\|O', 'fortran_order': (?:False|True), 'shape': \(\), \} *\n?")


@dataclass(frozen=True)
class LandmarkEmbedding:
    """Where landmarks lie on a mesh."""

    faces: np.ndarray  # [L] int64 face ids
    barycentric: np.ndarray  # [L, 3] float32, rows sum to one


def load_landmarks(path: Path | str, n_faces: int) -> LandmarkEmbedding:
    """Read the static landmarks (`full_lmk_faces_idx`, `full_lmk_bary_coords`); the rest of the file is left alone.

    Raises:
        InputError: missing, not permitted, or out of range; names the file and the field or byte offset.
    """
    path = Path(path)
    data = read_bytes(path)
    start = _body(data, path)
    outer = read_pickle(data[start:], path, LANDMARK_GLOBALS, start)
    state = outer.state if type(outer) is Call and outer.function.kind == "array" else None
    content = state[4] if type(state) is tuple and len(state) == 5 and state[1] == () else None
    if type(content) is not list or len(content) != 1 or type(content[0]) is not dict:
        raise InputError(path, f"byte {start}", "expected an object array that holds one dict")
    fields = ArrayFields(content[0], path, len(data))
    faces = fields.integers("full_lmk_faces_idx", (1, None))[0]
    barycentric = fields.floats("full_lmk_bary_coords", (1, len(faces), 3))[0]
    if faces.min() < 0 or faces.max() >= n_faces:
        problem = f"found face ids {faces.min()} to {faces.max()}, expected 0 to {n_faces - 1}"
        raise InputError(path, "full_lmk_faces_idx", problem)
    if np.abs(barycentric.sum(1, dtype=np.float64) - 1).max() > 1e-3:
        raise InputError(path, "full_lmk_bary_coords", "found rows that do not sum to 1")
    return LandmarkEmbedding(faces, barycentric)


def landmarks(vertices: Tensor, faces: Tensor, embedding: LandmarkEmbedding) -> Tensor:
    """[L, 3] landmark positions on `vertices` [V, 3] with `faces` [F, 3] int64, in their frame; differentiable."""
    corners = vertices[faces[torch.from_numpy(embedding.faces).to(faces.device)]]  # [L, 3 corners, 3]
    return (torch.from_numpy(embedding.barycentric).to(vertices)[..., None] * corners).sum(1)


def _body(data: bytes, path: Path) -> int:
    """Offset of the pickle behind the header that numpy.save writes for one object."""
    magic = _MAGIC.match(data)
    if magic is None:
        raise InputError(path, "byte 0", "is not a .npy file")
    length = int.from_bytes(magic["short"] or magic["long"], "little")
    if not _OBJECT_HEADER.fullmatch(data, magic.end(), min(magic.end() + length, len(data))):
        raise InputError(path, f"byte {magic.end()}", "expected the header of one object: '|O' of shape ()")
    return magic.end() + length
