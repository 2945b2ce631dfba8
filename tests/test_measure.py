"""The three programs in a row, measured by region, over time and against a true motion."""

from __future__ import annotations

import json
import math
import pickle
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import metrics
import render
import train
from tests.scene.make_capture import CAMERAS, TIMESTEPS, TRAIN_TIMESTEPS
from tests.tiny import ellipsoid, write_tiny
from utils.engine.region_metrics import REGIONS
from utils.errors import InputError, run_main
from utils.io.images import read_image, write_png
from utils.io.ply import read_gaussian_ply
from utils.io.rendered import list_pairs
from utils.io.take_record import read_take_record

WIDTHS = {"translation": 3, "rotation": 3, "neck_pose": 3, "jaw_pose": 3, "eyes_pose": 6, "expr": 5}
TRACKED = ("rotation", "translation", "expr", "neck_pose", "jaw_pose", "eyes_pose")


def write_regions(path: Path) -> dict[str, np.ndarray]:
    """FLAME's 14 masks over the front, the back and bands of the tiny head; returns the faces of `REGIONS`, [F] bool,
    each without those of the regions before it."""
    vertices, faces = ellipsoid()
    _, y, z = vertices.T
    front = z >= -1e-9
    point = np.arange(len(vertices)) == np.flatnonzero(front & (abs(y) < 0.03))[0]  # no face lies within it
    masks = {"face": front, "scalp": ~front, "forehead": front & (y > 0.03), "eye_region": front & (abs(y) < 0.07),
             "lips": front & (y < -0.03), **dict.fromkeys(("neck", "boundary", "right_eyeball", "left_eyeball",
             "right_ear", "left_ear", "nose", "right_eye_region", "left_eye_region"), point)}  # fmt: skip
    path.write_bytes(pickle.dumps({name: np.flatnonzero(inside) for name, inside in masks.items()}, protocol=2))
    cheeks = masks["face"] & ~masks["eye_region"] & ~masks["lips"] & ~masks["forehead"]
    wanted = (masks["eye_region"], masks["lips"], point, masks["forehead"], cheeks, masks["scalp"])
    found, taken = {}, np.zeros(len(faces), bool)
    for name, inside in zip(REGIONS, wanted, strict=True):
        found[name] = inside[faces].all(1) & ~taken
        taken |= found[name]
    return found


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    """A folder with `data` and a `run` whose motion was not trained, rendered; and the faces of the regions."""
    pytest.importorskip("diff_gaussian_rasterization.mesh", reason="the native rasteriser is not built")
    folder = tmp_path_factory.mktemp("measure")
    flags = write_tiny(folder / "data")
    regions = write_regions(folder / "data/masks.pkl")
    argv = [*flags, "-m", str(folder / "run"), "--iterations", "3", "--not_finetune_flame_params"]
    assert run_main(train.main, argv) == 0
    assert run_main(render.main, ["-m", str(folder / "run"), "--quiet"]) == 0
    return folder, regions


@pytest.fixture
def run(measured: tuple[Path, dict[str, np.ndarray]], tmp_path: Path) -> Path:
    """A copy of the rendered run alone, as on another machine."""
    return Path(shutil.copytree(measured[0] / "run", tmp_path / "run"))


def measure(run: Path, *flags: str) -> dict[str, Any]:
    assert run_main(metrics.main, ["-m", str(run), "--quiet", *flags]) == 0
    return json.loads((run / "metrics.json").read_text())


def tracked_motion(data: Path) -> dict[str, np.ndarray]:
    files = [dict(np.load(path)) for path in sorted((data / "capture/flame_param").iterdir())]
    return {name: np.concatenate([file[name] for file in files]).astype(np.float64) for name in TRACKED}


