"""Reenactment: a driver's motion moves an avatar, which keeps its own shape and static offset."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

from flame_model.flame_assets import FLAME
from scene.datasets import DataOptions, identify
from scene.datasets.tracker_motion import read_motion_file
from scene.flame_gaussian_model import FlameGaussianModel
from scene.rigs import FlameRig
from utils.contracts import Motion
from utils.engine.build import LoadedAvatar
from utils.engine.checkpoint import read_object
from utils.engine.run import RUN_FACTS
from utils.errors import InputError
from utils.maths.rotations import axis_angle_to_quaternion, conjugate, multiply, quaternion_to_axis_angle

TRANSFERS = ("auto", "relative", "absolute")
JOINTS = ("neck_pose", "jaw_pose", "eyes_pose")  # the face's; the head stays where the driver's cameras look
SAME = 1e-6  # shape coefficients, and metres of static offset


@dataclass(frozen=True)
class Driver:
    """Someone whose motion can drive an avatar."""

    motion: Motion
    source: Path
    edition: str | None  # of the FLAME model that the motion is for; None: the file can't say


def target_options(own: LoadedAvatar, path: str, overrides: Mapping[str, object]) -> DataOptions:
    """How the dataset at `path`, relative to the working folder, is loaded: all its frames in `train`.

    As the avatar's own dataset was (background, resolution), but for what belongs to one dataset alone: the folder of
    its pictures, its data root and its cameras.
    """
    own_alone = {"data_root": str(overrides.get("data_root", "")), "images": "images",
                 "select_camera_id": str(overrides.get("select_camera_id", "-1"))}  # fmt: skip
    return replace(own.options.data, source_path=path, eval=False, **own_alone)


def driver_of_dataset(options: DataOptions) -> Driver:
    """The motion of a dataset; no picture is decoded. Raises InputError if it has no FLAME motion."""
    source, format_ = identify(options)
    capture = format_.read(source, options)
    if capture.motion is None or "expr" not in capture.motion.per_frame:
        raise InputError(source, "", f"holds no FLAME motion (format {capture.format})",
                         "Give a dataset that was tracked with FLAME.")  # fmt: skip
    return Driver(capture.motion, source, capture.edition or FLAME)


def driver_of_file(path: Path) -> Driver:
    """The motion in an avatar's or a tracker's `.npz`. One that lies in a run is of the run's edition."""
    file = Path(os.path.expanduser(path))
    motion = read_motion_file(file)
    return Driver(motion, path, edition_of_run(file.resolve().parent.parent.parent) or None)


def drive(
    own: LoadedAvatar, driver: Driver, transfer: str, assume_same_edition: bool
) -> tuple[FlameGaussianModel, str]:
    """The avatar moved by the driver, and a line that says how.

    Args:
        transfer: `absolute`: the driver's parameters as they are. `relative`: the driver's deviation from his mean is
            added to the avatar's mean (`relative_motion`). `auto`: absolute if the driver is the avatar's own person,
            else relative.

    Raises:
        InputError: an avatar without FLAME, other editions of FLAME, or motion that does not fit the model.
    """
    avatar, source = own.avatar, driver.source
    if not isinstance(avatar, FlameGaussianModel):
        raise InputError(own.options.run.model_path, "", "is not an avatar on FLAME", "Only those can be driven.")
    edition = avatar_edition(own, avatar.rig)
    if driver.edition not in (None, edition) and not assume_same_edition:
        model = own.options.rig.flame_model or "the default FLAME model"
        raise InputError(source, "edition", f"found motion for {driver.edition!r}, but the avatar "
                         f"{own.options.run.model_path} is on {edition!r} ({model})", "Expressions of different "
                         "editions don't mix; if both name one model, add --assume_same_edition.")  # fmt: skip
    mine, his = avatar.rig.motion(), driver.motion
    same = same_person(mine, his)
    chosen = ("absolute" if same else "relative") if transfer == "auto" else transfer
    moved = {name: values for name, values in his.per_frame.items() if name != "dynamic_offset" or same}
    if chosen == "relative":
        moved = relative_motion(mine, Motion(moved, his.static), source)
    driven = avatar.driven_by(Motion(moved, his.static), str(source))
    said = driver.edition or f"edition not in the file, taken for {edition}"
    why = f"{'the same person' if same else 'another person'}; " if transfer == "auto" else ""
    length = f"{his.timesteps} timestep{'s' * (his.timesteps > 1)}"
    return driven, f"driver {source}: {length}, {said}; {why}{chosen} transfer"


