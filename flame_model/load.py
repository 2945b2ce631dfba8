"""Find and load FLAME model files and region masks, safely, and check everything that later code relies on."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from flame_model.flame_assets import FLAME, FLAME_FACES, FLAME_VERTICES, FlameAssets
from flame_model.pickle_reader import read_bytes, read_pickle
from flame_model.pickled_arrays import ArrayFields
from utils.errors import InputError

ASSETS = Path(__file__).resolve().parent / "assets" / "flame"
MODEL_NAMES = ("flame2023_Open.pkl", "flame2023.pkl", "flame2023_no_jaw.pkl", "generic_model.pkl")
MASKS_NAME = "FLAME_masks.pkl"
PAGE = "https://flame.is.tue.mpg.de"
JOINTS = 5
IDENTITY_DIRS = 300
LARGEST = 1e4  # metres: generous, other units are for inspection to find

MASK_NAMES = (
    *("face", "neck", "scalp", "boundary", "right_eyeball", "left_eyeball", "right_ear", "left_ear"),
    *("forehead", "eye_region", "nose", "lips", "right_eye_region", "left_eye_region"),
)


def default_model_path() -> Path:
    """The FLAME model in `flame_model/assets/flame/`, the permissive edition first.

    Raises:
        InputError: none is there; says what to get, where, and what needs none.
    """
    searched = [ASSETS / name for name in MODEL_NAMES]
    return _first_existing(searched, "the FLAME model", "--flame_model")


def default_masks_path(model_path: Path | None = None) -> Path:
    """`FLAME_masks.pkl` beside the model file, else in `flame_model/assets/flame/`.

    Raises:
        InputError: neither is there.
    """
    folders = [model_path.parent] if model_path is not None else []
    return _first_existing(
        [folder / MASKS_NAME for folder in [*folders, ASSETS]], "the FLAME mask file", "--flame_masks"
    )


def load_flame(path: Path | str) -> FlameAssets:
    """Load a FLAME-format model pickle (FLAME 2020, 2023, 2023 Open, or a rig of another topology in the same format).

    An optional string entry `edition` in the file names it. Call `.with_teeth()` for the mesh that avatars train on.

    Raises:
        InputError: missing, unreadable, not permitted, or not a consistent model; names the file, field and byte.
    """
    path = Path(path)
    data = _read(path, "the FLAME model", "--flame_model")
    fields = _mapping(read_pickle(data, path), path, "a FLAME model")
    reader = ArrayFields(fields, path, len(data))

    template = reader.floats("v_template", (None, 3))
    if not np.abs(template).max(initial=0.0) <= LARGEST:
        row = int(np.abs(template).max(axis=1).argmax())
        problem = f"found vertex {row} at {np.abs(template).max():.3g} m, expected a head in metres"
        raise InputError(path, "v_template", problem)
    n_vertices = len(template)
    shape_dirs = reader.floats("shapedirs", (n_vertices, 3, None))
    if shape_dirs.shape[2] <= IDENTITY_DIRS:
        expected = f"{IDENTITY_DIRS} identity directions and at least one expression"
        raise InputError(path, "shapedirs", f"found {shape_dirs.shape[2]} directions, expected {expected}")
    joint_regressor = reader.floats("J_regressor", (JOINTS, n_vertices), dense_limit=JOINTS * n_vertices)
    weights = reader.floats("weights", (n_vertices, JOINTS))
    _check_weights(weights, path)
    faces = reader.integers("f", (None, 3))
    _check_range(faces, n_vertices, path, "f")
    edition = fields.get("edition")
    if edition is not None and type(edition) is not str:
        raise InputError(path, "edition", f"found a {type(edition).__name__}, expected text")
    return FlameAssets(
        template=template,
        shape_dirs=np.ascontiguousarray(shape_dirs[:, :, :IDENTITY_DIRS]),
        expr_dirs=np.ascontiguousarray(shape_dirs[:, :, IDENTITY_DIRS:]),
        pose_dirs=reader.floats("posedirs", (n_vertices, 3, 9 * (JOINTS - 1))),
        joint_regressor=joint_regressor,
        parents=_parents(reader.integers("kintree_table", (2, JOINTS)), path),
        weights=weights,
        faces=faces,
        edition=edition or _topology_name(n_vertices, len(faces)),
        fingerprint=hashlib.sha256(data).hexdigest(),
        source=path,
    )


def load_masks(path: Path | str, n_vertices: int) -> dict[str, np.ndarray]:
    """Load region masks: name -> sorted vertex ids [n] int64. The 14 names of FLAME are required, more are allowed.

    Args:
        path: a pickle like `FLAME_masks.pkl`.
        n_vertices: of the model, with or without teeth; every id is below it.

    Raises:
        InputError: missing, unreadable, not permitted, a region is missing, empty or out of range.
    """
    path = Path(path)
    data = _read(path, "the FLAME mask file", "--flame_masks")
    fields = _mapping(read_pickle(data, path), path, "region masks")
    missing = [name for name in MASK_NAMES if name not in fields]
    if missing:
        raise InputError(path, missing[0], f"this region is missing, expected all of {', '.join(MASK_NAMES)}")
    reader = ArrayFields(fields, path, len(data))
    masks: dict[str, np.ndarray] = {}
    for name in fields:
        if type(name) is not str:
            raise InputError(path, "", f"found a region named by a {type(name).__name__}, expected text")
        ids = np.unique(reader.integers(name, (None,)))
        _check_range(ids, n_vertices, path, name)
        masks[name] = ids
    return masks


def _first_existing(paths: list[Path], what: str, flag: str) -> Path:
    found = next((path for path in paths if os.path.isfile(path)), None)
    if found is None:
        raise InputError(paths[0], "", _missing(what, paths), _how_to_get(what, flag))
    return found


def _read(path: Path, what: str, flag: str) -> bytes:
    if not os.path.exists(path):  # unlike Path.exists, never raises
        raise InputError(path, "", _missing(what, [path]), _how_to_get(what, flag))
    return read_bytes(path)


def _missing(what: str, searched: list[Path]) -> str:
    return f"{what} is missing (searched: {', '.join(str(path) for path in searched)})"


def _how_to_get(what: str, flag: str) -> str:
    files = f"{MODEL_NAMES[0]} (FLAME 2023 Open, the permissive edition)" if "model" in what else MASKS_NAME
    return f"Get {files} from {PAGE}, put it there or give its path with {flag}; `make demo` needs none"


def _mapping(value: Any, path: Path, what: str) -> dict[Any, Any]:
    if type(value) is not dict:
        raise InputError(path, "", f"holds a {type(value).__name__}, expected the dict of {what}")
    return value


def _check_range(ids: np.ndarray, n_vertices: int, path: Path, name: str) -> None:
    if len(ids) == 0 or ids.min() < 0 or ids.max() >= n_vertices:
        found = f"vertex ids {ids.min()} to {ids.max()}" if ids.size else "no vertices"
        raise InputError(path, name, f"found {found}, expected ids from 0 to {n_vertices - 1}")


def _check_weights(weights: np.ndarray, path: Path) -> None:
    error = np.abs(weights.sum(1, dtype=np.float64) - 1)
    if error.max() > 1e-3:
        row = int(error.argmax())
        raise InputError(path, "weights", f"found a sum of {weights[row].sum():.6g} in row {row}, expected 1")


def _parents(table: np.ndarray, path: Path) -> np.ndarray:
    """Row 0 holds parents; the root's is stored as 2^32 - 1 (or -1)."""
    parents, joints = table[0].copy(), np.arange(JOINTS)
    if parents[0] not in (-1, 2**32 - 1) or (table[1] != joints).any():
        raise InputError(path, "kintree_table", f"found {table.tolist()}, expected joint 0 as the root and ids 0 to 4")
    parents[0] = -1
    if (parents[1:] < 0).any() or (parents[1:] >= joints[1:]).any():
        raise InputError(path, "kintree_table", f"found the parents {parents.tolist()}, expected each before its child")
    return parents


def _topology_name(n_vertices: int, n_faces: int) -> str:
    if (n_vertices, n_faces) == (FLAME_VERTICES, FLAME_FACES):
        return FLAME
    return f"{n_vertices} vertices, {n_faces} faces"