def test_quality_by_region_is_that_of_the_pictures(run: Path) -> None:
    found = measure(run)["splits"]["train"]
    folder = run / "train/ours_3"
    squared, pixels = dict.fromkeys(REGIONS, 0.0), dict.fromkeys(REGIONS, 0)
    for path in sorted((folder / "regions").iterdir()):
        labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        image, truth = (read_image(folder / kind / path.name) / 255.0 for kind in ("renders", "gt"))
        for label, name in enumerate(REGIONS, start=1):
            squared[name] += float(((image - truth) ** 2)[labels == label].sum())
            pixels[name] += int((labels == label).sum())
    assert pixels["eyes"] > 100 and pixels["mouth"] > 50 and pixels["forehead"] > 50 and pixels["nose"] == 0
    for name in REGIONS:
        if pixels[name]:
            expected = -10 * math.log10(squared[name] / (3 * pixels[name]))
            assert found[f"psnr_{name}"] == pytest.approx(expected, abs=1e-4)
            assert -1 < found[f"ssim_{name}"] < 1
    assert found["psnr_nose"] is None and found["ssim_nose_reason"] == "no picture shows it"
    views = json.loads((run / "metrics_per_view.json").read_text())["splits"]["train"]
    assert sum(view["pixels_eyes"] for view in views.values()) == pixels["eyes"]


def test_gaussians_by_region_are_those_of_the_avatar(run: Path, measured: tuple[Path, dict[str, np.ndarray]]) -> None:
    """Area: v_template plus shapedirs times the shape of the capture, which has no offsets."""
    folder, regions = measured
    found = measure(run)
    _, binding = read_gaussian_ply(run / "point_cloud/iteration_3/point_cloud.ply", 10_000)
    model = pickle.loads((folder / "data/head.pkl").read_bytes())  # noqa: S301 - our own
    rest = model["v_template"] + model["shapedirs"][..., :7] @ np.linspace(-1, 1, 7)
    a, b, c = (rest[model["f"][:, k].astype(int)] for k in range(3))
    areas = 1e4 * np.linalg.norm(np.cross(b - a, c - a), axis=1) / 2
    for name, inside in regions.items():
        count = int(inside[binding].sum())
        assert found[f"gaussians_{name}"] == count
        if inside.any():
            assert count and found[f"density_{name}"] == pytest.approx(count / areas[inside].sum(), rel=1e-3)
    assert found["density_nose"] is None and found["density_nose_reason"]


def test_every_picture_knows_its_camera_and_timestep(run: Path, measured: tuple[Path, Any]) -> None:
    content = json.loads((measured[0] / "data/capture/transforms_val.json").read_text())["frames"]
    record = json.loads((run / "val/ours_3/frames.json").read_text())
    assert [(one["file"], one["camera_id"], one["timestep"]) for one in record["frames"]] == [
        (f"{k:05d}.png", frame["camera_id"], frame["timestep_index"]) for k, frame in enumerate(content)
    ]
    assert record["regions"] == list(REGIONS) and record["background"] == [1.0, 1.0, 1.0]


def test_consecutive_pictures_are_compared(run: Path) -> None:
    """The pictures become the photographs, but for one that is grey: two steps of its camera suffer."""
    folder = run / "train/ours_3"
    for path in (folder / "gt").iterdir():
        shutil.copy(path, folder / "renders" / path.name)
    found = measure(run)["splits"]
    assert found["train"]["flow_error"] == 0 and found["train"]["temporal_stability"] == 1
    assert found["train"]["psnr_frame_variance"] == 0
    assert found["test"]["flow_error"] is None and "consecutive" in found["test"]["flow_error_reason"]
    assert found["test"]["psnr_frame_variance"] is None and found["test"]["psnr_frame_variance_reason"]
    middle = next(one["file"] for one in json.loads((folder / "frames.json").read_text())["frames"]
                  if one["timestep"] == 1)  # fmt: skip
    grey = np.full_like(read_image(folder / "renders" / middle), 128)
    write_png(folder / "renders" / middle, grey)
    found = measure(run)["splits"]["train"]
    views = json.loads((run / "metrics_per_view.json").read_text())["splits"]["train"]
    stabilities = [view["temporal_stability"] for view in views.values() if view["temporal_stability"] is not None]
    cameras = CAMERAS - 1
    assert len(stabilities) == cameras * (TRAIN_TIMESTEPS - 1) and sum(value < 1 for value in stabilities) == 2
    assert found["temporal_stability"] == pytest.approx(np.mean(stabilities))
    drop = 100 - views[middle]["psnr"]  # differences of that camera: -drop, +drop; of the other: 0, 0
    assert found["psnr_frame_variance"] == pytest.approx(drop**2 / cameras)


