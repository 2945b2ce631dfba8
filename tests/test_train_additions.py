"""Training with everything that may be added to the baseline at once, and runs that an older Mien began."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.scene import make_capture
from tests.test_train import digests, run
from tests.tiny import ellipsoid, write_masks, write_tiny
from utils.engine.build import load_avatar, load_run
from utils.engine.checkpoint import MANIFEST, META, TENSORS, describe
from utils.perceptual_networks import random_features

pytest.importorskip("torchvision", reason="torchvision is not installed")

STEPS, HALF = 12, 7
PLAIN = ["--iterations", str(STEPS), "--checkpoint_iterations", str(HALF), "--threads", "1", "--densify_from_iter", "1",
         "--densify_until_iter", "11", "--densification_interval", "3"]  # fmt: skip
ADDED = ["--batch_size", "2", "--use_adaptive_densification", "--use_temporal_consistency", "--lambda_flow", "0.1",
         "--lambda_feature_stability", "0.1", "--flow_interval", "3", "--lambda_perceptual", "0.5", "--use_vgg_loss",
         "--vgg_weights", "random", "--perceptual_layers", "1", "--perceptual_crop", "32", "--perceptual_interval", "4",
         "--perceptual_from_iter", "0", "--perceptual_stop_gradient", "--train_dynamic_offset"]  # fmt: skip


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The tiny capture in pictures that hold a crop, with eyes and mouth in view."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(make_capture, "WIDTH", 48)
        patch.setattr(make_capture, "HEIGHT", 40)
        found = write_tiny(folder)
    write_other_masks(folder / "masks.pkl", 0.0)
    return [*found, *PLAIN]


def write_other_masks(path: Path, border: float) -> Path:
    """Masks whose eyes lie on the head's front above a height, and the lips below it."""
    masks = pickle.loads(write_masks(path).read_bytes())  # noqa: S301 - written in this line
    vertices, _ = ellipsoid()
    for name, inside in (("eye_region", vertices[:, 1] > border), ("lips", vertices[:, 1] < border)):
        masks[name] = np.nonzero(inside & (vertices[:, 2] > 0))[0]
    path.write_bytes(pickle.dumps(masks, protocol=2))
    return path


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, flags: list[str]) -> Path:
    """A run with everything on that nothing disturbed."""
    folder = tmp_path_factory.mktemp("calm") / "run"
    assert run(folder, flags, *ADDED) == 0
    return folder


def stopped(run_folder: Path, copy: Path) -> Path:
    """The run as it was after step HALF."""
    shutil.copytree(run_folder, copy)
    shutil.rmtree(copy / "checkpoints" / f"step_{STEPS:07d}")
    shutil.rmtree(copy / "point_cloud" / f"iteration_{STEPS}")
    return copy


def test_everything_at_once_resumes_to_the_same_bits_with_other_threads(
    tmp_path: Path, flags: list[str], calm: Path
) -> None:
    folder = stopped(calm, tmp_path / "run")
    assert run(folder, flags, *ADDED, "--resume", "--threads", "3") == 0
    assert digests(folder, STEPS) == digests(calm, STEPS)


def test_a_run_that_an_older_mien_began_goes_on_with_what_is_new_at_its_default(
    tmp_path: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "whole", flags) == 0
    folder = stopped(tmp_path / "whole", tmp_path / "run")
    state = folder / "checkpoints" / f"step_{HALF:07d}"
    meta = json.loads((state / META).read_text())
    meta["options"] = {n: v for n, v in meta["options"].items() if "temporal" not in n and "perceptual" not in n}
    (state / META).write_text(json.dumps(meta))
    (state / MANIFEST).write_text(json.dumps({name: describe(state / name) for name in (TENSORS, META)}))
    assert run(folder, flags, "--resume", "--use_temporal_consistency") == 2
    assert "use_temporal_consistency: found False, the command line says True" in capsys.readouterr().err
    assert run(folder, flags, "--resume") == 0
    assert digests(folder, STEPS) == digests(tmp_path / "whole", STEPS)


def test_masks_that_decide_what_comes_out_must_be_the_same_in_a_resumed_run(
    tmp_path: Path, flags: list[str], calm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = ["--flame_masks", str(write_other_masks(tmp_path / "masks.pkl", -0.05))]
    assert run(stopped(calm, tmp_path / "run"), flags, *ADDED, *other, "--resume") == 2
    assert "flame_masks: the run was made from other files" in capsys.readouterr().err
    start = ["--start_checkpoint", str(calm / "checkpoints" / f"step_{HALF:07d}")]
    assert run(tmp_path / "new", flags, *ADDED, *other, *start) == 0  # another run may have other masks
    assert run(tmp_path / "plain", flags) == 0
    assert run(stopped(tmp_path / "plain", tmp_path / "moved"), flags, *other, "--resume") == 0  # nothing asks for them


def test_weights_may_move_but_not_change(tmp_path: Path, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    look = ["--lambda_perceptual", "0.5", "--use_vgg_loss", "--perceptual_layers", "1", "--perceptual_patches", "image",
            "--perceptual_interval", "4", "--perceptual_from_iter", "0"]  # fmt: skip
    for name, seed in (("vgg.safetensors", 0), ("other.safetensors", 1)):
        save_file(random_features("vgg19", seed).state_dict(), tmp_path / name)
    assert run(tmp_path / "run", flags, *look, "--vgg_weights", str(tmp_path / "vgg.safetensors")) == 0
    folder = stopped(tmp_path / "run", tmp_path / "stopped")
    (tmp_path / "vgg.safetensors").rename(tmp_path / "moved.safetensors")
    assert run(folder, flags, *look, "--resume", "--vgg_weights", str(tmp_path / "other.safetensors")) == 2
    assert "vgg_weights: the run was made from other files" in capsys.readouterr().err
    assert run(folder, flags, *look, "--resume", "--vgg_weights", str(tmp_path / "moved.safetensors")) == 0
    assert digests(folder, STEPS) == digests(tmp_path / "run", STEPS)


@pytest.mark.parametrize("more, named", [
    (["--lambda_perceptual", "0.1", "--use_vgg_loss", "--vgg_weights", "random", "--perceptual_patches", "image"],
     "--lambda_perceptual"),
    (["--use_temporal_consistency", "--not_finetune_flame_params"], "--use_temporal_consistency"),
    (["--use_temporal_consistency", "--bind_to_mesh", "False"], "--use_temporal_consistency"),
    (["--lambda_flow", "1", "--bind_to_mesh", "False"], "--lambda_flow"),
    (["--use_adaptive_densification", "--bind_to_mesh", "False"], "--region_source")])  # fmt: skip
def test_what_can_have_no_effect_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], named: str
) -> None:
    flags = [*write_tiny(tmp_path / "tiny"), *PLAIN, *more]  # pictures of 24 x 20 pixels
    assert run(tmp_path / "run", flags) == 2
    *notes, error = capsys.readouterr().err.splitlines()
    assert error.startswith(f"error: {named}: ") and not any("error" in note for note in notes)
    assert not (tmp_path / "run").exists()


def test_an_avatar_opens_without_the_masks_it_was_trained_with(tmp_path: Path, flags: list[str], calm: Path) -> None:
    masks = Path(flags[flags.index("--flame_masks") + 1])
    away = masks.rename(tmp_path / "masks.pkl")
    try:
        assert not load_avatar(calm).avatar.rig.regions and not load_run(calm).avatar.rig.regions
        assert load_run(calm, overrides={"flame_masks": str(away)}).avatar.rig.regions
    finally:
        away.rename(masks)
