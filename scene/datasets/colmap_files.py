"""COLMAP's sparse models: cameras, images and points3D, in binary (`.bin`) or text (`.txt`).

Formats as COLMAP's documentation describes them (colmap.github.io/format.html). Binary numbers are little-endian and
counts have 64 bits, so a count is held against the bytes that are left before anything is made of it.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from scene.cameras import FARTHEST
from scene.datasets.capture import FilePlace
from scene.datasets.frame_records import MAX_SIDE
from utils.errors import InputError
from utils.io.images import MAX_PIXELS
from utils.io.json_files import read_bytes

MAX_BYTES = 1 << 33
MAX_ID = 2**32 - 1
MAX_DISTANCE = 1e9  # of a point from the origin; float32 squares it
UNIT_TOLERANCE = 1e-3
AGAIN = "Copy the file or export the model again."
PARTS = ("cameras", "images", "points3D")

# Number in binary files -> name and parameters. Those after the focal lengths and the centre bend rays.
MODELS: dict[int, tuple[str, str]] = {
    0: ("SIMPLE_PINHOLE", "f cx cy"),
    1: ("PINHOLE", "fx fy cx cy"),
    2: ("SIMPLE_RADIAL", "f cx cy k"),
    3: ("RADIAL", "f cx cy k1 k2"),
    4: ("OPENCV", "fx fy cx cy k1 k2 p1 p2"),
    5: ("OPENCV_FISHEYE", "fx fy cx cy k1 k2 k3 k4"),
    6: ("FULL_OPENCV", "fx fy cx cy k1 k2 p1 p2 k3 k4 k5 k6"),
    7: ("FOV", "fx fy cx cy omega"),
    8: ("SIMPLE_RADIAL_FISHEYE", "f cx cy k"),
    9: ("RADIAL_FISHEYE", "f cx cy k1 k2"),
    10: ("THIN_PRISM_FISHEYE", "fx fy cx cy k1 k2 p1 p2 k3 k4 sx1 sy1"),
    11: ("RAD_TAN_THIN_PRISM_FISHEYE", "fx fy cx cy k0 k1 k2 k3 k4 k5 p0 p1 s0 s1 s2 s3"),
}
PARAMETERS = {name: parameters.split() for name, parameters in MODELS.values()}

COUNT = struct.Struct("<Q")
CAMERA = struct.Struct("<IiQQ")  # id, model, width, height; then the parameters
IMAGE = struct.Struct("<I4d3dI")  # id, quaternion, translation, camera; then the name and the points
POINT = np.dtype([("id", "<u8"), ("xyz", "<f8", 3), ("rgb", "u1", 3), ("error", "<f8"), ("track", "<u8")])
POINT_2D_BYTES, TRACK_BYTES = 24, 8  # of an image's point, of an entry of a point's track


@dataclass(frozen=True)
class ColmapCamera:
    """A camera of the model; its parameters by their names in `MODELS`."""

    place: FilePlace
    id: int
    model: str
    width: int
    height: int
    parameters: dict[str, float]


@dataclass(frozen=True)
class ColmapImage:
    """A registered picture: where its camera stood (world to camera, OpenCV axes)."""

    place: FilePlace
    id: int
    quaternion: np.ndarray  # [4] float64 (w, x, y, z), unit length
    translation: np.ndarray  # [3] float64
    camera_id: int
    name: str  # path inside the picture folder, not yet judged


@dataclass(frozen=True)
class ColmapModel:
    """A sparse model. The tracks, which tell what picture saw what point, are left out."""

    cameras: dict[int, ColmapCamera]
    images: list[ColmapImage]
    positions: np.ndarray  # [N, 3] float64
    colours: np.ndarray  # [N, 3] uint8
    files: tuple[Path, Path, Path]  # cameras, images, points3D


def read_model(folder: Path) -> ColmapModel:
    """Read the sparse model in `folder`; binary files are preferred to text, as COLMAP does.

    Raises:
        InputError: a file is missing, cut or damaged; names the file, the record (from 0) or line (from 1), the field.
    """
    for suffix in (".bin", ".txt"):
        files = [folder / f"{part}{suffix}" for part in PARTS]
        if all(file.exists() for file in files):
            break
    else:
        names = sorted(path.name for path in folder.iterdir() if path.stem in PARTS)
        problem = f"found {', '.join(names) or 'no model'}, expected cameras, images and points3D, all .bin or all .txt"
        raise InputError(folder, "", problem, "Export the model with colmap model_converter.")
    cameras_file, images_file, points_file = files
    binary = suffix == ".bin"
    cameras = list(binary_cameras(cameras_file) if binary else text_cameras(cameras_file))
    images = list(binary_images(images_file) if binary else text_images(images_file))
    positions, colours = binary_points(points_file) if binary else text_points(points_file)
    check_unique(cameras, images)
    check_positions(points_file, positions)
    return ColmapModel(
        {camera.id: camera for camera in cameras}, images, positions, colours, (cameras_file, images_file, points_file)
    )


class BinaryReader:
    """A file in memory, read from front to back; whatever would reach beyond its end is an InputError."""

    def __init__(self, path: Path) -> None:
        self.path, self.data, self.position = path, read_bytes(path, MAX_BYTES), 0

    def place(self, where: str) -> FilePlace:
        return FilePlace(self.path, where)

    def skip(self, size: int, where: str, field: str) -> int:
        """Step over `size` bytes; returns where they begin."""
        start = self.position
        if size > len(self.data) - start:
            problem = f"needs {size} bytes from byte {start} on, but the file ends after {len(self.data) - start}"
            raise self.place(where).error(field, problem, AGAIN)
        self.position = start + size
        return start

    def take(self, form: struct.Struct, where: str, field: str) -> tuple[Any, ...]:
        return form.unpack_from(self.data, self.skip(form.size, where, field))

    def count(self, smallest: int, where: str, field: str) -> int:
        """A 64-bit count of things that take at least `smallest` bytes each."""
        (count,) = self.take(COUNT, where, field)
        left = len(self.data) - self.position
        if count > left // smallest:
            problem = f"found {count}, but the {left} bytes that follow hold at most {left // smallest}"
            raise self.place(where).error(field, problem, AGAIN)
        return count

    def text(self, where: str, field: str) -> str:
        """UTF-8 that ends with a zero byte."""
        end = self.data.find(b"\0", self.position)
        if end < 0:
            raise self.place(where).error(field, "does not end before the file does", AGAIN)
        data = self.data[self.skip(end + 1 - self.position, where, field) : end]
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            raise self.place(where).error(field, "found bytes that are not UTF-8") from None

    def finish(self) -> None:
        if left := len(self.data) - self.position:
            problem = f"found {left} bytes after the last record, expected the end of the file"
            raise self.place(f"byte {self.position}").error("", problem, AGAIN)


def binary_cameras(path: Path) -> Iterator[ColmapCamera]:
    reader = BinaryReader(path)
    for index in range(reader.count(CAMERA.size + 3 * 8, "", "number of cameras")):
        where = f"record {index}"
        number, model, width, height = reader.take(CAMERA, where, "camera")
        if model not in MODELS:
            raise reader.place(where).error("MODEL", f"found {model}, expected 0 to {max(MODELS)}", "Undistort it.")
        name, parameters = MODELS[model][0], PARAMETERS[MODELS[model][0]]
        values = reader.take(struct.Struct(f"<{len(parameters)}d"), where, "PARAMS")
        yield make_camera(reader.place(where), number, name, (width, height), values)
    reader.finish()


def binary_images(path: Path) -> Iterator[ColmapImage]:
    reader = BinaryReader(path)
    for index in range(reader.count(IMAGE.size + 1 + COUNT.size, "", "number of images")):
        where = f"record {index}"
        number, *pose, camera = reader.take(IMAGE, where, "image")
        name = reader.text(where, "NAME")
        points = reader.count(POINT_2D_BYTES, where, "number of points")
        reader.skip(POINT_2D_BYTES * points, where, "POINTS2D")
        yield make_image(reader.place(where), number, pose, camera, name)
    reader.finish()


def binary_points(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Positions [N, 3] float64 and colours [N, 3] uint8. Tracks differ in length, so records are found one by one."""
    reader = BinaryReader(path)
    count = reader.count(POINT.itemsize, "", "number of points")
    starts = np.empty(count, np.int64)
    for index in range(count):
        where = f"record {index}"
        starts[index] = reader.skip(POINT.itemsize - COUNT.size, where, "point")
        reader.skip(TRACK_BYTES * reader.count(TRACK_BYTES, where, "length of TRACK"), where, "TRACK")
    reader.finish()
    if not count:
        return np.empty((0, 3)), np.empty((0, 3), np.uint8)
    windows = np.lib.stride_tricks.sliding_window_view(np.frombuffer(reader.data, np.uint8), POINT.itemsize)
    rows = windows[starts].view(POINT)[:, 0]
    return np.ascontiguousarray(rows["xyz"]), np.ascontiguousarray(rows["rgb"])


