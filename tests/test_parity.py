"""`docs/parity.md` is true: every flag of the original exists where it says, every test that it names exists."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs/parity.md").read_text(encoding="utf-8")
PROGRAMS = ("train.py", "render.py", "metrics.py", "scripts/benchmark_fps.py")
# Every flag of the original: loading, pipeline, optimisation, training, rendering, metrics, viewer, FPS benchmark.
ORIGINAL = """
source_path target_path model_path images resolution white_background data_device eval sh_degree bind_to_mesh
disable_flame_static_offset not_finetune_flame_params select_camera_id convert_SHs_python compute_cov3D_python debug
iterations position_lr_init position_lr_final position_lr_delay_mult position_lr_max_steps feature_lr opacity_lr
scaling_lr rotation_lr flame_expr_lr flame_trans_lr flame_pose_lr densification_interval opacity_reset_interval
densify_from_iter densify_until_iter densify_grad_threshold percent_dense lambda_dssim lambda_xyz threshold_xyz
metric_xyz lambda_scale threshold_scale metric_scale lambda_dynamic_offset lambda_dynamic_offset_std lambda_laplacian
ip port debug_from detect_anomaly interval test_iterations save_iterations checkpoint_iterations start_checkpoint
quiet iteration skip_train skip_val skip_test render_mesh model_paths point_path motion_path n_iter height width vis
""".split()
ALIASES = {"source_path": "-s", "target_path": "-t", "model_path": "-m", "images": "-i", "resolution": "-r",
           "white_background": "-w"}  # fmt: skip


@pytest.fixture(scope="module")
def helps() -> str:
    """What all programs say about their flags."""
    commands = [[sys.executable, ROOT / program, "--help"] for program in PROGRAMS]
    return "\n".join(subprocess.run(words, capture_output=True, text=True, check=True).stdout for words in commands)


@pytest.mark.parametrize("flag", ORIGINAL)
def test_a_flag_of_the_original_is_listed_and_exists(flag: str, helps: str) -> None:
    assert re.search(rf"^\|.*`--{flag}`", TEXT, re.MULTILINE), "not in the table of flags"
    assert re.search(rf"--{flag}\b", helps), "no program has it"
    if flag in ALIASES:
        assert re.search(rf"{ALIASES[flag]}\b.*--{flag}\b", helps)


def named_tests() -> list[str]:
    return sorted(set(re.findall(r"`(tests/[\w/]+\.py(?:::\w+)?)`", TEXT)))


@pytest.mark.parametrize("name", named_tests())
def test_a_test_that_is_named_exists(name: str) -> None:
    path, _, function = name.partition("::")
    source = (ROOT / path).read_text(encoding="utf-8")
    assert re.search(rf"^def {function or 'test_'}", source, re.MULTILINE)


def test_every_row_names_a_test() -> None:
    rows = [line for line in TEXT.splitlines() if line.startswith("| ") and not line.startswith("| the ")]
    missing = [row for row in rows if "`tests/" not in row and "not here" not in row and "| here |" not in row]
    assert missing == [] and len(rows) > 100
