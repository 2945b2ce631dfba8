"""Static scenes in the layout of NeRF's synthetic data (Mildenhall et al., 2020) and instant-ngp: `transforms_*.json`.

They are unbound: no rig, no motion. Unlike in a VHAP export, cy counts from the top, sizes may be missing (the pictures
tell), and fields of the camera may stand at the top of the file for all frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from scene.cameras import Intrinsics
from scene.datasets.capture import SPLITS, Capture, FrameRecord
from scene.datasets.frame_records import read_camera_id, read_camera_index, read_intrinsics, read_pose
from scene.datasets.options import DataOptions
from scene.datasets.paths import Paths, find_paths, is_there
from scene.datasets.picture_size import fit, read_picture_header, resizing_notes
from utils.contracts import Points
from utils.errors import InputError
from utils.io.json_files import JsonObject, read_json
from utils.io.point_ply import read_point_ply
from utils.maths.random import generator

TRAIN = "transforms_train.json"
CAMERA_FIELDS = ("w", "h", "fl_x", "fl_y", "cx", "cy", "camera_angle_x", "camera_angle_y")
FOCAL_FIELDS = (("fl_x", "camera_angle_x"), ("fl_y", "camera_angle_y"))  # either of a pair says the same
LENS_FIELDS = ("k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2")
PERSPECTIVE = ("PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "FULL_OPENCV")
POINT_FILES = ("points3d.ply", "points3D.ply", "sparse_pc.ply")
# 3DGS starts so where there is no point cloud. Grey matters: from random colours, held-out views were never learnt
# (11 dB instead of 27 on 20 pictures of 64 x 64).
RANDOM_POINTS, CUBE, GREY = 100_000, 1.3, 0.5


def recognise(folder: Path) -> str | None:
    """Why `folder` is no such scene, or None if it is one."""
    return None if (folder / TRAIN).is_file() else f"no {TRAIN}"


def read(folder: Path, options: DataOptions) -> Capture:
    """Read the transforms files in `folder` and the point cloud beside them, if there is one.

    Raises:
        InputError: a file is missing or damaged, a field is not what it must be, a lens is distorted, the scene moves.
    """
    paths = find_paths(folder, options)
    frames, records, sizes, files = [], {}, [], []
    for split in SPLITS:
        path = folder / f"transforms_{split}.json"
        records[split] = []
        if not is_there(path, split):
            continue
        files.append(path)
        top = JsonObject.of(path, "", read_json(path))
        for frame in top.objects("frames"):
            record, declared = read_frame(frame, top, paths)
            records[split].append(record)
            sizes.append((declared, record.intrinsics))
            frames.append(frame)
    if not records["train"]:
        raise InputError(folder / TRAIN, "frames", "is empty, expected at least one frame")
    check_static(frames)
    points, point_files, notes = read_points(folder)
    return Capture(
        format="blender",
        records=records,
        files=(*files, *point_files),
        points=points,
        notes=(*notes, *resizing_notes(sizes)),
    )


def read_frame(frame: JsonObject, top: JsonObject, paths: Paths) -> tuple[FrameRecord, Intrinsics]:
    """A frame's record, and its pinhole at the size that the file declares (without one: the picture's)."""
    check_lens(top)
    check_lens(frame)
    world_to_camera = read_pose(frame)
    image = paths.file(frame, "file_path", paths.image)
    header = read_picture_header(image)
    camera = camera_fields(frame, top, {"w": header.width, "h": header.height})
    declared = read_intrinsics(camera, cy_from_top=True)
    record = FrameRecord(
        place=frame,
        timestep=0,
        camera_index=read_camera_index(frame),
        camera_id=read_camera_id(frame),
        intrinsics=fit(declared, header, image, camera, "w"),
        world_to_camera=world_to_camera,
        image=image,
        mask=None,
    )
    return record, declared


def camera_fields(frame: JsonObject, top: JsonObject, size: Mapping[str, int]) -> JsonObject:
    """The fields of a frame's camera: its own, else those at the top of the file, else the picture's size."""
    own = {name: frame.value[name] for name in CAMERA_FIELDS if frame.has(name)}
    shared = {name: top.value[name] for name in CAMERA_FIELDS if top.has(name)}
    for pair in FOCAL_FIELDS:
        if any(name in own for name in pair):
            shared = {name: value for name, value in shared.items() if name not in pair}
    fields: dict[str, Any] = {**size, **shared, **own}
    return JsonObject(frame.source, frame.where if own else "", fields)


def check_lens(place: JsonObject) -> None:
    """Refuse a lens that is no pinhole."""
    bent = {name: place.number(name) for name in LENS_FIELDS if place.has(name)}
    fisheye = place.has("is_fisheye") and place.value["is_fisheye"] is not False
    unknown = place.has("camera_model") and place.text("camera_model") not in PERSPECTIVE
    if any(bent.values()) or fisheye or unknown:
        model = place.text("camera_model") if place.has("camera_model") else "fisheye" if fisheye else "perspective"
        found = ", ".join([model, *(f"{name}={value:g}" for name, value in bent.items() if value)])
        raise place.error(next((k for k, v in bent.items() if v), "camera_model" if unknown else "is_fisheye"),
                          f"found a distorted lens ({found}), expected a pinhole",
                          "Undistort the pictures, for instance with colmap image_undistorter.")  # fmt: skip


def check_static(frames: Sequence[JsonObject]) -> None:
    """Refuse what this format can't mean: several moments, or the motion of a head."""
    for frame in frames:
        if frame.has("flame_param_path"):
            advice = "A head capture has canonical_flame_param.npz beside the transforms: export or copy it."
            raise frame.error("flame_param_path", "found the motion of a head in a static scene", advice)
        for field in ("time", "timestep_index"):
            if frame.value.get(field) != frames[0].value.get(field):
                problem = f"found {frame.value.get(field)} here and {frames[0].value.get(field)} in the first frame"
                raise frame.error(field, problem, "The scene moves; only static scenes can be unbound.")


def read_points(folder: Path) -> tuple[Points, tuple[Path, ...], tuple[str, ...]]:
    """Where the scene starts from, the file it was read from if there is one, and what to tell users."""
    for path in (folder / name for name in POINT_FILES):
        if path.exists():
            positions, colours = read_point_ply(path)
            if not len(positions):
                advice = f"Remove the file to start from {RANDOM_POINTS} random points."
                raise InputError(path, "vertex", "holds no points, expected at least one", advice)
            return Points(torch.tensor(positions), torch.tensor(colours).float() / 255.0), (path,), ()
    positions = generator(0, "points of a scene that has none").uniform(-CUBE, CUBE, (RANDOM_POINTS, 3))
    note = f"no point cloud beside the cameras: starts from {RANDOM_POINTS} random points in [-{CUBE}, {CUBE}]^3"
    return Points(torch.tensor(positions).float(), torch.full((RANDOM_POINTS, 3), GREY)), (), (note,)
