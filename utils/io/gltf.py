"""glTF 2.0 binary files (.glb): splats with KHR_gaussian_splatting, and a posed mesh as one animated object.

glTF's frame is FLAME's: metres, y up, the front of an object looks along +z, so nothing is turned.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils.contracts import Splats
from utils.errors import InputError, NumericalFault
from utils.io.atomic import atomic_file
from utils.io.obj import UvLayout
from utils.io.splat_files import base_colour, check_finite, splat_arrays

SPLATTING = "KHR_gaussian_splatting"
POINTS = 0
VERTICES, INDICES = 34962, 34963  # what a buffer view is for
COMPONENTS = {np.dtype("<f4"): 5126, np.dtype("<u4"): 5125}
SHAPES = {(): "SCALAR", (2,): "VEC2", (3,): "VEC3", (4,): "VEC4"}
LARGEST = (1 << 32) - 1  # bytes: the file holds its own length in 32 bits
SKIN = {"baseColorFactor": [0.8, 0.8, 0.8, 1.0], "metallicFactor": 0.0, "roughnessFactor": 0.9}


class Glb:
    """A glTF document of one node in the making, and the buffer that it describes."""

    def __init__(self) -> None:
        self.document: dict[str, Any] = {
            "asset": {"version": "2.0", "generator": "Mien"},
            "scene": 0,
            "scenes": [{"nodes": [0]}],
            "accessors": [],
            "bufferViews": [],
        }
        self._chunks: list[np.ndarray] = []
        self._size = 0

    def add(self, values: np.ndarray, target: int | None = None, bounds: bool = False) -> int:
        """Append an array [N] or [N, 2..4] of float32 or uint32; returns the number of its accessor.

        Args:
            target: VERTICES, INDICES, or None for animation data.
            bounds: state minimum and maximum, as glTF wants for positions and times.
        """
        values = np.ascontiguousarray(values)
        view = {"buffer": 0, "byteOffset": self._size, "byteLength": values.nbytes}
        self.document["bufferViews"].append(view if target is None else {**view, "target": target})
        accessor = {
            "bufferView": len(self.document["bufferViews"]) - 1,
            "componentType": COMPONENTS[values.dtype],
            "count": len(values),
            "type": SHAPES[values.shape[1:]],
        }
        if bounds:
            columns = values.reshape(len(values), -1)
            accessor |= {"min": columns.min(axis=0).tolist(), "max": columns.max(axis=0).tolist()}
        self.document["accessors"].append(accessor)
        self._chunks.append(values)
        self._size += values.nbytes  # always a multiple of 4
        return len(self.document["accessors"]) - 1

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            InputError: more than the format can hold.
            EnvironmentFault: the file can't be written.
        """
        self.document["buffers"] = [{"byteLength": self._size}]
        text = json.dumps(self.document, allow_nan=False, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 4)
        total = 12 + 8 + len(text) + 8 + self._size
        if total > LARGEST:
            raise InputError(path, "", f"would have {total} bytes, glTF allows {LARGEST}", "Export fewer --frames.")
        with atomic_file(path) as file:
            file.write(struct.pack("<4sII", b"glTF", 2, total))
            file.write(struct.pack("<I4s", len(text), b"JSON") + text)
            file.write(struct.pack("<I4s", self._size, b"BIN\0"))
            for chunk in self._chunks:
                file.write(chunk.data)


def write_splats_glb(path: Path, splats: Splats) -> None:
    """Write splats as points with the extension KHR_gaussian_splatting (ratified text: values are activated).

    Linear scales, opacities in [0, 1], quaternions (x, y, z, w), one attribute per coefficient of the harmonics up to
    the degree in use. Programs without the extension show coloured points.

    Raises:
        InputError: there are no splats, which glTF can't express.
        NumericalFault: a value is not finite.
        EnvironmentFault: the file can't be written.
    """
    arrays = splat_arrays(splats)
    check_finite(path, arrays)
    if not len(arrays["means"]):
        raise InputError(path, "", "would hold no splats, expected at least one")
    opacities, colour = arrays["opacities"].clip(0, 1), _linear(base_colour(arrays["sh"]))
    attributes = {
        "COLOR_0": np.concatenate([colour, opacities[:, None]], axis=1),
        f"{SPLATTING}:ROTATION": arrays["quats"][:, [1, 2, 3, 0]],
        f"{SPLATTING}:SCALE": arrays["scales"],
        f"{SPLATTING}:OPACITY": opacities,
    }
    for degree in range(splats.sh_degree + 1):
        for i in range(2 * degree + 1):
            attributes[f"{SPLATTING}:SH_DEGREE_{degree}_COEF_{i}"] = arrays["sh"][:, degree**2 + i]
    glb = Glb()
    numbers = {"POSITION": glb.add(arrays["means"].astype("<f4"), VERTICES, bounds=True)}
    numbers |= {name: glb.add(values.astype("<f4"), VERTICES) for name, values in attributes.items()}
    extension = {
        "kernel": "ellipse",
        "colorSpace": "srgb_rec709_display",
        "projection": "perspective",
        "sortingMethod": "cameraDistance",
    }
    primitive = {"attributes": numbers, "mode": POINTS, "extensions": {SPLATTING: extension}}
    glb.document |= {
        "extensionsUsed": [SPLATTING],
        "nodes": [{"name": "splats", "mesh": 0}],
        "meshes": [{"name": "splats", "primitives": [primitive]}],
    }
    glb.write(path)