@dataclass(frozen=True)
class TextRow:
    """The words of a line."""

    place: FilePlace
    words: list[str]

    def integer(self, column: int, field: str, high: int) -> int:
        """A whole number from 0 to `high`."""
        word = self.words[column]
        if not (word.isascii() and word.isdigit() and len(word) <= 20 and int(word) <= high):
            raise self.place.error(field, f"found {word[:40]!r}, expected an integer in [0, {high}]")
        return int(word)

    def numbers(self, first: int, last: int, field: str) -> list[float]:
        """The words in [first, last)."""
        words = self.words[first:last]
        try:
            if any("_" in word for word in words):  # Python reads 1_000, COLMAP does not
                raise ValueError
            return [float(word) for word in words]
        except ValueError:
            found = " ".join(words)[:80]
            raise self.place.error(field, f"found {found!r}, expected {last - first} numbers") from None


def text_lines(path: Path) -> Iterator[tuple[FilePlace, str]]:
    """Lines, stripped, without comments."""
    for number, line in enumerate(read_bytes(path, MAX_BYTES).split(b"\n"), start=1):
        place = FilePlace(path, f"line {number}")
        try:
            text = line.decode("utf-8").strip()
        except UnicodeDecodeError:
            raise place.error("", "found bytes that are not UTF-8", "Is this a binary file? Name it .bin.") from None
        if not text.startswith("#"):
            yield place, text


