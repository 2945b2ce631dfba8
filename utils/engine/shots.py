"""What to photograph: shots (a camera, a moment and perhaps a photograph to compare with) in takes (a folder each)."""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from scene.datasets import DataOptions, identify
from scene.datasets.capture import SPLITS, select_records, views_of
from scene.frames import Dataset, Split, View, background_colour
from utils.contracts import Camera, Frame
from utils.engine.build import LoadedAvatar, LoadedRun, load_avatar, load_run, open_data
from utils.engine.orbit import around_head, around_scene, swing
from utils.engine.reenact import (
    TRANSFERS,
    drive,
    driver_of_dataset,
    driver_of_file,
    motion_name,
    target_name,
    target_options,
)
from utils.errors import InputError

TAKEN = re.compile(r"(train|val|test|motion|orbit)(_.*)?|point_cloud|checkpoints|cache|export")  # folders of a run
HELD_FRAMES = 100  # of an orbit around one moment: 4 s
MOST_FRAMES = 100_000  # of an orbit: over an hour


@dataclass
class RenderOptions:
    """What to render."""

    model_path: str = field(default="", metadata={"alias": "-m", "help": "run folder, ours or the original's"})
    iteration: int = field(default=-1, metadata={"help": "which saved avatar; -1: the newest"})
    skip_train: bool = field(default=False, metadata={"help": "leave out the training frames"})
    skip_val: bool = field(default=False, metadata={"help": "leave out the validation frames (held-out cameras)"})
    skip_test: bool = field(default=False, metadata={"help": "leave out the test frames (held-out timesteps)"})
    target_path: str = field(
        default="", metadata={"alias": "-t", "help": "dataset whose motion drives the avatar, instead of its own"}
    )
    motion_path: str = field(default="", metadata={"help": "flame_param.npz or a tracker's .npz that drives it"})
    transfer: str = field(
        default="auto",
        metadata={"help": "absolute: the driver's values; relative: his deviation from his mean, about the avatar's "
                          "mean; auto: relative if he is another person"},
    )  # fmt: skip
    assume_same_edition: bool = field(
        default=False, metadata={"help": "the driver's FLAME edition is the avatar's, whatever they are called"}
    )
    orbit: bool = field(default=False, metadata={"help": "an orbiting camera instead of the dataset's"})
    orbit_degrees: float = field(default=30.0, metadata={"help": "how far it swings to each side, up to 180"})
    orbit_frames: int = field(default=0, metadata={"help": "length; 0: one per timestep, 100 if the motion is held"})
    orbit_timestep: int = field(default=-1, metadata={"help": "hold the motion there; -1: it plays"})
    render_mesh: bool = field(default=False, metadata={"help": "also the mesh over the photographs"})
    render_alpha: bool = field(default=False, metadata={"help": "also opacity, 8-bit PNG"})
    render_depth: bool = field(default=False, metadata={"help": "also mean depth, 16-bit PNG in millimetres"})
    skip_gt: bool = field(default=False, metadata={"help": "leave out photographs and mattes"})
    quiet: bool = field(default=False, metadata={"help": "no progress"})


@dataclass(frozen=True)
class Shot:
    """One picture to draw."""

    camera: Camera
    timestep: int
    background: Tensor  # [3] in [0, 1]
    name: str  # for messages
    photograph: Callable[[], Frame] | None = None  # decodes it
    camera_id: str = ""  # of the photograph
    sequence: int = 0  # the recording of the dataset that the timestep is of


@dataclass(frozen=True)
class Take:
    """Shots that go into one folder."""

    name: str  # of that folder in the run
    shots: Sequence[Shot]


@dataclass(frozen=True)
class Orbit:
    """A swing to both sides and, less far, up and down: it starts and ends at the front."""

    degrees: float
    frames: int  # 0: one per timestep, or HELD_FRAMES
    timestep: int  # at which the motion is held; -1: it plays, and starts again at its end


def orbit_of(options: RenderOptions) -> Orbit:
    return Orbit(options.orbit_degrees, options.orbit_frames, options.orbit_timestep)


def check_options(options: RenderOptions) -> None:
    """Raise InputError for the first rule that the options break."""
    chosen, degrees, name = options.transfer, options.orbit_degrees, target_name(options.target_path)
    frames = options.orbit_frames
    orbit, untouched = orbit_of(options), orbit_of(RenderOptions())
    driven = bool(options.target_path or options.motion_path)
    skips = options.skip_train or options.skip_val or options.skip_test
    rules = [
        (not options.model_path, "--model_path", "is missing", "Give the run folder: -m RUN."),
        (bool(options.target_path and options.motion_path), "--motion_path", "contradicts --target_path", "Give one."),
        (chosen not in TRANSFERS, "--transfer", f"found {chosen!r}, expected one of {', '.join(TRANSFERS)}", ""),
        (chosen != "auto" and not driven, "--transfer", "is for drivers", "Give -t DATASET or --motion_path FILE."),
        (bool(options.target_path) and bool(TAKEN.fullmatch(name)), "--target_path", f"is called {name!r}, as a folder "
         "of the run may be", "Link to it by another name."),
        (not 0 < degrees <= 180, "--orbit_degrees", f"found {degrees}, expected more than 0, up to 180", ""),
        (not 0 <= frames <= MOST_FRAMES, "--orbit_frames", f"found {frames}, expected 0 to {MOST_FRAMES}", ""),
        (orbit.timestep < -1, "--orbit_timestep", f"found {orbit.timestep}, expected at least 0, or -1", ""),
        (skips and (driven or options.orbit), "--skip_...", "is for the run's own dataset", "Leave it out."),
        (not options.orbit and orbit != untouched, "--orbit_...", "is for orbits", "Add --orbit."),
    ]  # fmt: skip
    for broken, flag, problem, advice in rules:
        if broken:
            raise InputError("command line", flag, problem, advice)


