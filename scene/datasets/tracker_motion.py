"""Motion in one file: which tracker wrote it is told by its keys, never guessed. To add one: a line in MOTIONS."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scene.datasets import flame_params, nersemble
from utils.contracts import Motion
from utils.errors import InputError
from utils.io.npz import DAMAGED, Array, read_npz

Keys = frozenset[str]
VHAP_KEYS = ("n_processed_frames", "timestep_id", "image_size", "lights", "tex_extra")  # only its tracker writes these


@dataclass(frozen=True)
class MotionFormat:
    """A row of MOTIONS."""

    recognise: Callable[[Keys], str | None]  # keys of the file -> why it is not in this format, or None if it is
    read: Callable[[Path], Motion]


def recognise_flame_param(keys: Keys) -> str | None:
    """`flame_param.npz` of an avatar, Mien's or GaussianAvatars': the arrays of a Motion and nothing of a tracker's."""
    return lacking(keys) or next((f"{name} belongs to VHAP's tracker" for name in VHAP_KEYS if name in keys), None)


def recognise_vhap(keys: Keys) -> str | None:
    """`tracked_flame_params_EPOCH.npz`, as VHAP's tracker writes it."""
    return lacking(keys) or (None if any(name in keys for name in VHAP_KEYS) else f"none of {', '.join(VHAP_KEYS)}")


def lacking(keys: Keys) -> str | None:
    missing = [name for name, array in flame_params.SCHEMA.items() if array.required and name not in keys]
    return f"no {', '.join(missing)}" if missing else None


def read_vhap(path: Path) -> Motion:
    """The motion in VHAP's tracker file; texture, lights and camera are left alone.

    Raises:
        InputError: names the key and the shape; also if tracking stopped before the last timestep.
    """
    motion = flame_params.read_motion_file(path)
    counts = read_npz(path, {"n_processed_frames": Array((), required=False, leading=True)}, {})
    tracked = counts.get("n_processed_frames")
    if tracked is not None and tracked < motion.timesteps:
        problem = f"found {int(tracked)} tracked frames, but rotation has {motion.timesteps} rows"
        raise InputError(path, "n_processed_frames", problem, "Let the tracker finish; the other rows are unset.")
    return motion


MOTIONS: dict[str, MotionFormat] = {
    "flame_param": MotionFormat(recognise_flame_param, flame_params.read_motion_file),
    "vhap_tracker": MotionFormat(recognise_vhap, read_vhap),
    "nersemble": MotionFormat(nersemble.recognise_motion, nersemble.read_motion_npz),
}


def read_motion_file(path: Path) -> Motion:
    """The motion in an `.npz` of one of MOTIONS.

    Raises:
        InputError: of none of these formats, or of several: says what each looked for; or what is wrong inside.
    """
    keys = keys_of(path)
    reasons = {name: format_.recognise(keys) for name, format_ in MOTIONS.items()}
    fitting = [name for name, reason in reasons.items() if reason is None]
    if len(fitting) != 1:
        shown = "; ".join(f"{name}: {reason or 'fits'}" for name, reason in reasons.items())
        raise InputError(
            path, "", f"is motion of none or several known formats ({shown})", "Give a tracker's or an avatar's .npz."
        )
    return MOTIONS[fitting[0]].read(path)


def keys_of(path: Path) -> Keys:
    """The names of the arrays in an `.npz`, after `read_npz` has judged their headers."""
    read_npz(path, {}, {})
    try:
        with zipfile.ZipFile(path) as archive:
            return frozenset(name.removesuffix(".npy") for name in archive.namelist())
    except DAMAGED as error:
        raise InputError(path, "", f"is not an intact .npz archive: {error}") from error
