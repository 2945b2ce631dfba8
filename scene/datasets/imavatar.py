"""IMavatar's dataset: `flame_params.json`, pictures and mattes of one or more videos of a head.

PointAvatar, MonoGaussianAvatar and SplattingAvatar read the same. Conventions: IMavatar (MIT), its FaceDataset and
preprocessing; docs/formats.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scene.cameras import Intrinsics, rigid_fault
from scene.datasets.capture import SPLITS, Capture, FrameRecord, train_count
from scene.datasets.options import DataOptions
from scene.datasets.paths import IMAGE_SUFFIXES, Paths, existing, find_paths
from scene.datasets.picture_size import read_picture_header
from utils.contracts import Motion
from utils.io.json_files import JsonObject, is_number, kind, read_json

PARAMETERS = "flame_params.json"
EDITION = "FLAME 2020"
MESH_SCALE = 4.0  # IMavatar's head is four times FLAME's
OLD_SIDE = 512  # pixels: the picture that old files give their intrinsics for
# The videos that the released subjects are measured on, and those that are named for it.
TEST_VIDEOS = ("test", "MVI_1812", "MVI_1802")
VAL_VIDEOS = ("val",)
POSE = {"rotation": slice(0, 3), "neck_pose": slice(3, 6), "jaw_pose": slice(6, 9), "eyes_pose": slice(9, 15)}


@dataclass(frozen=True)
class Video:
    """One `flame_params.json`: row t of every array belongs to record t."""

    folder: Path
    records: list[FrameRecord]  # their timesteps count from 0 in this video
    place: JsonObject
    shape: np.ndarray  # [S]
    expression: np.ndarray  # [T, E]
    pose: np.ndarray  # [T, 15] axis-angle: global, neck, jaw, left eye, right eye


def recognise(folder: Path) -> str | None:
    """Why `folder` is not such a dataset, or None if it is one."""
    return None if find_videos(folder) else f"no {PARAMETERS} in it or in its folders"


def find_videos(folder: Path) -> list[Path]:
    """The folders of the videos: this one, or those inside that have parameters. Test comes last, train first."""
    if (folder / PARAMETERS).is_file():
        return [folder]
    found = sorted(path.parent for path in folder.glob(f"*/{PARAMETERS}") if path.is_file())
    return sorted(found, key=lambda path: SPLITS.index(split_of(path.name)))


def split_of(video: str) -> str:
    return "test" if video in TEST_VIDEOS else "val" if video in VAL_VIDEOS else "train"


def read(folder: Path, options: DataOptions) -> Capture:
    """Read the videos in `folder`, one after the other.

    World and camera are IMavatar's, divided by its scale of 4, so that FLAME stays in metres. Its camera looks along -z
    with y up and a negative fx: u = w (fx X / Z + cx), v = h (fy Y / Z + cy) with Z < 0. Turning the camera about x by
    180 degrees (rows y and z of w2c negated) makes both depths positive: u = w (-fx X / Z + cx), v = h (fy Y / Z + cy).
    """
    paths = find_paths(folder, options)
    videos = [read_video(path, paths.root, paths.images) for path in find_videos(folder)]
    check_alike(videos)
    starts = np.cumsum([0, *(len(video.records) for video in videos)]).tolist()
    records, notes = split_videos(videos, starts)
    if bare := [video.folder.name for video in videos if video.records[0].mask is None]:
        notes += (f"mattes: none, there is no folder mask in {', '.join(bare)}",)
    return Capture(
        format="imavatar",
        records=records,
        files=[video.folder / PARAMETERS for video in videos],
        motion=make_motion(videos),
        edition=EDITION,
        sequence_starts=tuple(starts[:-1]),
        notes=notes,
    )


def read_video(folder: Path, root: Path, images: str) -> Video:
    """Read and check one `flame_params.json`."""
    place = JsonObject.of(folder / PARAMETERS, "", read_json(folder / PARAMETERS))
    frames = place.objects("frames")
    if not frames:
        raise place.error("frames", "is empty, expected at least one frame")
    paths = Paths(folder.resolve(), root, images)
    pictures = [paths.file(frame, "file_path", lambda path: picture_path(path, images)) for frame in frames]
    owners: dict[Path, JsonObject] = {}
    for frame, picture in zip(frames, pictures, strict=True):
        if owners.setdefault(picture, frame) is not frame:
            raise frame.error("file_path", f"found {picture}, which is the picture of {owners[picture].where} too")
    intrinsics = read_intrinsics(place, pictures[0])
    expressions = [numbers(frame, "expression", 1, 1000) for frame in frames]
    for frame, expression in zip(frames, expressions, strict=True):
        if len(expression) != len(expressions[0]):
            raise frame.error("expression", f"found {len(expression)} numbers, expected {len(expressions[0])}")
    records = [
        FrameRecord(
            place=frame,
            timestep=timestep,
            camera_index=0,
            camera_id="0",
            intrinsics=intrinsics,
            world_to_camera=read_camera(frame),
            image=picture,
            mask=read_mask(frame, paths, picture),
        )
        for timestep, (frame, picture) in enumerate(zip(frames, pictures, strict=True))
    ]
    shape = numbers(place, "shape_params", 1, 300)
    poses = np.stack([numbers(frame, "pose", 15, 15) for frame in frames])
    return Video(folder, records, place, shape, np.stack(expressions), poses)


def picture_path(path: Path, images: str) -> Path:
    """`file_path` has no suffix; `--images` names another folder than `image`."""
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        path = path.with_name(path.name + ".png")
    return path if images == DataOptions.images else path.parent.with_name(images) / path.name


def read_mask(frame: JsonObject, paths: Paths, picture: Path) -> Path | None:
    """The matte in `mask/`, or None if there is no such folder."""
    folder = paths.folder / "mask"
    return existing(frame, "file_path", folder / f"{picture.stem}.png") if folder.is_dir() else None


def read_intrinsics(place: JsonObject, picture: Path) -> Intrinsics:
    """The pinhole for the pictures of a video, whose size only the pictures tell.

    Old files hold pixels of a picture of 512 x 512, newer ones shares of the sides. A principal point beyond 1 tells
    them apart, as in IMavatar.
    """
    fx, fy, cx, cy = numbers(place, "intrinsics", 4, 4)
    if (cx > 1) != (cy > 1):
        raise place.error("intrinsics", f"found cx {cx:g} and cy {cy:g}, expected both in pixels or both below 1")
    if cy > 1:
        fx, fy, cx, cy = (value / OLD_SIDE for value in (fx, fy, cx, cy))
    if not -1e6 < fx < -1e-3 or not 1e-3 < fy < 1e6:
        problem = f"found fx {fx:g} and fy {fy:g} (shares of the sides), expected fx < 0 < fy"
        raise place.error("intrinsics", problem, "IMavatar stores the focal length in x negated.")
    if not (0 <= cx <= 1 and 0 <= cy <= 1):
        raise place.error("intrinsics", f"found a principal point at {cx:g}, {cy:g} of the sides, expected 0 to 1")
    header = read_picture_header(picture)
    width, height = header.width, header.height
    return Intrinsics(-fx * width, fy * height, cx * width, cy * height, width, height)


def read_camera(frame: JsonObject) -> np.ndarray:
    """[4, 4] OpenCV world-to-camera matrix in metres of FLAME's size."""
    matrix = np.eye(4)
    matrix[:3] = frame.matrix("world_mat", 3, 4)
    if fault := rigid_fault(matrix):
        raise frame.error("world_mat", fault, "It must be a rigid world-to-camera matrix.")
    if not matrix[2, 3] < 0:
        problem = f"found {matrix[2, 3]:g} for the head's z in the camera, expected a negative number (about -4)"
        raise frame.error("world_mat[2][3]", problem, "IMavatar's camera looks along -z.")
    matrix[1:3] *= -1
    matrix[:3, 3] /= MESH_SCALE
    return matrix