def plan(options: RenderOptions, overrides: dict[str, Any]) -> tuple[LoadedAvatar, list[Take]]:
    """The avatar, driven if asked for, and what to photograph. Everything is checked, nothing is rendered."""
    folder, camera = Path(options.model_path), str(overrides.get("select_camera_id", "-1"))
    suffix = "" if camera == "-1" else "_" + re.sub(r"[^\w.-]", "_", camera)
    if not (options.target_path or options.motion_path or options.orbit):
        run = load_run(folder, options.iteration, overrides)
        skipped = [name for name in ("train", "val", "test") if getattr(options, f"skip_{name}")]
        return run, own_takes(run, skipped, suffix)
    loaded, driver, name = load_avatar(folder, options.iteration, overrides), None, ""
    data = loaded.options.data
    if options.target_path:
        data, name = target_options(loaded, options.target_path, overrides), target_name(options.target_path)
        driver = driver_of_dataset(data)
    elif options.motion_path:
        driver, name = driver_of_file(Path(options.motion_path)), motion_name(options.motion_path)
    if driver is not None:
        driven, line = drive(loaded, driver, options.transfer, options.assume_same_edition)
        loaded = replace(loaded, avatar=driven)
        if not options.quiet:
            print(line)
    if options.orbit:
        name = f"{name}_orbit" if name else "orbit"
        cameras = orbit_cameras(data)
        take = orbiting(loaded, name + suffix, orbit_of(options), cameras)
        if not cameras and not options.quiet:
            print(f"{data.source_path or 'the dataset'} is not there: the camera is fitted to the head")
        return loaded, [take]
    if options.motion_path:
        return loaded, [watched(loaded, name + suffix, watching_camera(data))]
    target = open_data(replace(loaded.options, data=data))
    return loaded, [Take(name + suffix, photographed(target, target.train, data.white_background))]


def photographed(dataset: Dataset, split: Split, white: bool) -> list[Shot]:
    """The shots of a dataset's frames, in their order."""
    background, starts = background_colour(white), dataset.sequence_starts
    return [Shot(view.camera, view.timestep, background, view.name, lambda i=i: split[i], view.camera_id,
                 bisect_right(starts, view.timestep) - 1)
            for i, view in enumerate(split.views)]  # fmt: skip


def own_takes(run: LoadedRun, skipped: Sequence[str], suffix: str) -> list[Take]:
    """The splits of the run's own dataset that have frames and aren't skipped; InputError if none is left."""
    splits = {name: split for name, split in run.dataset.splits().items() if len(split) and name not in skipped}
    if not splits:
        raise InputError(run.dataset.source, "", "has no frames in the splits asked for", "Skip fewer splits.")
    white = run.options.data.white_background
    return [Take(f"{name}{suffix}", photographed(run.dataset, split, white)) for name, split in splits.items()]


def views_without_pictures(options: DataOptions) -> dict[str, list[View]]:
    """The views of a dataset by split; no picture is decoded.

    Raises:
        InputError: no such dataset, or no camera `options.select_camera_id` in it.
    """
    source, format_ = identify(options)
    capture = format_.read(source, options)
    records = select_records(capture, source, options)
    return {split: views_of(capture, records[split], split, options) for split in SPLITS}


def watching_camera(options: DataOptions) -> Camera:
    """The camera that watches a motion: the one selected, else the held-out one, else the first of training."""
    views = views_without_pictures(options)
    return next(view for split in ("val", "train", "test") for view in views[split]).camera


def watched(loaded: LoadedAvatar, name: str, camera: Camera) -> Take:
    """The whole motion of an avatar, seen by one camera."""
    background = background_colour(loaded.options.data.white_background)
    moments = range(loaded.avatar.rig.timesteps)
    return Take(name, [Shot(camera, timestep, background, f"timestep {timestep}") for timestep in moments])


def orbiting(loaded: LoadedAvatar, name: str, orbit: Orbit, cameras: Sequence[Camera]) -> Take:
    """A camera that orbits the avatar while its motion plays or is held.

    Args:
        cameras: of the dataset; the first gives focal lengths, picture size and distance. Empty: fitted to the head.

    Raises:
        InputError: a timestep that is not there, or an unbound scene without cameras.
    """
    rig = loaded.avatar.rig
    if orbit.timestep >= rig.timesteps:
        raise InputError("command line", "--orbit_timestep", f"found {orbit.timestep}, expected less than "
                         f"{rig.timesteps}, the timesteps of the motion")  # fmt: skip
    if not rig.bound and not cameras:
        raise InputError("command line", "--orbit", "needs the cameras of an unbound scene", "Give its dataset: -s.")
    moments = [orbit.timestep] if orbit.timestep >= 0 else list(range(rig.timesteps))
    count = orbit.frames or (HELD_FRAMES if len(moments) == 1 else len(moments))
    path = around_head(rig, cameras) if rig.bound else around_scene(cameras)
    background = background_colour(loaded.options.data.white_background)
    return Take(name, [
        Shot(path.camera(*swing(orbit.degrees, k / count)), moments[k % len(moments)], background, f"orbit frame {k}")
        for k in range(count)
    ])  # fmt: skip


def orbit_cameras(options: DataOptions) -> list[Camera]:
    """The cameras of the run's own dataset, training first; none if the dataset isn't there."""
    if not options.source_path or not os.path.isdir(os.path.expanduser(options.source_path)):
        return []
    views = views_without_pictures(options)
    return [view.camera for split in SPLITS for view in views[split]]
