"""Sparse models of COLMAP: text and binary say the same, and every kind of damage is one InputError."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scene.datasets.colmap_files import read_model
from tests.scene.make_static import Sparse, binary_files, sparse_of, text_files
from utils.errors import InputError

MODEL = sparse_of(5)
CAMERA_BYTES, POINT_BYTES = 24 + 4 * 8, 51
IMAGE_BYTES = 64 + len("view_00.png") + 1 + 8 + 2 * 24


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize("form", [binary_files, text_files])
def test_what_was_written_is_read(tmp_path: Path, form: Callable[[Sparse], dict[str, bytes]]) -> None:
    model = read_model(write(tmp_path, form(MODEL)))
    assert sorted(model.cameras) == [3, 7]
    camera = model.cameras[7]
    assert (camera.model, camera.width, camera.height) == ("PINHOLE", 48, 32)
    assert camera.parameters == {"fx": 55.0, "fy": 56.5, "cx": 25.25, "cy": 14.5}
    for found, (number, quaternion, translation, taken_by, name) in zip(model.images, MODEL.images, strict=True):
        assert (found.id, found.camera_id, found.name) == (number, taken_by, name)
        np.testing.assert_allclose(found.quaternion, quaternion, rtol=0, atol=1e-15)
        np.testing.assert_array_equal(found.translation, translation)
    np.testing.assert_array_equal(model.positions, [point[1] for point in MODEL.points])
    np.testing.assert_array_equal(model.colours, [point[2] for point in MODEL.points])
    assert model.colours.dtype == np.uint8


def test_binary_goes_before_text(tmp_path: Path) -> None:
    write(tmp_path, {**binary_files(MODEL), **text_files(sparse_of(3))})
    assert len(read_model(tmp_path).images) == 5
    (tmp_path / "points3D.bin").unlink()
    assert len(read_model(tmp_path).images) == 3


def test_text_bears_comments_blank_lines_and_names_with_blanks(tmp_path: Path) -> None:
    files = text_files(MODEL)
    files["images.txt"] = files["images.txt"].replace(b"view_00.png", "Bild 00 (größer).png".encode())
    files["cameras.txt"] = b"\r\n# more\r\n  " + files["cameras.txt"].replace(b"\n", b"\r\n") + b"\r\n\r\n"
    model = read_model(write(tmp_path, files))
    assert model.images[0].name == "Bild 00 (größer).png"
    assert model.cameras[7].parameters["cy"] == 14.5


def test_quaternions_are_made_unit(tmp_path: Path) -> None:
    images = [(n, (1.0005 * np.array(q)).tolist(), *rest) for n, q, *rest in MODEL.images]
    model = read_model(write(tmp_path, binary_files(replace(MODEL, images=images))))
    for found, wanted in zip(model.images, MODEL.images, strict=True):
        np.testing.assert_allclose(found.quaternion, wanted[1], rtol=0, atol=1e-12)


def test_no_points_are_no_fault_of_the_file(tmp_path: Path) -> None:
    for form in (binary_files, text_files):
        model = read_model(write(tmp_path, form(replace(MODEL, points=[]))))
        assert model.positions.shape == (0, 3) and model.colours.shape == (0, 3)
        for path in model.files:
            path.unlink()


def patched(name: str, position: int, form: str, *values: object) -> Callable[[dict[str, bytes]], None]:
    """Overwrite bytes of a binary file."""

    def damage(files: dict[str, bytes]) -> None:
        data = bytearray(files[name])
        struct.pack_into("<" + form, data, position, *values)
        files[name] = bytes(data)

    return damage


def changed(name: str, old: str, new: str) -> Callable[[dict[str, bytes]], None]:
    """Replace the first occurrence in a text file."""

    def damage(files: dict[str, bytes]) -> None:
        assert old.encode() in files[name]
        files[name] = files[name].replace(old.encode(), new.encode(), 1)

    return damage


def appended(name: str, data: bytes) -> Callable[[dict[str, bytes]], None]:
    return lambda files: files.__setitem__(name, files[name] + data)


def removed(name: str) -> Callable[[dict[str, bytes]], None]:
    return lambda files: files.__delitem__(name) if name in files else None


NAN, SECOND_IMAGE, NAME = float("nan"), 8 + IMAGE_BYTES, 64
BINARY_FAULTS = [
    ("cameras missing", removed("cameras.bin"), r"found images\.bin, points3D\.bin, expected cameras, images and"),
    ("points missing", removed("points3D.bin"), "expected cameras, images and points3D"),
    ("cameras empty", lambda f: f.__setitem__("cameras.bin", b""), r"cameras\.bin: number of cameras: needs 8 bytes"),
    ("camera count", patched("cameras.bin", 0, "Q", 2**63), "number of cameras: found 9223372036854775808, but the"),
    ("one camera more", patched("cameras.bin", 0, "Q", 3), r"number of cameras: found 3, but the 112 bytes"),
    ("one camera fewer", patched("cameras.bin", 0, "Q", 1), "byte 64: found 56 bytes after the last record"),
    ("model number", patched("cameras.bin", 8 + 4, "i", -1), r"record 0\.MODEL: found -1, expected 0 to 11"),
    ("another model", patched("cameras.bin", 8 + 4, "i", 4), r"record 1\.MODEL: found"),
    ("width 0", patched("cameras.bin", 8 + 8, "Q", 0), r"record 0\.WIDTH: found 0x32 pixels"),
    ("width huge", patched("cameras.bin", 8 + 8, "Q", 2**60), r"record 0\.WIDTH: found 1152921504606846976x32"),
    ("NaN focal", patched("cameras.bin", 8 + CAMERA_BYTES + 24, "d", NAN), r"record 1\.PARAMS \(fx\): found nan"),
    ("camera twice", patched("cameras.bin", 8 + CAMERA_BYTES, "I", 7), r"record 1\.CAMERA_ID: found 7 a second time"),
    ("image count", patched("images.bin", 0, "Q", 2**64 - 1), "number of images: found 18446744073709551615, but"),
    ("NaN quaternion", patched("images.bin", SECOND_IMAGE + 4, "d", NAN), r"record 1\.QW QX QY QZ: found \[nan"),
    ("zero quaternion", patched("images.bin", 8 + 4, "4d", 0, 0, 0, 0), r"record 0\.QW.* of length 0, expected a unit"),
    ("long quaternion", patched("images.bin", 8 + 4, "4d", 2, 0, 0, 0), "of length 2, expected a unit quaternion"),
    ("vast quaternion", patched("images.bin", 8 + 4, "4d", 1e300, 0, 0, 0), "expected a unit quaternion"),
    ("infinite place", patched("images.bin", 8 + 36, "d", float("inf")), r"record 0\.TX TY TZ: found \[inf"),
    (
        "name without end",
        lambda f: f.update({"images.bin": f["images.bin"][:75].ljust(500, b"x")}),
        "NAME: does not end",
    ),
    ("name not UTF-8", patched("images.bin", 8 + NAME, "B", 255), r"record 0\.NAME: found bytes that are not UTF-8"),
    (
        "name twice",
        patched("images.bin", SECOND_IMAGE + NAME, "11s", b"view_00.png"),
        r"record 1\.NAME: found 'view_00",
    ),
    ("image twice", patched("images.bin", SECOND_IMAGE, "I", 100), r"record 1\.IMAGE_ID: found 100 a second time"),
    ("2D point count", patched("images.bin", 8 + NAME + 12, "Q", 2**61), r"record 0\.number of points: found 2305843"),
    ("2D points off", patched("images.bin", 8 + NAME + 12, "Q", 3), r"images\.bin: "),
    ("point count", patched("points3D.bin", 0, "Q", 2**40), "number of points: found 1099511627776, but the"),
    ("track length", patched("points3D.bin", 8 + 43, "Q", 2**62), r"record 0\.length of TRACK: found 4611686018"),
    ("NaN point", patched("points3D.bin", 8 + POINT_BYTES + 8, "d", NAN), r"point 1\.X Y Z: found \[nan"),
    ("far point", patched("points3D.bin", 8 + 8, "d", -1e30), r"point 0\.X Y Z: found \[-1e\+30"),
    ("bytes after", appended("points3D.bin", b"\0"), "found 1 bytes after the last record"),
]

TEXT_FAULTS = [
    ("camera words", changed("cameras.txt", " 32 55.0 56.5 25.25 14.5", ""), "line 2: found 3 words"),
    ("too few parameters", changed("cameras.txt", " 14.5", ""), r"line 2\.PARAMS: found 3 numbers, expected 4 for"),
    ("too many parameters", changed("cameras.txt", " 14.5", " 14.5 0"), r"line 2\.PARAMS: found 5 numbers, expected 4"),
    ("model name", changed("cameras.txt", "PINHOLE", "CAMERA OBSCURA"), r"line 2\.MODEL: found 'CAMERA', expected"),
    ("width", changed("cameras.txt", " 48 ", " 48.0 "), r"line 2\.WIDTH: found '48\.0', expected an integer"),
    ("focal", changed("cameras.txt", "55.0", "5_5.0"), r"line 2\.PARAMS: found '5_5\.0 .*', expected 4 numbers"),
    ("NaN", changed("cameras.txt", "55.0", "nan"), r"line 2\.PARAMS \(fx\): found nan, expected a finite number"),
    ("image words", changed("images.txt", " view_00.png", ""), "line 2: found 9 words, expected IMAGE_ID QW"),
    ("image id", changed("images.txt", "100 ", "-100 "), r"line 2\.IMAGE_ID: found '-100'"),
    ("pose", changed("images.txt", "100 ", "100 one "), r"line 2\.QW QX QY QZ TX TY TZ: found 'one "),
    ("camera of image", changed("images.txt", " 7 view_00", " seven view_00"), r"line 2\.CAMERA_ID: found 'seven'"),
    ("points line lost", changed("images.txt", "00.png\n\n", "00.png\n"), r"line 3\.POINTS2D: found .* 10"),
    ("point words", changed("points3D.txt", " 0.5", ""), "line 2: found 7 words, expected POINT3D_ID X Y Z R G B"),
    ("colour", changed("points3D.txt", " 0.5", "6 0.5"), r"line 2\.B: found '2?\d*6', expected an integer in"),
    ("binary named text", lambda f: f.__setitem__("points3D.txt", b"\xff\0\1"), "line 1: found bytes that are not"),
    ("images missing", removed("images.txt"), r"found cameras\.txt, points3D\.txt, expected cameras, images"),
]

CASES = [pytest.param(binary_files, d, m, id=f"binary {name}") for name, d, m in BINARY_FAULTS]
CASES += [pytest.param(text_files, d, m, id=f"text {name}") for name, d, m in TEXT_FAULTS]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("form, damage, message", CASES)
def test_faults(tmp_path: Path, form: Callable, damage: Callable[[dict[str, bytes]], None], message: str) -> None:
    files = form(MODEL)
    damage(files)
    write(tmp_path, files)
    with pytest.raises(InputError, match=message) as caught:
        read_model(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("name", ["cameras.bin", "images.bin", "points3D.bin"])
def test_every_cut_is_noticed(tmp_path: Path, name: str) -> None:
    """Whatever the length that is left: an error about this file, never a shorter model."""
    files = binary_files(sparse_of(2, points=4))
    write(tmp_path, files)
    for length in range(len(files[name])):
        (tmp_path / name).write_bytes(files[name][:length])
        with pytest.raises(InputError, match=name):
            read_model(tmp_path)