def write_mesh_glb(
    path: Path, frames: Sequence[np.ndarray], times: Sequence[float], faces: np.ndarray, layout: UvLayout
) -> None:
    """Write a mesh in motion as one object: the first frame, and a morph target (shape key) for every later one.

    One object with one topology stays editable, needs no switching of objects, and players interpolate between frames.
    At any time at most two targets have weight, so players that limit the number of active ones still show it right.
    Normals move with the targets. A single frame gives a still mesh.

    Args:
        frames: [V, 3] metres each; times: seconds, ascending, one per frame.
        faces: [F, 3]; layout: for the same faces. Vertices are doubled where texture coordinates part.

    Raises:
        NumericalFault: a vertex is not finite; names the frame.
        InputError: more than 4 GiB.
        EnvironmentFault: the file can't be written.
    """
    for i, vertices in enumerate(frames):
        if not np.isfinite(vertices).all():
            raise NumericalFault(f"{path}: frame {i}: a vertex is not finite")
    corners = np.stack([faces.ravel(), layout.faces.ravel()], axis=1)
    (rows, uv_rows), indices = _unique_rows(corners)
    glb = Glb()
    first = frames[0][rows].astype("<f4")
    first_normals = vertex_normals(frames[0], faces)[rows].astype("<f4")
    attributes = {
        "POSITION": glb.add(first, VERTICES, bounds=True),
        "NORMAL": glb.add(first_normals, VERTICES),
        "TEXCOORD_0": glb.add((layout.uvs[uv_rows] * (1, -1) + (0, 1)).astype("<f4"), VERTICES),
    }
    primitive: dict[str, Any] = {"attributes": attributes, "indices": glb.add(indices, INDICES), "material": 0}
    mesh: dict[str, Any] = {"name": "head", "primitives": [primitive]}
    glb.document |= {
        "nodes": [{"name": "head", "mesh": 0}],
        "meshes": [mesh],
        "materials": [{"name": "head", "pbrMetallicRoughness": SKIN, "doubleSided": True}],
    }
    if len(frames) > 1:
        primitive["targets"] = [
            {
                "POSITION": glb.add(vertices[rows].astype("<f4") - first, VERTICES, bounds=True),
                "NORMAL": glb.add(vertex_normals(vertices, faces)[rows].astype("<f4") - first_normals, VERTICES),
            }
            for vertices in frames[1:]
        ]
        count = len(frames) - 1
        mesh |= {"weights": [0.0] * count, "extras": {"targetNames": [f"{time:.3f} s" for time in times[1:]]}}
        glb.document["animations"] = [_animation(glb, times)]
    glb.write(path)


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """[V, 3] unit normals, mean of the faces around weighted by their areas; +z where there is no area."""
    a, b, c = (vertices[faces[:, i]].astype(np.float64) for i in range(3))
    areas = np.cross(b - a, c - a)
    normals = np.zeros((len(vertices), 3))
    for i in range(3):
        np.add.at(normals, faces[:, i], areas)
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    return np.where(lengths > 0, normals / np.where(lengths > 0, lengths, 1), [0.0, 0.0, 1.0])


def _animation(glb: Glb, times: Sequence[float]) -> dict[str, Any]:
    """At the time of each frame, its own target has weight 1 and all others 0; the first frame is the mesh itself."""
    weights = np.eye(len(times), dtype="<f4")[:, 1:]
    sampler = {
        "input": glb.add(np.array(times, "<f4"), bounds=True),
        "output": glb.add(weights.ravel()),
        "interpolation": "LINEAR",
    }
    return {
        "name": "motion",
        "samplers": [sampler],
        "channels": [{"sampler": 0, "target": {"node": 0, "path": "weights"}}],
    }


def _unique_rows(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct pairs (vertex, texture coordinate) of the corners, as [2, K], and the pair of each corner."""
    unique, inverse = np.unique(corners, axis=0, return_inverse=True)
    return unique.T, inverse.ravel().astype("<u4")


def _linear(srgb: np.ndarray) -> np.ndarray:
    """sRGB in [0, 1] -> linear light, which COLOR_0 holds (IEC 61966-2-1)."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
