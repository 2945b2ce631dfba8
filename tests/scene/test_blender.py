"""Blender/NeRF scenes: cameras against the formulas of those files, what a scene starts from, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import render
import train
from scene.datasets import DataOptions, identify, open_dataset
from scene.datasets.blender import read
from scene.frames import Dataset
from tests.scene.make_capture import make_capture, over, png
from tests.scene.make_static import (
    CENTRES,
    OFF_CENTRE,
    Lens,
    make_blender,
    photograph,
    ply,
    surface_points,
    world_to_camera,
)
from utils.errors import InputError, run_main
from utils.io.images import read_image
from utils.maths.projection import project, to_camera

TRAIN = "transforms_train.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_blender(tmp_path / "scene", 3, 2, points=20)


def load(folder: Path, **options: Any) -> Dataset:
    return open_dataset(DataOptions(source_path=str(folder), **options), folder.parent / "cache")


def content_of(folder: Path, name: str = TRAIN) -> dict[str, Any]:
    return json.loads((folder / name).read_text())


def change(folder: Path, edit: Callable[[dict[str, Any]], object], name: str = TRAIN) -> None:
    content = content_of(folder, name)
    edit(content)
    (folder / name).write_text(json.dumps(content))


def blender_pixel(frame: dict[str, Any], k: Lens, point: np.ndarray) -> np.ndarray:
    """What the matrix means: camera to world, x to the right, y up, the camera looks along -z."""
    x, y, z = np.linalg.solve(np.array(frame["transform_matrix"]), [*point, 1.0])[:3]
    return np.array([k.cx + k.fx * x / -z, k.cy - k.fy * y / -z])


@pytest.mark.parametrize("lens", [None, OFF_CENTRE])
def test_points_fall_on_the_pixels_that_the_files_say(tmp_path: Path, lens: Lens | None) -> None:
    folder = make_blender(tmp_path / "scene", 4, 1, lens, points=20)
    k = lens or Lens()
    if lens is None:  # the classic files hold an angle and nothing else: the principal point is the centre
        focal = 0.5 * 64 / np.tan(0.5 * content_of(folder)["camera_angle_x"])
        k = Lens(64, 64, focal, focal, 32.0, 32.0)
    data = load(folder, eval=True)
    assert len(data.train) == 4
    for frame, written in zip(data.train, content_of(folder)["frames"], strict=True):
        places = to_camera(torch.tensor(CENTRES).float(), frame.camera.world_to_camera)
        pixels = project(places, frame.camera.intrinsics).numpy()
        wanted = [blender_pixel(written, k, centre) for centre in CENTRES]
        np.testing.assert_allclose(pixels, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("white", [True, False])
def test_pictures_are_laid_over_the_background(folder: Path, white: bool) -> None:
    data = load(folder, white_background=white, eval=True)
    rgba = photograph(Lens(), world_to_camera(1, 5))
    wanted = over(rgba[..., :3], rgba[..., 3:], 255 if white else 0)
    np.testing.assert_array_equal((data.train[1].image.permute(1, 2, 0) * 255).round().numpy(), wanted)
    assert data.train[1].mask is None
    assert data.train[1].background.tolist() == [float(white)] * 3


def test_splits(folder: Path) -> None:
    data = load(folder, eval=True)
    assert [[view.name for view in split.views] for split in data.splits().values()] == [
        ["r_0", "r_1", "r_2"],
        [],
        ["r_0", "r_1"],
    ]
    assert [Path(str(view.image)).parent.name for view in load(folder).train.views] == ["train"] * 3 + ["test"] * 2
    (folder / "transforms_val.json").write_text((folder / TRAIN).read_text())
    assert len(load(folder, eval=True).val) == 3
    assert {view.timestep for view in data.train.views} == {0} and data.motion is None and data.format == "blender"


def test_head_captures_go_before(tmp_path: Path) -> None:
    folder = make_capture(tmp_path / "capture")
    assert identify(DataOptions(source_path=str(folder)))[1].rig == "flame"
    (folder / "canonical_flame_param.npz").unlink()
    with pytest.raises(
        InputError, match=r"frames\[0\]\.flame_param_path: found the motion of a head .*canonical_flame"
    ):
        load(folder)


def test_a_frames_own_camera_beats_the_shared_one(tmp_path: Path) -> None:
    folder = make_blender(tmp_path / "scene", 2, 1, OFF_CENTRE, points=20)
    change(folder, lambda c: c["frames"][1].update(camera_angle_x=1.0, cy=3.25, camera_id="left", camera_index=4))
    train = load(folder).train
    k = train[1].camera.intrinsics.numpy()
    np.testing.assert_allclose(k[0, 0], 24 / np.tan(0.5), rtol=1e-6)
    assert (k[1, 1], k[0, 2], k[1, 2]) == (56.5, 25.25, 3.25)
    assert (train.views[1].camera_id, train.views[1].camera_index) == ("left", 4)
    assert train[0].camera.intrinsics[1, 2] == 14.5


@pytest.mark.parametrize("size", [(24, 16), (96, 64)])
def test_resized_pictures_scale_the_pinhole(tmp_path: Path, size: tuple[int, int]) -> None:
    folder = make_blender(tmp_path / "scene", 1, 0, OFF_CENTRE, points=20)
    (folder / "train/r_0.png").write_bytes(png(np.zeros((size[1], size[0], 3), np.uint8)))
    data, s = load(folder), size[0] / 48
    k = data.train[0].camera.intrinsics.numpy()
    np.testing.assert_allclose(k, [[55 * s, 0, 25.25 * s], [0, 56.5 * s, 14.5 * s], [0, 0, 1]], rtol=1e-6)
    assert f"the first is {size[0]}x{size[1]}, its camera says 48x32" in data.notes[0]


def test_points_beside_the_cameras(folder: Path) -> None:
    points = load(folder).points
    positions, colours = surface_points(20)
    assert points is not None
    np.testing.assert_allclose(points.positions.numpy(), positions, rtol=0, atol=1e-6)
    np.testing.assert_allclose(points.colours.numpy(), colours / 255, rtol=0, atol=1e-7)


def test_points_in_text_and_their_part_in_the_fingerprint(folder: Path) -> None:
    before = load(folder)
    (folder / "points3d.ply").unlink()
    head = "ply\nformat ascii 1.0\ncomment nerfstudio\nelement vertex 2\nproperty float x\nproperty float y\nproperty "
    head += (
        "float z\nproperty uint8 red\nproperty uint8 green\nproperty uint8 blue\nelement face 0\nproperty list uchar"
    )
    rows = " int vertex_indices\nend_header\n0.5 -1 2e-1 255 0 51\n1 2 3 1 2 3\n"
    (folder / "sparse_pc.ply").write_text(head + rows)
    data = load(folder)
    assert data.points is not None
    np.testing.assert_allclose(data.points.positions.numpy(), [[0.5, -1, 0.2], [1, 2, 3]], rtol=1e-7)
    np.testing.assert_allclose(data.points.colours.numpy()[0], [1, 0, 0.2], rtol=1e-6)
    assert data.fingerprint != before.fingerprint


def test_random_points_fill_the_cube_and_are_always_the_same(folder: Path) -> None:
    (folder / "points3d.ply").unlink()
    captures = [read(folder, DataOptions()) for _ in range(2)]
    points, again = captures[0].points, captures[1].points
    assert points is not None and again is not None and "100000 random points" in captures[0].notes[0]
    assert torch.equal(points.positions, again.positions) and torch.equal(points.colours, again.colours)
    assert points.positions.shape == points.colours.shape == (100_000, 3)
    assert -1.3 <= float(points.positions.min()) < -1.2999 and 1.2999 < float(points.positions.max()) <= 1.3
    # The mean of 10^5 uniform numbers in [-1.3, 1.3] errs by 0.0024.
    assert float(points.positions.mean(0).abs().max()) < 0.012
    assert bool((points.colours == 0.5).all())
    counts = np.histogramdd(points.positions.numpy(), bins=2)[0]
    assert abs(counts - 12_500).max() < 600


def frame(**fields: object) -> Callable[[Path], object]:
    return lambda folder: change(folder, lambda content: content["frames"][1].update(fields))


def top(**fields: object) -> Callable[[Path], object]:
    return lambda folder: change(folder, lambda content: content.update(fields))


def matrix(row: int, column: int, value: object) -> Callable[[Path], object]:
    return lambda folder: change(
        folder, lambda content: content["frames"][1]["transform_matrix"][row].__setitem__(column, value)
    )


def text(name: str, old: str, new: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text((folder / name).read_text().replace(old, new, 1))


def cloud(data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / "points3d.ply").write_bytes(data)


GOOD = ply(*surface_points(20))
TEXT = b"ply\nformat ascii 1.0\nelement vertex 1\n"
TEXT += b"".join(b"property float %c\n" % axis for axis in b"xyz")
TEXT += b"property uchar red\nproperty uchar green\nproperty uchar blue\nend_header\n1 2 3 4 255 6\n"
LIST = b"element vertex 20\nproperty list uchar int q"
FAULTS = [
    ("not JSON", lambda f: (f / TRAIN).write_text("{"), r"transforms_train\.json: line 1 column 2: is not JSON"),
    ("a list", lambda f: (f / TRAIN).write_text("[]"), "found a list of 0, expected an object"),
    ("no test", lambda f: (f / "transforms_test.json").unlink(), r"transforms_test\.json: does not exist"),
    ("no frames", top(frames=[]), "frames: is empty"),
    ("angle missing", top(camera_angle_x=None), "train.json: fl_x: is missing, and so is camera_angle_x"),
    ("angle of pi", top(camera_angle_x=3.1416), r"train\.json: camera_angle_x: found 3\.1416, expected an angle in"),
    ("angle NaN", text(TRAIN, '"camera_angle_x": ', '"camera_angle_x": NaN, "was": '), "camera_angle_x: found NaN"),
    ("angle as text", top(camera_angle_x="0.7"), 'camera_angle_x: found "0.7", expected a finite number'),
    ("own angle", frame(camera_angle_x=-1), r"frames\[1\]\.camera_angle_x: found -1, expected an angle"),
    ("width 0", top(w=0, h=64), "w: found 0, expected an integer in"),
    ("another aspect", top(w=128, h=100), r"w: found 128x100 pixels, but .*r_0\.png has 64x64, which is no uniform"),
    ("cy far off", top(cy=1e9), r"cy: found a principal point at 1e\+09 px of 64"),
    ("cy as text", top(cy="32"), 'cy: found "32", expected a finite number'),
    ("distortion", top(k1=0.1, k2=0.0), r"k1: found a distorted lens \(perspective, k1=0\.1\).* image_undistorter"),
    ("own distortion", frame(p2=-0.01), r"frames\[1\]\.p2: found a distorted lens"),
    ("fisheye", top(is_fisheye=True), r"is_fisheye: found a distorted lens \(fisheye\)"),
    ("fisheye model", top(camera_model="OPENCV_FISHEYE"), "camera_model: found a distorted lens"),
    ("matrix missing", frame(transform_matrix=None), r"frames\[1\]\.transform_matrix: is missing"),
    ("matrix 3x4", frame(transform_matrix=np.eye(4)[:3].tolist()), "found a list of 3, expected 4 rows"),
    ("matrix scaled", matrix(0, 0, 5.0), r"frames\[1\]\.transform_matrix: found a rotation part that is .* from ortho"),
    ("matrix far", matrix(0, 3, 1e30), r"transform_matrix: found a camera 1e\+30 m from"),
    ("matrix last row", matrix(3, 3, 2.0), r"transform_matrix: found last row"),
    ("file path missing", frame(file_path=None), r"frames\[1\]\.file_path: is missing"),
    ("absolute path", frame(file_path="/etc/passwd"), "file_path: found '/etc/passwd', expected a path relative"),
    ("climbing path", frame(file_path="../../x"), "file_path: .* lies outside .* --data_root"),
    ("picture missing", frame(file_path="./train/r_7"), r"file_path: .*train/r_7\.png does not exist"),
    ("picture cut", lambda f: (f / "train/r_1.png").write_bytes(b"\x89PNG\r\n\x1a\n\0"), r"r_1\.png: .*truncated"),
    ("moves", frame(time=0.5), r"frames\[1\]\.time: found 0\.5 here and None in the first frame.* moves"),
    ("moves too", frame(timestep_index=1), r"timestep_index: found 1 here and None in the first frame"),
    ("cloud is text", cloud(b"hello"), r"points3d\.ply: header: is not that of a PLY file"),
    ("cloud empty", cloud(ply(*surface_points(0))), "vertex: holds no points, .* Remove the file"),
    ("cloud cut", cloud(GOOD[:-1]), "header: promises 20 vertices of 27 bytes, but 539 bytes follow"),
    ("cloud count", cloud(GOOD.replace(b"vertex 20", b"vertex 999999999999")), "promises 999999999999 vertices"),
    ("cloud count negative", cloud(GOOD.replace(b"vertex 20", b"vertex -1")), "found 'element vertex -1', expected"),
    ("cloud without colour", cloud(GOOD.replace(b"uchar red", b"uchar rot")), "lacks red; expected x, y, z, red"),
    ("cloud colour type", cloud(GOOD.replace(b"uchar red", b"float red")), "found red as float, expected uchar"),
    ("cloud property twice", cloud(GOOD.replace(b"float nx", b"float ny")), "names a property of 'vertex' twice"),
    ("cloud list", cloud(GOOD.replace(b"element vertex 20", LIST)), "expected 'property TYPE NAME' with a scalar"),
    ("cloud format", cloud(GOOD.replace(b"binary_little", b"ternary_little")), "found format 'ternary_little_endian'"),
    ("cloud NaN", cloud(ply(np.full((2, 3), np.nan), np.zeros((2, 3)))), r"vertex 0: found \[nan, nan, nan\]"),
    ("cloud text colour", cloud(TEXT.replace(b"255", b"300")), "vertex 0: .* found 300, expected 0 to 255"),
    ("cloud text short", cloud(TEXT.replace(b"255", b"")), "vertex 0: .* found 5 numbers, expected 6"),
    ("cloud as ascii", cloud(GOOD.replace(b"binary_little_endian", b"ascii")), "(header: promises|vertex 0: is no)"),
]  # fmt: skip


@pytest.mark.parametrize("damage, message", [pytest.param(d, m, id=name) for name, d, m in FAULTS])
def test_faults(folder: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(folder)
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(InputError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    assert sorted(folder.parent.rglob("*")) == before


def test_names_with_and_without_suffix(folder: Path) -> None:
    """`.png` is appended to what is no picture suffix; other suffixes stay."""
    (folder / "train/r_0.png").rename(folder / "train/frame.001.png")
    change(folder, lambda content: content["frames"][0].update(file_path="train/frame.001"))
    change(folder, lambda content: content["frames"][1].update(file_path="train/r_1.png"))
    views = load(folder).train.views
    assert [Path(str(view.image)).name for view in views[:2]] == ["frame.001.png", "r_1.png"]
    assert read_image(Path(str(views[0].image))).shape == (64, 64, 4)


def test_a_scene_is_learnt_from_start_to_end(tmp_path: Path) -> None:
    """Held-out pictures, from cameras that training never saw: wrong poses or pinholes could not bring them near."""
    scene, run = make_blender(tmp_path / "scene", 20, 4, points=500), tmp_path / "run"
    flags = ["-s", str(scene), "-m", str(run), "--eval", "--iterations", "300", "--threads", "1", "--quiet"]
    assert run_main(train.main, flags) == 0
    assert run_main(render.main, ["-m", str(run), "--skip_train", "--quiet"]) == 0
    rows = [row.split(",") for row in (run / "log.csv").read_text().splitlines()]
    assert max(float(value) for step, split, name, value in rows if (step, split, name) == ("300", "test", "psnr")) > 20
    for index in range(4):
        rgba = photograph(Lens(), world_to_camera(20 + index, 24)).astype(float)
        seen = read_image(run / f"test/ours_300/renders/{index:05d}.png") / 255.0
        error = ((seen - rgba[..., :3] * rgba[..., 3:] / 255**2) ** 2).mean()
        assert error < 0.015  # 18 dB; a black picture is 11 dB off
