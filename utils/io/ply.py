"""Gaussians in the PLY layout of 3D Gaussian splatting, with GaussianAvatars' `binding_0`. The only user of `plyfile`,
which reads them.

One element `vertex`, float32 little-endian: x y z nx ny nz f_dc_0..2 f_rest_.. opacity scale_0..2 rot_0..3 [binding_0].
Values are as they are optimised: scale is a logarithm, opacity a logit, rot an unnormalised (w, x, y, z); the higher
colour coefficients go channel by channel (all red, all green, all blue); normals are zero; binding_0 is a face number.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from utils.errors import EnvironmentFault, InputError, NumericalFault
from utils.io.atomic import atomic_file

HEADER_LIMIT = 1 << 16  # bytes; the header of degree 3 has 1.6 kB
FACES_LIMIT = 1 << 24  # float32 counts exactly up to here
REST_COUNTS = (0, 9, 24, 45)  # f_rest properties of degrees 0 to 3
EXPECTED = "a Gaussian splatting PLY (binary, one element 'vertex')"
REDO = "Write or copy the file again"


def property_names(coefficients: int, bound: bool) -> list[str]:
    """Names in file order, for so many colour coefficients per channel (degree 0 included)."""
    names = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"]
    names += [f"f_rest_{i}" for i in range(3 * (coefficients - 1))]
    names += ["opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    return names + ["binding_0"] if bound else names


def write_gaussian_ply(path: Path, columns: Mapping[str, np.ndarray], binding: np.ndarray | None) -> None:
    """Write Gaussians, whole or not at all.

    Args:
        columns: before activation: means [N, 3], sh0 [N, 1, 3], shN [N, K - 1, 3], opacities [N], scales [N, 3] and
            quats [N, 4] (w, x, y, z).
        binding: [N] face of each Gaussian, or None for an unbound scene.

    Raises:
        NumericalFault: a value is not finite.
        EnvironmentFault: the file can't be written.
    """
    n, rest = len(columns["means"]), columns["shN"]
    parts = [
        columns["means"],
        np.zeros((n, 3)),
        columns["sh0"].reshape(n, 3),
        rest.transpose(0, 2, 1).reshape(n, 3 * rest.shape[1]),
        columns["opacities"].reshape(n, 1),
        columns["scales"],
        columns["quats"],
    ]
    if binding is not None:
        if n and not 0 <= binding.min() <= binding.max() < FACES_LIMIT:
            raise ValueError(f"binding reaches from {binding.min()} to {binding.max()}, float32 can't hold that")
        parts.append(binding.reshape(n, 1))
    table = np.concatenate(parts, axis=1, dtype="<f4")
    names = property_names(1 + rest.shape[1], binding is not None)
    if bad := _first_not_finite(table):
        raise NumericalFault(f"{path}: vertex {bad[0]}: {names[bad[1]]} is {table[bad]}, expected a finite number")
    properties = "".join(f"property float {name}\n" for name in names)
    with atomic_file(path) as file:
        file.write(f"ply\nformat binary_little_endian 1.0\nelement vertex {n}\n{properties}end_header\n".encode())
        file.write(table.tobytes())


def read_gaussian_ply(path: Path, n_faces: int | None = None) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Read such a file; colour of degree 0 to 3, normals optional, properties in any order and of any numeric type.

    Args:
        n_faces: how many faces the mesh has, if the binding is to be checked against it.

    Returns:
        columns as in `write_gaussian_ply`, float32, and binding [N] int64 or None.

    Raises:
        InputError: the file is not such a file, is damaged, or has values that can't be used; names element and row.
        EnvironmentFault: the file can't be opened.
    """
    vertex = _open(path)
    n = len(vertex)
    present = set(vertex.dtype.names or ())
    rest = sum(bool(re.fullmatch(r"f_rest_\d+", name)) for name in present)
    if rest not in REST_COUNTS:
        raise InputError(
            path, "vertex", f"has {rest} f_rest properties, expected 0, 9, 24 or 45 (degrees 0 to 3)", REDO
        )
    bound = "binding_0" in present
    if several := sorted(name for name in present if re.fullmatch(r"binding_[1-9]\d*", name)):
        raise InputError(path, "vertex", f"has the property {several[0]}, expected binding_0 as the only binding")
    names = [name for name in property_names(1 + rest // 3, bound) if name not in ("nx", "ny", "nz")]
    if missing := [name for name in names if name not in present]:
        raise InputError(path, "vertex", f"lacks {', '.join(missing[:8])}; expected {EXPECTED}", REDO)

    table = np.empty((n, len(names)), np.float32)
    with np.errstate(over="ignore"):  # a double too large for float32 becomes infinite and is reported below
        for i, name in enumerate(names):
            table[:, i] = vertex[name]
    if bad := _first_not_finite(table):
        raise InputError(path, f"vertex {bad[0]}", f"{names[bad[1]]} is {table[bad]}, expected a finite number", REDO)
    columns = _columns(table, rest)
    zero = np.flatnonzero(~columns["quats"].any(axis=1))
    if len(zero):
        raise InputError(path, f"vertex {zero[0]}", "rot is zero, expected a quaternion of any other length", REDO)
    return columns, _binding(path, vertex["binding_0"], n_faces) if bound else None


def _columns(table: np.ndarray, rest: int) -> dict[str, np.ndarray]:
    """Split the table [N, P] (property order without normals and binding) into named columns."""
    n, end = len(table), 6 + rest
    columns = {
        "means": table[:, :3],
        "sh0": table[:, 3:6].reshape(n, 1, 3),
        "shN": table[:, 6:end].reshape(n, 3, rest // 3).transpose(0, 2, 1),
        "opacities": table[:, end],
        "scales": table[:, end + 1 : end + 4],
        "quats": table[:, end + 4 : end + 8],
    }
    return {name: np.ascontiguousarray(column) for name, column in columns.items()}


def _binding(path: Path, values: np.ndarray, n_faces: int | None) -> np.ndarray:
    """Face numbers [N] int64, checked."""
    limit = FACES_LIMIT if n_faces is None else n_faces
    bad = np.flatnonzero((values != np.floor(values)) | (values < 0) | (values >= limit))
    if len(bad):
        whole = "a whole number from 0" if n_faces is None else f"a face from 0 to {n_faces - 1}"
        advice = "" if n_faces is None else "Use the mesh (FLAME edition, with or without teeth) it was trained with"
        raise InputError(path, f"vertex {bad[0]}", f"binding_0 is {values[bad[0]]:g}, expected {whole}", advice)
    return values.astype(np.int64)


def _open(path: Path) -> np.ndarray:
    """The rows of the element `vertex`, as a structured array mapped from the file."""
    from plyfile import PlyData, PlyParseError

    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            head = file.read(HEADER_LIMIT)
        header = _header(path, head)
        # Mapping checks counts against the file before anything is allocated, so a lying header costs nothing.
        data = PlyData.read(str(path), mmap="r")
    except OSError as error:
        raise EnvironmentFault(f"{path}: can't be read: {error.strerror or error}") from error
    except (PlyParseError, ValueError, KeyError, OverflowError, UnicodeDecodeError) as error:
        raise InputError(path, "", f"is damaged ({error}), expected {EXPECTED}", REDO) from error
    if "vertex" not in data:
        raise InputError(path, "", f"has no element 'vertex', expected {EXPECTED}", REDO)
    used = len(header) + sum(element.data.nbytes for element in data)
    if size != used:
        raise InputError(path, "", f"has {size} bytes, expected {used} as its header says", REDO)
    return data["vertex"].data


def _header(path: Path, head: bytes) -> bytes:
    """The header, end line included; refused where `plyfile` would read row by row or believe a count."""
    end = re.search(rb"^end_header\r?\n", head, re.MULTILINE)
    if not re.match(rb"ply\r?\n", head) or end is None:
        raise InputError(path, "header", f"is not that of a PLY file, expected {EXPECTED}", REDO)
    header = head[: end.end()]
    if re.search(rb"^format\s+ascii", header, re.MULTILINE):
        raise InputError(path, "header", f"says format ascii, expected {EXPECTED}", "Convert it to binary")
    if re.search(rb"^property\s+list", header, re.MULTILINE):
        raise InputError(path, "header", f"has a list property, expected {EXPECTED}", "Is this a mesh?")
    return header


def _first_not_finite(table: np.ndarray) -> tuple[int, int] | None:
    """(row, column) of the first value that is not finite."""
    finite = np.isfinite(table)
    if finite.all():
        return None
    row, column = np.argwhere(~finite)[0]
    return int(row), int(column)
