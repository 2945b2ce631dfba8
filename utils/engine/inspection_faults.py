"""Every fault of a dataset at once: what training refuses at the first, gathered to the last.

`read_capture` asks the format's own reader first, so that what training would say is always part of the answer. Only if
that refuses, a survey reads on: each field of each frame, each parameter file, each timestep.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from scene.datasets import Capture, DataOptions, Format
from scene.datasets.capture import SPLITS, FrameRecord
from scene.datasets.flame_nerf import claim, find_paths, gap_faults, is_there, read_edition, sequence_starts
from scene.datasets.flame_params import ALWAYS, OPTIONAL, STATIC, compare, read_motion
from scene.datasets.frame_records import FIELDS, Paths, read_focal_lengths, read_principal_point, read_size
from utils.contracts import Motion
from utils.engine.inspection_readings import FLIP
from utils.errors import InputError
from utils.io.json_files import MAX_BYTES, JsonObject, read_bytes, read_json

T = TypeVar("T")
GEOMETRY = ("world_to_camera", "timestep", "intrinsics", "image", "flame_param")  # without these a frame has no mesh


class Faults:
    """Lines by kind, each once, in the order in which they were found."""

    def __init__(self) -> None:
        self.lines: dict[str, dict[str, None]] = {}

    def __len__(self) -> int:
        return sum(map(len, self.lines.values()))

    def __contains__(self, line: str) -> bool:
        return any(line in lines for lines in self.lines.values())

    def add(self, kind: str, error: InputError) -> None:
        self.lines.setdefault(kind, {})[str(error)] = None

    def attempt(self, kind: str, function: Callable[..., T], *arguments: Any) -> T | None:
        """What the function returns; None if it raised InputError, which is noted."""
        try:
            return function(*arguments)
        except InputError as error:
            self.add(kind, error)
            return None


@dataclass(frozen=True)
class Survey:
    """A dataset as far as it can be read.

    `capture` has the frames that have a place in space and time, their timesteps numbered without gaps; `labels` are
    the numbers in the files. A frame whose matrix was refused is there with that matrix, taken as it is. The pictures
    of `loose` frames can be decoded, nothing more.
    """

    capture: Capture
    labels: Sequence[int]
    loose: Sequence[FrameRecord] = ()


@dataclass
class Frame:
    """A frame of a transforms file: its place, and the fields that could be read."""

    place: JsonObject
    values: dict[str, Any] = field(default_factory=dict)


def read_capture(name: str, format_: Format, folder: Path, options: DataOptions, faults: Faults) -> Survey | None:
    """Read a dataset of the format `name`; if its reader refuses it, what a survey can make of it, or None."""
    try:
        capture = format_.read(folder, options)
    except InputError as error:
        survey = survey_flame_nerf(folder, options, faults) if name == "flame_nerf" else None
        if str(error) not in faults:
            faults.add("dataset", error)
        return survey
    return Survey(capture, range(capture.motion.timesteps if capture.motion else 1))


def survey_flame_nerf(folder: Path, options: DataOptions, faults: Faults) -> Survey | None:
    """Note every fault of a VHAP export; None if no frame of it can be used."""
    paths = faults.attempt("options", find_paths, folder, options)
    if paths is None:
        return None
    files = {split: folder / f"transforms_{split}.json" for split in SPLITS}
    frames = {split: survey_split(path, split, paths, faults) for split, path in files.items()}
    if not frames["train"] and files["train"].is_file() and not len(faults):
        faults.add("fields", InputError(files["train"], "frames", "is empty, expected at least one frame"))
    everything = [frame for split in SPLITS for frame in frames[split]]
    chosen = survey_timesteps(everything, faults)
    motions = survey_parameters(chosen, faults)
    rows = {timestep: row for row, timestep in enumerate(sorted(motions))}
    if not any(frame.values.keys() >= {"image", "intrinsics"} for frame in everything):
        return None
    records: dict[str, list[FrameRecord]] = {
        split: [
            make_record(frame, rows[frame.values["timestep"]])
            for frame in frames[split]
            if all(name in frame.values for name in GEOMETRY) and frame.values["timestep"] in rows
        ]
        for split in SPLITS
    }
    placed = {id(record.place) for members in records.values() for record in members}
    loose = [f for f in everything if id(f.place) not in placed and f.values.keys() >= {"image", "intrinsics"}]
    capture = Capture(
        format="flame_nerf",
        records=records,
        files=(),
        motion=gather([motions[t] for t in sorted(motions)]) if motions else None,
        edition=faults.attempt("fields", read_edition, files["train"]) or "" if files["train"].is_file() else "",
        sequence_starts=sequence_starts([chosen[t] for t in sorted(motions)]),
    )
    return Survey(capture, sorted(motions), [make_record(frame, 0) for frame in loose])


def survey_split(path: Path, split: str, paths: Paths, faults: Faults) -> list[Frame]:
    """The frames of a transforms file, each with the fields that could be read."""
    if not faults.attempt("fields", is_there, path, split):
        return []
    content = faults.attempt("fields", read_json, path)
    content = reread(path) if content is None else content
    if content is None:
        return []
    place = faults.attempt("fields", JsonObject.of, path, "", content)
    if place is None:
        return []
    items = place.value.get("frames")
    if not isinstance(items, list):
        faults.attempt("fields", place.objects, "frames")
        return []
    places = [faults.attempt("fields", JsonObject.of, path, f"frames[{i}]", item) for i, item in enumerate(items)]
    return [survey_frame(place, paths, faults) for place in places if place is not None]


def reread(path: Path) -> Any:
    """The JSON in a file that the strict reader refused (a NaN, a key twice), or None if there is no reading it."""
    try:
        return json.loads(read_bytes(path, MAX_BYTES).decode("utf-8"))
    except (InputError, ValueError, RecursionError):
        return None


def survey_frame(place: JsonObject, paths: Paths, faults: Faults) -> Frame:
    """Try every field of a frame."""
    frame = Frame(place)
    for name, read in FIELDS.items():
        try:
            frame.values[name] = read(place, paths)
        except InputError as error:
            faults.add("fields", error)
    if "intrinsics" not in frame.values and (size := faults.attempt("fields", read_size, place)):
        faults.attempt("fields", read_focal_lengths, place, size)
        faults.attempt("fields", read_principal_point, place, size)
    if "world_to_camera" not in frame.values and (matrix := invertible(place)) is not None:
        frame.values["world_to_camera"] = matrix
    return frame


def invertible(place: JsonObject) -> np.ndarray | None:
    """World-to-camera from a matrix that is no rigid motion, if it has an inverse at all."""
    try:
        matrix = np.linalg.inv(place.matrix("transform_matrix", 4, 4) @ FLIP)  # its last row may hold anything
    except (InputError, np.linalg.LinAlgError):
        return None
    return matrix if np.isfinite(matrix).all() else None


def make_record(frame: Frame, timestep: int) -> FrameRecord:
    """The record of a frame, with nothing where nothing could be read."""
    nothing = {"world_to_camera": np.eye(4), "camera_index": None, "camera_id": "", "mask": None, "flame_param": None}
    return FrameRecord(place=frame.place, **{**nothing, **frame.values, "timestep": timestep})


def survey_timesteps(frames: Sequence[Frame], faults: Faults) -> dict[int, Path]:
    """The parameter file of each timestep; notes gaps, unless a frame that has no timestep might fill them."""
    files: dict[int, Path] = {}
    places: dict[int, Any] = {}
    for frame in frames:
        if "timestep" not in frame.values:
            continue
        places.setdefault(frame.values["timestep"], frame.place)
        if "flame_param" in frame.values:
            faults.attempt(
                "timesteps", claim, files, frame.values["timestep"], frame.values["flame_param"], frame.place
            )
    if all("timestep" in frame.values for frame in frames):
        for fault in gap_faults(places):
            faults.add("timesteps", fault)
    return files


def survey_parameters(files: Mapping[int, Path], faults: Faults) -> dict[int, Motion]:
    """The motion in each parameter file that is intact and agrees with the first of its sequence."""
    kept: dict[int, Motion] = {}
    references: list[tuple[Path, dict[str, Any]]] = []  # the first file of all, then the first of each folder
    for timestep in sorted(files):
        path = files[timestep]
        motion = faults.attempt("parameters", read_motion, [path])
        if motion is None:
            continue
        arrays = {**motion.per_frame, **motion.static}
        own = next((reference for reference in references if reference[0].parent == path.parent), None)
        before = len(faults)
        if own is not None:
            faults.attempt("parameters", compare, path, arrays, *own, ())
        elif references:
            faults.attempt("parameters", compare, path, arrays, *references[0], OPTIONAL)
        if own is None:
            references.append((path, arrays))
        if len(faults) == before:
            kept[timestep] = motion
    return kept


def gather(rows: Sequence[Motion]) -> Motion:
    """One motion of several of one timestep; identity and static offset are those of the first."""
    offsets = {row.per_frame["dynamic_offset"].shape if "dynamic_offset" in row.per_frame else None for row in rows}
    names = [*ALWAYS, *(["dynamic_offset"] if len(offsets) == 1 and None not in offsets else [])]
    per_frame = {name: torch.cat([row.per_frame[name] for row in rows]) for name in names}
    return Motion(per_frame, {name: rows[0].static[name] for name in STATIC if name in rows[0].static})
