"""Training options of the original and ours beyond the default run: each must do what it says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import render
import train
from arguments import parse, read_preset
from tests.test_train import SCHEDULE, digests, run
from tests.tiny import write_tiny
from utils.engine.build import load_avatar, load_run
from utils.engine.checkpoint import load_checkpoint
from utils.engine.options import due_at
from utils.errors import InputError, run_main
from utils.io.images import read_image


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [
        *write_tiny(tmp_path_factory.mktemp("tiny")),
        *SCHEDULE,
        "--iterations",
        "8",
        "--checkpoint_iterations",
        "5",
    ]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, flags: list[str]) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "run"
    assert run(folder, flags) == 0
    return folder


def final(folder: Path, step: int = 8) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / "checkpoints" / f"step_{step:07d}")[0]


def test_python_pipeline_draws_the_same(tmp_path: Path, flags: list[str], plain: Path) -> None:
    """Colours and covariances made in PyTorch give the same gradients up to rounding (later, thresholds magnify it)."""
    python = ["--convert_SHs_python", "--compute_cov3D_python"]
    assert run(tmp_path / "run", flags, *python) == 0
    assert digests(plain, 8) != digests(tmp_path / "run", 8)  # it did take the other way
    once = ["--iterations", "1", "--checkpoint_iterations", "1", "--densification", "none"]
    assert run(tmp_path / "native", flags, *once) == 0 and run(tmp_path / "python", flags, *once, *python) == 0
    first, second = final(tmp_path / "native", 1), final(tmp_path / "python", 1)
    for name in ("means", "sh0", "opacities", "scales"):  # Gaussians start round: their quats have no gradient
        ours, theirs = (state[f"optimiser.{name}.exp_avg"] for state in (first, second))
        assert ours.any()
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()))


def test_a_batch_is_the_mean_of_its_views(tmp_path: Path, flags: list[str]) -> None:
    """One step on a batch of the whole epoch has the mean gradient of all views: Adam's first moment shows it."""
    once = ["--iterations", "1", "--checkpoint_iterations", "1", "--densification", "none"]
    assert run(tmp_path / "batch", flags, *once, "--batch_size", "6") == 0
    means = []
    for view in range(6):
        folder = tmp_path / f"view{view}"
        capture = Path(flags[flags.index("-s") + 1])
        spoilt = tmp_path / f"capture{view}"
        spoilt.mkdir()
        for name in ("images", "fg_masks", "flame_param", "canonical_flame_param.npz", "transforms_val.json",
                     "transforms_test.json"):  # fmt: skip
            (spoilt / name).symlink_to(capture / name)
        content = json.loads((capture / "transforms_train.json").read_text())
        content["frames"] = [content["frames"][view]]
        (spoilt / "transforms_train.json").write_text(json.dumps(content))
        data = ["-s", str(spoilt), "--data_root", str(tmp_path.parent.parent)]
        assert run(folder, flags, *once, *data) == 0
        means.append(final(folder, 1)["optimiser.sh0.exp_avg"])
    torch.testing.assert_close(final(tmp_path / "batch", 1)["optimiser.sh0.exp_avg"], torch.stack(means).mean(0))


def test_start_checkpoint_goes_on_with_other_options(tmp_path: Path, flags: list[str], plain: Path) -> None:
    """With the same options it ends in the same bits; other options are the new run's own."""
    checkpoint = ["--start_checkpoint", str(plain / "checkpoints/step_0000005")]
    assert run(tmp_path / "same", flags, *checkpoint) == 0
    assert digests(tmp_path / "same", 8) == digests(plain, 8)
    assert run(tmp_path / "longer", flags, *checkpoint, "--iterations", "9", "--opacity_lr", "0.2") == 0
    assert load_run(tmp_path / "longer").iteration == 9


@pytest.mark.parametrize("more, named", [
    (["--start_checkpoint", "nowhere"], "nowhere"), (["--resume", "--start_checkpoint", "x"], "--start_checkpoint"),
    (["--batch_size", "0"], "--batch_size"), (["--lambda_laplacian", "1"], "--train_dynamic_offset"),
    (["--train_dynamic_offset", "--not_finetune_flame_params"], "--train_dynamic_offset"),
    (["--gaussian_budget", "-1"], "--gaussian_budget")])  # fmt: skip
