"""Wavefront OBJ of triangle meshes, and the texture coordinates (UV) of heads.

UVs have rows of their own, so that a seam doubles texture coordinates and never vertices.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.errors import InputError, NumericalFault
from utils.io.atomic import atomic_file
from utils.io.json_files import read_bytes

MAX_BYTES = 1 << 25  # FLAME's file has 1 MB; as words, text takes forty times its size
REDO = "Export it again as triangles"
Row = tuple[int, list[str]]  # line number, words after the first

# The texture coordinates that existing avatars give the teeth: 8 rows of 15 vertices, heights chosen among 7.
TEETH_U = np.linspace(0.62, 0.38, 15)
TEETH_V = np.linspace(0.9917, 0.9575, 7)[[3, 2, 0, 1, 3, 4, 6, 5]]
TEETH_VERTICES, TEETH_FACES = 120, 168


@dataclass(frozen=True)
class UvLayout:
    """Texture coordinates of a mesh's faces."""

    uvs: np.ndarray  # [M, 2] float32, the origin is at the bottom left
    faces: np.ndarray  # [F, 3] int64 rows of `uvs`, corner by corner as the faces of the mesh


@dataclass(frozen=True)
class ObjMesh:
    """What is read of an OBJ file."""

    vertices: np.ndarray  # [V, 3] float32
    faces: np.ndarray  # [F, 3] int64
    layout: UvLayout | None


