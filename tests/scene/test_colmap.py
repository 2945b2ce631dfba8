"""COLMAP scenes: cameras, splits and sizes against COLMAP's own formulas, and what is refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scene.datasets import DataOptions, identify, open_dataset
from scene.datasets.capture import Capture, FrameRecord
from scene.datasets.colmap import read
from scene.frames import Dataset
from tests.scene.make_capture import png
from tests.scene.make_static import (
    CENTRES,
    COLOURS,
    OFF_CENTRE,
    Lens,
    Sparse,
    binary_files,
    make_blender,
    make_colmap,
    photograph,
    sparse_of,
    text_files,
    world_to_camera,
)
from utils.errors import InputError
from utils.maths.projection import project, to_camera


def load(folder: Path, **options: Any) -> Dataset:
    return open_dataset(DataOptions(source_path=str(folder), **options), folder.parent / "cache")


def colmap_pixel(quaternion: list[float], translation: list[float], lens: Lens, point: np.ndarray) -> np.ndarray:
    """COLMAP's projection: the point is turned by the quaternion (Rodrigues' form), moved, divided, scaled."""
    w, axis = quaternion[0], np.array(quaternion[1:])
    turned = point + 2 * w * np.cross(axis, point) + 2 * np.cross(axis, np.cross(axis, point))
    x, y, z = turned + translation
    return np.array([lens.fx * x / z + lens.cx, lens.fy * y / z + lens.cy])


@pytest.mark.parametrize("binary", [True, False])
def test_points_fall_on_the_pixels_that_colmap_says(tmp_path: Path, binary: bool) -> None:
    data = load(make_colmap(tmp_path / "scene", binary))
    images = {Path(name).stem: row for *row, name in sparse_of().images}
    assert len(data.train) == 9
    for frame in data.train:
        _, quaternion, translation, _ = images[frame.name]
        points = torch.tensor(CENTRES, dtype=torch.float32)
        pixels = project(to_camera(points, frame.camera.world_to_camera), frame.camera.intrinsics).numpy()
        wanted = [colmap_pixel(quaternion, translation, OFF_CENTRE, centre) for centre in CENTRES]
        np.testing.assert_allclose(pixels, wanted, rtol=0, atol=1e-4)


def test_the_nearest_ball_is_where_its_camera_sees_it(tmp_path: Path) -> None:
    """Poses, pinhole, names and pixels belong together: the picture has the ball's hue at its projected centre."""
    for frame in load(make_colmap(tmp_path / "scene")).train:
        places = to_camera(torch.tensor(CENTRES).float(), frame.camera.world_to_camera)
        nearest = int(places[:, 2].argmin())
        u, v = project(places, frame.camera.intrinsics)[nearest].tolist()
        seen = frame.image[:, int(v), int(u)].numpy()
        assert seen @ COLOURS[nearest] / (np.linalg.norm(seen) * np.linalg.norm(COLOURS[nearest])) > 0.999


def described(capture: Capture) -> list[tuple]:
    def row(split: str, record: FrameRecord) -> tuple:
        matrix = record.world_to_camera.tobytes()
        return (
            split,
            record.timestep,
            record.camera_id,
            record.intrinsics,
            matrix,
            Path(str(record.image)).name,
            record.mask,
        )

    return [row(split, record) for split, records in capture.records.items() for record in records]


def test_text_and_binary_are_the_same_capture(tmp_path: Path) -> None:
    captures = [read(make_colmap(tmp_path / str(binary), binary), DataOptions()) for binary in (True, False)]
    assert described(captures[0]) == described(captures[1])
    assert captures[0].points is not None and captures[1].points is not None
    assert torch.equal(captures[0].points.positions, captures[1].points.positions)
    assert torch.equal(captures[0].points.colours, captures[1].points.colours)


def test_points_are_positions_and_colours(tmp_path: Path) -> None:
    points = load(make_colmap(tmp_path / "scene")).points
    assert points is not None
    rows = sparse_of().points
    np.testing.assert_allclose(points.positions.numpy(), [row[1] for row in rows], rtol=0, atol=1e-6)
    np.testing.assert_allclose(points.colours.numpy(), np.array([row[2] for row in rows]) / 255, rtol=0, atol=1e-7)
    assert points.positions.dtype == points.colours.dtype == torch.float32


def test_every_eighth_by_name_is_held_out(tmp_path: Path) -> None:
    """Ids run against the names in this model, so a reader that sorts by id would hold out 00 and 08 only by chance."""
    folder = make_colmap(tmp_path / "scene", sparse=sparse_of(10))
    data = load(folder, eval=True)
    assert [view.name for view in data.test.views] == ["view_00", "view_08"]
    assert [view.name for view in data.train.views] == [f"view_{i:02d}" for i in (1, 2, 3, 4, 5, 6, 7, 9)]
    assert len(data.val) == 0
    assert len(load(folder).train) == 10
    assert {view.timestep for view in data.train.views} == {0} and data.motion is None
    assert [view.camera_id for view in load(folder, select_camera_id="3", eval=True).train.views] == ["3"] * 5
    with pytest.raises(InputError, match="found no camera 'None'"):
        load(folder, select_camera_id="None")


