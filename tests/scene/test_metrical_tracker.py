"""metrical-tracker and FlashAvatar folders against the formulas of the tracker, computed here on their own."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flame_model import FlameAssets
from scene.datasets import DATASETS, DataOptions, flash_avatar, metrical_tracker, open_dataset
from scene.datasets.tracked_frames import split_at_end
from scene.frames import Dataset
from tests.flame_model import hostile, torch_files
from tests.scene import make_tracked as make
from utils.errors import InputError


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> FlameAssets:
    return make.head(tmp_path_factory.mktemp("model"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data" / "duda"


def opened(folder: Path, **options: Any) -> Dataset:
    options = {"eval": True, **options}
    return open_dataset(DataOptions(source_path=str(folder), **options), folder.parent.parent / "cache")


def check_pixels(assets: FlameAssets, data: Dataset, size: tuple[int, int] = make.SIZE, scale: float = 1.0) -> None:
    for view in make.all_views(data):
        expected = scale * make.expected_pixels(assets, make.tracked(view.timestep, size), view.timestep)
        np.testing.assert_allclose(make.found_pixels(assets, data, view), expected, atol=1e-3)


@pytest.mark.parametrize("form", [lambda content: content, make.as_tensors])
def test_vertices_are_seen_where_the_tracker_puts_them(
    assets: FlameAssets, folder: Path, form: Callable[[Any], Any]
) -> None:
    make.write_metrical(folder)
    for frame in range(4):
        make.write_frame(folder / f"checkpoint/{frame:05d}.frame", form(make.tracked(frame)))
    data = opened(folder)
    assert data.format == "metrical_tracker" and data.edition == "FLAME 2020"
    assert [len(split) for split in data.splits().values()] == [3, 0, 1]
    check_pixels(assets, data)
    motion = data.motion
    assert motion is not None and motion.timesteps == 4
    assert {name: tuple(values.shape) for name, values in motion.per_frame.items()} == {
        "rotation": (4, 3), "neck_pose": (4, 3), "translation": (4, 3), "jaw_pose": (4, 3), "eyes_pose": (4, 6),
        "expr": (4, make.EXPRESSIONS),
    }  # fmt: skip
    for name in ("rotation", "neck_pose", "translation"):
        assert not motion.per_frame[name].any()


def test_six_numbers_are_made_orthonormal_as_rows(assets: FlameAssets, folder: Path) -> None:
    """Gram-Schmidt: the length of the first row and the part of the second along it do not count."""
    make.write_metrical(folder, count=1)
    content = make.tracked(0)
    jaw = content["flame"]["jaw"][0].astype(float)
    content["flame"]["jaw"] = np.concatenate([2.5 * jaw[:3], 0.4 * jaw[3:] - 0.7 * jaw[:3]])[None]
    make.write_frame(folder / "checkpoint/00000.frame", content)
    check_pixels(assets, opened(folder))


@pytest.mark.parametrize("size", [(48, 36), (36, 48)])
@pytest.mark.parametrize("reverse", [False, True])
def test_the_picture_says_which_side_is_the_width(
    assets: FlameAssets, folder: Path, size: tuple[int, int], reverse: bool
) -> None:
    make.write_metrical(folder, size=size)
    for frame in range(4):
        content = make.tracked(frame, size)
        content["img_size"] = torch.tensor(size) if reverse else list(size[::-1])
        make.write_frame(folder / f"checkpoint/{frame:05d}.frame", content)
    data = opened(folder)
    assert (data.train.views[0].camera.width, data.train.views[0].camera.height) == size
    check_pixels(assets, data, size)


def test_resized_pictures_scale_the_camera(assets: FlameAssets, folder: Path) -> None:
    make.write_metrical(folder)
    for frame in range(4):
        make.write_picture(folder / f"images_2/{frame:05d}.png", 7, (32, 32))
    data = opened(folder, images="images_2")
    check_pixels(assets, data, scale=0.5)
    assert any("resized" in note for note in data.notes)


def test_test_frames_are_the_last(folder: Path) -> None:
    data = opened(make.write_metrical(folder, count=10))
    assert [view.timestep for view in data.train.views] == list(range(7))
    assert [view.timestep for view in data.test.views] == [7, 8, 9] and len(data.val) == 0
    assert "test: the last 3 of 10 frames" in data.notes
    for count, most, held_out in ((1, 350, 0), (699, 350, 209), (700, 350, 350), (5000, 350, 350), (999, 500, 299)):
        splits = split_at_end(list(range(count)), most)  # type: ignore[arg-type]
        assert splits["train"] + splits["test"] == list(range(count)) and len(splits["test"]) == held_out


@pytest.mark.parametrize("first", [0, 1, 7])
def test_pictures_are_paired_in_order(folder: Path, first: int) -> None:
    make.write_metrical(folder, first_picture=first)
    (folder / "images/Thumbs.db").touch()
    for frame in (data := opened(folder, eval=False)).train:
        assert float(frame.image.mean()) * 255 == pytest.approx(make.grey_of(frame.timestep), abs=0.01)
    assert [view.name for view in data.train.views] == [f"{n:05d}" for n in range(first, first + 4)]


def test_unclear_pairs_are_refused(folder: Path) -> None:
    make.write_metrical(folder, first_picture=1)
    make.write_picture(folder / "images/00000.png", 0)
    with pytest.raises(InputError, match="4 numbered 0 to 3 in checkpoint/, but 5 numbered 0 to 4 in images/"):
        opened(folder)
    (folder / "images/00002.png").unlink()
    with pytest.raises(InputError, match="unclear which belong together"):
        opened(folder)


def test_what_is_left_out_is_said(folder: Path) -> None:
    make.write_metrical(folder)
    quiet = opened(folder).notes
    assert not any(note.startswith(("eyelids", "identity")) for note in quiet)
    content = make.tracked(2)
    content["flame"]["eyelids"][0, 1] = 0.5
    content["flame"]["shape"][0, 3] += 0.25
    make.write_frame(folder / "checkpoint/00002.frame", content)
    notes = opened(folder).notes
    assert any(note.startswith("eyelids: 1 of 4 frames") for note in notes)
    assert any(note.startswith("identity: ") and "0.25" in note and "00000.frame" in note for note in notes)
    del content["flame"]["eyelids"]
    make.write_frame(folder / "checkpoint/00002.frame", content)
    assert not any(note.startswith("eyelids") for note in opened(folder).notes)


def _faults() -> dict[str, tuple[str, str, Any]]:
    """name -> entry to replace, what the message must say besides it, new value (None: remove it)."""
    eye = np.eye(3)[None]
    return {
        "no camera": ("opencv", "opencv.R", None),
        "camera a list": ("opencv", "opencv.R", [1, 2]),
        "no R": ("opencv.R", "is missing", None),
        "R of 4x4": ("opencv.R", r"found shape \[1, 4, 4\], expected \[1, 3, 3\]", np.eye(4)[None]),
        "R of two": ("opencv.R", "shape", np.concatenate([eye, eye])),
        "R stretched": ("opencv.R", "orthonormal", 1.1 * eye),
        "R mirrored": ("opencv.R", "mirrors", eye * [1, 1, -1]),
        "R booleans": ("opencv.R", "found bool values", np.ones((1, 3, 3), bool)),
        "t text": ("opencv.t", "found a str", "0 0 1"),
        "t infinite": ("opencv.t", "not finite", np.array([[0, 0, np.inf]])),
        "K skewed": ("opencv.K", "fx, 0, cx", eye + np.array([[0, 1, 0], [0, 0, 0], [0, 0, 0]])),
        "K without focal length": ("opencv.K", "focal lengths", eye * [0, 1, 1]),
        "K far off": ("opencv.K", "principal point", np.array([[[9.0, 0, 7000], [0, 9, 0], [0, 0, 1]]])),
        "no expression": ("flame.exp", "is missing", None),
        "expression empty": ("flame.exp", "shape", torch.zeros(1, 0)),
        "expressions of another number": ("flame.exp", "found 7 values, expected 12", np.zeros((1, 7))),
        "identity of another number": ("flame.shape", "found 7 values, expected 20", np.zeros((1, 7))),
        "expression NaN": ("flame.exp", "not finite", np.full((1, 12), np.nan)),
        "jaw of axis-angle": ("flame.jaw", r"found shape \[1, 3\], expected \[1, 6\]", np.zeros((1, 3))),
        "jaw zero": ("flame.jaw", "first half is zero", np.zeros((1, 6))),
        "eyes parallel": ("flame.eyes", "halves are parallel", np.ones((1, 12))),
        "eyelids of 3": ("flame.eyelids", "shape", np.zeros((1, 3))),
        "no size": ("img_size", "is missing", None),
        "size of 3": ("img_size", "shape", np.array([64, 64, 3])),
        "size of another picture": ("img_size", "uniform scale", np.array([512, 384])),
        "size broken": ("img_size", "whole numbers", np.array([64, 64.5])),
        "size zero": ("img_size", "whole numbers", np.array([0, 64])),
        "size a tensor of text": ("img_size", "found a list", ["64", "64"]),
    }


@pytest.mark.parametrize("name", _faults())
def test_faults_name_the_file_and_the_entry(name: str, folder: Path) -> None:
    entry, problem, value = _faults()[name]
    make.write_metrical(folder)
    content = make.tracked(2)
    place = content
    for part in entry.split(".")[:-1]:
        place = place[part]
    place[entry.split(".")[-1]] = value
    if value is None:
        del place[entry.split(".")[-1]]
    make.write_frame(folder / "checkpoint/00002.frame", content)
    with pytest.raises(InputError, match=problem) as caught:
        opened(folder)
    assert str(folder / "checkpoint/00002.frame") in str(caught.value) and entry in str(caught.value)
    assert str(caught.value).isprintable() and not (folder.parent.parent / "cache").exists()


def test_hostile_frames_are_refused_without_effect(folder: Path, tmp_path: Path) -> None:
    make.write_metrical(folder)
    for name, pickle in hostile.calls(str(tmp_path / "marker")).items():
        (folder / "checkpoint/00001.frame").write_bytes(torch_files.torch_file(pickle))
        with pytest.raises(InputError, match="00001.frame: byte|00001.frame: found a call"):
            opened(folder)
        assert not (tmp_path / "marker").exists(), name
    make.write_frame(folder / "checkpoint/00001.frame", [1, 2])
    with pytest.raises(InputError, match="00001.frame: opencv.R: is missing"):
        opened(folder)


def test_a_frame_of_gigabytes_is_refused_unread(folder: Path) -> None:
    make.write_metrical(folder)
    with open(folder / "checkpoint/00001.frame", "wb") as file:
        file.truncate(300 << 20)  # sparse: takes no space
    with pytest.raises(InputError, match="00001.frame: has 314572800 bytes, at most"):
        opened(folder)


def test_names_that_are_no_numbers_or_one_number_twice_are_refused(folder: Path) -> None:
    make.write_metrical(folder)
    make.write_picture(folder / "images/00003.jpg", 0)
    with pytest.raises(InputError, match="00003.png: has the number of 00003.jpg"):
        opened(folder)
    (folder / "images/00003.jpg").rename(folder / "images/cover.jpg")
    with pytest.raises(InputError, match="cover.jpg: found the name 'cover.jpg', expected a number"):
        opened(folder)
    shutil.rmtree(folder / "images")
    with pytest.raises(InputError, match="--images"):
        opened(folder)
    (folder / "images").mkdir()
    with pytest.raises(InputError, match="holds no file"):
        opened(folder)


def write_flash(folder: Path, checkpoint: Path, count: int = 4) -> Path:
    """Frames 0, 1, ... with pictures 0 to `count`, of which the first belongs to none."""
    for number in range(count + 1):
        make.write_picture(folder / f"imgs/{number:05d}.jpg", make.grey_of(number))
        make.write_picture(folder / f"alpha/{number:05d}.jpg", 51, channels=1)
        make.write_picture(folder / f"parsing/{number:05d}_neckhead.png", 255, channels=1)
        make.write_picture(folder / f"parsing/{number:05d}_mouth.png", 0, channels=1)
    for frame in range(count):
        make.write_frame(checkpoint / f"{frame:05d}.frame", make.as_tensors(make.tracked(frame)))
    return folder


@pytest.mark.parametrize("inside", [True, False])
def test_flash_avatar(assets: FlameAssets, tmp_path: Path, inside: bool) -> None:
    """Frame k belongs to picture k + 1; the matte lays the picture over the background."""
    folder = tmp_path / "dataset/Obama"
    tracker = tmp_path / "metrical-tracker/output/Obama/checkpoint"
    write_flash(folder, folder / "checkpoint" if inside else tracker)
    data = opened(folder, white_background=True)
    assert data.format == "flash_avatar" and data.edition == "FLAME 2020"
    assert [len(split) for split in data.splits().values()] == [3, 0, 1]
    check_pixels(assets, data)
    for view, frame in zip(data.train.views, data.train, strict=True):
        assert view.name == f"{view.timestep + 1:05d}" and frame.mask is not None
        assert float(frame.mask.mean()) == pytest.approx(0.2, abs=0.005)


def test_flash_avatar_lays_room_pictures_over_the_background(tmp_path: Path) -> None:
    folder = write_flash(tmp_path / "dataset/Obama", tmp_path / "dataset/Obama/checkpoint")
    for number in range(5):
        matte = np.zeros((64, 64), np.uint8)
        matte[16:48, 16:48] = 255
        make.cv2.imwrite(str(folder / f"alpha/{number:05d}.jpg"), matte, [make.cv2.IMWRITE_JPEG_QUALITY, 100])
    frame = opened(folder, white_background=True).train[1]
    assert float(frame.image[:, 32, 32].mean()) * 255 == pytest.approx(make.grey_of(2), abs=1.5)
    assert float(frame.image[:, 4, 4].mean()) == pytest.approx(1.0, abs=0.01)


def test_flash_avatar_names_the_missing_picture(tmp_path: Path) -> None:
    folder = write_flash(tmp_path / "dataset/Obama", tmp_path / "dataset/Obama/checkpoint")
    (folder / "alpha/00003.jpg").unlink()
    with pytest.raises(InputError, match="00002.frame: belongs to picture 3, which is not in .*alpha"):
        opened(folder)


def test_dialects_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    metrical = make.write_metrical(tmp_path / "a/duda", count=1)
    flash = write_flash(tmp_path / "b/Obama", tmp_path / "b/Obama/checkpoint", count=1)
    for path, name in ((metrical, "metrical_tracker"), (flash, "flash_avatar")):
        assert [key for key, format_ in DATASETS.items() if format_.recognise(path) is None] == [name]
    shutil.copytree(metrical / "images", flash / "images")
    with pytest.raises(InputError) as caught:
        opened(flash)
    assert "imgs/ is FlashAvatar's" in str(caught.value) and "images/ is metrical-tracker's" in str(caught.value)
    assert metrical_tracker.recognise(tmp_path) == "no checkpoint/*.frame"
    assert flash_avatar.recognise(tmp_path) == "no imgs/ and no alpha/"
    (metrical / "transforms.json").touch()
    assert metrical_tracker.recognise(metrical) == "transforms.json belongs to another format"
    shutil.rmtree(flash / "images")
    shutil.copytree(flash / "checkpoint", tmp_path / "metrical-tracker/output/Obama/checkpoint")
    assert "two folders of .frame files" in str(flash_avatar.recognise(flash))
    shutil.rmtree(flash / "checkpoint")
    shutil.rmtree(tmp_path / "metrical-tracker")
    assert "neither inside nor in" in str(flash_avatar.recognise(flash))
