"""render.py beyond the splits: drivers, motion files, orbits, mesh, alpha, depth, and runs of the original."""

from __future__ import annotations

import errno
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import render
import train
from scene.datasets import DataOptions, open_dataset
from scene.datasets.flame_params import read_motion_file
from scene.flame_gaussian_model import FlameGaussianModel
from tests.scene.make_capture import CAMERAS, HEIGHT, TIMESTEPS, TRAIN_TIMESTEPS, WIDTH
from tests.scene.make_static import world_to_camera
from tests.tiny import write_tiny
from utils.contracts import Camera, Mesh, Rendered
from utils.engine.build import load_avatar
from utils.engine.mesh_overlay import overlay
from utils.engine.orbit import Sphere, around_head, around_scene, swing
from utils.engine.shots import RenderOptions, Shot, Take
from utils.errors import EnvironmentFault, InputError, run_main
from utils.io import video
from utils.io.images import read_image
from utils.io.rendered import SplitWriter

ITERATIONS = 2
EVERY = TIMESTEPS * CAMERAS


def name_edition(capture: Path, edition: str) -> None:
    for path in capture.glob("transforms_*.json"):
        path.write_text(json.dumps({"flame_edition": edition, **json.loads(path.read_text())}))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `own` (data), `other` (data of another person) and a trained `run`."""
    folder = tmp_path_factory.mktemp("modes")
    flags = write_tiny(folder / "own")
    write_tiny(folder / "other")
    for name in ("own", "other"):
        name_edition(folder / name / "capture", "tiny")
    rng = np.random.default_rng(5)
    for path in (folder / "other/capture/flame_param").iterdir():
        with np.load(path) as values:
            moved = {name: values[name] + 0.05 * rng.normal(size=values[name].shape) for name in values}
        np.savez(path, **{**moved, "shape": np.linspace(0.5, -0.5, 7)})
    (folder / "other/capture").rename(folder / "guest")
    argv = [*flags, "-m", str(folder / "run"), "--iterations", str(ITERATIONS), "--rasterizer", "reference"]
    assert run_main(train.main, argv) == 0
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run, in a folder that starts without renders."""
    shutil.copytree(trained / "run", tmp_path / "run")
    return tmp_path / "run"


def go(run: Path, *flags: str) -> int:
    return run_main(render.main, ["-m", str(run), "--quiet", *flags])


def pictures(folder: Path) -> list[np.ndarray]:
    return [read_image(path) for path in sorted(folder.glob("*.png"))]


def levels(path: Path) -> np.ndarray:
    """A PNG of any depth, as it is."""
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert image is not None
    return image


def same_pictures(a: Path, b: Path) -> bool:
    one, two = pictures(a), pictures(b)
    return len(one) == len(two) > 0 and all(np.array_equal(x, y) for x, y in zip(one, two, strict=True))