def test_it_goes_before_the_other_formats(tmp_path: Path) -> None:
    folder = make_blender(tmp_path / "scene", 1, 1)
    (folder / "canonical_flame_param.npz").write_bytes(b"")
    assert identify(DataOptions(source_path=str(folder)))[1].rig == "flame"
    make_colmap(tmp_path / "other").joinpath("sparse").rename(folder / "sparse")
    assert identify(DataOptions(source_path=str(folder)))[1].read is read


def test_models_may_lie_in_sparse_itself_and_others_are_mentioned(tmp_path: Path) -> None:
    folder = make_colmap(tmp_path / "scene")
    (folder / "sparse/1").mkdir()
    assert load(folder).notes == ("only sparse/0 was read; sparse also holds 1",)
    for path in list((folder / "sparse/0").iterdir()):
        path.rename(folder / "sparse" / path.name)
    (folder / "sparse/0").rmdir()
    assert len(load(folder).train) == 9


# 97x65 halved: 48.5 goes up or down, 32.5 as well.
@pytest.mark.parametrize("size", [(48, 32), (49, 33), (48, 33), (32, 21), (97, 65), (194, 130)])
def test_resized_pictures_scale_the_pinhole(tmp_path: Path, size: tuple[int, int]) -> None:
    declared = Lens(97, 65, 110.0, 113.0, 50.5, 29.0)
    folder = make_colmap(tmp_path / "scene", lens=declared)
    (folder / "images_x").mkdir()
    for i in range(9):
        (folder / f"images_x/view_{i:02d}.png").write_bytes(png(np.full((size[1], size[0], 3), 9, np.uint8)))
    data = load(folder, images="images_x")
    sx, sy = size[0] / 97, size[1] / 65
    k = data.train[3].camera.intrinsics.numpy()
    np.testing.assert_allclose(k, [[110 * sx, 0, 50.5 * sx], [0, 113 * sy, 29 * sy], [0, 0, 1]], rtol=1e-6)
    assert data.train[3].image.shape == (3, size[1], size[0])
    assert bool(data.notes) == (size != (97, 65))
    if data.notes:
        text = f"9 resized pictures were scaled (the first is {size[0]}x{size[1]}, its camera says 97x65)"
        assert text in data.notes[0]


@pytest.mark.parametrize(
    "model, parameters, pinhole",
    [
        ("SIMPLE_PINHOLE", [50.0, 24.0, 16.0], (50.0, 50.0, 24.0, 16.0)),
        ("SIMPLE_RADIAL", [50.0, 24.0, 16.5, 0.0], (50.0, 50.0, 24.0, 16.5)),
        ("OPENCV", [50.0, 51.0, 24.0, 16.0, 0.0, -0.0, 0.0, 0.0], (50.0, 51.0, 24.0, 16.0)),
        ("SIMPLE_RADIAL", [50.0, 24.0, 16.5, 1e-9], None),
        ("OPENCV", [50.0, 51.0, 24.0, 16.0, 0.0, 0.0, 0.0, -0.01], None),
        ("OPENCV_FISHEYE", [50.0, 51.0, 24.0, 16.0, 0.0, 0.0, 0.0, 0.0], None),  # equidistant: never a pinhole
    ],
)
def test_lenses(tmp_path: Path, model: str, parameters: list[float], pinhole: tuple[float, ...] | None) -> None:
    sparse = sparse_of()
    spoiled = replace(sparse, cameras=[sparse.cameras[0], (3, model, 48, 32, parameters)])
    folder = make_colmap(tmp_path / "scene", sparse=spoiled)
    if pinhole is None:
        with pytest.raises(
            InputError, match=rf"cameras\.bin: record 1\.MODEL: found camera 3 .*\({model}: k.*colmap im"
        ):
            load(folder)
        return
    fx, fy, cx, cy = pinhole
    k = next(frame for frame in load(folder).train if frame.camera_id == "3").camera.intrinsics.numpy()
    np.testing.assert_array_equal(k, np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], np.float32))


def test_a_distorted_camera_that_took_no_picture_is_no_fault(tmp_path: Path) -> None:
    sparse = sparse_of()
    unused = (11, "SIMPLE_RADIAL", 48, 32, [50.0, 24.0, 16.5, 0.1])
    assert (
        len(load(make_colmap(tmp_path / "scene", sparse=replace(sparse, cameras=[*sparse.cameras, unused]))).train) == 9
    )