def test_refusals(
    tmp_path: Path, flags: list[str], more: list[str], named: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "run", flags, *more) == 2
    error = capfd.readouterr().err
    assert named in error and error.count("\n") == 1 and not (tmp_path / "run").exists()


def test_a_checkpoint_beyond_the_end_or_of_another_state_is_refused(
    tmp_path: Path, flags: list[str], plain: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    checkpoint = ["--start_checkpoint", str(plain / "checkpoints/step_0000005")]
    assert run(tmp_path / "short", flags, *checkpoint, "--iterations", "5") == 2
    assert "step: found 5, expected less than --iterations 5" in capfd.readouterr().err
    assert run(tmp_path / "offset", flags, *checkpoint, "--train_dynamic_offset") == 2
    assert "flame.dynamic_offset: is missing" in capfd.readouterr().err
    (tmp_path / "chkpnt5.pth").write_bytes(b"PK")
    assert run(tmp_path / "pth", flags, "--start_checkpoint", str(tmp_path / "chkpnt5.pth")) == 2
    assert "is a file, expected a folder" in capfd.readouterr().err


def test_dynamic_offsets_are_trained_saved_and_resumed(tmp_path: Path, flags: list[str]) -> None:
    offset = ["--train_dynamic_offset", "--flame_offset_lr", "1e-4"]
    assert run(tmp_path / "free", flags, *offset) == 0
    saved = np.load(tmp_path / "free/point_cloud/iteration_8/flame_param.npz")["dynamic_offset"]
    assert saved.any() and not saved[3].any()  # the held-out timestep was never seen
    avatar = load_avatar(tmp_path / "free").avatar
    assert np.array_equal(avatar.rig.dynamic_offset.numpy(), saved)  # type: ignore[attr-defined]
    weighed = ["--lambda_dynamic_offset", "1e3", "--lambda_dynamic_offset_std", "1", "--lambda_laplacian", "10"]
    assert run(tmp_path / "held", flags, *offset, *weighed) == 0
    held = np.load(tmp_path / "held/point_cloud/iteration_8/flame_param.npz")["dynamic_offset"]
    assert np.abs(held).mean() < np.abs(saved).mean()
    assert run(tmp_path / "again", flags, *offset, *weighed, "--start_checkpoint",
               str(tmp_path / "held/checkpoints/step_0000005")) == 0  # fmt: skip
    assert digests(tmp_path / "again", 8) == digests(tmp_path / "held", 8)


def test_static_offset_can_be_ignored_and_motion_kept(tmp_path: Path, flags: list[str]) -> None:
    assert run(tmp_path / "run", flags, "--disable_flame_static_offset", "--not_finetune_flame_params") == 0
    loaded = load_run(tmp_path / "run")
    assert loaded.dataset.motion is not None
    for name, tracked in loaded.dataset.motion.per_frame.items():
        assert torch.equal(loaded.avatar.rig.parameters[name].detach(), tracked)


def test_unbound_training_of_a_tracked_capture(tmp_path: Path, flags: list[str]) -> None:
    """Without --bind_to_mesh the preset is `static`, nothing is bound and no limit in triangle scales acts."""
    words = [word for word in flags if word != "--bind_to_mesh"]
    assert parse(words, "train.py").run.config == "static"
    assert run(tmp_path / "run", words) == 0
    header = (tmp_path / "run/point_cloud/iteration_8/point_cloud.ply").read_bytes().partition(b"end_header")[0]
    assert b"binding_0" not in header and not (tmp_path / "run/point_cloud/iteration_8/flame_param.npz").exists()
    rows = (tmp_path / "run/log.csv").read_text()
    assert ",l1," in rows and ",xyz," not in rows
    assert not load_run(tmp_path / "run").avatar.rig.bound


def test_anomaly_detection_is_switched_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: list[str]) -> None:
    seen: list[bool] = []
    monkeypatch.setattr(train, "train", lambda *_: seen.append(torch.is_anomaly_enabled()))
    try:
        assert run_main(train.main, [*flags, "-m", str(tmp_path / "run"), "--detect_anomaly"]) == 0
    finally:
        torch.autograd.set_detect_anomaly(False)
    assert seen == [True]