def numbers(place: JsonObject, field: str, low: int, high: int) -> np.ndarray:
    """A list of `low` to `high` finite numbers, float64."""
    expected = f"{low} numbers" if low == high else f"{low} to {high} numbers"
    value: Any = place.value.get(field)
    if value is None:
        raise place.error(field, f"is missing, expected a list of {expected}")
    if not isinstance(value, list) or not low <= len(value) <= high:
        raise place.error(field, f"found {kind(value)}, expected a list of {expected}")
    for i, number in enumerate(value):
        if not is_number(number) or abs(number) > 1e30:
            raise place.error(f"{field}[{i}]", f"found {kind(number)}, expected a finite number")
    return np.array(value, np.float64)


def check_alike(videos: Sequence[Video]) -> None:
    """Refuse videos of different identities: an avatar has one, and IMavatar fits it once per subject."""
    first = videos[0]
    for video in videos[1:]:
        if video.shape.shape != first.shape.shape or not np.allclose(video.shape, first.shape, rtol=0, atol=1e-5):
            problem = f"differs from that of {first.folder / PARAMETERS}, expected one identity"
            raise video.place.error("shape_params", problem, "Read one video: -s FOLDER/VIDEO.")
        if video.expression.shape[1] != first.expression.shape[1]:
            problem = f"found {video.expression.shape[1]} numbers, {first.folder / PARAMETERS} has "
            raise video.place.error("frames[0].expression", f"{problem}{first.expression.shape[1]}")


def split_videos(
    videos: Sequence[Video], starts: Sequence[int]
) -> tuple[dict[str, list[FrameRecord]], tuple[str, ...]]:
    """Records by split with timesteps of the whole dataset, and notes on how they were dealt."""
    records: dict[str, list[FrameRecord]] = {split: [] for split in SPLITS}
    whole = {split_of(video.folder.name) for video in videos} >= {"train", "test"}
    for video, start in zip(videos, starts, strict=False):
        end = train_count(len(video.records))
        for record in video.records:
            tail = "test" if record.timestep >= end else "train"
            split = split_of(video.folder.name) if whole else tail
            records[split].append(replace(record, timestep=start + record.timestep))
    named = ", ".join(video.folder.name for video in videos if split_of(video.folder.name) == "test")
    if whole:
        return records, (f"splits: test is the video {named}",)
    return records, ("splits: no video is named for testing; test is the last 30 % of every video",)


def make_motion(videos: Sequence[Video]) -> Motion:
    """FLAME parameters of all videos; the head never moves as a whole, the camera does."""
    poses = np.concatenate([video.pose for video in videos])
    per_frame = {name: poses[:, columns] for name, columns in POSE.items()}
    per_frame["translation"] = np.zeros((len(poses), 3))
    per_frame["expr"] = np.concatenate([video.expression for video in videos])
    return Motion(
        {name: torch.tensor(values, dtype=torch.float32) for name, values in per_frame.items()},
        {"shape": torch.tensor(videos[0].shape, dtype=torch.float32)},
    )
