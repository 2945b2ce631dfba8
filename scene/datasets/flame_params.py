"""FLAME parameters as trackers write them: one `.npz` per timestep, gathered into a Motion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from utils.contracts import Motion
from utils.errors import InputError
from utils.io.npz import Array, read_npz

# T timesteps, E expressions, S identity directions, V vertices. Axis-angle in radians, metres.
SCHEMA = {
    "rotation": Array(("T", 3)),
    "neck_pose": Array(("T", 3)),
    "jaw_pose": Array(("T", 3)),
    "eyes_pose": Array(("T", 6)),
    "translation": Array(("T", 3)),
    "expr": Array(("T", "E")),
    "dynamic_offset": Array(("T", "V of dynamic_offset", 3), required=False),
    "shape": Array(("S",), leading=True),
    "static_offset": Array(("V of static_offset", 3), required=False, leading=True),
}
LIMITS = {"T": 1_000_000, "E": 1000, "S": 1000, "V of dynamic_offset": 200_000, "V of static_offset": 200_000}
STATIC = ("shape", "static_offset")
OPTIONAL = ("static_offset", "dynamic_offset")
ALWAYS = tuple(name for name in SCHEMA if name not in (*STATIC, *OPTIONAL))


def read_flame_params(path: Path) -> dict[str, np.ndarray]:
    """All known arrays of one parameter file, float32, with shapes that agree; raises InputError naming the key."""
    return read_npz(path, SCHEMA, LIMITS)


def read_motion_file(path: Path) -> Motion:
    """An avatar's `flame_param.npz` as saved by us or by the original: all timesteps in one file.

    Raises:
        InputError: names what is wrong with it.
    """
    tensors = {name: torch.from_numpy(values) for name, values in read_flame_params(path).items()}
    return Motion({name: values for name, values in tensors.items() if name not in STATIC},
                  {name: values for name, values in tensors.items() if name in STATIC})  # fmt: skip


def read_motion(paths: Sequence[Path]) -> Motion:
    """Gather one file per timestep, in order.

    `shape` and `static_offset` are those of timestep 0, as in GaussianAvatars. The sequences of a union (files of
    different folders) may have been tracked with or without offsets, and with or without teeth.

    Raises:
        InputError: a file is not what it must be, holds more than one timestep, or differs in keys or shapes from the
            first of its sequence; or the sequences differ in anything but offsets.
    """
    files = [read_flame_params(path) for path in paths]
    first_of: dict[Path, int] = {}
    for index, (path, file) in enumerate(zip(paths, files, strict=True)):
        if len(file["rotation"]) != 1:
            raise InputError(path, "rotation", f"found {len(file['rotation'])} timesteps, expected 1 per file")
        first = first_of.setdefault(path.parent, index)
        compare(path, file, paths[first], files[first], ())
        if first == index:
            compare(path, file, paths[0], files[0], OPTIONAL)
    per_frame = {key: np.concatenate([file[key] for file in files]) for key in files[0] if key in ALWAYS}
    if any("dynamic_offset" in file for file in files):
        per_frame["dynamic_offset"] = gather_offsets([file.get("dynamic_offset") for file in files])
    return Motion(
        per_frame={key: torch.from_numpy(values) for key, values in per_frame.items()},
        static={key: torch.from_numpy(files[0][key]) for key in STATIC if key in files[0]},
    )


def compare(path: Path, file: Mapping[str, np.ndarray], reference: Path, first: Mapping[str, np.ndarray],
            free: Sequence[str]) -> None:  # fmt: skip
    """Refuse a file whose keys (except the `free` ones) or shapes differ from those of another."""
    for key in sorted((first.keys() | file.keys()) - set(free)):
        if key not in file or key not in first:
            have, lack = (path, reference) if key in file else (reference, path)
            raise InputError(lack, key, f"is missing, but {have} has it", "All timesteps need the same arrays.")
        if file[key].shape != first[key].shape:
            problem = f"found shape {list(file[key].shape)}, expected {list(first[key].shape)} as in {reference}"
            raise InputError(path, key, problem)


def gather_offsets(rows: Sequence[np.ndarray | None]) -> np.ndarray:
    """[T, V, 3] with V the most that any row [1, V', 3] has: what is missing is zero."""
    count = max(row.shape[1] for row in rows if row is not None)
    gathered = np.zeros((len(rows), count, 3), np.float32)
    for target, row in zip(gathered, rows, strict=True):
        if row is not None:
            target[: row.shape[1]] = row[0]
    return gathered
