"""Being registered is being tested: every dataset format and every rig trains two steps, saves, and renders again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from scene.datasets import DATASETS
from scene.rigs import RIGS
from tests.flame_model import synthetic
from tests.scene import make_static, make_tracked, test_imavatar, test_insta, test_metrical_tracker, test_nersemble
from tests.test_train import run
from tests.tiny import write_tiny
from utils.engine.build import load_run

SHORT = ["--eval", "--white_background", "--iterations", "2", "--quiet"]
VERTICES, EXPRESSIONS = 40, 100

# Format -> a writer of a small folder of it.
MAKERS: dict[str, Callable[[Path], Path]] = {
    "flame_nerf": lambda folder: Path(write_tiny(folder)[1]),
    "blender": make_static.make_blender,
    "colmap": make_static.make_colmap,
    "insta": test_insta.write,
    "metrical_tracker": make_tracked.write_metrical,
    "flash_avatar": lambda folder: test_metrical_tracker.write_flash(folder, folder / "checkpoint"),
    "imavatar": test_imavatar.write_video,
    "nersemble": test_nersemble.write_participant,
}


def test_every_format_has_a_maker_and_every_rig_a_format() -> None:
    assert set(MAKERS) == set(DATASETS)
    assert {entry.rig for entry in DATASETS.values()} == set(RIGS)


@pytest.mark.parametrize("name", list(DATASETS))
def test_a_registered_format_trains_and_renders(name: str, tmp_path: Path) -> None:
    source = MAKERS[name](tmp_path / "data" / "folder")
    model = synthetic.write(tmp_path / "flame.pkl", synthetic.fields(VERTICES, EXPRESSIONS))
    head = source.parent / "head.pkl" if name == "flame_nerf" else model
    bound = DATASETS[name].rig != "still"
    flags = ["-s", str(source), *SHORT, *(["--bind_to_mesh", "--flame_model", str(head)] if bound else [])]
    assert run(tmp_path / "run", flags) == 0
    loaded = load_run(tmp_path / "run")
    assert loaded.dataset.format == name and loaded.avatar.rig.bound == bound and loaded.iteration == 2
    frame = next(split for split in loaded.dataset.splits().values() if len(split))[0]
    with torch.no_grad():
        mesh = loaded.avatar.rig(frame.timestep)
        image = loaded.render(loaded.avatar.place_on(mesh), frame.camera, frame.background).image
    assert image.shape == frame.image.shape and bool(image.isfinite().all())
    assert run(tmp_path / "run", [*flags, "--resume"]) == 0  # a finished run resumes to nothing
