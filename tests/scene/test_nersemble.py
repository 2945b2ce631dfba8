"""The NeRSemble reader against the toolkit's placing of the head, computed here with FLAME and scipy alone."""

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
from scene.datasets import DataOptions, nersemble, open_dataset
from scene.frames import Dataset
from scene.rigs.flame import FlameRig
from tests.flame_model import synthetic
from utils.errors import InputError
from utils.io.video import VideoWriter
from utils.maths.projection import project, to_camera

pytest.importorskip("av", reason="PyAV is not installed")

SIZE = (64, 48)  # width, height
TRAIN, TEST = "222200037", "222200046"
SEQUENCES = {"EXP-1-head": 7, "EMO-2-surprise+fear": 3}
SCALE, SHAPES, EXPRESSIONS = 1.7, 20, 12
TRACKING = "tracking/flame2023_tracking_v2.npz"


def world_to_camera(serial: str) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", [3.0, 0.2 if serial == TEST else -0.1, 0.1]).as_matrix()
    matrix[:3, 3] = [0.05, -0.02, 1.4]
    return matrix


def intrinsics(serial: str) -> list[list[float]]:
    return [[70.0, 0, 30.5 + (serial == TEST)], [0, 72.0, 22.25], [0, 0, 1]]


def tracking(sequence: str) -> dict[str, np.ndarray]:
    rng, count = np.random.default_rng(len(sequence)), SEQUENCES.get(sequence, 2)
    rotation = rng.normal(0, 0.4, (count, 3))
    sizes = {"jaw": 3, "neck": 3, "eyes": 6, "expression": EXPRESSIONS, "translation": 3}
    values = {name: rng.normal(0, 0.2, (count, size)).astype(np.float32) for name, size in sizes.items()}
    return {
        **values,
        "rotation": rotation.astype(np.float32),
        "rotation_matrices": Rotation.from_euler("XYZ", rotation).as_matrix().astype(np.float32),
        "shape": np.linspace(-1, 1, SHAPES, dtype=np.float32)[None],
        "scale": np.array([[SCALE]], np.float32),
        "frames": np.arange(count),
    }


def grey(level: int) -> np.ndarray:
    return np.full((SIZE[1], SIZE[0], 3), level, np.uint8)


def video(path: Path, levels: list[int]) -> None:
    with VideoWriter(path, 24) as writer:
        for level in levels:
            writer.write(grey(level))


def write_sequence(folder: Path, name: str, serials: tuple[str, ...]) -> None:
    """Frame k of every video is grey, 20 k + 10 bright; mattes are full."""
    place = folder / "sequences" / name
    (place / "tracking").mkdir(parents=True)
    arrays = tracking(name)
    np.savez(place / TRACKING, **arrays)  # type: ignore[arg-type]
    for serial in serials:
        count = len(arrays["rotation"])
        video(place / f"images/cam_{serial}.mp4", [20 * k + 10 for k in range(count)])
        video(place / f"alpha_maps/cam_{serial}.mp4", [255] * count)


def write_participant(folder: Path, serials: tuple[str, ...] = (TRAIN,)) -> Path:
    (folder / "calibration").mkdir(parents=True)
    both = (TEST, TRAIN)
    content = {
        "world_2_cam": {s: world_to_camera(s).tolist() for s in both},
        "intrinsics": {s: intrinsics(s) for s in both},
    }
    (folder / "calibration/camera_params.json").write_text(json.dumps(content))
    for name in SEQUENCES:
        write_sequence(folder, name, serials)
    write_sequence(folder, "FREE", ())  # hidden: tracking alone
    return folder


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_participant(tmp_path_factory.mktemp("data") / "393")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> FlameModel:
    path = synthetic.write(tmp_path_factory.mktemp("model") / "flame.pkl", synthetic.fields(40, EXPRESSIONS))
    return FlameModel(load_flame(path)).double()


def opened(folder: Path, **options: Any) -> Dataset:
    chosen = DataOptions(source_path=str(folder), white_background=True, eval=True)
    for name, value in options.items():
        setattr(chosen, name, value)
    return open_dataset(chosen, folder.parent.parent / "cache")


