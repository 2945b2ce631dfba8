"""An inspection names every fault, and what is wrong with cameras; it writes nothing into a dataset.

The head is tiny, but its silhouettes are true: they are projected here, apart from the code under test.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diff_gaussian_rasterization.mesh import rasterize_mesh

from flame_model import FlameModel, load_flame
from scene.datasets import DataOptions, open_dataset
from scripts.inspect_dataset import main
from tests.scene.make_capture import flame_params, make_capture, png, read_transforms, write_transforms
from tests.scene.test_flame_nerf_faults import FIELD_FAULTS, IMAGE_FAULTS, JSON_FAULTS, NPZ_FAULTS, Break, set_field
from tests.tiny import write_masks, write_model
from utils.engine.inspection_faults import Faults, survey_flame_nerf
from utils.engine.inspection_motion import ANGLE, measure, neighbours
from utils.engine.inspection_pictures import border_level
from utils.errors import InputError, run_main
from utils.io.images import read_image

WIDTH, HEIGHT, CAMERAS, TIMESTEPS = 96, 80, 5, 4
FLIP = np.diag([1.0, -1.0, -1.0, 1.0])
GREY = 120
Frame = dict[str, Any]


def camera_to_world(camera: int) -> np.ndarray:
    """OpenGL camera-to-world [4, 4] 0.6 m before the origin, turned sideways and up: no two signs can be swapped."""
    a, b = 0.35 * camera - 0.5, 0.25 - 0.1 * camera
    turn = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    tilt = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    matrix = np.eye(4)
    matrix[:3, :3] = turn @ tilt
    matrix[:3, 3] = 0.6 * matrix[:3, 2] + [0.02, 0.03, 0.0]
    return matrix


def frame_of(timestep: int, camera: int) -> Frame:
    name = f"{timestep:05d}_{camera:02d}.png"
    return {"timestep_index": timestep, "camera_index": camera, "camera_id": f"c{camera}", "w": WIDTH, "h": HEIGHT,
            "fl_x": 120.0, "fl_y": 120.0, "cx": 50.0, "cy": 40.0 + 3 * camera - 6,
            "camera_angle_x": 2 * np.arctan(WIDTH / 240), "transform_matrix": camera_to_world(camera).tolist(),
            "file_path": f"images/{name}", "fg_mask_path": f"fg_masks/{name}",
            "flame_param_path": f"flame_param/{timestep:05d}.npz"}  # fmt: skip


def motion_of(timestep: int) -> dict[str, np.ndarray]:
    """Smooth and small; the head lies off the origin."""
    widths = {"rotation": 3, "neck_pose": 3, "jaw_pose": 3, "eyes_pose": 6, "translation": 3, "expr": 5}
    values = {name: np.full((1, width), 0.01 * timestep, np.float32) for name, width in widths.items()}
    values["translation"] = np.array([[0.04, 0.02, 0.03 + 0.002 * timestep]], np.float32)
    values["shape"] = np.linspace(-1, 1, 7).astype(np.float32)
    return values


def write_motion(data: Path, timestep: int, **changes: np.ndarray) -> None:
    values: dict[str, Any] = {**motion_of(timestep), **changes}
    np.savez(data / f"flame_param/{timestep:05d}.npz", **values)


def silhouette(vertices: np.ndarray, faces: np.ndarray, frame: Frame) -> np.ndarray:
    """[H, W] bool, projected here in plain numpy."""
    seen = np.concatenate([vertices, np.ones((len(vertices), 1))], 1) @ np.linalg.inv(camera_to_world(
        frame["camera_index"]) @ FLIP).T  # fmt: skip
    u = frame["fl_x"] * seen[:, 0] / seen[:, 2] + frame["cx"]
    v = frame["fl_y"] * seen[:, 1] / seen[:, 2] + HEIGHT - frame["cy"]
    screen = np.stack([u, v, seen[:, 2]], 1).astype(np.float32)
    return rasterize_mesh(screen, faces, WIDTH, HEIGHT)[0] >= 0


def make_head(folder: Path) -> Path:
    """A tiny head and a capture of it, grey over white, with true mattes; returns the capture."""
    folder.mkdir(parents=True)
    model = FlameModel(load_flame(write_model(folder / "head.pkl")).with_teeth())
    data = folder / "head"
    for name in ("images", "fg_masks", "flame_param"):
        (data / name).mkdir(parents=True)
    frames: dict[str, list[Frame]] = {"train": [], "val": [], "test": []}
    for timestep in range(TIMESTEPS):
        values = motion_of(timestep)
        write_motion(data, timestep)
        row = {name: torch.from_numpy(v[0]) for name, v in values.items() if name != "shape"}
        identity = model.fold_identity(torch.from_numpy(values["shape"]))
        vertices = model.posed(identity, **row).double().numpy()
        for camera in range(CAMERAS):
            frame = frame_of(timestep, camera)
            inside = silhouette(vertices, model.faces.numpy(), frame)[..., None]
            assert 0.05 < inside.mean() < 0.6
            picture = np.where(inside, GREY + 10 * timestep, 255).astype(np.uint8).repeat(3, axis=2)
            (data / frame["file_path"]).write_bytes(png(picture))
            (data / frame["fg_mask_path"]).write_bytes(png(np.where(inside, 255, 0).astype(np.uint8)))
            split = "test" if timestep == TIMESTEPS - 1 else "val" if camera == 0 else "train"
            frames[split].append(frame)
    shutil.copy(data / "flame_param/00000.npz", data / "canonical_flame_param.npz")
    for split, members in frames.items():
        write_transforms(data, split, members)
    return data


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_head(tmp_path_factory.mktemp("inspection") / "subject")


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_capture(tmp_path_factory.mktemp("intact") / "capture")


def copy_of(data: Path, tmp_path: Path, change: Callable[[Frame], Frame] = lambda frame: frame) -> Path:
    """A copy of a capture with every frame changed."""
    folder = tmp_path / "copy"
    shutil.copytree(data, folder)
    for split in ("train", "val", "test"):
        write_transforms(folder, split, [change(frame) for frame in read_transforms(folder, split)])
    return folder


def inspected(folder: Path, tmp_path: Path, *flags: str, model: Path | None = None) -> tuple[int, dict[str, Any]]:
    """Run the program; exit code and report. Nothing inside the dataset may change."""
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    out = tmp_path / "out"
    arguments = ["-s", str(folder), "--json", str(out / "report.json"), "-o", str(out / "sheet.png"), "--quiet",
                 "--white_background", "--eval", *flags]  # fmt: skip
    code = main([*arguments, "--flame_model", str(model)] if model else arguments)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    return code, json.loads((out / "report.json").read_text())


def head_report(folder: Path, head: Path, tmp_path: Path, *flags: str) -> tuple[int, dict[str, Any]]:
    return inspected(folder, tmp_path, *flags, model=head.parent / "head.pkl")


# The cameras and the mesh


def test_a_good_dataset(head: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, report = head_report(head, head, tmp_path)
    assert code == 0 and report["faults"] == [] and report["warnings"] == [] and report["verdict"] == "will train"
    assert report["camera_and_mesh"]["fine"] == 1.0 and report["camera_and_mesh"]["overlap"] > 0.97
    assert report["dataset"]["frames"] == {"train": 12, "val": 3, "test": 5}
    assert report["pictures"]["background"] == {"white": 20} and report["pictures"]["mattes"] == 20
    assert capsys.readouterr().out.endswith("\nwill train\n")


def with_matrix(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Frame], Frame]:
    return lambda frame: {**frame, "transform_matrix": change(np.array(frame["transform_matrix"])).tolist()}


def scaled(factor: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(matrix: np.ndarray) -> np.ndarray:
        matrix[:3, 3] *= factor
        return matrix

    return change


def turned(matrix: np.ndarray) -> np.ndarray:
    result = matrix.copy()
    result[:3, :3] = matrix[:3, :3].T
    return result


MISTAKES: list[tuple[str, Callable[[Frame], Frame], str]] = [
    ("opencv", with_matrix(lambda m: m @ FLIP), "with OpenCV camera axes instead of OpenGL it"),
    ("world to camera", with_matrix(np.linalg.inv), "with world-to-camera matrices it"),
    ("opencv world to camera", with_matrix(lambda m: np.linalg.inv(m @ FLIP)),
     "with world-to-camera matrices and OpenCV camera axes instead of OpenGL it"),
    ("mm", with_matrix(scaled(1000.0)), "with camera positions in millimetres it"),
    ("cm", with_matrix(scaled(100.0)), "with camera positions in centimetres it"),
    ("x4", with_matrix(scaled(4.0)), "with camera positions divided by 4 it"),
    ("quarter", with_matrix(scaled(0.25)), "with camera positions multiplied by 4 it"),
    ("turned", with_matrix(turned), "with transposed rotations it"),
    ("cy", lambda frame: {**frame, "cy": HEIGHT - frame["cy"]}, "with cy counted from the top it"),
]  # fmt: skip


@pytest.mark.parametrize("change, words", [pytest.param(c, w, id=name) for name, c, w in MISTAKES])
def test_a_mistake_in_the_cameras_is_named(head: Path, tmp_path: Path, change: Callable[[Frame], Frame],
                                           words: str) -> None:  # fmt: skip
    code, report = head_report(copy_of(head, tmp_path, change), head, tmp_path)
    unseen = words.startswith(("with OpenCV", "with world-to-camera"))  # then training refuses it, too
    verdict = "will not train: 1 fault" if unseen else "will train, 1 warning"
    assert code == (2 if unseen else 0) and report["verdict"] == verdict
    assert words in report["warnings"][0] and "would lie on the picture" in report["warnings"][0]
    assert report["camera_and_mesh"]["better_reading"]["score"] > 0.95
    assert report["camera_and_mesh"]["better_reading"]["score"] > report["camera_and_mesh"]["overlap"] + 0.02


@pytest.mark.parametrize("wrong", [False, True])
def test_hair_is_not_taken_for_a_wrong_cy(head: Path, tmp_path: Path, wrong: bool) -> None:
    """Hair makes a higher mesh fit better in every frame; that must not look like a mistake in cy, nor hide one."""
    folder = copy_of(head, tmp_path, lambda frame: {**frame, "cy": HEIGHT - frame["cy"]} if wrong else frame)
    for split in ("train", "val", "test"):  # with these two cameras the other cy would raise the mesh
        frames = read_transforms(folder, split)
        write_transforms(folder, split, [frame for frame in frames if frame["camera_index"] < 2])
    for path in (folder / "fg_masks").iterdir():
        matte = read_image(path)
        lower = np.arange(HEIGHT)[:, None, None] > HEIGHT * 0.55
        path.write_bytes(png(np.maximum(np.where(lower, 0, matte), np.roll(matte, -8, axis=0))))
    warnings = head_report(folder, head, tmp_path)[1]["warnings"]
    assert len(warnings) == wrong and all("with cy counted from the top" in warning for warning in warnings)


def test_transposed_matrices_are_faults_and_explained(head: Path, tmp_path: Path) -> None:
    code, report = head_report(copy_of(head, tmp_path, with_matrix(lambda m: m.T)), head, tmp_path)
    assert code == 2 and report["verdict"] == "will not train: 20 faults"
    assert "100 % of the frames are no rigid motions; with transposed matrices it would" in report["warnings"][0]


def test_head_and_cameras_in_millimetres(head: Path, tmp_path: Path) -> None:
    folder = copy_of(head, tmp_path, with_matrix(scaled(1000.0)))
    for timestep in range(TIMESTEPS):
        write_motion(folder, timestep, translation=1000 * motion_of(timestep)["translation"])
    words = head_report(folder, head, tmp_path)[1]["camera_and_mesh"]["better_reading"]["words"]
    assert words == "with camera positions and head translations in millimetres"


def test_a_head_elsewhere_is_not_explained_away(head: Path, tmp_path: Path) -> None:
    folder = copy_of(head, tmp_path)
    for timestep in range(TIMESTEPS):
        write_motion(folder, timestep, translation=motion_of(timestep)["translation"] + 0.13)
    report = head_report(folder, head, tmp_path)[1]
    assert "no tested reading of the cameras" in report["warnings"][0]


def test_a_timestep_that_is_lost_is_named(head: Path, tmp_path: Path) -> None:
    folder = copy_of(head, tmp_path)
    write_motion(folder, 2, translation=np.full((1, 3), 2e30))
    warning = head_report(folder, head, tmp_path)[1]["warnings"][-1]
    assert "the mesh projects outside the image in 25 % of the frames (the first: 00002_01)" in warning
    assert "elsewhere it lies on the picture" in warning


def test_without_mattes_the_background_tells(head: Path, tmp_path: Path) -> None:
    change = with_matrix(np.linalg.inv)
    folder = copy_of(head, tmp_path, lambda f: {k: v for k, v in change(f).items() if k != "fg_mask_path"})
    report = head_report(folder, head, tmp_path)[1]
    assert report["pictures"]["mattes"] == 0
    assert "with world-to-camera matrices it would lie on the picture" in report["warnings"][0]


def test_in_a_room_without_mattes_the_place_tells(head: Path, tmp_path: Path) -> None:
    folder = copy_of(head, tmp_path, with_matrix(np.linalg.inv))
    shutil.rmtree(folder / "fg_masks")
    room = np.random.default_rng(0).integers(60, 200, (HEIGHT, WIDTH, 3), np.uint8)
    for path in (folder / "images").iterdir():
        path.write_bytes(png(np.roll(room, int(path.stem[:5]), 0)))
    report = head_report(folder, head, tmp_path)[1]
    assert "overlap" not in report["camera_and_mesh"] and "fg_mask_path" in report["warnings"][0]
    assert "show the room" in report["warnings"][1]
    assert "it would be in view (100 % of the frames instead of 0 %)" in report["warnings"][2]


def test_the_sheet_shows_photograph_and_mesh(head: Path, tmp_path: Path) -> None:
    head_report(head, head, tmp_path)
    sheet = read_image(tmp_path / "out/sheet.png").astype(int)
    orange = (sheet[..., 0] > sheet[..., 2] + 40).mean(axis=0)
    assert orange[20 : 20 + WIDTH].max() == 0 and orange[20 + WIDTH + 4 : 20 + 2 * WIDTH + 4].max() > 0.1


def test_another_model_is_a_mismatch(head: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"inputs": {"flame_model": "0123456789abcdef"}}))
    code, report = head_report(head, head, tmp_path, "-m", str(run))
    assert code == 0 and report["model"]["model_matches_run"] is False and "0123456789ab there" in report["warnings"][0]
    inputs = {"flame_model": report["model"]["fingerprint"]}
    (run / "run.json").write_text(json.dumps({"inputs": inputs}))
    assert head_report(head, head, tmp_path, "-m", str(run))[1]["model"]["model_matches_run"] is True


def test_more_expressions_than_the_model_has(head: Path, tmp_path: Path) -> None:
    folder = copy_of(head, tmp_path)
    for timestep in range(TIMESTEPS):
        write_motion(folder, timestep, expr=np.zeros((1, 50)))
    code, report = head_report(folder, head, tmp_path)
    assert code == 2 and "found 50 values, the model has 5 directions" in report["faults"][0]["line"]


# Faults


# Every damage that training is tested with would take long: some of each kind.
DAMAGES = [*((name, d) for name, d, _ in [*IMAGE_FAULTS[::4], *NPZ_FAULTS[::4]]),
           *((name, d) for name, _, d, _ in JSON_FAULTS),
           *((f"{f} {v!r:.20}", set_field(f, v)) for f, v, _ in FIELD_FAULTS[::4])]  # fmt: skip
UNREADABLE = ("no train", "no marker")  # then it is of no format


@pytest.mark.parametrize("damage", [pytest.param(d, id=name) for name, d in DAMAGES if name not in UNREADABLE])
def test_what_training_says_is_among_the_faults(intact: Path, tmp_path: Path, damage: Break) -> None:
    folder = tmp_path / "data/capture"
    shutil.copytree(intact, folder)
    damage(folder)
    options = DataOptions(source_path=str(folder), white_background=True, eval=True)
    with pytest.raises(InputError) as caught:
        open_dataset(options, tmp_path / "cache")
    faults = Faults()
    if survey_flame_nerf(folder, options, faults) is None or str(caught.value) not in faults:
        code, report = inspected(folder, tmp_path)
        assert code == 2 and str(caught.value) in [fault["line"] for fault in report["faults"]]
    assert len(faults) < 12  # one damage, at most a line for each frame that it touches


def test_all_faults_at_once(intact: Path, tmp_path: Path) -> None:
    folder = copy_of(intact, tmp_path)
    frames = read_transforms(folder)
    frames[0]["fl_x"], frames[0]["cx"], frames[1]["timestep_index"] = -1.0, "left", "one"
    frames[2]["transform_matrix"][0][0] = 7.0
    write_transforms(folder, "train", frames)
    held = read_transforms(folder, "test")
    held[0]["w"] = 0
    write_transforms(folder, "test", held)
    (folder / "images/00002_01.png").write_bytes(b"no picture")
    (folder / "fg_masks/00001_02.png").unlink()
    np.savez(folder / "flame_param/00002.npz", **{**flame_params(2), "jaw_pose": np.full((1, 3), np.nan)})
    code, report = inspected(folder, tmp_path)
    lines = [fault["line"] for fault in report["faults"]]
    wanted = ["transforms_train.json: frames[0].fl_x: found -1 px", 'frames[0].cx: found "left"',
              'frames[1].timestep_index: found "one"', "frames[2].transform_matrix: found a rotation part",
              "transforms_test.json: frames[0].w: found 0", "transforms_val.json: frames[1].fg_mask_path",
              "images/00002_01.png: byte 0: found another format", "00002.npz: jaw_pose: found nan"]  # fmt: skip
    assert code == 2 and all(sum(text in line for line in lines) == 1 for text in wanted), lines
    assert len(lines) == len(wanted) and report["verdict"] == "will not train: 8 faults"


def test_only_fifty_lines_of_a_kind(head: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copy_of(head, tmp_path, lambda f: {**f, "fl_x": -1, "cx": "?", "w": 10**6, "camera_id": 7})
    code, report = inspected(folder, tmp_path)
    assert code == 2 and len(report["faults"]) == 40
    write_transforms(folder, "train", 6 * read_transforms(folder))
    code, report = inspected(folder, tmp_path)
    printed = capsys.readouterr().out.splitlines()
    rest = len(report["faults"]) - 50
    assert rest > 100 and f"  ... and {rest} more" in printed


def test_a_gap_in_the_timesteps_is_not_hidden_by_other_faults(intact: Path, tmp_path: Path) -> None:
    folder = copy_of(intact, tmp_path, lambda f: {**f, "timestep_index": f["timestep_index"] * 2, "cy": "?"})
    lines = [fault["line"] for fault in inspected(folder, tmp_path)[1]["faults"]]
    gaps = [line for line in lines if "no frame of any split has timestep" in line]
    assert [line.split("has timestep ")[1].split(";")[0] for line in gaps] == ["1", "3", "5"]


def test_no_known_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data").mkdir()
    code, report = inspected(tmp_path / "data", tmp_path)
    printed = capsys.readouterr().out
    assert code == 2 and report["format"] == "" and not (tmp_path / "out/sheet.png").exists()
    assert "canonical_flame_param.npz" in printed and printed.endswith("will not train: 1 fault\n")


def test_no_such_folder_and_no_such_user(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for source in (str(tmp_path / "gone"), "~nobody-of-that-name/data", "x" * 300):
        assert run_main(main, ["-s", source, "-o", str(tmp_path / "sheet.png")]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and lines[0].startswith(f"error: {source}: is not a folder")
    assert not list(tmp_path.iterdir())


def test_no_such_camera(intact: Path, tmp_path: Path) -> None:
    code, report = inspected(intact, tmp_path, "--select_camera_id", "17")
    assert code == 2 and "Its cameras: 22220, 22221, 22222" in report["faults"][0]["line"]


@pytest.mark.parametrize("flag", ["-o", "--json"])
def test_nothing_is_written_into_the_dataset(intact: Path, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(main, ["-s", str(intact), flag, str(intact / "file.png"), "--quiet"]) == 2
    assert "lies inside the dataset" in capsys.readouterr().err and not (intact / "file.png").exists()


def test_without_a_model_it_says_how_to_get_one(intact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    monkeypatch.setattr("flame_model.load.ASSETS", tmp_path)
    code, report = inspected(intact, tmp_path)
    assert code == 0 and "camera_and_mesh" not in report
    assert "--flame_model" in capsys.readouterr().out and (tmp_path / "out/sheet.png").is_file()


# Warnings


def test_masks_file_is_checked(head: Path, tmp_path: Path) -> None:
    masks = write_masks(tmp_path / "masks.pkl")
    assert head_report(head, head, tmp_path, "--flame_masks", str(masks))[0] == 0
    masks.write_bytes(b"no pickle")
    code, report = head_report(head, head, tmp_path, "--flame_masks", str(masks))
    assert code == 2 and report["faults"][0]["kind"] == "model"


def warnings_of(folder: Path, tmp_path: Path, *flags: str) -> str:
    return "\n".join(inspected(folder, tmp_path, *flags)[1]["warnings"])


ODD: list[tuple[str, Callable[[Frame], Frame], str]] = [
    ("angle", lambda f: {**f, "camera_angle_x": 1.2}, "camera_angle_x contradicts fl_x in 20 frames"),
    ("centre", lambda f: {**f, "cx": 5.0}, "the principal point is far from the centre in 20 frames"),
    ("no matte", lambda f: {k: v for k, v in f.items() if k != "fg_mask_path" or f["camera_index"]},
     "4 of 20 pictures have no matte"),
    ("repeated", lambda f: {**f, "file_path": f"images/00000_{f['camera_index']:02d}.png",
                            "fg_mask_path": f"fg_masks/00000_{f['camera_index']:02d}.png"},
     "15 of 15 pictures (100 %) nearly repeat"),
    ("one camera", lambda f: {**f, "transform_matrix": np.eye(4).tolist()}, "one static camera: keep --scene_extent"),
]  # fmt: skip


@pytest.mark.parametrize("change, words", [pytest.param(c, w, id=name) for name, c, w in ODD])
def test_what_is_odd_is_a_warning(head: Path, tmp_path: Path, change: Callable[[Frame], Frame], words: str) -> None:
    assert words in warnings_of(copy_of(head, tmp_path, change), tmp_path)


def test_no_val(head: Path, tmp_path: Path) -> None:
    folder = copy_of(head, tmp_path)
    (folder / "transforms_val.json").unlink()
    assert "val is empty" in warnings_of(folder, tmp_path)


def test_the_background_must_agree_with_the_flag(head: Path, tmp_path: Path) -> None:
    folder = copy_of(head, tmp_path, lambda f: {k: v for k, v in f.items() if k != "fg_mask_path"})
    assert "--white_background" not in warnings_of(folder, tmp_path)
    text = warnings_of(folder, tmp_path, "--white_background", "False")
    assert "20 pictures without matte lie over white" in text and "add --white_background" in text


def test_a_jump_is_named(head: Path, tmp_path: Path) -> None:
    folder = copy_of(head, tmp_path)
    write_motion(folder, 3, translation=motion_of(3)["translation"] + [[0.1, 0.0, 0.0]])
    assert "translation jumps at 1 timestep (3), by up to 100.02 mm" in warnings_of(folder, tmp_path)


def test_poses_that_only_test_shows(head: Path, tmp_path: Path) -> None:
    folder = copy_of(head, tmp_path)
    write_motion(folder, 3, jaw_pose=np.full((1, 3), 0.15))
    assert "jaw_pose of 1 of 1 test timesteps (the first is 3)" in warnings_of(folder, tmp_path)


def track(rows: Sequence[float], together: Sequence[bool] | None = None) -> Any:
    values = np.zeros((len(rows), 3))
    values[:, 1] = np.deg2rad(rows)
    return measure(values, np.ones(len(rows) - 1, bool) if together is None else np.array(together), ANGLE)


def test_statistics_of_a_motion() -> None:
    found = track([0, 1, 2, 3, 14, 15])
    assert found.largest == pytest.approx(11) and found.at == 4 and found.jumps == [4]
    assert found.spread == pytest.approx(np.std([0, 1, 2, 3, 14, 15]))


def test_steps_across_sequences_do_not_count() -> None:
    found = track([0, 1, 2, 30, 31, 32], [True, True, False, True, True])
    assert found.largest == pytest.approx(1) and found.jumps == [] and found.jitter == pytest.approx(0, abs=1e-9)
    assert neighbours((0, 3), range(5)).tolist() == [True, True, False, True]
    assert neighbours((0,), [0, 1, 4, 5]).tolist() == [True, False, True]


def test_jitter_is_the_noise_on_a_smooth_motion() -> None:
    noise = 2.0 * np.random.default_rng(0).normal(size=400)
    shaky, smooth = track((noise + 20 * np.sin(np.arange(400) / 60)).tolist()), track(
        (20 * np.sin(np.arange(400) / 60)).tolist())  # fmt: skip
    assert shaky.white and shaky.jitter == pytest.approx(2.0, rel=0.1)
    assert not smooth.white and smooth.jitter < 0.01


def test_border_level() -> None:
    picture = np.full((40, 30, 3), 255, np.uint8)
    picture[25:, 5:25] = 90
    assert border_level(picture) == 255 and border_level(255 - picture) == 0
    picture[:20, :10] = 90
    assert border_level(picture) is None
