"""Static scenes that COLMAP reconstructed: `sparse/` and a picture folder. They are unbound: no rig, no motion."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from scene.cameras import Intrinsics, pinhole_fault
from scene.datasets.capture import Capture, FrameRecord
from scene.datasets.colmap_files import ColmapCamera, ColmapImage, ColmapModel, read_model
from scene.datasets.options import DataOptions
from scene.datasets.paths import Paths, find_paths
from scene.datasets.picture_size import fit, read_picture_header, resizing_notes
from utils.contracts import Points
from utils.errors import InputError
from utils.maths.rotations import quaternion_to_matrix

TEST_EVERY = 8  # pictures in the order of their names, from the first: as 3DGS holds them out
PERSPECTIVE = ("SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "FULL_OPENCV", "FOV")
UNDISTORT = (
    "Undistort: colmap image_undistorter --image_path IMAGES --input_path SPARSE/0 --output_path NEW, then use NEW."
)


def recognise(folder: Path) -> str | None:
    """Why `folder` is no COLMAP scene, or None if it is one."""
    return None if (folder / "sparse").is_dir() else "no folder sparse"


def read(folder: Path, options: DataOptions) -> Capture:
    """Read the model in `sparse/0` (or `sparse`) and find its pictures in the folder `options.images`.

    Lenses must be free of distortion. Pictures may be resized copies; their cameras follow. With `options.eval` every
    8th picture, by name, is held out for testing; there is no val split.

    Raises:
        InputError: a file is missing or damaged, a lens is distorted, a picture is missing, cropped or lies outside the
            folder, or there is nothing to start from.
    """
    paths = find_paths(folder, options)
    sparse = folder / "sparse"
    model = read_model(sparse / "0" if (sparse / "0").is_dir() else sparse)
    if not model.images:
        raise InputError(model.files[1], "", "registers no picture, expected at least one", "Run colmap mapper.")
    if not len(model.positions):
        advice = "Gaussians start from the points: run colmap point_triangulator, or export the model with its points."
        raise InputError(model.files[2], "", "holds no points, expected at least one", advice)
    pinholes = {number: pinhole(model.cameras[number]) for number in used_cameras(model)}
    records, sizes = [], []
    for image in sorted(model.images, key=lambda image: image.name):
        declared = pinholes[image.camera_id]
        records.append(make_record(image, declared, picture_path(image, paths), model.cameras[image.camera_id]))
        sizes.append((declared, records[-1].intrinsics))
    splits = {"train": [], "val": [], "test": []}
    for index, record in enumerate(records):
        splits["train" if index % TEST_EVERY else "test"].append(record)
    if options.eval and not splits["train"]:
        problem = "has one picture, which --eval holds out; expected at least two"
        raise InputError(model.files[1], "", problem, "Train without --eval.")
    return Capture(
        format="colmap",
        records=splits,
        files=model.files,
        points=Points(torch.tensor(model.positions, dtype=torch.float32), torch.tensor(model.colours / 255.0).float()),
        notes=(*other_models(sparse), *resizing_notes(sizes)),
    )


def used_cameras(model: ColmapModel) -> list[int]:
    """Ids of the cameras that took a registered picture."""
    for image in model.images:
        if image.camera_id not in model.cameras:
            problem = f"found {image.camera_id}, but {model.files[0].name} has no such camera"
            raise image.place.error("CAMERA_ID", problem, "Copy both files from one model.")
    return sorted({image.camera_id for image in model.images})


def pinhole(camera: ColmapCamera) -> Intrinsics:
    """The pinhole that a camera is.

    A perspective model whose distortion is exactly zero is one; a fisheye is none whatever its coefficients.
    """
    values = dict(camera.parameters)
    fx, fy = (values.pop("f"),) * 2 if "f" in values else (values.pop("fx"), values.pop("fy"))
    cx, cy = values.pop("cx"), values.pop("cy")
    if camera.model not in PERSPECTIVE or any(values.values()):
        bent = ", ".join(f"{name}={value:g}" for name, value in values.items())
        problem = f"found camera {camera.id} with a distorted lens ({camera.model}: {bent}), expected a pinhole"
        raise camera.place.error("MODEL", problem, UNDISTORT)
    found = Intrinsics(fx, fy, cx, cy, camera.width, camera.height)
    if fault := pinhole_fault(found):
        raise camera.place.error("PARAMS", fault)
    return found


def picture_path(image: ColmapImage, paths: Paths) -> Path:
    """The picture's file.

    Raises:
        InputError: its name is absolute or climbs, a link leads out of the data root, or there is no such file.
    """
    name = PurePosixPath(image.name)
    if not image.name.isprintable() or not name.name or name.is_absolute() or ".." in name.parts or "\\" in image.name:
        problem = f"found {image.name[:200]!r}, expected a path inside the picture folder, with forward slashes"
        raise image.place.error("NAME", problem)
    folder = paths.folder / paths.images
    path = folder / name
    if not os.path.isfile(path):
        advice = "Name the picture folder: --images FOLDER." if not folder.is_dir() else "Copy all pictures."
        raise image.place.error("NAME", f"{path} does not exist", advice)
    real = path.resolve()
    if not real.is_relative_to(paths.root):
        advice = "If that is meant, pass --data_root with a folder that contains both."
        raise image.place.error("NAME", f"{real} lies outside {paths.root}", advice)
    return path


def make_record(image: ColmapImage, declared: Intrinsics, path: Path, camera: ColmapCamera) -> FrameRecord:
    world_to_camera = np.eye(4)
    world_to_camera[:3, :3] = quaternion_to_matrix(torch.tensor(image.quaternion)).numpy()
    world_to_camera[:3, 3] = image.translation
    return FrameRecord(
        place=image.place,
        timestep=0,
        camera_index=None,  # ids of COLMAP are not positions, and --select_camera_id asks for positions first
        camera_id=str(camera.id),
        intrinsics=fit(declared, read_picture_header(path), path, camera.place, "WIDTH"),
        world_to_camera=world_to_camera,
        image=path,
        mask=None,
    )


def other_models(sparse: Path) -> tuple[str, ...]:
    """What to tell users if the reconstruction fell into several models: only the first is read."""
    others = sorted(path.name for path in sparse.iterdir() if path.is_dir() and path.name.isdigit() and int(path.name))
    return (f"only sparse/0 was read; sparse also holds {', '.join(others)}",) if others else ()