def avatar_edition(own: LoadedAvatar, rig: FlameRig) -> str:
    """What the model calls itself; if that is only FLAME, the edition that its dataset named, if it did."""
    said = edition_of_run(Path(own.options.run.model_path))
    return said if said and rig.edition == FLAME else rig.edition


def edition_of_run(folder: Path) -> str:
    """What `run.json` says about the motion's face model; empty if it says nothing or there is none."""
    facts = folder / RUN_FACTS
    said = read_object(facts).get("edition", "") if facts.is_file() else ""
    if not isinstance(said, str):
        raise InputError(facts, "edition", f"found {said!r}, expected text")
    return said


def same_person(mine: Motion, his: Motion) -> bool:
    """Do shape and, where the driver has one, static offset agree?"""
    pairs = [(mine.static["shape"][None], his.static["shape"][None])]
    if "static_offset" in his.static:
        pairs.append((mine.static["static_offset"].T, his.static["static_offset"].T))
    return all(bool(((a - b).abs() <= SAME).all()) for a, b in map(padded, pairs))


def padded(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Zeros at the end of the shorter of two tensors [n, w], on the CPU: FLAME takes missing values for zeros."""
    width = max(values.shape[1] for values in pair)
    first, second = (pad(values.detach().cpu(), (0, width - values.shape[1])) for values in pair)
    return first, second


def relative_motion(mine: Motion, his: Motion, source: Path) -> dict[str, Tensor]:
    """A driver's deviation from his own mean about the avatar's mean; both means are over all timesteps of a Motion.

    Expressions: mean_own + (driver - mean_driver). Neck, jaw and eyes: R_own R_driver^-1 R with the mean rotations
    R_own and R_driver. Rotation and translation of the head are the driver's. A neutral face isn't zero and every
    tracker leaves some identity in the expressions, which the means take out.

    Returns:
        `per_frame` of a Motion.
    Raises:
        InputError: one timestep has no deviation from its mean.
    """
    if his.timesteps < 2:
        raise InputError(source, "", "found 1 timestep, but relative transfer needs the mean of several",
                         "Add --transfer absolute.")  # fmt: skip
    own, driver = padded((mine.per_frame["expr"].double(), his.per_frame["expr"].double()))
    moved = {**his.per_frame, "expr": (own.mean(0) + (driver - driver.mean(0))).float()}
    for name in JOINTS:
        to, of = (axis_angle_to_quaternion(m.per_frame[name].detach().cpu().double().unflatten(1, (-1, 3)))
                  for m in (mine, his))  # fmt: skip
        change = multiply(mean_rotation(to), conjugate(mean_rotation(of)))
        moved[name] = quaternion_to_axis_angle(multiply(change.expand_as(of), of)).flatten(1).float()
    return moved


def mean_rotation(quaternions: Tensor) -> Tensor:
    """The mean [k, 4] of unit quaternions [T, k, 4] for any choice of their signs.

    It is the largest eigenvector of the mean of q q^T (Markley et al. 2007, "Averaging quaternions").
    """
    return torch.linalg.eigh(torch.einsum("tki,tkj->kij", quaternions, quaternions)).eigenvectors[..., -1]


def target_name(path: str) -> str:
    """The name of a target folder, also for `.` and `target/`; a link keeps its own name."""
    return os.path.basename(os.path.abspath(os.path.expanduser(path)))


def motion_name(path: str) -> str:
    """The folder for pictures of a motion file; all avatars' have one name, so they are called after their run."""
    file = Path(os.path.abspath(os.path.expanduser(path)))
    run = file.parent.parent.parent.name if file.parent.parent.name == "point_cloud" else ""
    return f"motion_{run or file.stem}"
