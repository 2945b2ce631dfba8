"""The VHAP reader against the conventions of the format, computed here on their own."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from scene.datasets import DataOptions, open_dataset
from scene.frames import Dataset, Split
from tests.scene.make_capture import (
    CAMERAS,
    HEIGHT,
    TIMESTEPS,
    VERTICES,
    WIDTH,
    camera_to_world,
    flame_params,
    foreground_of,
    frame_of,
    make_capture,
    matte_of,
    over,
    png,
    read_transforms,
    split_of,
    write_transforms,
)
from utils.errors import InputError


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    return make_capture(tmp_path / "data" / "capture")


def opened(folder: Path, **options: object) -> Dataset:
    options = {"white_background": True, "eval": True, **options}
    return open_dataset(DataOptions(source_path=str(folder), **options), folder.parent.parent / "cache")  # type: ignore[arg-type]


def keys(split: Split) -> list[tuple[int, int | None]]:
    return [(view.timestep, view.camera_index) for view in split.views]


def expected_keys(split: str) -> list[tuple[int, int]]:
    return [(t, c) for t in range(TIMESTEPS) for c in range(CAMERAS) if split_of(t, c) == split]


def test_splits_pixels_and_mattes(capture: Path) -> None:
    data = opened(capture)
    for name, split in data.splits().items():
        assert keys(split) == expected_keys(name)
        for frame, view in zip(split, split.views, strict=True):
            timestep, camera = view.timestep, view.camera_index
            assert camera is not None and view.split == name
            matte = matte_of(timestep, camera)
            image = over(foreground_of(timestep, camera), matte, 255).astype(np.float32) / np.float32(255)
            assert frame.mask is not None
            np.testing.assert_array_equal(frame.image.numpy(), image.transpose(2, 0, 1))
            np.testing.assert_array_equal(frame.mask.numpy(), (matte.astype(np.float32) / 255).transpose(2, 0, 1))
            assert frame.name == f"{timestep:05d}_{camera:02d}" and frame.camera_id == f"2222{camera}"
            assert frame.timestep == timestep and frame.background.tolist() == [1, 1, 1]
    assert (
        data.format == "flame_nerf" and data.sequence_starts == (0,) and not (capture.parent.parent / "cache").exists()
    )


def test_without_eval_everything_is_trained_on(capture: Path) -> None:
    data = opened(capture, eval=False)
    assert keys(data.train) == expected_keys("train") + expected_keys("val") + expected_keys("test")
    assert len(data.val) == 0 and len(data.test) == 0, "what is trained on is not held out"
    held_out = opened(capture).test
    last = held_out[len(held_out) - 1]
    torch.testing.assert_close(data.train[len(data.train) - 1].image, last.image, rtol=0, atol=0)


@pytest.mark.parametrize("resolution", [-1, 2, 12])
def test_a_point_lands_where_the_file_says(capture: Path, resolution: int) -> None:
    """The file's own convention: OpenGL axes, y and cy from the bottom of the picture. Ours: OpenCV, from the top."""
    data = opened(capture, resolution=resolution)
    point = np.array([0.03, -0.02, 0.05, 1.0])
    for view in data.train.views:
        raw = frame_of(view.timestep, view.camera_index or 0)
        x, y, z, _ = np.linalg.inv(camera_to_world(view.camera_index or 0)) @ point
        from_left = raw["cx"] + raw["fl_x"] * x / -z
        from_bottom = raw["cy"] + raw["fl_y"] * y / -z
        seen = view.camera.intrinsics.double() @ (view.camera.world_to_camera.double() @ torch.tensor(point))[:3]
        scale = 1 if resolution == -1 else 0.5
        assert (view.camera.width, view.camera.height) == (WIDTH * scale, HEIGHT * scale)
        expected = [from_left * scale, (HEIGHT - from_bottom) * scale]
        np.testing.assert_allclose((seen[:2] / seen[2]).numpy(), expected, atol=1e-4)
        assert seen[2] > 0


