"""One entry of `frames` in a transforms JSON: its fields, their checks and their conventions."""

from __future__ import annotations

import os
from collections.abc import Callable
from math import pi, tan
from pathlib import Path
from typing import Any

import numpy as np

from scene.cameras import Intrinsics, opencv_from_opengl, rigid_fault
from scene.datasets.capture import FrameRecord
from scene.datasets.paths import Paths, existing
from utils.io.images import MAX_PIXELS
from utils.io.json_files import JsonObject

MAX_TIMESTEP = 10_000_000
MAX_SIDE = 65_535  # pixels


def read_frame(place: JsonObject, paths: Paths) -> FrameRecord:
    """Check one frame object and bring it into our conventions.

    Raises:
        InputError: a field is missing, of the wrong type, not finite or out of range; the matrix is not rigid; a file
            does not exist or lies outside the data root.
    """
    return FrameRecord(place=place, **{name: read(place, paths) for name, read in FIELDS.items()})


def read_pose(place: JsonObject) -> np.ndarray:
    """World-to-camera [4, 4] with OpenCV axes from the camera-to-world matrix with OpenGL axes."""
    return opencv_from_opengl(read_camera_to_world(place))


def read_camera_to_world(place: JsonObject) -> np.ndarray:
    """`transform_matrix` [4, 4] as it stands, float64, checked to be rigid."""
    matrix = place.matrix("transform_matrix", 4, 4)
    if fault := rigid_fault(matrix):
        raise place.error("transform_matrix", fault, "Export the cameras as rigid camera-to-world matrices.")
    return matrix


def read_camera_index(place: JsonObject) -> int | None:
    """`camera_index`, which trajectories of the original's viewer spell `camera_indx`."""
    field = next((name for name in ("camera_index", "camera_indx") if place.has(name)), None)
    return None if field is None else place.integer(field, 0, MAX_TIMESTEP)


def read_camera_id(place: JsonObject) -> str:
    """`camera_id`; where it is missing, the index in words."""
    if place.has("camera_id"):
        return place.text("camera_id")
    index = read_camera_index(place)
    return "0" if index is None else str(index)


def read_mask(place: JsonObject, paths: Paths) -> Path | None:
    """The matte, or None if the dataset was exported without mattes (no field, or no such folder)."""
    if not place.has("fg_mask_path"):
        return None
    path = paths.inside(place, "fg_mask_path")
    return existing(place, "fg_mask_path", path) if os.path.isdir(path.parent) else None


def read_intrinsics(place: JsonObject, cy_from_top: bool = False) -> Intrinsics:
    """The pinhole of a frame, cy from the top.

    In a VHAP export cy counts from the bottom, in other formats from the top (`cy_from_top`). A missing principal point
    is the centre. A missing fl_x follows from camera_angle_x; a missing fl_y from camera_angle_y, else it is fl_x.
    """
    size = read_size(place)
    return Intrinsics(*read_focal_lengths(place, size), *read_principal_point(place, size, cy_from_top), *size)


def read_size(place: JsonObject) -> tuple[int, int]:
    """Width and height in pixels."""
    width, height = place.integer("w", 1, MAX_SIDE), place.integer("h", 1, MAX_SIDE)
    if width * height > MAX_PIXELS:
        raise place.error("w", f"found {width}x{height} pixels, expected at most {MAX_PIXELS} pixels")
    return width, height


def read_focal_lengths(place: JsonObject, size: tuple[int, int]) -> tuple[float, float]:
    """Focal lengths along x and y in pixels of a picture of `size`."""
    if not place.has("fl_x") and not place.has("camera_angle_x"):
        raise place.error("fl_x", "is missing, and so is camera_angle_x", "One of the two must be given.")
    fx = _focal(place, "fl_x", "camera_angle_x", size[0])
    has_vertical = place.has("fl_y") or place.has("camera_angle_y")
    return fx, _focal(place, "fl_y", "camera_angle_y", size[1]) if has_vertical else fx


def read_principal_point(place: JsonObject, size: tuple[int, int], cy_from_top: bool = False) -> tuple[float, float]:
    """cx from the left and cy from the top, in pixels of a picture of `size`; how the file counts cy: `cy_from_top`."""
    width, height = size
    cx = place.number("cx") if place.has("cx") else width / 2
    cy = place.number("cy") if place.has("cy") else height / 2
    cy = cy if cy_from_top else height - cy
    for axis, value, side in (("cx", cx, width), ("cy", cy, height)):
        if not abs(value) <= 100 * side:
            raise place.error(axis, f"found a principal point at {value:g} px of {side}, expected near the centre")
    return cx, cy


def _focal(place: JsonObject, length_field: str, angle_field: str, side: int) -> float:
    """Focal length in pixels, from a length, or from the angle of view over `side` pixels."""
    if place.has(angle_field):
        angle = place.number(angle_field)
        if not 1e-6 < angle < pi - 1e-6:  # beyond, the tangent is 0 or infinite
            raise place.error(angle_field, f"found {angle:g}, expected an angle in (0, pi) radians")
        focal = side / (2.0 * tan(angle / 2.0))
    if place.has(length_field):
        focal = place.number(length_field)
    if not 1e-3 <= focal <= 1e9:
        raise place.error(length_field, f"found {focal:g} px, expected a positive focal length")
    return focal


# What is read of a frame, in the order in which faults are reported.
FIELDS: dict[str, Callable[[JsonObject, Paths], Any]] = {
    "world_to_camera": lambda place, paths: read_pose(place),
    "timestep": lambda place, paths: place.integer("timestep_index", 0, MAX_TIMESTEP),
    "camera_index": lambda place, paths: read_camera_index(place),
    "camera_id": lambda place, paths: read_camera_id(place),
    "intrinsics": lambda place, paths: read_intrinsics(place),
    "image": lambda place, paths: paths.file(place, "file_path", paths.image),
    "mask": read_mask,
    "flame_param": lambda place, paths: paths.file(place, "flame_param_path"),
}