def test_the_originals_schedule_to_the_digit() -> None:
    """`flags.md`: every optimisation default of the original is in the preset `gaussian_avatars`."""
    expected = {
        "iterations": 600_000, "position_lr_init": 0.005, "position_lr_final": 0.00005, "position_lr_delay_mult": 0.01,
        "position_lr_max_steps": 600_000, "feature_lr": 0.0025, "opacity_lr": 0.05, "scaling_lr": 0.017,
        "rotation_lr": 0.001, "flame_expr_lr": 1e-3, "flame_trans_lr": 1e-6, "flame_pose_lr": 1e-5,
        "densification_interval": 2000, "opacity_reset_interval": 60_000, "densify_from_iter": 10_000,
        "densify_until_iter": 600_000, "densify_grad_threshold": 0.0002, "percent_dense": 0.01, "lambda_dssim": 0.2,
        "lambda_xyz": 0.01, "threshold_xyz": 1.0, "metric_xyz": False, "lambda_scale": 1.0, "threshold_scale": 0.6,
        "metric_scale": False, "lambda_dynamic_offset": 0.0, "lambda_dynamic_offset_std": 0.0, "lambda_laplacian": 0.0,
        "interval": 60_000, "sh_degree": 3, "scene_extent": "cameras", "flame_update": "dense", "batch_size": 1,
    }  # fmt: skip
    preset = read_preset("gaussian_avatars")
    assert {name: preset[name] for name in expected} == expected


@pytest.mark.parametrize("iterations, interval, due", [
    (30_000, -1, {3000 * i for i in range(1, 11)}), (30_000, 60_000, {30_000}),
    (100_000, 60_000, {60_000, 100_000}), (600_000, 60_000, {60_000 * i for i in range(1, 11)})])  # fmt: skip
def test_saves_follow_the_given_iterations(iterations: int, interval: int, due: set[int]) -> None:
    """The original compares with its default 600,000 and saved nothing at --iterations 30000 (train.py:333-340)."""
    assert due_at([], interval, iterations) == due