def text_cameras(path: Path) -> Iterator[ColmapCamera]:
    for place, line in text_lines(path):
        row = TextRow(place, line.split())
        if not row.words:
            continue
        if len(row.words) < 4:
            expected = "CAMERA_ID MODEL WIDTH HEIGHT PARAMS[]"
            raise place.error("", f"found {len(row.words)} words, expected {expected}", AGAIN)
        model = row.words[1]
        if model not in PARAMETERS:
            raise place.error("MODEL", f"found {model[:40]!r}, expected one of {', '.join(PARAMETERS)}")
        if len(row.words) != 4 + len(PARAMETERS[model]):
            expected = f"{len(PARAMETERS[model])} for {model} ({' '.join(PARAMETERS[model])})"
            raise place.error("PARAMS", f"found {len(row.words) - 4} numbers, expected {expected}", AGAIN)
        size = (row.integer(2, "WIDTH", 2**64), row.integer(3, "HEIGHT", 2**64))
        values = row.numbers(4, len(row.words), "PARAMS")
        yield make_camera(place, row.integer(0, "CAMERA_ID", MAX_ID), model, size, values)


def text_images(path: Path) -> Iterator[ColmapImage]:
    """Two lines each: the picture, then its points, which may be an empty line."""
    lines = text_lines(path)
    for place, line in lines:
        row = TextRow(place, line.split(maxsplit=9))
        if not row.words:
            continue
        if len(row.words) != 10:
            expected = "IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME"
            raise place.error("", f"found {len(row.words)} words, expected {expected}", AGAIN)
        points_place, points = next(lines, (place, ""))
        if words := len(points.split()) % 3:
            problem = f"found a line of {len(points.split())} words, expected (X, Y, POINT3D_ID) of the picture above"
            raise points_place.error("POINTS2D", problem + f", {words} too many", "Each picture takes two lines.")
        pose = row.numbers(1, 8, "QW QX QY QZ TX TY TZ")
        camera = row.integer(8, "CAMERA_ID", MAX_ID)
        yield make_image(place, row.integer(0, "IMAGE_ID", MAX_ID), pose, camera, row.words[9])


