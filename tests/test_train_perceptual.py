"""Training runs with the perceptual loss on random weights: same bits, resume, stopped gradients, refusals."""

from __future__ import annotations

import csv
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.scene import make_capture
from tests.test_train import digests, run
from tests.tiny import ellipsoid, write_tiny
from utils.engine.checkpoint import load_checkpoint

pytest.importorskip("torchvision", reason="torchvision is not installed")

STEPS = 12
VGG = ["--lambda_perceptual", "0.5", "--use_vgg_loss", "--vgg_weights", "random", "--perceptual_layers", "2",
       "--perceptual_crop", "32", "--perceptual_interval", "4", "--perceptual_from_iter", "0"]  # fmt: skip
MOTION = ("rotation", "neck_pose", "jaw_pose", "translation", "expr")


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The tiny capture in pictures that hold a crop, with masks that are patches of the head's front."""
    folder = tmp_path_factory.mktemp("tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(make_capture, "WIDTH", 48)
        patch.setattr(make_capture, "HEIGHT", 40)
        found = write_tiny(folder)
    vertices, _ = ellipsoid()
    masks = pickle.loads((folder / "masks.pkl").read_bytes())  # noqa: S301 - written a line above
    front = vertices[:, 2] > 0
    masks["eye_region"] = np.nonzero(front & (vertices[:, 1] > 0))[0]
    masks["lips"] = np.nonzero(front & (vertices[:, 1] < 0))[0]
    (folder / "masks.pkl").write_bytes(pickle.dumps(masks, protocol=2))
    return [*found, "--iterations", str(STEPS), "--checkpoint_iterations", "7", "--threads", "1"]


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, flags: list[str]) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("calm") / "run"
    assert run(folder, flags, *VGG) == 0
    return folder


def test_its_term_is_logged_under_a_name_that_says_random(calm: Path) -> None:
    rows = list(csv.DictReader((calm / "log.csv").read_text().splitlines()))
    terms = {row["name"] for row in rows if row["split"] == "train"}
    assert "vgg_random" in terms and "vgg" not in terms
    assert json.loads((calm / "options.json").read_text())["vgg_weights"] == "random"  # a word, not a path


def test_the_run_log_says_what_looks_and_that_it_is_random(
    tmp_path: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    loud = [flag for flag in flags if flag != "--quiet"]
    assert run(tmp_path / "run", loud, *VGG, "--iterations", "1") == 0
    said = capsys.readouterr().err
    assert "perceptual: vgg_random (vgg19) on 32 x 32 pixels around eyes,mouth, every 4 steps from step 0 on" in said
    assert "RANDOM WEIGHTS WERE ASKED FOR" in said


def test_resumed_is_bit_identical_and_it_does_matter(tmp_path: Path, flags: list[str], calm: Path) -> None:
    shutil.copytree(calm, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / f"step_{STEPS:07d}")
    shutil.rmtree(tmp_path / "run" / "point_cloud" / f"iteration_{STEPS}")
    assert run(tmp_path / "run", flags, *VGG, "--resume") == 0
    assert digests(tmp_path / "run", STEPS) == digests(calm, STEPS)
    assert run(tmp_path / "plain", flags) == 0
    assert digests(tmp_path / "plain", STEPS) != digests(calm, STEPS)


def moments(folder: Path) -> dict[str, torch.Tensor]:
    """Adam's first moments after one step: a constant times the gradient."""
    state = load_checkpoint(folder / "checkpoints" / "step_0000001")[0]
    return {name[10:-8]: tensor for name, tensor in state.items() if name.endswith(".exp_avg")}


@pytest.mark.parametrize("rasterizer", ["native", "reference"])
def test_stopped_gradients_reach_colours_and_opacities_alone(tmp_path: Path, flags: list[str], rasterizer: str) -> None:
    """Every other gradient has the very bits that it has without the term."""
    once = ["--iterations", "1", "--checkpoint_iterations", "1", "--perceptual_interval", "1", "--rasterizer",
            rasterizer, "--perceptual_patches"]  # fmt: skip
    for name, more in {
        "off": ["image"],
        "whole": ["image"],
        "stopped": ["image", "--perceptual_stop_gradient"],
    }.items():
        weight = ["--lambda_perceptual", "0"] if name == "off" else []
        assert run(tmp_path / name, flags, *VGG, *once, *more, *weight) == 0
    off, whole, stopped = (moments(tmp_path / name) for name in ("off", "whole", "stopped"))
    for name in ("sh0", "opacities"):
        assert not torch.equal(stopped[name], off[name])
        torch.testing.assert_close(stopped[name], whole[name], rtol=1e-3, atol=1e-4 * float(whole[name].abs().max()))
    for name in ("means", "scales", "quats", *MOTION):
        assert torch.equal(stopped[name], off[name]), name
    for name in ("means", "scales", *MOTION):
        assert not torch.equal(whole[name], off[name]), name


def test_missing_weights_stop_before_anything_is_read_or_written(
    tmp_path: Path, flags: list[str], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    more = ["--lambda_perceptual", "0.1", "--use_vgg_loss", "-s", str(tmp_path / "no such data")]
    assert run(tmp_path / "run", flags, *more) == 2
    error = capfd.readouterr().err
    assert error.startswith("error: vgg19-dcbb9e9d.pth: is not in ") and error.count("\n") == 1
    assert "--vgg_weights" in error and "https://" in error and not (tmp_path / "run").exists()


def test_patches_without_masks_stop_with_the_flag_that_gives_them(
    tmp_path: Path, flags: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "run", flags, *VGG, "--flame_masks", "") == 2
    error = capfd.readouterr().err
    assert "--flame_masks" in error.splitlines()[-1] and not (tmp_path / "run").exists()
