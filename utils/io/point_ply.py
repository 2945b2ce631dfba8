"""Coloured point clouds in PLY, as 3D Gaussian splatting, Open3D and nerfstudio write them (text or binary)."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from utils.errors import InputError
from utils.io.json_files import read_bytes

MAX_BYTES = 1 << 32
HEADER_LIMIT = 1 << 16  # bytes
TYPES = {"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4",
         "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4",
         "float32": "f4", "float64": "f8"}  # fmt: skip
BYTE_ORDERS = {"ascii": "=", "binary_little_endian": "<", "binary_big_endian": ">"}
POSITION, COLOUR = ["x", "y", "z"], ["red", "green", "blue"]


def read_point_ply(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read the points of a PLY file; elements after `vertex` are not looked at.

    Returns:
        positions [N, 3] float32 and colours [N, 3] uint8; N may be 0.
    Raises:
        InputError: not such a file, cut, without colours of 8 bits, or with a position that is not finite.
    """
    data = read_bytes(path, MAX_BYTES)
    end = re.search(rb"^end_header\r?\n", data[:HEADER_LIMIT], re.MULTILINE)
    if not re.match(rb"ply\r?\n", data) or end is None:
        raise InputError(path, "header", "is not that of a PLY file")
    form, count, row = _parse_header(path, data[: end.start()].decode("latin-1").splitlines()[1:])
    body = memoryview(data)[end.end() :]
    table = _text_rows(path, bytes(body), count, row) if form == "ascii" else _binary_rows(path, body, count, row)
    with np.errstate(over="ignore"):  # a double too large for float32 becomes infinite and is reported here
        positions = np.stack([table[name].astype(np.float32) for name in POSITION], axis=1)
    bad = np.flatnonzero(~np.isfinite(positions).all(axis=1))
    if len(bad):
        raise InputError(path, f"vertex {bad[0]}", f"found {positions[bad[0]].tolist()}, expected finite x, y, z")
    return positions, np.stack([table[name] for name in COLOUR], axis=1)


def _parse_header(path: Path, lines: list[str]) -> tuple[str, int, np.dtype]:
    """Format, number of vertices and the type of a row, from the lines between `ply` and `end_header`."""
    form, count, properties, element = "", -1, [], ""
    for line in lines:
        words = line.split()
        if not words or words[0] in ("comment", "obj_info"):
            continue
        if words[0] == "format" and len(words) == 3:
            form = words[1]
        elif words[0] == "element" and len(words) == 3:
            element = words[1]
            if count < 0 and (element != "vertex" or not re.fullmatch(r"[0-9]{1,18}", words[2])):
                raise InputError(path, "header", f"found {line!r}, expected 'element vertex N' as the first element")
            count = count if element != "vertex" else int(words[2])
        elif words[0] == "property" and element == "vertex":
            if len(words) != 3 or words[1] not in TYPES:
                raise InputError(path, "header", f"found {line!r}, expected 'property TYPE NAME' with a scalar type")
            properties.append((words[2], words[1]))
    if form not in BYTE_ORDERS:
        raise InputError(path, "header", f"found format {form!r}, expected one of {', '.join(BYTE_ORDERS)}")
    return form, count, _row_type(path, properties, BYTE_ORDERS[form])


def _row_type(path: Path, properties: list[tuple[str, str]], order: str) -> np.dtype:
    names = [name for name, _ in properties]
    if len(set(names)) != len(names):
        raise InputError(path, "header", "names a property of 'vertex' twice")
    if missing := [name for name in POSITION + COLOUR if name not in names]:
        raise InputError(path, "header", f"lacks {', '.join(missing)}; expected x, y, z, red, green, blue")
    for name, kind in properties:
        if name in COLOUR and TYPES[kind] != "u1":
            raise InputError(path, "header", f"found {name} as {kind}, expected uchar", "Save colours with 8 bits.")
    return np.dtype([(name, order + TYPES[kind]) for name, kind in properties])


def _binary_rows(path: Path, body: memoryview, count: int, row: np.dtype) -> np.ndarray:
    if count > len(body) // row.itemsize:
        problem = f"promises {count} vertices of {row.itemsize} bytes, but {len(body)} bytes follow"
        raise InputError(path, "header", problem, "Copy or write the file again.")
    return np.frombuffer(body, row, count)


def _text_rows(path: Path, body: bytes, count: int, row: np.dtype) -> np.ndarray:
    lines = body.splitlines()
    if count > len(lines):
        problem = f"promises {count} vertices, but {len(lines)} lines follow"
        raise InputError(path, "header", problem, "Copy or write the file again.")
    table = np.empty(count, row)
    limits = [_limits(row[name]) for name in row.names or ()]
    for i, line in enumerate(lines[:count]):
        words = line.split()
        try:
            if len(words) != len(limits):
                raise ValueError(f"found {len(words)} numbers, expected {len(limits)}")
            table[i] = tuple(_number(word, limit) for word, limit in zip(words, limits, strict=True))
        except (ValueError, OverflowError) as error:
            raise InputError(path, f"vertex {i}", f"is no row of numbers of their types: {error}") from error
    return table


def _limits(kind: np.dtype) -> tuple[int, int] | None:
    """Smallest and largest integer of a type; None for floating point."""
    return None if kind.kind == "f" else (int(np.iinfo(kind).min), int(np.iinfo(kind).max))


def _number(word: bytes, limits: tuple[int, int] | None) -> int | float:
    if limits is None:
        return float(word)
    value = int(word)
    if not limits[0] <= value <= limits[1]:  # NumPy 1 would wrap it
        raise ValueError(f"found {value}, expected {limits[0]} to {limits[1]}")
    return value
