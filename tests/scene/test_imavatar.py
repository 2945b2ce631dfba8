"""The IMavatar reader against that project's formula for pixels, computed here with FLAME alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from flame_model import FlameModel, load_flame
from scene.datasets import DATASETS, DataOptions, imavatar, open_dataset
from scene.frames import Dataset
from scene.rigs.flame import FlameRig
from tests.flame_model import synthetic
from tests.scene.make_capture import png
from utils.contracts import Motion
from utils.errors import InputError
from utils.maths.projection import project, to_camera

WIDTH, HEIGHT, FRAMES = 40, 32, 10
SHAPES, EXPRESSIONS = 20, 12
INTRINSICS = [-2.9, 3.1, 0.52, 0.47]  # shares of the sides; fx is negated
RGB = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)


def frame_of(video: str, number: int) -> dict[str, Any]:
    """Frame `number` (from 1, as FFmpeg counts) of a video."""
    rng = np.random.default_rng([len(video), number])
    matrix = np.eye(4)[:3]
    matrix[:, 3] = [0.1 * rng.normal(), 0.1 * rng.normal(), -4 + 0.1 * rng.normal()]
    return {
        "file_path": f"./image/{number}",
        "world_mat": matrix.tolist(),
        "expression": rng.normal(0, 0.5, EXPRESSIONS).tolist(),
        "pose": rng.normal(0, 0.2, 15).tolist(),
        "bbox": [-0.5, -0.5, 0.5, 0.5],
        "flame_keypoints": [[0.0, 0.0]] * 68,
    }


def content_of(video: str, frames: int = FRAMES) -> dict[str, Any]:
    return {
        "frames": [frame_of(video, number + 1) for number in range(frames)],
        "intrinsics": INTRINSICS,
        "shape_params": np.linspace(-1, 1, SHAPES).tolist(),
    }


def matte(number: int) -> np.ndarray:
    alpha = np.zeros((HEIGHT, WIDTH, 1), np.uint8)
    alpha[4:28, 4 : 20 + number] = 255
    return alpha


def write_video(folder: Path, frames: int = FRAMES, mattes: bool = True) -> Path:
    (folder / "image").mkdir(parents=True)
    for number in range(1, frames + 1):
        (folder / f"image/{number}.png").write_bytes(png(RGB))
        if mattes:
            (folder / "mask").mkdir(exist_ok=True)
            (folder / f"mask/{number}.png").write_bytes(png(matte(number)))
    (folder / "flame_params.json").write_text(json.dumps(content_of(folder.name, frames)))
    return folder


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One video."""
    return write_video(tmp_path_factory.mktemp("data") / "video")


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos, as the released subjects have them."""
    folder = tmp_path_factory.mktemp("subjects") / "yufeng"
    for video in ("MVI_1810", "MVI_1812", "MVI_1814"):
        write_video(folder / video, 3, mattes=False)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> FlameModel:
    path = synthetic.write(tmp_path_factory.mktemp("model") / "flame.pkl", synthetic.fields(40, EXPRESSIONS))
    return FlameModel(load_flame(path)).double()


def opened(folder: Path, **options: Any) -> Dataset:
    chosen = DataOptions(source_path=str(folder), white_background=True, eval=True)
    for name, value in options.items():
        setattr(chosen, name, value)
    return open_dataset(chosen, folder.parent.parent / "cache")


def expected_pixels(model: FlameModel, frame: dict[str, Any]) -> np.ndarray:
    """IMavatar: FLAME x 4, then w2c; u = w (fx X / Z + cx), v = h (fy Y / Z + cy) with negative fx and Z."""
    pose = torch.tensor(frame["pose"], dtype=torch.float64)
    identity = model.fold_identity(torch.linspace(-1, 1, SHAPES, dtype=torch.float64))
    vertices = model.posed(
        identity, expr=torch.tensor(frame["expression"], dtype=torch.float64), rotation=pose[:3], neck_pose=pose[3:6],
        jaw_pose=pose[6:9], eyes_pose=pose[9:], translation=torch.zeros(3, dtype=torch.float64),
    ).numpy()  # fmt: skip
    world_mat = np.array(frame["world_mat"])
    x, y, z = (4 * vertices @ world_mat[:, :3].T + world_mat[:, 3]).T
    fx, fy, cx, cy = INTRINSICS
    assert (z < -2).all()
    return np.stack([WIDTH * (fx * x / z + cx), HEIGHT * (fy * y / z + cy)], axis=1)


def seen_pixels(model: FlameModel, data: Dataset, view: Any) -> np.ndarray:
    assert data.motion is not None
    double = Motion({name: values.double() for name, values in data.motion.per_frame.items()},
                    {name: values.double() for name, values in data.motion.static.items()})  # fmt: skip
    points = FlameRig(model, double, "here", "cpu")(view.timestep).vertices.detach()
    return project(to_camera(points, view.camera.world_to_camera.double()), view.camera.intrinsics.double()).numpy()


def test_vertices_land_on_imavatars_pixels(intact: Path, model: FlameModel) -> None:
    data = opened(intact, eval=False)
    assert data.format == "imavatar" and data.edition == "FLAME 2020" and len(data.train) == FRAMES
    for view in data.train.views:
        expected = expected_pixels(model, frame_of("video", view.timestep + 1))
        np.testing.assert_allclose(seen_pixels(model, data, view), expected, atol=1e-3)
        assert view.camera.world_to_camera[2, 3] == pytest.approx(1.0, abs=0.2)  # metres: a quarter of 4


def test_old_files_hold_pixels_of_512(intact: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(intact, tmp_path / "data" / "video")
    content = content_of("video")
    content["intrinsics"] = [512 * value for value in INTRINSICS]
    (folder / "flame_params.json").write_text(json.dumps(content))
    old, new = (opened(place, eval=False).train.views[0].camera.intrinsics for place in (folder, intact))
    torch.testing.assert_close(old, new)


def test_a_turned_camera_is_turned(intact: Path, tmp_path: Path, model: FlameModel) -> None:
    folder = shutil.copytree(intact, tmp_path / "data" / "video")
    content = content_of("video")
    turned = np.array(content["frames"][4]["world_mat"])
    turned[:, :3] = Rotation.from_euler("xyz", [0.2, -0.3, 0.1]).as_matrix()
    content["frames"][4]["world_mat"] = turned.tolist()
    (folder / "flame_params.json").write_text(json.dumps(content))
    data = opened(folder, eval=False)
    expected = expected_pixels(model, content["frames"][4])
    np.testing.assert_allclose(seen_pixels(model, data, data.train.views[4]), expected, atol=1e-3)


def test_pictures_mattes_and_the_held_out_end(intact: Path) -> None:
    data = opened(intact)
    assert [view.timestep for view in data.train.views] == list(range(7))
    assert [view.timestep for view in data.test.views] == [7, 8, 9] and len(data.val) == 0
    assert len(data.notes) == 1 and "last 30 %" in data.notes[0]
    for frame, view in zip(data.train, data.train.views, strict=True):
        alpha = matte(view.timestep + 1).transpose(2, 0, 1)
        assert view.name == str(view.timestep + 1) and frame.mask is not None
        np.testing.assert_array_equal(frame.mask.numpy(), (alpha / np.float32(255)))
        expected = np.where(alpha > 0, RGB.transpose(2, 0, 1), 255)
        np.testing.assert_array_equal(np.rint(frame.image.numpy() * 255), expected)


def test_videos_are_split_as_published(subject: Path, model: FlameModel) -> None:
    data = opened(subject)
    assert "mattes: none, there is no folder mask in MVI_1810, MVI_1814, MVI_1812" in data.notes
    assert data.sequence_starts == (0, 3, 6) and data.motion is not None and data.motion.timesteps == 9
    assert [view.timestep for view in data.train.views] == [0, 1, 2, 3, 4, 5]
    assert [view.timestep for view in data.test.views] == [6, 7, 8]
    assert {Path(str(view.image)).parent.parent.name for view in data.test.views} == {"MVI_1812"}
    assert all(frame.mask is None for frame in data.train)
    places = [(video, number) for video in ("MVI_1810", "MVI_1814", "MVI_1812") for number in (1, 2, 3)]
    for view in [*data.train.views, *data.test.views]:
        expected = expected_pixels(model, frame_of(*places[view.timestep]))
        np.testing.assert_allclose(seen_pixels(model, data, view), expected, atol=1e-3)


def test_train_and_test_folders(tmp_path: Path) -> None:
    for name in ("test", "train"):
        write_video(tmp_path / "data" / "soubhik" / name, 2)
    data = opened(tmp_path / "data" / "soubhik")
    assert [Path(str(view.image)).parent.parent.name for view in data.train.views] == ["train"] * 2
    assert [view.timestep for view in data.train.views] == [0, 1]
    assert [view.timestep for view in data.test.views] == [2, 3]


def test_another_picture_folder(intact: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(intact, tmp_path / "data" / "video")
    (folder / "image").rename(folder / "matted")
    assert opened(folder, images="matted").train.views[0].image == folder / "matted/1.png"


def test_recognition(intact: Path, subject: Path, tmp_path: Path) -> None:
    assert imavatar.recognise(intact) is None and imavatar.recognise(subject) is None
    assert imavatar.recognise(tmp_path) == "no flame_params.json in it or in its folders"
    assert [name for name, row in DATASETS.items() if row.recognise(intact) is None] == ["imavatar"]


Break = Callable[[Path], object]


def change(edit: Callable[[dict[str, Any]], object]) -> Break:
    def damage(folder: Path) -> None:
        content = content_of("video")
        edit(content)
        (folder / "flame_params.json").write_text(json.dumps(content))

    return damage


def top(field: str, value: object) -> Break:
    return change(lambda content: content.update({field: value}))


def frame(field: str, value: object) -> Break:
    return change(lambda content: content["frames"][3].update({field: value}))


def moved(z: float) -> list[list[float]]:
    return [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, z]]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (top("intrinsics", [2.9, 3.1, 0.5, 0.5]), r"json: intrinsics: found fx 2.9 and .*, expected fx < 0 < fy"),
        (top("intrinsics", [-2.9, 3.1, 256, 0.5]), "json: intrinsics: found cx 256 and cy 0.5, expected both"),
        (top("intrinsics", [-2.9, 3.1, 0.5]), "json: intrinsics: found a list of 3, expected a list of 4 numbers"),
        (top("intrinsics", [-2.9, 3.1, -0.5, 0.5]), "json: intrinsics: found a principal point at -0.5, 0.5"),
        (top("shape_params", [[0.0] * 20]), r"json: shape_params\[0\]: found a list of 20, expected a finite number"),
        (top("shape_params", None), "json: shape_params: is missing"),
        (top("frames", []), "json: frames: is empty"),
        (frame("pose", [0.0] * 6), r"json: frames\[3\].pose: found a list of 6, expected a list of 15 numbers"),
        (frame("pose", [0.0] * 14 + [True]), r"json: frames\[3\].pose\[14\]: found true, expected a finite number"),
        (frame("expression", [0.0] * 50), r"json: frames\[3\].expression: found 50 numbers, expected 12"),
        (frame("world_mat", moved(4)), r"json: frames\[3\].world_mat\[2\]\[3\]: found 4 for the head's z"),
        (frame("world_mat", np.eye(4).tolist()), r"json: frames\[3\].world_mat: found a list of 4, expected 3 rows"),
        (frame("world_mat", [[2, 0, 0, 0], *moved(-4)[1:]]), r"json: frames\[3\].world_mat: found a rotation part"),
        (frame("file_path", "./image/3"), r"json: frames\[3\].file_path: found .*3.png, .* frames\[2\] too"),
        (frame("file_path", "./image/none"), r"json: frames\[3\].file_path: .*none.png does not exist"),
        (frame("file_path", "../../../x"), r"json: frames\[3\].file_path: .* lies outside"),
        (lambda folder: (folder / "mask/4.png").unlink(), r"json: frames\[3\].file_path: .*mask/4.png does not exist"),
        (lambda folder: (folder / "mask/4.png").write_bytes(png(RGB)), "mask/4.png: found 3 channels in a matte"),
        (lambda folder: (folder / "image/4.png").write_bytes(png(RGB[1:])), "image/4.png: size: found 40x31"),
        (lambda folder: (folder / "flame_params.json").write_text("{"), "flame_params.json: line 1 column 2: is not"),
    ],
)  # fmt: skip
def test_faults(intact: Path, tmp_path: Path, damage: Break, message: str) -> None:
    folder = tmp_path / "data" / "video"
    shutil.copytree(intact, folder)
    damage(folder)
    with pytest.raises(InputError, match=message) as caught:
        opened(folder)
    assert "\n" not in str(caught.value) and not (tmp_path / "cache").exists()


def test_videos_of_two_people_are_refused(subject: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(subject, tmp_path / "data" / "yufeng")
    content = content_of("MVI_1814", 3)
    content["shape_params"][0] = 3.0
    (folder / "MVI_1814/flame_params.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="MVI_1814/flame_params.json: shape_params: differs from that of .*MVI_1810"):
        opened(folder)
