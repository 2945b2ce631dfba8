"""Every kind of damage is one InputError that names file and field, before anything is written."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scene.datasets import DataOptions, open_dataset
from tests.scene.make_capture import (
    chunk,
    flame_params,
    foreground_of,
    make_capture,
    png,
    read_transforms,
    write_transforms,
)
from utils.errors import InputError

IMAGE, MASK = "images/00001_01.png", "fg_masks/00001_01.png"
PARAMS, TRAIN = "flame_param/00001.npz", "transforms_train.json"
RGB = foreground_of(0, 0)
DELETE = object()
Break = Callable[[Path], object]


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_capture(tmp_path_factory.mktemp("intact") / "capture")


def refused(intact: Path, tmp_path: Path, damage: Break, **options: Any) -> str:
    """Damage a copy, open it, and return the one-line message; nothing may have been written."""
    folder = tmp_path / "data" / "capture"
    shutil.copytree(intact, folder)
    damage(folder)
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    # A budget of nothing sends the pictures through the cache file, where a fault must leave no trace either.
    chosen = DataOptions(source_path=str(folder), white_background=True, eval=True, image_memory_gb=0.0)
    for name, value in options.items():
        setattr(chosen, name, value)
    with pytest.raises(InputError) as caught:
        open_dataset(chosen, tmp_path / "cache")
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write(name: str, content: bytes | str) -> Break:
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def cut(name: str, share: float) -> Break:
    def damage(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: min(int(len(data) * share), len(data) - 1)])

    return damage


def set_field(field: str, value: object, frame: int = 3) -> Break:
    def damage(folder: Path) -> None:
        frames = read_transforms(folder)
        if value is DELETE:
            del frames[frame][field]
        else:
            frames[frame][field] = value
        write_transforms(folder, "train", frames)

    return damage


def set_params(**changes: Any) -> Break:
    def damage(folder: Path) -> None:
        values = {**flame_params(1), **changes}
        np.savez(folder / PARAMS, **{key: value for key, value in values.items() if value is not None})

    return damage


def matrix(change: Callable[[np.ndarray], object]) -> list[list[float]]:
    values = np.eye(4)
    change(values)
    return values.tolist()


def put(row: int, column: int, value: float) -> Callable[[np.ndarray], object]:
    return lambda values: values.__setitem__((row, column), value)


IMAGE_FAULTS: list[tuple[str, Break, str]] = [
    ("missing", lambda folder: (folder / IMAGE).unlink(), r"frames\[3\]\.file_path: .*00001_01\.png does not exist"),
    ("a folder", lambda f: ((f / IMAGE).unlink(), (f / IMAGE).mkdir()), r"file_path: .* does not exist"),
    ("a pipe", lambda f: ((f / IMAGE).unlink(), os.mkfifo(f / IMAGE)), r"file_path: .* does not exist"),
    ("empty", write(IMAGE, b""), "empty"),
    ("text", write(IMAGE, "hello"), "another format"),
    ("gif", write(IMAGE, b"GIF89a" + bytes(100)), "another format"),
    ("another size", write(IMAGE, png(RGB[:, 1:])), "found 23x20 pixels, expected 24x20"),
    ("16 bit", write(IMAGE, png(RGB.astype(np.uint16) * 257, depth=16)), "found 16 bits per channel, expected 8"),
    ("palette", write(IMAGE, png(RGB[..., :1], colour=3, extra=chunk(b"PLTE", bytes(768)))), "found a palette"),
    ("grey and alpha", write(IMAGE, png(RGB[..., :1], colour=4)), "grey with alpha"),
    ("grey", write(IMAGE, png(RGB[..., :1])), "found 1 channel in a photograph"),
    ("transparent colour", write(IMAGE, png(RGB, extra=chunk(b"tRNS", bytes(6)))), "transparent colour"),
    ("animation", write(IMAGE, png(RGB, extra=chunk(b"acTL", bytes(8)))), "animation"),
    ("0x0", write(IMAGE, png(RGB[:0, :0])), "found 0x0 pixels"),
    ("flipped bit", lambda f: flip(f / IMAGE, 100), "fails its CRC"),
    ("too few rows", write(IMAGE, png(RGB)[:33] + png(RGB[:5])[33:]), "can't be decoded: damaged"),
    ("mask missing", lambda f: (f / MASK).unlink(), r"frames\[3\]\.fg_mask_path: .* does not exist"),
    ("mask in colour", write(MASK, png(RGB)), "3 channels in a matte"),
    ("mask of another size", write(MASK, png(RGB[:-1, :, :1])), "found 24x19 pixels, expected 24x20"),
    ("mask cut", cut(MASK, 0.7), "truncated"),
]


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("damage, message", [pytest.param(d, m, id=name) for name, d, m in IMAGE_FAULTS])
def test_image_faults(intact: Path, tmp_path: Path, damage: Break, message: str) -> None:
    text = refused(intact, tmp_path, damage)
    assert "00001_01.png" in text
    assert_matches(message, text)


def assert_matches(pattern: str, text: str) -> None:
    assert re.search(pattern, text), text


@pytest.mark.parametrize("share", [0.01, 0.1, 0.3, 0.5, 0.8, 0.95, 1.0])
def test_truncated_images(intact: Path, tmp_path: Path, share: float) -> None:
    text = refused(intact, tmp_path, cut(IMAGE, share))
    assert "00001_01.png" in text and ("truncated" in text or "another format" in text)


M = "transform_matrix"
FIELD_FAULTS: list[tuple[str, object, str]] = [
    (M, DELETE, "missing"),
    (M, "one", 'found "one"'),
    (M, np.eye(3).tolist(), "found a list of 3, expected 4 rows"),
    (M, np.eye(4)[:, :3].tolist(), "found a list of 3, expected 4 numbers"),
    (M, matrix(put(0, 3, float("nan"))), "found NaN"),
    (M, matrix(put(1, 1, float("inf"))), "found Infinity"),
    (M, matrix(put(0, 0, 1.01)), "from orthonormal"),
    (M, matrix(put(0, 0, 0.0)), "from orthonormal"),
    (M, matrix(put(0, 0, 1e300)), "from orthonormal"),
    (M, matrix(put(2, 2, -1.0)), "mirrors"),
    (M, matrix(put(3, 0, 0.5)), "last row"),
    (M, [[1, 0, 0, True], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], "found true"),
    ("timestep_index", DELETE, "missing"),
    ("timestep_index", "7", 'found "7"'),
    ("timestep_index", None, "missing"),
    ("timestep_index", -1, "found -1"),
    ("timestep_index", 1.0, "found 1.0"),
    ("timestep_index", True, "found true"),
    ("timestep_index", 10**9, "found 1000000000"),
    ("timestep_index", 7, "no frame of any split has timestep 4; expected 0 to 7 without gaps"),
    ("camera_index", "0", 'found "0"'),
    ("camera_index", -2, "found -2"),
    ("camera_id", 5, "found 5"),
    ("camera_id", "", "non-empty"),
    ("w", DELETE, "missing"),
    ("w", 0, "found 0"),
    ("w", -10, "found -10"),
    ("w", 10**9, "found 1000000000"),
    ("w", "24", 'found "24"'),
    ("h", DELETE, "missing"),
    ("h", 1.5, "found 1.5"),
    ("fl_x", 0, "positive focal length"),
    ("fl_x", -900.0, "positive focal length"),
    ("fl_x", "900", 'found "900"'),
    ("fl_x", 10**400, "over 18 digits"),
    ("fl_y", True, "found true"),
    ("camera_angle_x", 5e-324, r"\(0, pi\)"),
    ("camera_angle_x", 0.0, r"\(0, pi\)"),
    ("camera_angle_x", 3.2, r"\(0, pi\)"),
    ("camera_angle_y", -1, r"\(0, pi\)"),
    ("cx", [1], "found a list of 1"),
    ("cx", 1e30, "near the centre"),
    ("cy", float("nan"), "found NaN"),
    ("file_path", DELETE, "missing"),
    ("file_path", 3, "found 3"),
    ("file_path", "/etc/passwd", "expected a path relative"),
    ("file_path", "../../outside.png", "lies outside"),
    ("file_path", "images/a\nb.png", "control characters"),
    ("file_path", "images/" + "x" * 400, "does not exist|can't be followed"),
    ("file_path", "images\\00000_00.png", "forward slashes"),
    ("fg_mask_path", {}, "found an object"),
    ("flame_param_path", DELETE, "missing"),
    ("flame_param_path", "flame_param/none.npz", "does not exist"),
    ("flame_param_path", "flame_param/00000.npz", "for timestep 1, but another frame says"),
]


@pytest.mark.parametrize("field, value, message", FIELD_FAULTS)
def test_field_faults(intact: Path, tmp_path: Path, field: str, value: object, message: str) -> None:
    text = refused(intact, tmp_path, set_field(field, value))
    assert TRAIN in text and f"frames[3].{field}" in text
    assert_matches(message, text)


def test_no_focal_length_at_all(intact: Path, tmp_path: Path) -> None:
    def damage(folder: Path) -> None:
        set_field("fl_x", DELETE)(folder)
        set_field("camera_angle_x", DELETE)(folder)

    assert_matches(r"frames\[3\]\.fl_x: is missing, and so is camera_angle_x", refused(intact, tmp_path, damage))


JSON_FAULTS: list[tuple[str, str, Break, str]] = [
    ("no train", TRAIN, lambda f: (f / TRAIN).unlink(), "flame_nerf: no transforms_train.json"),
    ("no marker", "", lambda f: (f / "canonical_flame_param.npz").unlink(), "canonical_flame_param.npz"),
    ("no test", "transforms_test.json", lambda f: (f / "transforms_test.json").unlink(), "does not exist"),
    ("cut", TRAIN, cut(TRAIN, 0.5), "line 1 column .* is not JSON"),
    ("empty", TRAIN, write(TRAIN, ""), "is not JSON"),
    ("a list", TRAIN, write(TRAIN, "[]"), "found a list of 0, expected an object"),
    ("no frames", TRAIN, write(TRAIN, "{}"), "frames: is missing"),
    ("frames of none", TRAIN, write(TRAIN, '{"frames": []}'), "frames: is empty"),
    ("frames of numbers", TRAIN, write(TRAIN, '{"frames": [1]}'), r"frames\[0\]: found 1, expected an object"),
    ("frames an object", TRAIN, write(TRAIN, '{"frames": {}}'), "found an object, expected a list"),
    ("mark", TRAIN, lambda f: (f / TRAIN).write_bytes(b"\xef\xbb\xbf" + (f / TRAIN).read_bytes()), "byte order mark"),
    ("latin", TRAIN, write(TRAIN, b'{"frames": "\xe9"}'), "not UTF-8"),
    ("twice", TRAIN, write(TRAIN, '{"frames": [], "frames": []}'), "frames: found this key twice"),
    ("deep", TRAIN, write(TRAIN, "[" * 100_000), "nested too deeply|is not JSON"),
    ("long", TRAIN, write(TRAIN, '{"frames": ' + "1" * 100_000 + "}"), "number that can't be read|found an integer"),
    ("val", "transforms_val.json", write("transforms_val.json", '{"frames": 7}'), "expected a list"),
]


@pytest.mark.parametrize("file, damage, message", [pytest.param(f, d, m, id=name) for name, f, d, m in JSON_FAULTS])
def test_json_faults(intact: Path, tmp_path: Path, file: str, damage: Break, message: str) -> None:
    text = refused(intact, tmp_path, damage)
    assert file in text
    assert_matches(message, text)


def bomb(folder: Path) -> None:
    np.savez_compressed(folder / PARAMS, **flame_params(1), more=np.zeros(6_000_000))


def forged_header(folder: Path) -> None:
    """An .npy header that promises 2^40 values for `expr`, in an otherwise intact archive."""
    text = repr({"descr": "<f4", "fortran_order": False, "shape": (1, 2**40)}).ljust(117) + "\n"
    with zipfile.ZipFile(folder / PARAMS, "w") as archive:
        for key, values in flame_params(1).items():
            content = b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + text.encode()
            if key != "expr":
                with archive.open(f"{key}.npy", "w") as file:
                    np.lib.format.write_array(file, values)
            else:
                archive.writestr("expr.npy", content)


NPZ_FAULTS: list[tuple[str, Break, str]] = [
    ("objects", set_params(expr=np.array([{"a": 1}], object)), "expr: found Python objects"),
    ("objects elsewhere", set_params(extra=np.array([print], object)), "extra: found Python objects"),
    ("bare pickle", write(PARAMS, b"\x80\x04K\x01."), "not an intact .npz"),
    ("bare npy", lambda f: np.save(open(f / PARAMS, "wb"), np.zeros(3)), "not an intact .npz"),
    ("empty", write(PARAMS, b""), "not an intact .npz"),
    ("cut", cut(PARAMS, 0.6), "not an intact .npz"),
    ("flipped bit", lambda f: flip(f / PARAMS, 140), "not an intact .npz"),
    ("bomb", bomb, "decompression bomb"),
    ("forged header", forged_header, r"expr: found shape \[1, 1099511627776\]"),
    ("no rotation", set_params(rotation=None), "rotation: is missing"),
    ("no shape", set_params(shape=None), "shape: is missing"),
    ("text", set_params(jaw_pose=np.array([["a", "b", "c"]])), "jaw_pose: found type"),
    ("complex", set_params(jaw_pose=np.zeros((1, 3), complex)), "jaw_pose: found type"),
    ("nan", set_params(translation=np.array([[0, np.nan, 0]])), r"translation: found nan at \[0, 1\]"),
    ("too large", set_params(translation=np.array([[0, 0, 1e300]])), r"translation: found inf at \[0, 2\]"),
    ("three eyes", set_params(eyes_pose=np.zeros((1, 9))), r"eyes_pose: found shape \[1, 9\], expected \[1, 6\]"),
    ("flat rotation", set_params(rotation=np.zeros(3)), r"rotation: found shape \[3\]"),
    ("two timesteps in one", set_params(jaw_pose=np.zeros((2, 3))), "jaw_pose: found shape"),
    ("other expressions", set_params(expr=np.zeros((1, 6))), r"expr: found shape \[1, 6\], expected \[1, 5\]"),
    ("no expressions", set_params(expr=np.zeros((1, 0))), "expr: found shape"),
    ("other identity", set_params(shape=np.zeros(8)), r"shape: found shape \[8\], expected \[7\]"),
    ("other topology", set_params(static_offset=np.zeros((1, 12, 3))), "static_offset: found shape"),
    ("no offset", set_params(static_offset=None), "static_offset: is missing, but .*00000.npz has it"),
    ("one dynamic offset", set_params(dynamic_offset=np.zeros((1, 11, 3))), "dynamic_offset: is missing"),
]


@pytest.mark.parametrize("damage, message", [pytest.param(d, m, id=name) for name, d, m in NPZ_FAULTS])
def test_npz_faults(intact: Path, tmp_path: Path, damage: Break, message: str) -> None:
    text = refused(intact, tmp_path, damage)
    assert "flame_param/0000" in text
    assert_matches(message, text)


def test_a_file_with_all_timesteps_is_not_a_frame(intact: Path, tmp_path: Path) -> None:
    both = {k: np.concatenate([v, v]) if k not in ("shape", "static_offset") else v for k, v in flame_params(1).items()}
    assert_matches("rotation: found 2 timesteps", refused(intact, tmp_path, set_params(**both)))


OPTION_FAULTS: list[tuple[dict[str, object], str]] = [
    ({"source_path": ""}, "--source_path: is not a folder"),
    ({"source_path": "/nowhere"}, "/nowhere: is not a folder"),
    ({"resolution": 0}, "--resolution: found 0"),
    ({"resolution": -2}, "--resolution: found -2"),
    ({"image_memory_gb": float("nan")}, "--image_memory_gb: found nan"),
    ({"image_memory_gb": -1.0}, "--image_memory_gb: found -1"),
    ({"select_camera_id": "17"}, "--select_camera_id: found no camera '17'.*22220, 22221, 22222"),
    ({"data_root": "/nowhere"}, "--data_root"),
    ({"data_root": "~nobody-of-this-name/x"}, "--data_root: found .~nobody"),
    ({"images": "../images"}, "--images"),
]


@pytest.mark.parametrize("options, message", OPTION_FAULTS)
def test_option_faults(intact: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    assert_matches(message, refused(intact, tmp_path, lambda folder: None, **options))


def test_cache_inside_the_dataset(intact: Path, tmp_path: Path) -> None:
    cache = str(tmp_path / "data/capture/cache")
    assert_matches("--cache_dir: .* inside the dataset", refused(intact, tmp_path, lambda f: None, cache_dir=cache))


def test_a_link_out_of_the_root(intact: Path, tmp_path: Path) -> None:
    def damage(folder: Path) -> None:
        (folder / IMAGE).unlink()
        (folder / IMAGE).symlink_to(intact / IMAGE)

    text = refused(intact, tmp_path, damage)
    assert_matches(r"frames\[3\]\.file_path: .* lies outside .*--data_root", text)


def test_a_loop_of_links(intact: Path, tmp_path: Path) -> None:
    def damage(folder: Path) -> None:
        (folder / IMAGE).unlink()
        (folder / IMAGE).symlink_to(folder / IMAGE)

    assert_matches(r"frames\[3\]\.file_path: ", refused(intact, tmp_path, damage))


def test_a_hostile_name_does_not_forge_a_line(intact: Path, tmp_path: Path) -> None:
    folder = tmp_path / "x\nerror: all is well"
    folder.mkdir()
    (folder / "a").write_text(json.dumps({}))
    with pytest.raises(InputError) as caught:
        open_dataset(DataOptions(source_path=str(folder)), tmp_path)
    assert "\n" not in str(caught.value)
