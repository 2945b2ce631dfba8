"""What a reader finds in a dataset folder, checked but not decoded; and how that becomes a Dataset.

A reader turns a folder into a Capture. Everything after that is the same for every format.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from scene.cameras import Intrinsics, make_camera, target_size
from scene.datasets.options import DataOptions
from scene.frames import Dataset, Split, View, background_colour
from scene.image_store import Picture, PictureFile, open_store
from utils.contracts import Camera, Motion, Points
from utils.errors import InputError

SPLITS = ("train", "val", "test")
SCENE_FAR = 1e6  # units of an unbound scene are arbitrary, and its sky is far


class Place(Protocol):
    """Where in a file something was found; makes the errors about it. `utils.io.json_files.JsonObject` is one."""

    def error(self, field: str, problem: str, advice: str = "") -> InputError: ...


@dataclass(frozen=True)
class FilePlace:
    """A Place for files without fields: `where` may name a row or a frame."""

    path: Path
    where: str = ""

    def error(self, field: str, problem: str, advice: str = "") -> InputError:
        return InputError(self.path, ".".join(part for part in (self.where, field) if part), problem, advice)


def train_count(count: int) -> int:
    """How many of `count` timesteps train where a format holds none out: the first 70 %, rounded up, as VHAP splits."""
    return (7 * count + 9) // 10


@dataclass(frozen=True)
class FrameRecord:
    """A checked frame, in our conventions."""

    place: Place  # for error messages
    timestep: int
    camera_index: int | None  # position of the camera in the calibration file
    camera_id: str
    intrinsics: Intrinsics  # of the picture file, cy from the top
    world_to_camera: np.ndarray  # [4, 4] float64, OpenCV axes
    image: PictureFile
    mask: PictureFile | None
    flame_param: Path | None = None


@dataclass(frozen=True)
class Capture:
    """A dataset folder, read and checked.

    `files` are the text and parameter files that it was read from: their contents make the fingerprint. `edition`
    names the face model that the motion is for, as far as the format tells; empty: it does not.
    """

    format: str
    records: Mapping[str, Sequence[FrameRecord]]  # train, val, test
    files: Sequence[Path]
    motion: Motion | None = None
    edition: str = ""
    sequence_starts: tuple[int, ...] = (0,)  # first timestep of each recorded sequence (unions have several)
    points: Points | None = None  # where an unbound scene starts from
    notes: tuple[str, ...] = ()  # what a user should know about how this was read

    @property
    def everything(self) -> list[FrameRecord]:
        return [record for split in SPLITS for record in self.records[split]]


Recognise = Callable[[Path], "str | None"]  # folder -> why it is not in this format, or None if it is
Read = Callable[[Path, DataOptions], Capture]


@dataclass(frozen=True)
class Format:
    """A row of DATASETS."""

    recognise: Recognise
    read: Read
    rig: str = "flame"  # what its motion is for: a name in `scene.rigs.RIGS`


def decode(capture: Capture, folder: Path, options: DataOptions, cache: Path) -> Dataset:
    """Decode the pictures of a capture and deal its frames out.

    Without `options.eval`, train holds train, val and test. With `options.select_camera_id`, only frames of that camera
    are decoded; the motion of all timesteps stays.

    Raises:
        InputError: a picture is not what it must be, or there is no such camera.
        EnvironmentFault: the cache of pictures can't be written.
    """
    records = select_records(capture, folder, options)
    views = {split: views_of(capture, records[split], split, options) for split in SPLITS}
    splits = make_splits(records, views, options, cache)
    return Dataset(
        train=splits["train"],
        val=splits["val"],
        test=splits["test"],
        motion=capture.motion,
        source=folder,
        format=capture.format,
        fingerprint=fingerprint_of(capture, folder),
        edition=capture.edition,
        sequence_starts=capture.sequence_starts,
        points=capture.points,
        notes=capture.notes,
    )


def select_camera(records: Sequence[FrameRecord], options: DataOptions) -> list[FrameRecord]:
    """Frames of the camera that `--select_camera_id` names by index or else by id; all of them for -1."""
    wanted = str(options.select_camera_id)
    if wanted == "-1":
        return list(records)
    by_index = [record for record in records if record.camera_index is not None and str(record.camera_index) == wanted]
    return by_index or [record for record in records if record.camera_id == wanted]


def select_records(capture: Capture, folder: Path, options: DataOptions) -> dict[str, list[FrameRecord]]:
    """The frames of the selected camera, by split.

    Raises:
        InputError: there is no such camera.
    """
    kept = {split: select_camera(capture.records[split], options) for split in SPLITS}
    if not any(kept.values()):
        cameras = sorted({record.camera_id for record in capture.everything})
        problem = f"found no camera {options.select_camera_id!r} in {folder}"
        raise InputError("command line", "--select_camera_id", problem, f"Its cameras: {', '.join(cameras)}.")
    return kept


def views_of(capture: Capture, records: Sequence[FrameRecord], split: str, options: DataOptions) -> list[View]:
    """The views of some frames of a capture, their cameras scaled to the stored pictures."""
    far = SCENE_FAR if capture.points else Camera.far
    return [make_view(record, split, options, far) for record in records]


def make_splits(
    records: Mapping[str, list[FrameRecord]], views: Mapping[str, list[View]], options: DataOptions, cache: Path
) -> dict[str, Split]:
    """Decode every picture once and deal the frames out."""
    everything = [(record, view) for split in SPLITS for record, view in zip(records[split], views[split], strict=True)]
    pictures: dict[Picture, int] = {}
    slots = [pictures.setdefault(make_picture(record, options), len(pictures)) for record, _ in everything]
    store = open_store(list(pictures), cache, int(options.image_memory_gb * 2**30))
    background = background_colour(options.white_background)

    def deal(members: Sequence[str]) -> Split:
        chosen = [i for i, (_, view) in enumerate(everything) if view.split in members]
        return Split([everything[i][1] for i in chosen], [slots[i] for i in chosen], store, background)

    if not options.eval:  # nothing is held out, so nothing may be reported as held out
        return {"train": deal(SPLITS), "val": deal([]), "test": deal([])}
    return {split: deal([split]) for split in SPLITS}


def make_picture(record: FrameRecord, options: DataOptions) -> Picture:
    """How the picture of a frame is to be stored."""
    size = (record.intrinsics.width, record.intrinsics.height)
    background = 255 if options.white_background else 0
    return Picture(record.image, record.mask, size, target_size(*size, options.resolution), background)


def make_view(record: FrameRecord, split: str, options: DataOptions, far: float) -> View:
    """The view of a frame; `far`: what lies beyond isn't drawn."""
    stored = record.intrinsics.resized(*make_picture(record, options).target)
    return View(
        camera=make_camera(record.world_to_camera, stored, far),
        timestep=record.timestep,
        camera_index=record.camera_index,
        camera_id=record.camera_id,
        name=record.image.stem,
        image=record.image,
        mask=record.mask,
        flame_param=record.flame_param,
        split=split,
    )


def fingerprint_of(capture: Capture, folder: Path) -> str:
    """SHA-256 over the capture's files and the sizes of the pictures; the same wherever the folder lies."""
    digest = hashlib.sha256(capture.format.encode())
    for file in capture.files:
        try:
            digest.update(hashlib.sha256(file.read_bytes()).digest())
        except OSError as error:
            raise InputError(file, "", f"can't be read: {error.strerror or error}") from error
    sizes = [(r.image.stat().st_size, r.mask.stat().st_size if r.mask else -1) for r in capture.everything]
    digest.update(repr(sizes).encode())
    return digest.hexdigest()