def read_obj(path: Path) -> ObjMesh:
    """Read vertices, triangles and their texture coordinates; normals, groups and materials are passed over.

    Raises:
        InputError: no file, not an OBJ file of triangles, or an index that points nowhere; names the line.
    """
    rows = _rows(path)
    vertices = _numbers(path, rows["v"], 3)
    if not len(vertices) or not rows["f"]:
        raise InputError(path, "", f"holds {len(vertices)} vertices and {len(rows['f'])} faces, expected a mesh")
    corners = []
    for number, words in rows["f"]:
        if len(words) != 3:
            raise InputError(path, f"line {number}", f"has a face of {len(words)} corners, expected 3", REDO)
        corners += [word.split("/") for word in words]
    textured = [len(corner) > 1 and corner[1] != "" for corner in corners]
    faces = _indices(path, rows["f"], [corner[0] for corner in corners], len(vertices), "vertices")
    if not any(textured):
        return ObjMesh(vertices, faces, None)
    if not all(textured):
        number = rows["f"][textured.index(False) // 3][0]
        raise InputError(path, f"line {number}", "has a corner without texture coordinates, other faces have them",
                         REDO)  # fmt: skip
    uvs = _numbers(path, rows["vt"], 2)
    uv_faces = _indices(path, rows["f"], [corner[1] for corner in corners], len(uvs), "texture coordinates")
    return ObjMesh(vertices, faces, UvLayout(uvs, uv_faces))


def write_obj(path: Path, vertices: np.ndarray, faces: np.ndarray, layout: UvLayout | None = None) -> None:
    """Write a mesh, whole or not at all; float32 coordinates come back to the bit.

    Args:
        vertices: [V, 3] in any unit; faces: [F, 3]; layout: for the same faces.

    Raises:
        NumericalFault: a vertex is not finite.
        EnvironmentFault: the file can't be written.
    """
    if len(bad := np.flatnonzero(~np.isfinite(vertices).all(axis=1))):
        raise NumericalFault(f"{path}: vertex {bad[0]} is {vertices[bad[0]]}, expected finite numbers")
    parts = ["# written by Mien\n", _text("v %.9g %.9g %.9g\n", vertices)]
    if layout is None:
        parts.append(_text("f %d %d %d\n", faces + 1))
    else:
        corners = np.stack([faces + 1, layout.faces + 1], axis=2).reshape(len(faces), 6)
        parts += [_text("vt %.9g %.9g\n", layout.uvs), _text("f %d/%d %d/%d %d/%d\n", corners)]
    with atomic_file(path) as file:
        file.write("".join(parts).encode("ascii"))


def cylindrical_layout(vertices: np.ndarray, faces: np.ndarray) -> UvLayout:
    """Unwrap a head onto a cylinder about the vertical through the middle of its bounding box.

    The face (+z) is in the middle of the picture, the subject's left (+x) on its right, the cut at the back. A face
    that crosses the cut keeps its shape beyond the nearer edge, and all is then scaled into the unit square. A corner
    on the axis has no direction: each face gets one of its own, between its other corners. A face that the axis
    pierces is stretched. Parts behind each other (eyeballs, teeth, the inside of the mouth) share texels.

    Args:
        vertices: [V, 3] y up, the face along +z; faces: [F, 3].
    """
    low, high = vertices.min(axis=0).astype(np.float64), vertices.max(axis=0).astype(np.float64)
    size = np.maximum(high - low, np.finfo(np.float32).tiny)
    x, y, z = ((vertices - (low + high) / 2) / size).T
    turn = 0.5 + np.arctan2(x * size[0], z * size[2]) / (2 * np.pi)
    on_axis = (np.hypot(x, z) < 1e-6)[faces]
    u = turn[faces]
    # A corner without a direction must not decide whether its face crosses the cut.
    u = np.where(on_axis, np.take_along_axis(u, on_axis.argmin(axis=1)[:, None], axis=1), u)
    right, left = u + (u < 0.5), u - (u >= 0.5)
    shifted = np.where((right.max(axis=1) - 1 < -left.min(axis=1))[:, None], right, left)
    crosses = (np.ptp(u, axis=1) > 0.5) & (np.ptp(shifted, axis=1) < 0.5)
    u = np.where(crosses[:, None], shifted, u)
    others = np.where(on_axis, 0, u).sum(axis=1, keepdims=True) / np.maximum((~on_axis).sum(1, keepdims=True), 1)
    u = np.where(on_axis, others, u)
    unique, inverse = np.unique(np.stack([faces.ravel(), u.ravel()], axis=1), axis=0, return_inverse=True)
    start, end = min(u.min(), 0.0), max(u.max(), 1.0)
    uvs = np.stack([(unique[:, 1] - start) / (end - start), y[unique[:, 0].astype(np.int64)] + 0.5], axis=1)
    return UvLayout(uvs.astype(np.float32), inverse.reshape(faces.shape).astype(np.int64))


def template_layout(path: Path, faces: np.ndarray) -> UvLayout:
    """The layout of a topology file such as FLAME's `head_template_mesh.obj`; added teeth get the usual place.

    Args:
        faces: [F, 3] of the mesh that is to be dressed.

    Raises:
        InputError: a broken file, one without texture coordinates, or one of another topology; names the face.
    """
    template = read_obj(path)
    if template.layout is None:
        raise InputError(path, "", "has no texture coordinates, expected vt lines", "Use head_template_mesh.obj.")
    count, vertices = len(template.faces), len(template.vertices)
    own, added = faces[:count], faces[count:]
    advice = "Use the file of the run's own topology, or leave out --uv_template."
    if len(own) < count or len(added) not in (0, TEETH_FACES):
        raise InputError(path, "", f"has {count} faces, the run's mesh has {len(faces)}", advice)
    if len(different := np.flatnonzero((own != template.faces).any(axis=1))):
        face = different[0]
        problem = f"has vertices {template.faces[face].tolist()}, the run's mesh has {own[face].tolist()}"
        raise InputError(path, f"face {face}", problem, advice)
    if not len(added):
        return template.layout
    if (added.min(), added.max()) != (vertices, vertices + TEETH_VERTICES - 1):
        problem = f"has {vertices} vertices, the teeth of the run's mesh start at {added.min()}"
        raise InputError(path, "", problem, advice)
    teeth = np.stack([np.tile(TEETH_U, len(TEETH_V)), np.repeat(TEETH_V, len(TEETH_U))], axis=1)
    uvs = np.concatenate([template.layout.uvs, teeth.astype(np.float32)])
    teeth_faces = added - vertices + len(template.layout.uvs)
    return UvLayout(uvs, np.concatenate([template.layout.faces, teeth_faces]))


def _text(pattern: str, table: np.ndarray) -> str:
    """One line per row."""
    return pattern * len(table) % tuple(table.ravel().tolist())


def _rows(path: Path) -> dict[str, list[Row]]:
    """Lines of the kinds v, vt and f."""
    try:
        text = read_bytes(path, MAX_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(path, f"byte {error.start}", "is not text, expected an OBJ file") from error
    rows: dict[str, list[Row]] = {"v": [], "vt": [], "f": []}
    for number, line in enumerate(text.splitlines(), start=1):
        kind, *words = line.split("#", 1)[0].split() or [""]
        if kind in rows:
            rows[kind].append((number, words))
    return rows


def _numbers(path: Path, rows: list[Row], width: int) -> np.ndarray:
    """The first `width` numbers of each row, [N, width] float32."""

    def plain(words: list[str]) -> bool:
        return not any("_" in word for word in words[:width])  # Python reads 1_000, no other program does

    def usable(words: list[str]) -> bool:
        try:
            return (
                len(words) >= width
                and plain(words)
                and bool(np.isfinite(np.array(words[:width], np.float64).astype(np.float32)).all())
            )
        except ValueError:
            return False

    try:
        with np.errstate(over="ignore"):
            table = np.array([words[:width] for _, words in rows], np.float64).reshape(-1, width).astype(np.float32)
            if len(table) == len(rows) and np.isfinite(table).all() and all(plain(words) for _, words in rows):
                return table
    except ValueError:
        pass
    with np.errstate(over="ignore"):
        number, words = next(row for row in rows if not usable(row[1]))
    raise InputError(path, f"line {number}", f"found {' '.join(words)[:60]!r}, expected {width} finite numbers", REDO)


def _indices(path: Path, rows: list[Row], words: list[str], count: int, what: str) -> np.ndarray:
    """[F, 3] int64 counted from 0, of three words per row."""
    for i, word in enumerate(words):
        if not (word.isascii() and word.isdigit() and len(word) < 10 and 1 <= int(word) <= count):
            where = f"line {rows[i // 3][0]}"
            raise InputError(path, where, f"found {word[:20]!r}, expected one of {count} {what}, counted from 1", REDO)
    return np.array(words, np.int64).reshape(-1, 3) - 1