def test_pictures_may_lie_in_folders(tmp_path: Path) -> None:
    images = [(n, q, t, c, f"left/{name}" if c == 3 else f"./{name}") for n, q, t, c, name in sparse_of().images]
    folder = make_colmap(tmp_path / "scene", sparse=replace(sparse_of(), images=images))
    (folder / "images/left").mkdir()
    for *_, name in images:
        if name.startswith("left"):
            (folder / "images" / Path(name).name).rename(folder / "images" / name)
    found = {view.name: Path(str(view.image)).parent.name for view in load(folder).train.views}
    assert found == {f"view_{i:02d}": "left" if i % 2 else "images" for i in range(9)}


def rename(new: str) -> Callable[[Sparse], Sparse]:
    """Call the second picture something else."""
    return lambda s: replace(s, images=[s.images[0], (*s.images[1][:4], new), *s.images[2:]])


def with_camera(*camera: Any) -> Callable[[Sparse], Sparse]:
    return lambda s: replace(s, cameras=[camera, s.cameras[1]])


LENS = [55.0, 56.5, 25.25, 14.5]
MODEL_FAULTS = [
    (
        "unknown camera",
        lambda s: replace(s, cameras=s.cameras[:1]),
        r"CAMERA_ID: found 3, but cameras\.\w+ has no such",
    ),
    ("no pictures", lambda s: replace(s, images=[]), "registers no picture"),
    ("no points", lambda s: replace(s, points=[]), "points3D.* holds no points, .*colmap point_triangulator"),
    ("picture missing", rename("view_99.png"), r"NAME: .*images/view_99\.png does not exist\. Copy all pictures"),
    ("picture twice", rename("view_00.png"), r"NAME: found 'view_00\.png' a second time"),
    ("picture twice, spelled otherwise", rename("./view_00.png"), r"NAME: found '\./view_00\.png'.* a second time"),
    ("absolute name", rename("/etc/passwd"), "NAME: found '/etc/passwd', expected a path inside the picture folder"),
    ("climbing name", rename("../images/view_01.png"), "expected a path inside the picture folder"),
    ("backslashes", rename("..\\images\\view_01.png"), "expected a path inside the picture folder"),
    ("long name", rename("x" * 5000), "NAME: .* does not exist"),
    ("no focal length", with_camera(7, "PINHOLE", 48, 32, [0.0, *LENS[1:]]), "PARAMS: found focal lengths 0, 56.5 px"),
    ("centre far off", with_camera(7, "PINHOLE", 48, 32, [*LENS[:3], -1e6]), "found a principal point at 25.25, -1e"),
    (
        "cropped pictures",
        with_camera(7, "PINHOLE", 48, 40, LENS),
        r"WIDTH: found 48x40 pixels, but .* has 48x32, which is",
    ),
    ("turned pictures", with_camera(7, "PINHOLE", 32, 48, LENS), r"WIDTH: found 32x48 pixels, but .* has 48x32"),
]


@pytest.mark.parametrize("form", [binary_files, text_files])
@pytest.mark.parametrize("spoil, message", [pytest.param(s, m, id=name) for name, s, m in MODEL_FAULTS])
def test_model_faults(tmp_path: Path, form: Callable, spoil: Callable[[Sparse], Sparse], message: str) -> None:
    folder = make_colmap(tmp_path / "scene")
    for path in (folder / "sparse/0").iterdir():
        path.unlink()
    for name, data in form(spoil(sparse_of())).items():
        (folder / "sparse/0" / name).write_bytes(data)
    refused(folder, message)


def refused(folder: Path, message: str, **options: Any) -> None:
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(InputError, match=message) as caught:
        load(folder, **options)
    assert "\n" not in str(caught.value)
    assert sorted(folder.parent.rglob("*")) == before


def test_folder_faults(tmp_path: Path) -> None:
    folder = make_colmap(tmp_path / "scene")
    refused(folder, r"images_4/view_00\.png does not exist\. Name the picture folder: --images", images="images_4")
    refused(folder, "--images: found '../images', expected the name of a folder", images="../images")
    (folder / "images/view_03.png").write_bytes(b"not a picture")
    refused(folder, r"view_03\.png: byte 0: found another format")
    (tmp_path.parent / "elsewhere.png").write_bytes(png(photograph(OFF_CENTRE, world_to_camera(3, 9))[..., :3]))
    (folder / "images/view_03.png").unlink()
    os.symlink(tmp_path.parent / "elsewhere.png", folder / "images/view_03.png")
    refused(folder, r"record 3\.NAME: .*elsewhere\.png lies outside .* --data_root")
    assert len(load(folder, data_root=str(tmp_path.parent)).train) == 9


def test_one_picture_can_not_be_held_out(tmp_path: Path) -> None:
    folder = make_colmap(tmp_path / "scene", sparse=sparse_of(1))
    assert len(load(folder).train) == 1
    refused(folder, "has one picture, which --eval holds out", eval=True)


def test_an_empty_sparse_folder_says_what_it_lacks(tmp_path: Path) -> None:
    folder = make_colmap(tmp_path / "scene")
    for path in (folder / "sparse/0").iterdir():
        path.unlink()
    refused(folder, r"sparse/0: found no model, expected cameras, images and points3D, all \.bin or all \.txt")
