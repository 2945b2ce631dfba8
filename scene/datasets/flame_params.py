"""FLAME parameters as trackers write them: one `.npz` per timestep, gathered into a Motion."""

from __future__ import annotations

from collections.abc import Sequence
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


def read_flame_params(path: Path) -> dict[str, np.ndarray]:
    """All known arrays of one parameter file, float32, with shapes that agree; raises InputError naming the key."""
    return read_npz(path, SCHEMA, LIMITS)


def read_motion(paths: Sequence[Path]) -> Motion:
    """Gather one file per timestep, in order.

    `shape` and `static_offset` are those of timestep 0, as in GaussianAvatars.

    Raises:
        InputError: a file is not what it must be, holds more than one timestep, or has other keys or shapes than the
            file of timestep 0.
    """
    files = [read_flame_params(path) for path in paths]
    first = files[0]
    for path, file in zip(paths, files, strict=True):
        if len(file["rotation"]) != 1:
            raise InputError(path, "rotation", f"found {len(file['rotation'])} timesteps, expected 1 per file")
        for key in first.keys() | file.keys():
            if key not in file or key not in first:
                have, lack = (path, paths[0]) if key in file else (paths[0], path)
                raise InputError(lack, key, f"is missing, but {have} has it", "All timesteps need the same arrays.")
            if file[key].shape != first[key].shape:
                problem = f"found shape {list(file[key].shape)}, expected {list(first[key].shape)} as in {paths[0]}"
                raise InputError(path, key, problem)
    per_frame = {key: np.concatenate([file[key] for file in files]) for key in first if key not in STATIC}
    return Motion(
        per_frame={key: torch.from_numpy(values) for key, values in per_frame.items()},
        static={key: torch.from_numpy(first[key]) for key in STATIC if key in first},
    )