def test_stability_is_that_of_the_pictures(run: Path) -> None:
    """Over the mattes of both moments, with the sums written out."""
    folder, found = run / "val/ours_3", measure(run)["splits"]["val"]
    values = []
    for k in range(TRAIN_TIMESTEPS - 1):  # one camera, in the order of its timesteps
        render, truth = (
            np.diff([read_image(folder / kind / f"0000{i}.png").astype(float) for i in (k, k + 1)], axis=0)[0]
            for kind in ("renders", "gt")
        )
        mattes = [read_image(folder / "masks" / f"0000{i}.png")[..., 0] / 255 > 0.5 for i in (k, k + 1)]
        render, truth = render[mattes[0] | mattes[1]], truth[mattes[0] | mattes[1]]
        values.append(1 - abs(render - truth).sum() / (abs(render) + abs(truth)).sum())
        assert not np.array_equal(*mattes)
    assert found["temporal_stability"] == pytest.approx(np.mean(values)) and 0 < found["temporal_stability"] < 1


def test_the_tracker_s_motion_against_the_truth(run: Path, measured: tuple[Path, Any], tmp_path: Path) -> None:
    """Nothing was trained, so both errors are what separates tracker and truth in the trained timesteps."""
    tracked = tracked_motion(measured[0] / "data")
    truth: dict[str, Any] = {name: tracked[name] + 0.01 for name in ("rotation", "translation", "expr", "jaw_pose")}
    truth["rotation"][TRAIN_TIMESTEPS:] += 5.0
    truth["translation"][:TRAIN_TIMESTEPS, 1] -= 0.01
    np.savez(tmp_path / "truth.npz", **truth, shape=np.zeros(7))
    found = measure(run, "--truth", str(tmp_path / "truth.npz"))
    for name, expected in (("rotation", 0.01), ("translation", 0.01 * math.sqrt(2 / 3)), ("expr", 0.01),
                           ("jaw_pose", 0.01)):  # fmt: skip
        assert found[f"rmse_{name}"] == pytest.approx(expected, rel=1e-4)
        assert found[f"rmse_{name}_tracked"] == pytest.approx(expected, rel=1e-4)
        assert found[f"rmse_{name}_change_percent"] == pytest.approx(0, abs=1e-3)
    assert found["rmse_neck_pose"] is None
    for name in TRACKED:
        x = tracked[name][:TRAIN_TIMESTEPS]
        expected = math.sqrt(np.square(x[2:] - 2 * x[1:-1] + x[:-2]).mean())
        assert found[f"jitter_{name}"] == pytest.approx(expected, rel=1e-4)
        assert found[f"jitter_{name}_tracked"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"rotation": np.zeros((TIMESTEPS, 3)), "expr": np.zeros((TIMESTEPS, 5))}, "translation: is missing"),
        ({name: np.zeros((9, WIDTHS[name])) for name in ("rotation", "translation", "expr")}, "found 9 timesteps"),
        (None, "does not exist"),
    ],
)
def test_a_bad_truth_is_one_line_and_nothing_is_written(
    arrays: dict[str, Any] | None, message: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if arrays is not None:
        np.savez(tmp_path / "truth.npz", **arrays)
    assert run_main(metrics.main, ["-m", str(run), "--quiet", "--truth", str(tmp_path / "truth.npz")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "truth.npz" in lines[0] and message in lines[0]
    assert not (run / "metrics.json").exists()


def test_renders_of_before_can_be_measured(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without what render.py leaves today the old metrics are the same, and each new one says what it needs."""
    now = measure(run)
    for name in ("regions", "frames.json"):
        for path in run.glob(f"*/ours_3/{name}"):
            path.unlink() if path.is_file() else shutil.rmtree(path)
    (run / "tracked_motion.npz").unlink()
    facts = json.loads((run / "render.json").read_text())
    kept = {name: value for name, value in facts.items() if not name.startswith(("gaussians_", "density_"))}
    (run / "render.json").write_text(json.dumps(kept))
    found = measure(run)
    for split, summary in found["splits"].items():
        for name in ("psnr", "psnr_channel_mean", "psnr_foreground", "ssim", "l1"):
            assert summary[name] == now["splits"][split][name]
        for name in (*(f"psnr_{r}" for r in REGIONS), "psnr_frame_variance", "flow_error", "temporal_stability"):
            assert summary[name] is None and summary[f"{name}_reason"] == "no frames.json: render again"
    for name in ("gaussians_eyes", "density_hair", "jitter_expr", "jitter_rotation_tracked"):
        assert found[name] is None and found[f"{name}_reason"]
    capsys.readouterr()
    assert run_main(metrics.main, ["-m", str(run), "--quiet", "--truth", "truth.npz"]) == 2
    assert "no tracked_motion.npz: render again" in capsys.readouterr().err


def test_without_masks_regions_say_what_they_need(
    run: Path, measured: tuple[Path, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    for flag in ("", str(measured[0] / "data/masks.pkl")):
        capsys.readouterr()
        assert run_main(render.main, ["-m", str(run), "--skip_train", "--flame_masks", flag]) == 0
        assert ("no metrics by region" in capsys.readouterr().err) == (not flag)
        assert (run / "val/ours_3/regions").exists() == bool(flag)
        found = measure(run)
        for name, where in (("gaussians_eyes", found), ("psnr_eyes", found["splits"]["val"])):
            assert (where[name] is None) == (not flag)
            assert flag or "--flame_masks" in where[f"{name}_reason"]


def test_the_tracked_motion_outlives_a_choice_of_frames(run: Path) -> None:
    before = (run / "tracked_motion.npz").read_bytes()
    assert run_main(render.main, ["-m", str(run), "--quiet", "--select_camera_id", "2"]) == 0
    assert (run / "tracked_motion.npz").read_bytes() == before


def edit_record(**fields: Any) -> Any:
    def edit(folder: Path) -> None:
        content = json.loads((folder / "frames.json").read_text())
        (folder / "frames.json").write_text(json.dumps({**content, **fields}))

    return edit


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "regions/00000.png").unlink(), "regions: 00000.png: is missing"),
        (lambda f: write_png(f / "regions/00099.png", np.zeros((20, 24), np.uint8)), "renders: 00099.png: is missing"),
        (lambda f: write_png(f / "regions/00001.png", np.full((20, 24), 7, np.uint8)), "found label 7, expected up to"),
        (lambda f: write_png(f / "regions/00001.png", np.zeros((20, 25), np.uint8)), "00001.png: size"),
        (lambda f: (f / "frames.json").unlink(), "frames.json: is missing, but there are region maps"),
        (lambda f: (f / "frames.json").write_text("[]"), "frames.json"),
        (edit_record(frames=[]), "frames: lacks 00000.png"),
        (edit_record(regions="eyes"), "regions: found"),
        (edit_record(background=[1, 2]), "background: found"),
    ],
)
def test_damage_is_one_line(damage: Any, message: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(run / "val/ours_3")
    assert run_main(metrics.main, ["-m", str(run), "--quiet"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and message in lines[0]
    assert not (run / "metrics.json").exists()


def test_a_record_names_each_file_once(run: Path) -> None:
    folder = run / "val/ours_3"
    frames = json.loads((folder / "frames.json").read_text())["frames"]
    edit_record(frames=[*frames, frames[0]])(folder)
    with pytest.raises(InputError, match="names a file twice"):
        read_take_record(folder, {pair.name for pair in list_pairs(folder)})


def test_the_table_shows_regions_and_motion(
    run: Path, measured: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth: dict[str, Any] = tracked_motion(measured[0] / "data")
    np.savez(tmp_path / "truth.npz", **{name: values + 0.5 for name, values in truth.items()})
    found = measure(run, "--truth", str(tmp_path / "truth.npz"))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    eyes = next(line for line in lines if line[0] == "eyes")
    assert eyes[1:3] == [str(found["gaussians_eyes"]), f"{found['density_eyes']:.1f}"]
    assert eyes[3] == f"{found['splits']['val']['psnr_eyes']:.2f}"
    expr = next(line for line in lines if line[0] == "expr")
    assert expr[3:5] == ["0.5", "0.5"]
