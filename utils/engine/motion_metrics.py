"""The motion of an avatar: how much it trembles and, where the truth is known, how far it is from it (docs/metrics.md).

Only timesteps that training saw count: the others keep what the tracker said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scene.datasets.flame_params import LIMITS, read_motion_file
from scene.rigs import MOTION_FILE
from utils.errors import InputError
from utils.io.atomic import atomic_file
from utils.io.npz import Array, read_npz

PARAMETERS = ("rotation", "translation", "expr", "neck_pose", "jaw_pose", "eyes_pose")
TRACKED_FILE = "tracked_motion.npz"
TRUE = ("rotation", "translation", "expr")  # what a file of true motion must hold
WIDTHS: Mapping[str, int | str] = {"rotation": 3, "translation": 3, "expr": "E", "neck_pose": 3, "jaw_pose": 3,
                                   "eyes_pose": 6}  # fmt: skip
RENDER_AGAIN = "render again: render.py leaves it for an avatar on FLAME whose dataset is there"

Values = Mapping[str, np.ndarray]  # FLAME parameters by name, [T, width]: radians, metres, coefficients
Facts = dict[str, float | str | None]


@dataclass(frozen=True)
class TrackedMotion:
    """The motion of the dataset, as the tracker gave it, and which of its timesteps were trained on."""

    values: Values
    sequence: np.ndarray  # [T] int64: the recording that a timestep is of; -1: no training frame shows it


@dataclass(frozen=True)
class RunMotion:
    """The motion of a trained avatar beside the tracker's."""

    values: Values
    tracked: TrackedMotion


def write_tracked(folder: Path, motion: TrackedMotion) -> None:
    """Write RUN/tracked_motion.npz."""
    arrays: dict[str, Any] = {"sequence": motion.sequence, **motion.values}
    with atomic_file(folder / TRACKED_FILE) as file:
        np.savez_compressed(file, **arrays)


def read_tracked(path: Path) -> TrackedMotion:
    """What `write_tracked` wrote; InputError if it is something else."""
    values = read_npz(path, {"sequence": Array(("T",)), **schema(PARAMETERS)}, LIMITS)
    return TrackedMotion({name: values[name] for name in PARAMETERS}, values["sequence"].round().astype(np.int64))


def read_truth(path: Path) -> Values:
    """The true motion of a capture: rotation, translation, expr and any other of `PARAMETERS`, one row per timestep.

    Raises:
        InputError: what it must hold is missing, of another shape or not finite; names the array.
    """
    return read_npz(path, schema(TRUE), LIMITS)


def schema(required: tuple[str, ...]) -> dict[str, Array]:
    return {name: Array(("T", WIDTHS[name]), required=name in required) for name in PARAMETERS}


def read_run_motion(run: Path, iteration: int) -> RunMotion | str:
    """The motion of the avatar saved at an iteration, or why there is none to look at.

    Raises:
        InputError: broken files, or of different lengths.
    """
    own, beside = run / "point_cloud" / f"iteration_{iteration}" / MOTION_FILE, run / TRACKED_FILE
    if not own.is_file():
        return f"no {own.relative_to(run)}"
    if not beside.is_file():
        return f"no {TRACKED_FILE}: {RENDER_AGAIN}"
    tracked, motion = read_tracked(beside), read_motion_file(own)
    values = {name: motion.per_frame[name].numpy() for name in PARAMETERS}
    if motion.timesteps != len(tracked.sequence):
        problem = f"found {len(tracked.sequence)} timesteps, the avatar has {motion.timesteps}"
        raise InputError(beside, "sequence", problem, "Render again: python render.py -m RUN.")
    return RunMotion(values, tracked)


def motion_facts(motion: RunMotion | str) -> Facts:
    """`jitter_PARAM` and, of the tracker's motion, `jitter_PARAM_tracked`; reasons beside nulls."""
    found: Facts = {}
    for kind in ("", "_tracked"):
        for name in PARAMETERS:
            key, reason = f"jitter_{name}{kind}", "no three consecutive timesteps were trained on"
            if isinstance(motion, str):
                found[key], reason = None, motion
            else:
                values = motion.tracked.values if kind else motion.values
                found[key] = jitter(values[name], motion.tracked.sequence)
            if found[key] is None:
                found[f"{key}_reason"] = reason
    return found


def jitter(values: np.ndarray, sequence: np.ndarray) -> float | None:
    """Root mean square of x[t + 1] - 2 x[t] + x[t - 1] over components and trained t; None if there is no such t.

    Args:
        values: [T, width]. sequence: [T], see `TrackedMotion`; the three timesteps must be of one.
    """
    second = values[2:].astype(np.float64) - 2 * values[1:-1] + values[:-2]
    inside = (sequence[:-2] >= 0) & (sequence[:-2] == sequence[1:-1]) & (sequence[1:-1] == sequence[2:])
    return root_mean_square(second[inside])


def truth_facts(motion: RunMotion, truth: Values, source: Path) -> Facts:
    """`rmse_PARAM` to the truth, `rmse_PARAM_tracked` of the tracker's motion, and the change in percent
    of the latter as `rmse_PARAM_change_percent`; nulls with a reason for parameters that the truth lacks.

    Raises:
        InputError: the truth is of another number of timesteps.
    """
    trained = motion.tracked.sequence >= 0
    if len(truth["rotation"]) != len(trained):
        problem = f"found {len(truth['rotation'])} timesteps, the run has {len(trained)}"
        raise InputError(source, "rotation", problem, "Give the truth of the run's own capture.")
    found: Facts = {}
    for name in PARAMETERS:
        if name not in truth:
            for key in (f"rmse_{name}", f"rmse_{name}_tracked", f"rmse_{name}_change_percent"):
                found |= {key: None, f"{key}_reason": f"{source.name} has no {name}"}
            continue
        own, before = (rmse(values[name][trained], truth[name][trained])
                       for values in (motion.values, motion.tracked.values))  # fmt: skip
        found[f"rmse_{name}"], found[f"rmse_{name}_tracked"] = own, before
        change = 100 * (own / before - 1) if own is not None and before else None
        found[f"rmse_{name}_change_percent"] = change
        if own is None:
            found |= {f"rmse_{name}{kind}_reason": "nothing was trained on" for kind in ("", "_tracked")}
        if change is None:
            found[f"rmse_{name}_change_percent_reason"] = "the tracker was right" if before == 0 else "nothing known"
    return found


def rmse(values: np.ndarray, truth: np.ndarray) -> float | None:
    """Root of the mean over timesteps and the truth's components of the squared difference; FLAME takes components that
    the values lack for zeros."""
    width = truth.shape[1]
    known = values[:, :width].astype(np.float64)
    return root_mean_square(np.pad(known, ((0, 0), (0, width - known.shape[1]))) - truth)


def root_mean_square(values: np.ndarray) -> float | None:
    return float(np.sqrt(np.square(values).mean())) if values.size else None