def test_a_guest_drives_the_avatar_without_its_own_data(
    trained: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every frame of the guest, his photographs as gt, the avatar posed with his values; -t relative to the folder."""
    monkeypatch.chdir(trained / "own")
    assert go(run, "-t", "../guest/", "--transfer", "absolute", "-s", "/gone", "--flame_model", "head.pkl") == 0
    folder = run / "guest" / f"ours_{ITERATIONS}"
    assert sorted(path.name for path in folder.iterdir()) == [
        "frames.json",
        "gt",
        "gt.mp4",
        "masks",
        "renders",
        "renders.mp4",
    ]
    dataset = open_dataset(DataOptions(source_path=str(trained / "guest"), white_background=True), run / "cache")
    loaded = load_avatar(run)
    assert isinstance(loaded.avatar, FlameGaussianModel) and dataset.motion is not None
    driven = loaded.avatar.driven_by(dataset.motion, "guest")
    for kind in ("gt", "renders"):
        assert len(pictures(folder / kind)) == len(dataset.train) == EVERY
    for k, frame in enumerate(dataset.train):
        with torch.no_grad():
            image = loaded.render(driven.on(driven.rig(frame.timestep)), frame.camera, frame.background).image
        for kind, expected in (("renders", image.clamp(0, 1)), ("gt", frame.image)):
            found = read_image(folder / kind / f"{k:05d}.png")
            assert np.array_equal(found, np.rint(expected.permute(1, 2, 0).numpy() * 255))
    assert not (run / "render.json").exists() and not (run / "train").exists()


def test_the_editions_must_agree(trained: Path, run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    guest = tmp_path / "guest"
    shutil.copytree(trained / "guest", guest)
    for path in guest.glob("transforms_*.json"):
        path.write_text(json.dumps({"frames": json.loads(path.read_text())["frames"]}))
    before = sorted(run.iterdir())
    assert go(run, "-t", str(guest)) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert all(word in line for word in ("'FLAME'", "'tiny'", str(guest), str(run), "--assume_same_edition"))
    assert sorted(run.iterdir()) == before
    assert go(run, "-t", str(guest), "--assume_same_edition") == 0


def test_one_camera_of_the_guest(trained: Path, run: Path) -> None:
    assert go(run, "-t", str(trained / "guest"), "--select_camera_id", "1", "--skip_gt") == 0
    folder = run / "guest_1" / f"ours_{ITERATIONS}"
    assert len(pictures(folder / "renders")) == TIMESTEPS and not (folder / "gt").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-t", "test"], "--target_path: is called 'test'"),
        (["-t", "x", "--motion_path", "y.npz"], "contradicts --target_path"),
        (["--transfer", "absolute"], "--transfer: is for drivers"),
        (["-t", "x", "--transfer", "wild"], "--transfer: found 'wild'"),
        (["--orbit", "--orbit_degrees", "nan"], "--orbit_degrees: found nan"),
        (["--orbit", "--orbit_frames", "-2"], "--orbit_frames: found -2"),
        (["--orbit", "--orbit_frames", "1000000000000"], "--orbit_frames: found 1000000000000"),
        (["--orbit_frames", "9"], "is for orbits"),
        (["--orbit", "--orbit_timestep", "4"], "--orbit_timestep: found 4, expected less than 4"),
        (["-t", "/nowhere"], "/nowhere: is not a folder"),
        (["--motion_path", "/nowhere.npz"], "/nowhere.npz"),
        (["--motion_path", "~nobody-of-that-name/x.npz"], "x.npz"),
        (["--motion_path", "{own}/capture/flame_param/00000.npz", "--select_camera_id", "77"], "found no camera '77'"),
    ],
)
def test_what_is_refused(
    trained: Path, run: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(run.rglob("*"))
    assert go(run, *(flag.replace("{own}", str(trained / "own")) for flag in flags)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0]
    assert sorted(run.rglob("*")) == before


def test_an_avatars_own_motion_file_repeats_its_own_renders(run: Path) -> None:
    """Seen by the held-out camera: val has the same camera at the first timesteps."""
    motion = run / "point_cloud" / f"iteration_{ITERATIONS}" / "flame_param.npz"
    assert go(run, "--skip_train", "--skip_test") == 0
    assert go(run, "--motion_path", str(motion)) == 0
    found, expected = (run / name / f"ours_{ITERATIONS}" / "renders" for name in (f"motion_{run.name}", "val"))
    assert len(pictures(found)) == TIMESTEPS > len(pictures(expected)) == TRAIN_TIMESTEPS
    for k, picture in enumerate(pictures(expected)):
        assert np.array_equal(pictures(found)[k], picture)
    assert not (found.parent / "gt").exists()


def test_motion_seen_from_an_orbit_needs_no_data(run: Path, trained: Path) -> None:
    motion = run / "point_cloud" / f"iteration_{ITERATIONS}" / "flame_param.npz"
    flags = ["--orbit", "--orbit_frames", "2", "--render_mesh", "--rasterizer", "reference"]
    assert go(run, "-s", "/gone", "--motion_path", str(motion), *flags) == 0
    found = pictures(run / f"motion_{run.name}_orbit" / f"ours_{ITERATIONS}" / "renders_mesh")
    assert len(found) == 2 and found[0].shape == (512, 512, 3)
    loaded = load_avatar(run)
    with torch.no_grad():
        poses = [loaded.avatar.rig(timestep).vertices.double() for timestep in range(TIMESTEPS)]
    low, high = (torch.stack([extreme(pose, 0) for pose in poses]).mean(0) for extreme in (torch.amin, torch.amax))
    sphere = around_head(loaded.avatar.rig, [])
    torch.testing.assert_close(sphere.centre, (low + high) / 2)
    assert sphere.distance == pytest.approx(2.5 * float(high[1] - low[1]))
    pose, pixels = poses[0], np.argwhere((found[0] < 255).any(-1))
    seen = 1024 * (pose - sphere.centre)[:, :2] / (sphere.centre[2] + sphere.distance - pose[:, 2:])  # from +z
    right, top = float((256 + seen[:, 0]).max()), float((256 - seen[:, 1]).min())
    assert abs(pixels[:, 1].max() - right) < 2 and abs(pixels[:, 0].min() - max(0.0, top)) < 2
    assert np.ptp(pixels[:, 0]) > 300 and np.ptp(pixels[:, 1]) > 200


def test_orbit_holds_a_timestep_in_the_datasets_camera(run: Path) -> None:
    flags = ["--orbit", "--orbit_frames", "3", "--orbit_timestep", "1"]
    assert go(run, *flags) == 0
    found = pictures(run / "orbit" / f"ours_{ITERATIONS}" / "renders")
    assert len(found) == 3 and found[0].shape == (HEIGHT, WIDTH, 3) and not np.array_equal(found[0], found[1])


def test_cameras_of_an_orbit() -> None:
    """They keep their distance and look at the centre with y up; the first is at the front, the second to the side."""
    lens = Camera(torch.eye(4), torch.tensor([[300.0, 0, 7], [0, 310, 9], [0, 0, 1]]), 64, 48, 0.5, 7.0)
    centre, axes = torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    sphere = Sphere(centre, axes[2], axes[1], 2.0, lens)
    for azimuth, elevation, direction in (
        (0.0, 0.0, [0, 0, 1]),
        (math.pi / 2, 0.0, [1, 0, 0]),
        (0.0, 0.5, [0, math.sin(0.5), math.cos(0.5)]),
    ):
        camera = sphere.camera(azimuth, elevation)
        pose = camera.world_to_camera.double()
        position = centre + 2 * torch.tensor(direction, dtype=torch.float64)
        assert float((pose[:3, :3] @ position + pose[:3, 3]).abs().max()) < 1e-6
        torch.testing.assert_close(pose[:3, :3] @ pose[:3, :3].T, axes, atol=1e-6, rtol=0)
        above = pose[:3, :3] @ (centre + torch.tensor([0, 0.1, 0])) + pose[:3, 3]
        assert above[1] < 0 and above[2] > 0  # up in the picture, before the camera
        assert camera.intrinsics[:2, 2].tolist() == [32.0, 24.0] and (camera.width, camera.near) == (64, 0.5)
    assert swing(30.0, 0.0) == (0.0, 0.0) and math.degrees(swing(30.0, 0.25)[0]) == pytest.approx(30.0)
    assert math.degrees(swing(90.0, 0.125)[1]) == pytest.approx(15.0)


def test_an_unbound_scene_is_orbited_where_its_cameras_look() -> None:
    poses = [torch.from_numpy(world_to_camera(k, 12)).float() for k in range(12)]  # at distance 3 from the origin
    sphere = around_scene([Camera(pose, torch.eye(3), 64, 64) for pose in poses])
    assert float(sphere.centre.abs().max()) < 1e-5 and sphere.distance == pytest.approx(3.0, abs=1e-5)
    torch.testing.assert_close(sphere.camera(0.0, 0.0).world_to_camera[2, :3], poses[0][2, :3], atol=1e-5, rtol=0)


def test_cameras_that_look_apart_have_nothing_to_orbit() -> None:
    """One camera 3 in front of the origin that looks away from it: the nearest point of its axis lies behind it."""
    away = torch.diag(torch.tensor([-1.0, 1.0, -1.0, 1.0]))  # looks along -z
    away[2, 3] = -3.0  # from (0, 0, -3)
    with pytest.raises(InputError, match="look at no common place"):
        around_scene([Camera(away, torch.eye(3), 64, 64)])


def facing_square(turn: float) -> tuple[Mesh, Camera]:
    """A square of half side 0.25 at distance 1, turned about x; 0.25 is 10 pixels where it is not turned."""
    y, z = 0.25 * math.cos(turn), 0.25 * math.sin(turn)
    corners = [[-0.25, -y, 1 - z], [0.25, -y, 1 - z], [0.25, y, 1 + z], [-0.25, y, 1 + z]]
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    camera = Camera(torch.eye(4), torch.tensor([[40.0, 0, 16], [0, 40.0, 16], [0, 0, 1]]), 32, 32)
    return Mesh(torch.tensor(corners), faces), camera


@pytest.mark.parametrize("turn", [0.0, 1.0])
def test_the_mesh_lies_half_over_the_photograph(turn: float) -> None:
    mesh, camera = facing_square(turn)
    photograph = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = overlay(mesh, camera, photograph)
    rows, columns = np.mgrid[:32, :32] + 0.5
    covered = (found != photograph).any(0).numpy()
    if not turn:
        assert np.array_equal(covered, (abs(rows - 16) < 10) & (abs(columns - 16) < 10))
    assert covered[15:17, 15:17].all()
    # Cosines at the corners are interpolated; in the middle the square is seen straight along its own distance.
    middle = 0.5 * photograph[:, 15:17, 15:17] + 0.5 * (0.1 + 0.9 * math.cos(turn) ** 2)
    torch.testing.assert_close(found[:, 15:17, 15:17], middle, atol=0.03, rtol=0)
    assert torch.equal(found[:, ~torch.from_numpy(covered)], photograph[:, ~torch.from_numpy(covered)])


def test_meshes_behind_or_beside_the_camera_are_left_out() -> None:
    mesh, camera = facing_square(0.0)
    for shift in ([0, 0, -2.0], [1e9, 0, 0], [0, 0, -1.0]):
        photograph = torch.zeros(3, 32, 32)
        assert torch.equal(
            overlay(Mesh(mesh.vertices + torch.tensor(shift), mesh.faces), camera, photograph), photograph
        )


def test_a_mesh_without_the_native_rasteriser_is_one_line(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> None:
        raise ImportError("_native.so is missing")

    monkeypatch.setattr("diff_gaussian_rasterization.mesh.library", missing)
    assert go(run, "--render_mesh", "--rasterizer", "reference") == 3
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: drawing a mesh needs the native rasteriser: _native.so is missing")
    assert not (run / "train").exists() or not any((run / "train").iterdir())


def test_mesh_alpha_and_depth_of_a_run(run: Path) -> None:
    assert go(run, "--skip_train", "--skip_val", "--render_mesh", "--render_alpha", "--render_depth") == 0
    folder = run / "test" / f"ours_{ITERATIONS}"
    names = {path.name for path in folder.iterdir()}
    assert {"renders_mesh", "renders_mesh.mp4", "alpha", "depth"} <= names and "alpha.mp4" not in names
    for k in range(CAMERAS):
        alpha = read_image(folder / "alpha" / f"{k:05d}.png")
        depth = levels(folder / "depth" / f"{k:05d}.png")
        assert alpha.shape == (HEIGHT, WIDTH, 1) and depth.shape == (HEIGHT, WIDTH) and depth.dtype == np.uint16
        assert not depth[alpha[..., 0] < 127].any()
        seen = depth[depth > 0]
        assert not len(seen) or (seen.min() > 800 and seen.max() < 1300)  # cameras at 1 m


def test_levels_of_alpha_and_depth(tmp_path: Path) -> None:
    """Mean depth in millimetres where opacity is over a half; 65535 for what is farther."""
    alpha = torch.tensor([[[0.75, 0.5, 1.0, 0.502]]])
    mean = torch.tensor([[[1.2342, 3.0, 70.0, 2.0]]])
    picture = Rendered(torch.zeros(3, 1, 4), alpha, mean * alpha, torch.zeros(1), torch.zeros(1))
    shot = Shot(Camera(torch.eye(4), torch.eye(3), 4, 1), 0, torch.zeros(3), "shot")
    avatar = SimpleNamespace(rig=lambda t: None, on=lambda mesh: SimpleNamespace(means=torch.zeros(1, 3)))
    loaded: Any = SimpleNamespace(avatar=avatar, render=lambda *_: picture, iteration=1)
    options = RenderOptions(model_path=str(tmp_path), render_alpha=True, render_depth=True, quiet=True)
    render.render_take(loaded, Take("take", [shot]), options)
    folder = tmp_path / "take/ours_1"
    assert levels(folder / "depth/00000.png").tolist() == [[1234, 0, 65535, 2000]]
    assert read_image(folder / "alpha/00000.png").ravel().tolist() == [191, 128, 255, 128]


def test_a_video_that_fails_names_its_frame_and_keeps_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, picture = tmp_path / "test/ours_1", np.zeros((32, 32, 3), np.uint8)
    with SplitWriter(folder) as writer:
        writer.write(picture)
    av = pytest.importorskip("av", reason="PyAV is not installed")
    real, calls = av.VideoFrame.from_ndarray, iter(range(99))

    def from_ndarray(*arguments: Any, **options: Any) -> Any:
        if next(calls) == 5:  # renders, gt, renders_mesh; frame 1 of the last
            raise av.FFmpegError(errno.EINVAL, "Invalid argument")
        return real(*arguments, **options)

    stub = SimpleNamespace(
        open=av.open, FFmpegError=av.FFmpegError, VideoFrame=SimpleNamespace(from_ndarray=from_ndarray)
    )
    monkeypatch.setattr(video, "_pyav", lambda: stub)
    with pytest.raises(EnvironmentFault, match=r"renders_mesh\.mp4: frame 1: .*Invalid argument"):
        with SplitWriter(folder) as writer:
            for _ in range(3):
                writer.write(picture, picture, None, {"renders_mesh": picture})
    assert [path.name for path in (folder / "renders").iterdir()] == ["00000.png"] and not (folder / "gt").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["ours_1"]


CFG_ARGS = (
    "Namespace(sh_degree=3, source_path='/home/someone/data/tiny', target_path='', model_path='output/tiny', "
    "images='images', resolution=-1, white_background=True, data_device='cuda', eval=True, bind_to_mesh=True, "
    "disable_flame_static_offset=False, not_finetune_flame_params=False, select_camera_id=-1)"
)


def test_an_avatar_of_the_original_renders_to_the_same_bits(trained: Path, run: Path, tmp_path: Path) -> None:
    """Its folder has cfg_args, cameras.json and point_cloud, and names paths of another machine."""
    theirs, name = tmp_path / "theirs", f"point_cloud/iteration_{ITERATIONS}"
    shutil.copytree(run / name, theirs / name)
    with np.load(theirs / name / "flame_param.npz") as saved:
        arrays = {key: saved[key] for key in saved}
    np.savez(theirs / name / "flame_param.npz", **arrays)  # uncompressed, as there
    (theirs / "cfg_args").write_text(CFG_ARGS)
    files = ["-s", str(trained / "own/capture"), "--flame_model", str(trained / "own/head.pkl")]
    assert go(run, "--rasterizer", "reference") == 0
    assert go(theirs, *files, "--rasterizer", "reference") == 0
    for split in ("train", "val", "test"):
        assert same_pictures(run / split / f"ours_{ITERATIONS}/renders", theirs / split / f"ours_{ITERATIONS}/renders")
    assert go(theirs, *files[2:], "--rasterizer", "reference", "-t", str(trained / "guest")) == 0
    assert len(pictures(theirs / f"guest/ours_{ITERATIONS}/renders")) == EVERY


def test_an_avatar_with_less_motion_than_its_data_says_so(
    trained: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / f"point_cloud/iteration_{ITERATIONS}/flame_param.npz"
    motion = read_motion_file(path)
    arrays: dict[str, Any] = {name: values[:2].numpy() for name, values in motion.per_frame.items()}
    arrays |= {name: values.numpy() for name, values in motion.static.items()}
    np.savez(path, **arrays)
    assert go(run) == 2
    assert "found 2 timesteps, the dataset has 4" in capsys.readouterr().err
    data = str(trained / "own/capture")  # as a driver, the same data brings its motion along
    assert go(run, "-t", data, "--transfer", "absolute") == 0
    assert len(pictures(run / f"capture/ours_{ITERATIONS}/renders")) == EVERY