def test_a_preset_may_not_hold_an_unknown_flag(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("max_gaussians: 3\n")
    with pytest.raises(InputError, match="max_gaussians: is no flag"):
        read_preset(str(tmp_path / "p.yaml"))


def test_one_static_camera_moves_positions_and_prunes(tmp_path: Path, flags: list[str]) -> None:
    """Its extent is 0 in the original, so that positions never move (dataset_readers.py:54-75); ours is the head's."""
    one = ["--select_camera_id", "0", "--iterations", "40"]
    facts = {}
    for name, extent in (("ours", "head"), ("originals", "cameras")):
        still = ["--scene_extent", extent, "--densification", "none"]  # splitting displaces children at random
        assert run(tmp_path / name, flags, *one, *still) == 0
        facts[name] = json.loads((tmp_path / name / "run.json").read_text())
    assert facts["ours"]["median_offset"] > 0.05 and facts["originals"]["median_offset"] < 1e-3
    grow = ["--prune_opacity", "0.1", "--opacity_reset_interval", "-1", "--densify_until_iter", "40",
            "--densify_grad_threshold", "1e-5"]  # fmt: skip
    assert run(tmp_path / "pruned", flags, *one, *grow) == 0
    assert json.loads((tmp_path / "pruned/run.json").read_text())["pruned"] > 0


def test_accepted_without_effect(
    tmp_path: Path, flags: list[str], plain: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """--ip and --port open no socket and say so; --quiet says nothing; neither changes a bit."""
    monkeypatch.setattr("socket.socket.bind", lambda *_: pytest.fail("a socket was bound"))
    loud = [word for word in flags if word != "--quiet"]
    assert run(tmp_path / "loud", loud, "--ip", "0.0.0.0", "--port", "60000") == 0
    assert "--port: there is no viewer yet" in capfd.readouterr().err
    assert digests(tmp_path / "loud", 8) == digests(plain, 8)
    assert run(tmp_path / "quiet", flags, "--port", "60000") == 0
    assert "viewer" not in capfd.readouterr().err


def test_a_refused_start_keeps_the_run_that_overwrite_would_replace(
    tmp_path: Path, flags: list[str], plain: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(plain, tmp_path / "run")
    own, other = (str(run / "checkpoints/step_0000005") for run in (tmp_path / "run", plain))
    for more, named in (([own], "belongs to the run that --overwrite replaces"), ([other, "--sh_degree", "1"], "shN")):
        assert run(tmp_path / "run", flags, "--overwrite", "--start_checkpoint", *more) == 2
        assert named in capfd.readouterr().err and digests(tmp_path / "run", 8) == digests(plain, 8)


def test_a_start_checkpoint_of_other_data_is_refused(
    tmp_path: Path, flags: list[str], plain: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It holds the motion of that data: the same shapes are not the same head."""
    capture = tmp_path / "capture"
    shutil.copytree(Path(flags[flags.index("-s") + 1]), capture)
    for path in (capture / "flame_param").iterdir():
        with np.load(path) as values:
            moved = {name: values[name] for name in values}
        np.savez(path, **{**moved, "shape": -moved["shape"]})
    checkpoint = ["--start_checkpoint", str(plain / "checkpoints/step_0000005")]
    assert run(tmp_path / "run", flags, "-s", str(capture), *checkpoint) == 2
    assert "source_path: the run was made from other files" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_run_stopped_before_its_first_checkpoint_starts_again_from_the_start_checkpoint(
    tmp_path: Path, flags: list[str], plain: Path
) -> None:
    checkpoint = str(plain / "checkpoints/step_0000005")
    assert run(tmp_path / "run", flags, "--start_checkpoint", checkpoint) == 0
    shutil.rmtree(tmp_path / "run/checkpoints")  # as if it had been killed before step 8
    assert run(tmp_path / "run", flags, "--resume") == 0
    assert digests(tmp_path / "run", 8) == digests(plain, 8)
    assert json.loads((tmp_path / "run/options.json").read_text())["start_checkpoint"] == checkpoint


def test_cameras_that_never_see_the_head_are_refused(
    tmp_path: Path, flags: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    """With OpenCV axes in a file of OpenGL axes every camera looks away: a whole run would be lost."""
    capture = tmp_path / "capture"
    shutil.copytree(Path(flags[flags.index("-s") + 1]), capture)
    for split in ("train", "val", "test"):
        path = capture / f"transforms_{split}.json"
        content = json.loads(path.read_text())
        for frame in content["frames"]:
            frame["transform_matrix"] = [[a, -b, -c, d] for a, b, c, d in frame["transform_matrix"]]
        path.write_text(json.dumps(content))
    assert run(tmp_path / "run", flags, "-s", str(capture)) == 2
    error = capfd.readouterr().err
    assert "no vertex of the mesh is in the picture, here and in 5 other training views" in error
    assert not (tmp_path / "run").exists()


def test_checkpoints_that_were_asked_for_stay(tmp_path: Path, flags: list[str]) -> None:
    words = [*flags, "--iterations", "7", "--checkpoint_iterations", "1", "3", "5"]
    assert run(tmp_path / "run", words) == 0
    assert sorted(path.name[-1] for path in (tmp_path / "run/checkpoints").glob("step_*")) == ["1", "3", "5", "7"]


def test_the_originals_rendering_flags_are_taken(
    tmp_path: Path, plain: Path, flags: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    """Its render.py knows every loading flag; what an avatar is can't be changed there."""
    shutil.copytree(plain, tmp_path / "run")
    words = ["-m", str(tmp_path / "run"), "--quiet", "--eval", "-w", "-r", "2", "-i", "images", "--bind_to_mesh"]
    assert run_main(render.main, [*words, "--sh_degree", "3", "--convert_SHs_python", "--skip_train"]) == 0
    assert read_image(tmp_path / "run/val/ours_8/renders/00000.png").shape == (10, 12, 3)
    assert run_main(render.main, [*words, "--sh_degree", "2"]) == 2
    assert "--sh_degree: found 2, the run was trained with 3" in capfd.readouterr().err


def test_train_sends_targets_to_render(flags: list[str]) -> None:
    with pytest.raises(InputError, match="--target_path: is for rendering"):
        parse([*flags, "-t", "x"], "train.py")
