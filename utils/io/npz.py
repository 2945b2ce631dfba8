"""NumPy archives, read without pickle: every header is judged before its data is touched."""

from __future__ import annotations

import io
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from utils.errors import InputError
from utils.io.json_files import read_bytes

MAX_BYTES = 1 << 30
MAX_RATIO = 250  # deflate reaches 1030 : 1 on zeros, but 1.1 : 1 on measured numbers
RATIO_FREE_BYTES = 16 << 20  # a small archive of zeros is harmless and does occur
MAX_MEMBERS = 256
DAMAGED = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, RuntimeError, ValueError)  # of zipfile
MALFORMED = (ValueError, TypeError, KeyError, SyntaxError, tokenize.TokenError, MemoryError, RecursionError)  # of numpy


@dataclass(frozen=True)
class Array:
    """What an array must look like. An axis is a length, or a name: axes of one name agree across the archive."""

    axes: tuple[int | str, ...]
    required: bool = True
    leading: bool = False  # an extra first axis of length 1 is accepted and dropped


def read_npz(path: Path, schema: Mapping[str, Array], limits: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Read the arrays that `schema` names as float32; other members are checked for their header alone.

    Args:
        path: an `.npz` file.
        schema: array name -> expected shape.
        limits: largest length of each named axis.
    Returns:
        float32 arrays, C order, for every name of the schema that the file holds.
    Raises:
        InputError: names the file and the key: missing, object type, another shape, not finite (also as float32),
            damaged, duplicate, or an archive that expands beyond reason.
    """
    return parse_npz(read_bytes(path, MAX_BYTES), path, schema, limits)


def refuse_unreadable(source: str | Path, where: str, numbers: int) -> None:
    """Raise InputError if an archive of so many float32 is one that `read_npz` refuses.

    For what is to be saved after hours of training: `source` and `where` name what asks for it.
    """
    if 4 * numbers > MAX_BYTES - RATIO_FREE_BYTES:  # headers and small arrays
        problem = f"takes {4 * numbers} bytes in the files of an avatar, which hold at most {MAX_BYTES}"
        raise InputError(source, where, problem, "Use fewer timesteps.")


def parse_npz(
    data: bytes, source: str | Path, schema: Mapping[str, Array], limits: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """`read_npz` for bytes that are in memory; `source` is named in errors."""
    arrays: dict[str, np.ndarray] = {}
    lengths: dict[str, int] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for key, member in _members(archive, len(data), source).items():
                with archive.open(member) as file:
                    shape, fortran, dtype = _header(file, key, source)
                    if key in schema:
                        _check_shape(shape, schema[key], limits, lengths, (source, key))
                        arrays[key] = _values(file, shape, fortran, dtype, (source, key))
                        if schema[key].leading and len(shape) > len(schema[key].axes):
                            arrays[key] = arrays[key][0]
    except DAMAGED as error:
        raise InputError(source, "", f"is not an intact .npz archive: {error}", "Copy or export it again.") from error
    for key, expected in schema.items():
        if expected.required and key not in arrays:
            raise InputError(source, key, f"is missing, expected an array {_show(expected.axes)}")
    return arrays


def _members(archive: zipfile.ZipFile, file_bytes: int, source: str | Path) -> dict[str, zipfile.ZipInfo]:
    """Array name -> archive member, after checks of count, names, compression and total size."""
    infos = archive.infolist()
    if len(infos) > MAX_MEMBERS:
        raise InputError(source, "", f"found {len(infos)} arrays, expected at most {MAX_MEMBERS}")
    total = sum(info.file_size for info in infos)
    if total > MAX_BYTES or total > max(RATIO_FREE_BYTES, MAX_RATIO * file_bytes):
        problem = f"{file_bytes} bytes expand to {total}, expected at most {MAX_BYTES} and {MAX_RATIO} times the file"
        raise InputError(source, "", problem, "It looks like a decompression bomb.")
    members: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        key = info.filename.removesuffix(".npy")
        if key == info.filename:
            raise InputError(source, key, "found a member that is not an .npy array")
        if key in members:
            raise InputError(source, key, "found this array twice, expected it once")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 1:
            raise InputError(source, key, "found an encrypted or exotically compressed array", "Save with numpy.savez.")
        members[key] = info
    return members


def _header(file: IO[bytes], key: str, source: str | Path) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, Fortran order and type of an .npy stream; object types are refused here, whatever the array is for."""
    try:
        version = np.lib.format.read_magic(file)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in readers:
            raise InputError(source, key, f"found .npy version {version}, expected 1.0 or 2.0")
        shape, fortran, dtype = readers[version](file)
    except MALFORMED as error:
        raise InputError(source, key, f"is not an intact .npy array: {error}") from error
    if dtype.hasobject:
        raise InputError(source, key, "found Python objects, expected numbers", "Such files can run code; it was not.")
    return shape, fortran, dtype


def _check_shape(
    shape: tuple[int, ...],
    expected: Array,
    limits: Mapping[str, int],
    lengths: dict[str, int],
    at: tuple[str | Path, str],
) -> None:
    axes = expected.axes
    if expected.leading and len(shape) == len(axes) + 1 and shape[0] == 1:
        shape = shape[1:]
    wanted = [lengths.get(axis, axis) if isinstance(axis, str) else axis for axis in axes]
    fits = len(shape) == len(axes) and all(
        1 <= found <= limits[want] if isinstance(want, str) else found == want
        for found, want in zip(shape, wanted, strict=True)
    )
    if not fits:
        raise InputError(*at, f"found shape {_show(shape)}, expected {_show(wanted)}")
    lengths.update({axis: length for axis, length in zip(axes, shape, strict=True) if isinstance(axis, str)})


def _values(
    file: IO[bytes], shape: tuple[int, ...], fortran: bool, dtype: np.dtype, at: tuple[str | Path, str]
) -> np.ndarray:
    if dtype.kind not in "fiub" or dtype.itemsize > 8:
        raise InputError(*at, f"found type {dtype}, expected real numbers")
    size = math.prod(shape) * dtype.itemsize
    data = file.read(size + 1)  # one more than there may be; reaching the end also makes zipfile check the CRC
    if len(data) != size:
        raise InputError(*at, f"found {'more' if len(data) > size else len(data)} bytes, expected {size} for its shape")
    values = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
    with np.errstate(over="ignore", invalid="ignore"):
        values = np.array(values, dtype=np.float32, order="C")
    if not np.isfinite(values).all():
        index = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
        raise InputError(*at, f"found {values[index]} at {list(index)}, expected finite numbers")
    return values


def _show(axes: tuple[int | str, ...] | list[int | str]) -> str:
    return "[" + ", ".join(str(axis) for axis in axes) + "]"