def expected_pixels(model: FlameModel, sequence: str, row: int, serial: str) -> np.ndarray:
    """The toolkit: FLAME without root rotation, then scale, Euler rotation and translation; then an OpenCV camera."""
    track = {name: torch.tensor(values, dtype=torch.float64) for name, values in tracking(sequence).items()}
    zero = torch.zeros(3, dtype=torch.float64)
    vertices = model.posed(
        model.fold_identity(track["shape"][0]), expr=track["expression"][row], rotation=zero, translation=zero,
        neck_pose=track["neck"][row], jaw_pose=track["jaw"][row], eyes_pose=track["eyes"][row],
    ).numpy()  # fmt: skip
    rotation = Rotation.from_euler("XYZ", track["rotation"][row].numpy()).as_matrix()
    world = np.float32(SCALE) * vertices @ rotation.T + track["translation"][row].numpy()
    camera = world @ world_to_camera(serial)[:3, :3].T + world_to_camera(serial)[:3, 3]
    pixels = camera @ np.array(intrinsics(serial)).T
    return pixels[:, :2] / pixels[:, 2:]


def seen_pixels(rig: FlameRig, view: Any) -> np.ndarray:
    camera = view.camera
    vertices = rig(view.timestep).vertices.detach()
    return project(to_camera(vertices, camera.world_to_camera.double()), camera.intrinsics.double()).numpy()


def test_vertices_land_on_the_toolkits_pixels(intact: Path, model: FlameModel) -> None:
    data = opened(intact, eval=False)
    assert data.motion is not None
    double = type(data.motion)({k: v.double() for k, v in data.motion.per_frame.items()},
                               {k: v.double() for k, v in data.motion.static.items()})  # fmt: skip
    rig = FlameRig(model, double, "here", "cpu")
    order = sorted(SEQUENCES)
    places = [(name, row) for name in order for row in range(SEQUENCES[name])]
    assert data.motion.timesteps == len(places) == len(data.train) and data.sequence_starts == (0, SEQUENCES[order[0]])
    worst = 0.0
    for view in data.train.views:
        expected = expected_pixels(model, *places[view.timestep], view.camera_id)
        worst = max(worst, np.abs(seen_pixels(rig, view) - expected).max())
        assert (
            np.abs(expected - np.array(SIZE) / 2).max() < 200
        )  # in or near the picture: the comparison means something
    assert worst < 1e-3
    assert not data.motion.per_frame["rotation"].any() and not data.motion.per_frame["translation"].any()
    assert data.edition == "FLAME 2023" and data.format == "nersemble"


def test_pictures_and_mattes_are_the_frames_of_the_videos(intact: Path) -> None:
    data = opened(intact, eval=False)
    starts = dict(zip(sorted(SEQUENCES), data.sequence_starts, strict=True))
    for frame, view in zip(data.train, data.train.views, strict=True):
        row = view.timestep - max(start for start in starts.values() if start <= view.timestep)
        np.testing.assert_allclose(frame.image.numpy() * 255, 20 * row + 10, atol=2)
        assert frame.mask is not None
        np.testing.assert_allclose(frame.mask.numpy() * 255, 255, atol=1)
        name = sorted(SEQUENCES)[view.timestep >= data.sequence_starts[1]]
        assert frame.name == f"{name}_{TRAIN}_{row:05d}" and view.camera_index == 1


def test_the_end_of_every_sequence_is_held_out(intact: Path) -> None:
    data = opened(intact)
    assert [view.timestep for view in data.train.views] == [0, 1, 2, 3, 4, 5, 6, 7][:3] + [3, 4, 5, 6, 7]
    assert [view.timestep for view in data.test.views] == [8, 9] and len(data.val) == 0
    assert any("last 30 %" in note for note in data.notes) and any("FREE" in note for note in data.notes)


def test_held_out_cameras_and_sequences_are_test(tmp_path: Path) -> None:
    folder = write_participant(tmp_path / "data" / "393", (TRAIN, TEST))
    write_sequence(folder, "SEN-09-frown_events_bad", (TRAIN,))
    data = opened(folder)
    assert {view.camera_id for view in data.train.views} == {TRAIN}
    assert len(data.train) == sum(SEQUENCES.values())
    assert sum(view.camera_id == TRAIN for view in data.test.views) == 2
    assert sum(view.camera_id == TEST for view in data.test.views) == sum(SEQUENCES.values())


def test_one_sequence_alone(intact: Path) -> None:
    data = opened(intact / "sequences" / "EXP-1-head", eval=False)
    assert data.motion is not None and data.motion.timesteps == len(data.train) == SEQUENCES["EXP-1-head"]