def test_resized_pixels_are_area_means(capture: Path) -> None:
    frame = opened(capture, resolution=2).train[0]
    full = over(foreground_of(0, 0), matte_of(0, 0), 255).reshape(HEIGHT // 2, 2, WIDTH // 2, 2, 3).mean((1, 3))
    assert frame.mask is not None and frame.mask.shape == (1, HEIGHT // 2, WIDTH // 2)
    np.testing.assert_allclose(frame.image.numpy() * 255, full.transpose(2, 0, 1), atol=0.51)


def test_black_background_is_put_behind_the_matte(capture: Path) -> None:
    frame = opened(capture, white_background=False).train[0]
    expected = over(foreground_of(0, 0), matte_of(0, 0), 0).transpose(2, 0, 1)
    np.testing.assert_allclose(frame.image.numpy() * 255, expected, atol=1.01)  # both steps round
    assert frame.background.tolist() == [0, 0, 0]


def test_missing_intrinsics_follow_from_the_others(capture: Path) -> None:
    frames = read_transforms(capture)
    fx, fy = frames[0]["fl_x"], frames[0]["fl_y"]
    for name in ("cx", "cy", "fl_x", "fl_y"):
        del frames[0][name]
    for name in ("fl_y", "camera_angle_y"):
        del frames[1][name]
    frames[1]["camera_indx"] = frames[1].pop("camera_index")
    frames[0]["file_path"] = frames[0]["file_path"].removesuffix(".png")
    write_transforms(capture, "train", frames)
    first, second = opened(capture).train.views[:2]
    expected = [[fx, 0, WIDTH / 2], [0, fy, HEIGHT / 2], [0, 0, 1]]
    np.testing.assert_allclose(first.camera.intrinsics.numpy(), expected, rtol=1e-6)
    assert second.camera.intrinsics[0, 0] == second.camera.intrinsics[1, 1] == frames[1]["fl_x"]
    assert second.camera_index == 1


def test_motion(capture: Path) -> None:
    motion = opened(capture).motion
    assert motion is not None and motion.timesteps == TIMESTEPS
    files = [flame_params(t) for t in range(TIMESTEPS)]
    assert set(motion.per_frame) == {"rotation", "neck_pose", "jaw_pose", "eyes_pose", "translation", "expr"}
    for name, values in motion.per_frame.items():
        np.testing.assert_array_equal(values.numpy(), np.concatenate([file[name] for file in files]))
    np.testing.assert_array_equal(motion.static["shape"].numpy(), files[0]["shape"])
    np.testing.assert_array_equal(motion.static["static_offset"].numpy(), files[0]["static_offset"][0])


def test_motion_with_dynamic_and_without_static_offsets(capture: Path) -> None:
    for t in range(TIMESTEPS):
        values = {**flame_params(t), "dynamic_offset": np.full((1, 11, 3), t, np.float64), "note": np.array(["text"])}
        del values["static_offset"]
        np.savez_compressed(capture / f"flame_param/{t:05d}.npz", **values)
    motion = opened(capture).motion
    assert motion is not None and set(motion.static) == {"shape"}
    assert motion.per_frame["dynamic_offset"].dtype == torch.float32
    assert motion.per_frame["dynamic_offset"][:, 0, 0].tolist() == list(range(TIMESTEPS))


@pytest.mark.parametrize("chosen, camera", [("1", 1), (1, 1), ("22220", 0)])
def test_select_camera(capture: Path, chosen: object, camera: int) -> None:
    data = opened(capture, select_camera_id=chosen)
    assert {view.camera_index for view in data.train.views} == {camera}
    assert len(data.val) == 0 and len(data.test) == 1 and data.motion is not None and data.motion.timesteps == TIMESTEPS


def test_val_may_be_empty_or_missing(capture: Path) -> None:
    write_transforms(capture, "test", read_transforms(capture, "val") + read_transforms(capture, "test"))
    write_transforms(capture, "val", [])
    assert len(opened(capture).val) == 0
    (capture / "transforms_val.json").unlink()
    assert len(opened(capture).val) == 0


def test_mattes_may_be_absent(capture: Path) -> None:
    assert opened(capture).notes == ()
    shutil.rmtree(capture / "fg_masks")
    data = opened(capture, white_background=False)
    (note,) = data.notes
    count = sum(len(split) for split in data.splits().values())
    assert f"{count} of {count} frames name one in a folder that is not there" in note
    frame = data.train[0]
    assert frame.mask is None
    image = over(foreground_of(0, 0), matte_of(0, 0), 255)
    np.testing.assert_array_equal(np.rint(frame.image.numpy() * 255), image.transpose(2, 0, 1))


def test_rgba_is_composited_with_rounding(capture: Path) -> None:
    shutil.rmtree(capture / "fg_masks")
    image, matte = foreground_of(0, 0), matte_of(0, 0)
    (capture / "images/00000_00.png").write_bytes(png(np.concatenate([image, matte], -1)))
    for white in (True, False):
        frame = opened(capture, white_background=white).train[0]
        np.testing.assert_array_equal(
            np.rint(frame.image.numpy() * 255), over(image, matte, 255 * white).transpose(2, 0, 1)
        )


def test_jpeg_behind_a_png_name_and_another_image_folder(capture: Path) -> None:
    shutil.copytree(capture / "images", capture / "images_jpg")
    flat = np.full((HEIGHT, WIDTH, 3), (30, 60, 200), np.uint8)  # BGR
    (capture / "images_jpg/00000_00.png").write_bytes(cv2.imencode(".jpg", flat)[1].tobytes())
    shutil.rmtree(capture / "images")
    shutil.rmtree(capture / "fg_masks")
    frame = opened(capture, images="images_jpg").train[0]
    np.testing.assert_allclose(frame.image.numpy()[:, 3, 3] * 255, [200, 60, 30], atol=3)


def make_union(root: Path) -> Path:
    """Two captures and a union whose second sequence follows the first; all its paths climb out of its folder."""
    frames: dict[str, list] = {"train": [], "val": [], "test": []}
    for number, name in enumerate(("SEQ1", "SEQ2")):
        make_capture(root / name)
        for split in frames:
            for frame in read_transforms(root / name, split):
                frame["timestep_index"] += number * TIMESTEPS
                for field in ("file_path", "fg_mask_path", "flame_param_path"):
                    frame[field] = f"../{name}/{frame[field]}"
                frames[split].append(frame)
    union = root / "UNION"
    union.mkdir()
    shutil.copy(root / "SEQ1/canonical_flame_param.npz", union)
    for split, members in frames.items():
        write_transforms(union, split, members)
    return union


def test_union_of_two_sequences(tmp_path: Path) -> None:
    union = make_union(tmp_path / "data")
    data = opened(union)
    assert data.motion is not None and data.motion.timesteps == 2 * TIMESTEPS
    assert data.sequence_starts == (0, TIMESTEPS)
    assert data.train.views[-1].image.parent == (union.parent / "SEQ2/images").resolve()  # type: ignore[union-attr]
    with pytest.raises(InputError, match=r"frames\[0\]\.file_path: .*SEQ1.* lies outside"):
        opened(union, data_root=str(union))


def test_sequences_of_a_union_may_differ_in_their_offsets(tmp_path: Path) -> None:
    """One tracked with a static offset, one without; one with dynamic offsets, and fewer vertices (no teeth)."""
    union = make_union(tmp_path / "data")
    for timestep in range(TIMESTEPS):
        values = flame_params(timestep)
        np.savez(union.parent / f"SEQ1/flame_param/{timestep:05d}.npz", **values,
                 dynamic_offset=np.full((1, VERTICES, 3), 1 + timestep, np.float32))  # fmt: skip
        del values["static_offset"]
        dynamic = np.full((1, VERTICES - 2, 3), -1 - timestep, np.float32)
        np.savez(union.parent / f"SEQ2/flame_param/{timestep:05d}.npz", **values, dynamic_offset=dynamic)
    motion = opened(union).motion
    assert motion is not None and motion.static["static_offset"].shape == (VERTICES, 3)
    dynamic = motion.per_frame["dynamic_offset"]
    assert dynamic.shape == (2 * TIMESTEPS, VERTICES, 3)
    assert bool((dynamic[2] == 3).all()) and bool((dynamic[TIMESTEPS + 1, :-2] == -2).all())
    assert not dynamic[TIMESTEPS:, -2:].any()
    for timestep in range(TIMESTEPS):  # and one without any
        np.savez(union.parent / f"SEQ2/flame_param/{timestep:05d}.npz", **flame_params(timestep))
    motion = opened(union).motion
    assert motion is not None and not motion.per_frame["dynamic_offset"][TIMESTEPS:].any()
    values = flame_params(1)
    del values["static_offset"]
    np.savez(union.parent / "SEQ2/flame_param/00001.npz", **values)
    with pytest.raises(InputError, match="00001.npz: static_offset: is missing"):
        opened(union)


def test_fingerprint_follows_the_content_not_the_place(capture: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere" / "name"
    shutil.copytree(capture, copy)
    first = opened(capture).fingerprint
    assert opened(copy, resolution=2, white_background=False).fingerprint == first
    values = flame_params(1)
    values["expr"][0, 0] += 1
    np.savez(copy / "flame_param/00001.npz", **values)
    assert opened(copy).fingerprint != first


def test_symbolic_links_inside_the_root_are_followed(capture: Path) -> None:
    (capture / "images").rename(capture.parent / "stored")
    os.symlink(capture.parent / "stored", capture / "images")
    assert opened(capture).train.views[0].image.parent == (capture.parent / "stored").resolve()


def test_statue(shared: Path) -> None:
    data = opened(shared / "data/statue")
    assert [len(split) for split in data.splits().values()] == [184, 23, 81]
    assert {view.camera_index for view in data.val.views} == {8}
    assert data.motion is not None and data.motion.timesteps == 32
    assert data.motion.per_frame["expr"].shape == (32, 100) and data.motion.static["static_offset"].shape == (5143, 3)
    first = data.train.views[0].camera
    expected = [[900, 0, 186.05859109061686], [0, 900, 360 - 174.6], [0, 0, 1]]
    np.testing.assert_allclose(first.intrinsics.numpy(), expected, rtol=1e-6)
    frame = data.train[0]
    assert frame.mask is not None
    behind = frame.image[:, frame.mask[0] == 0]
    assert behind.numel() > 0 and float(behind.min()) == 1.0


def test_statue_mono(shared: Path) -> None:
    data = opened(shared / "data/statue_mono", eval=False)
    assert [len(split) for split in data.splits().values()] == [80, 0, 0]