def text_points(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Positions [N, 3] float64 and colours [N, 3] uint8."""
    positions, colours = [], []
    for place, line in text_lines(path):
        row = TextRow(place, line.split())
        if not row.words:
            continue
        if len(row.words) < 8 or len(row.words) % 2:
            problem = f"found {len(row.words)} words, expected POINT3D_ID X Y Z R G B ERROR and pairs of TRACK[]"
            raise place.error("", problem, AGAIN)
        positions.append(row.numbers(1, 4, "X Y Z"))
        colours.append([row.integer(column, "RGB"[column - 4], 255) for column in (4, 5, 6)])
    return np.array(positions, np.float64).reshape(-1, 3), np.array(colours, np.uint8).reshape(-1, 3)


def make_camera(place: FilePlace, number: int, model: str, size: tuple[int, int], values: Any) -> ColmapCamera:
    """A camera whose numbers are finite and whose size is possible."""
    width, height = size
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE and width * height <= MAX_PIXELS):
        problem = f"found {width}x{height} pixels, expected 1 to {MAX_SIDE} each and at most {MAX_PIXELS} together"
        raise place.error("WIDTH", problem)
    parameters = dict(zip(PARAMETERS[model], values, strict=True))
    for name, value in parameters.items():
        if not np.isfinite(value):
            raise place.error(f"PARAMS ({name})", f"found {value}, expected a finite number")
    return ColmapCamera(place, number, model, width, height, parameters)


def make_image(place: FilePlace, number: int, pose: list[float], camera: int, name: str) -> ColmapImage:
    """A picture whose pose is rigid and near enough for float32."""
    quaternion, translation = np.array(pose[:4]), np.array(pose[4:])
    length = math.hypot(*quaternion)
    if not abs(length - 1.0) <= UNIT_TOLERANCE:
        raise place.error("QW QX QY QZ", f"found {pose[:4]} of length {length:g}, expected a unit quaternion")
    if not (np.abs(translation) <= FARTHEST).all():
        raise place.error("TX TY TZ", f"found {pose[4:]}, expected numbers up to {FARTHEST:g}")
    return ColmapImage(place, number, quaternion / length, translation, camera, name)


def check_unique(cameras: list[ColmapCamera], images: list[ColmapImage]) -> None:
    """Refuse ids and names that are given twice."""
    for field, records in (("CAMERA_ID", cameras), ("IMAGE_ID", images)):
        seen: set[int] = set()
        for record in records:
            if record.id in seen:
                raise record.place.error(field, f"found {record.id} a second time, expected each id once", AGAIN)
            seen.add(record.id)
    names: set[PurePosixPath] = set()  # where ./a.png is a.png
    for image in images:
        name = PurePosixPath(image.name)
        if name in names:
            raise image.place.error("NAME", f"found {image.name!r} a second time, expected each picture once", AGAIN)
        names.add(name)


def check_positions(path: Path, positions: np.ndarray) -> None:
    bad = np.flatnonzero(~(np.abs(positions) <= MAX_DISTANCE).all(axis=1))
    if len(bad):
        problem = f"found {positions[bad[0]].tolist()}, expected finite numbers up to {MAX_DISTANCE:g}"
        raise FilePlace(path, f"point {bad[0]}").error("X Y Z", problem, AGAIN)