def test_motion_alone(intact: Path) -> None:
    motion = nersemble.read_motion_npz(intact / "sequences/EXP-1-head" / TRACKING)
    track = tracking("EXP-1-head")
    for name, key in {"expr": "expression", "jaw_pose": "jaw", "neck_pose": "neck", "eyes_pose": "eyes"}.items():
        np.testing.assert_array_equal(motion.per_frame[name].numpy(), track[key])
    assert not motion.per_frame["rotation"].any() and not motion.per_frame["translation"].any()
    np.testing.assert_array_equal(motion.static["shape"].numpy(), track["shape"][0])
    assert nersemble.recognise_motion(frozenset(track)) is None
    assert nersemble.recognise_motion(frozenset({"rotation", "expr"})) is not None


def test_other_folders_are_not_recognised(tmp_path: Path, intact: Path) -> None:
    assert nersemble.recognise(tmp_path) == "no calibration/camera_params.json"
    (tmp_path / "calibration").mkdir()
    shutil.copy(intact / "calibration/camera_params.json", tmp_path / "calibration")
    assert nersemble.recognise(tmp_path) == f"no {TRACKING} in it or in sequences/*"


Break = Callable[[Path], object]
HEAD, VIDEO, MATTE = "sequences/EXP-1-head/", f"images/cam_{TRAIN}.mp4", f"alpha_maps/cam_{TRAIN}.mp4"


def change(**arrays: Any) -> Break:
    """Replace arrays of the tracking by what a function makes of them, or remove them (None)."""

    def damage(folder: Path) -> None:
        values: dict[str, Any] = tracking("EXP-1-head")
        for name, new in arrays.items():
            old = values.pop(name)
            if new is not None:
                values[name] = new(old.copy())
        np.savez(folder / HEAD / TRACKING, **values)

    return damage


def calibrate(section: str, value: Any) -> Break:
    def damage(folder: Path) -> None:
        path = folder / "calibration/camera_params.json"
        content = json.loads(path.read_text())
        content[section][TRAIN] = value
        path.write_text(json.dumps(content))

    return damage


def bent(matrices: np.ndarray) -> np.ndarray:
    matrices[4] = Rotation.from_euler("y", 0.01).as_matrix() @ matrices[4]
    return matrices


def put(index: Any, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def changed(values: np.ndarray) -> np.ndarray:
        values[index] = value
        return values

    return changed


def shorten(name: str) -> Break:
    return lambda folder: video(folder / HEAD / name, [9] * 5)


def cut(name: str) -> Break:
    return lambda folder: (folder / HEAD / name).write_bytes((folder / HEAD / name).read_bytes()[:900])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change(rotation_matrices=bent), r"rotation_matrices\[4\]: differs by 0\.0\d+ from the Euler angles"),
        (change(jaw=None), "v2.npz: jaw: is missing"),
        (change(eyes=lambda values: values[:, :3]), r"v2.npz: eyes: found shape \[7, 3\]"),
        (change(scale=put((0, 0), 0.0)), "v2.npz: scale: found 0, expected a positive"),
        (change(expression=put((2, 5), np.nan)), r"v2.npz: expression: found nan at \[2, 5\]"),
        (change(shape=put((0, 3), 7.0)), "v2.npz: shape: differs from that of .*EMO-2"),
        (calibrate("world_2_cam", np.diag([1, 1, -1, 1]).tolist()), f"world_2_cam.{TRAIN}: found .* mirrors"),
        (calibrate("world_2_cam", [[1, 0], [0, 1]]), f"world_2_cam.{TRAIN}: found a list of 2"),
        (calibrate("intrinsics", [[70, 3, 30], [0, 70, 20], [0, 0, 1]]), f"intrinsics.{TRAIN}: found .* expected"),
        (calibrate("intrinsics", [[70, 0, 300], [0, 70, 20], [0, 0, 1]]), f"intrinsics.{TRAIN}: found cx = 300 px"),
        (calibrate("intrinsics", None), f"intrinsics.{TRAIN}: is missing"),
        (shorten(VIDEO), f"{VIDEO}: frame 5: the video has 5 frames, the tracking has 7"),
        (shorten("images/cam_42.mp4"), "images/cam_42.mp4: found camera 42"),
        (lambda folder: (folder / HEAD / MATTE).unlink(), f"{MATTE}: can't be read: No such file"),
        (cut(VIDEO), f"{VIDEO}: has no video stream, expected an intact MP4"),
        (cut(TRACKING), "v2.npz: is not an intact .npz"),
    ],
)
def test_faults(intact: Path, tmp_path: Path, damage: Break, message: str) -> None:
    folder = tmp_path / "data" / "393"
    shutil.copytree(intact, folder)
    damage(folder)
    with pytest.raises(InputError, match=message) as caught:
        opened(folder)
    assert "\n" not in str(caught.value) and not (tmp_path / "cache").exists()
