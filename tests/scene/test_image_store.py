"""The image store: what is decoded is what is read, from memory and from the cache file, once."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from scene.image_store import (
    Picture,
    choose_conversion,
    exported_background,
    leaving_no_folders,
    on_background,
    open_store,
    parallel_map,
    prepare,
)
from tests.scene.make_capture import over, png
from utils.errors import EnvironmentFault, InputError

SIZES = [(7, 5), (4, 9), (6, 6), (7, 5), (1, 1)]
MASKED = [True, False, True, False, True]


@pytest.fixture
def pictures(tmp_path: Path) -> list[Picture]:
    """Pictures of several sizes, some with mattes; on white."""
    rng = np.random.default_rng(0)
    made = []
    for i, ((width, height), masked) in enumerate(zip(SIZES, MASKED, strict=True)):
        image, mask = tmp_path / f"{i}.png", tmp_path / f"{i}_mask.png" if masked else None
        image.write_bytes(png(rng.integers(0, 256, (height, width, 3)).astype(np.uint8)))
        if mask:
            mask.write_bytes(png(rng.integers(1, 256, (height, width, 1)).astype(np.uint8)))
        made.append(Picture(image, mask, (width, height), (width, height), 255))
    return made


def test_planes_images_and_masks_agree(pictures: list[Picture], tmp_path: Path) -> None:
    store = open_store(pictures, tmp_path / "cache", 1 << 20)
    assert len(store) == len(pictures) and not (tmp_path / "cache").exists()
    for i, picture in enumerate(pictures):
        expected = prepare(picture)
        assert expected.shape == (4 if MASKED[i] else 3, SIZES[i][1], SIZES[i][0])
        np.testing.assert_array_equal(store.planes(i), expected)
        np.testing.assert_array_equal(store.image(i).numpy(), expected[:3].astype(np.float32) / np.float32(255))
        mask = store.mask(i)
        assert (mask is not None) == MASKED[i]
        if mask is not None:
            np.testing.assert_array_equal(mask.numpy(), expected[3:].astype(np.float32) / np.float32(255))


def test_frames_may_be_changed_without_harm(pictures: list[Picture], tmp_path: Path) -> None:
    store = open_store(pictures, tmp_path / "cache", 1 << 20)
    before = store.image(0).clone()
    store.image(0).zero_()
    np.testing.assert_array_equal(store.image(0).numpy(), before.numpy())


def cache_files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def test_the_cache_file_holds_the_same_and_is_used_again(pictures: list[Picture], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    in_memory = open_store(pictures, cache, 1 << 20)
    on_disk = open_store(pictures, cache, 0)
    assert isinstance(on_disk.block, np.memmap) and not on_disk.block.flags.writeable
    np.testing.assert_array_equal(on_disk.block, in_memory.block)
    (path,) = cache_files(cache)
    stamp = path.stat().st_mtime_ns, path.stat().st_ino
    again = open_store(pictures, cache, 0)
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == stamp
    np.testing.assert_array_equal(again.block, in_memory.block)


def rewrite(picture: Picture) -> None:
    width, height = picture.size
    picture.image.write_bytes(png(np.full((height, width, 3), 7, np.uint8)))
    os.utime(picture.image, ns=(1, 1))


def test_a_changed_picture_makes_a_new_cache(pictures: list[Picture], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    open_store(pictures, cache, 0)
    rewrite(pictures[1])
    np.testing.assert_array_equal(open_store(pictures, cache, 0).planes(1), np.full((3, 9, 4), 7))
    assert len(cache_files(cache)) == 2


def test_a_newer_date_alone_makes_a_new_cache(pictures: list[Picture], tmp_path: Path) -> None:
    """A picture may have been edited without a change of its size."""
    open_store(pictures, tmp_path / "cache", 0)
    os.utime(pictures[1].image, ns=(1, 1))
    open_store(pictures, tmp_path / "cache", 0)
    assert len(cache_files(tmp_path / "cache")) == 2


@pytest.mark.parametrize("harm", ["cut", "longer", "header"])
def test_a_damaged_cache_is_written_anew(pictures: list[Picture], tmp_path: Path, harm: str) -> None:
    cache = tmp_path / "cache"
    expected = open_store(pictures, cache, 0).block.tobytes()
    (path,) = cache_files(cache)
    data = path.read_bytes()
    harmed = {"cut": data[:-1], "longer": data + b"x", "header": b"X" + data[1:]}[harm]
    path.write_bytes(harmed)
    assert open_store(pictures, cache, 0).block.tobytes() == expected
    assert path.read_bytes() == data and cache_files(cache) == [path]


def test_a_bad_picture_leaves_no_cache(pictures: list[Picture], tmp_path: Path) -> None:
    pictures[3].image.write_bytes(pictures[3].image.read_bytes()[:-5])
    with pytest.raises(InputError, match="3.png"):
        open_store(pictures, tmp_path / "deep" / "cache", 0)
    assert not (tmp_path / "deep").exists()


def test_a_full_disk_is_the_environments_fault(
    pictures: list[Picture], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EnvironmentFault, match="images-.*No space left"):
        open_store(pictures, tmp_path / "cache", 0)
    assert not (tmp_path / "cache").exists()


def test_folders_that_hold_something_stay(tmp_path: Path) -> None:
    with pytest.raises(KeyError), leaving_no_folders(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b").mkdir(parents=True)
        (tmp_path / "a" / "kept").touch()
        raise KeyError
    assert [path.name for path in tmp_path.rglob("*")] in (["a", "kept"],)


def soft_edge() -> tuple[np.ndarray, np.ndarray]:
    """A random picture [16, 32, 3] and a matte [16, 32, 1] that runs through every level; the outer half is zero."""
    image = np.random.default_rng(1).integers(0, 256, (16, 32, 3)).astype(np.uint8)
    matte = np.zeros((16, 32, 1), np.uint8)
    matte[:, 16:] = np.arange(256).reshape(16, 16, 1)
    return image, matte


@pytest.mark.parametrize("old", [0, 255])
@pytest.mark.parametrize("new", [0, 255])
def test_backgrounds_are_exchanged(old: int, new: int) -> None:
    image, matte = soft_edge()
    exported = over(image, matte, old)
    assert exported_background(exported, matte) == old
    changed = on_background(exported, matte, new)
    assert changed.dtype == np.uint8
    difference = changed.astype(int) - over(image, matte, new)
    assert np.abs(difference).max() <= (0 if old == new else 1)


def test_a_room_behind_the_matte_is_masked_out() -> None:
    image, matte = soft_edge()
    assert exported_background(image, matte) is None
    np.testing.assert_array_equal(on_background(image, matte, 255), over(image, matte, 255))


def test_without_a_pixel_behind_the_matte_it_is_white() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    assert exported_background(image, np.full((4, 4, 1), 255, np.uint8)) == 255


def test_jpeg_noise_on_white_is_white_still() -> None:
    image = np.random.default_rng(2).integers(252, 256, (20, 20, 3)).astype(np.uint8)
    assert exported_background(image, np.zeros((20, 20, 1), np.uint8)) == 255


def test_parallel_map_keeps_the_order_and_holds_few_results() -> None:
    running, most, lock = 0, 0, threading.Lock()

    def slow(item: int) -> int:
        nonlocal running, most
        with lock:
            running, most = running + 1, max(most, running + 1)
        time.sleep(0.002 if item % 7 == 0 else 0)
        with lock:
            running -= 1
        return item * item

    assert list(parallel_map(slow, range(200))) == [i * i for i in range(200)]
    assert most <= 8


def test_parallel_map_raises_the_first_error_in_order() -> None:
    started: list[int] = []

    def fail(item: int) -> int:
        started.append(item)
        if item in (3, 5):
            raise ValueError(item)
        return item

    with pytest.raises(ValueError, match="^3$"):
        list(parallel_map(fail, range(10_000)))
    assert len(started) < 200


def test_native_conversion_is_said_and_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    native, note = choose_conversion()
    if note != "pictures: native kernel":
        pytest.skip(note)
    monkeypatch.setattr("scene.image_store.NATIVE", "no_such_package.image")
    plain, said = choose_conversion()
    assert said.startswith("pictures: PyTorch (the native kernel can't be used: ")
    expected = (np.arange(256) / np.float32(255)).astype(np.float32).reshape(1, 16, 16)
    for convert in (native, plain):
        np.testing.assert_array_equal(convert(levels).numpy(), expected)
