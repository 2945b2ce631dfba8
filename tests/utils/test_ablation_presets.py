"""The presets of the ablations: a frozen baseline without additions, and experiments that are additions only."""

from __future__ import annotations

import dataclasses
import re

import pytest
import yaml

from arguments import PRESETS, parse, preset_names, read_preset
from utils.engine.options import RunOptions, flags_from_options

# The defaults on the day when the additions came (commit 73e07a8), written down by hand.
FROZEN = {
    "not_finetune_flame_params": False, "train_dynamic_offset": False, "sh_degree": 3, "init_opacity": 0.1,
    "init_scale": 1.0, "batch_size": 1, "iterations": 30000, "position_lr_init": 0.02, "position_lr_final": 0.0002,
    "position_lr_delay_mult": 0.01, "position_lr_max_steps": -1, "feature_lr": 0.005, "opacity_lr": 0.05,
    "scaling_lr": 0.017, "rotation_lr": 0.001, "flame_expr_lr": 0.0005, "flame_trans_lr": 1e-5, "flame_pose_lr": 1e-4,
    "flame_offset_lr": 1e-5, "flame_update": "rows", "scene_extent": "head", "sh_interval": -1,
    "densification": "gradient", "densify_from_iter": -1, "densify_until_iter": -1, "densification_interval": -1,
    "densify_grad_threshold": 0.0003, "percent_dense": 0.01, "opacity_reset_interval": -1, "prune_opacity": 0.005,
    "gaussian_budget": 0, "lambda_dssim": 0.2, "lambda_xyz": 0.01, "threshold_xyz": 1.0, "metric_xyz": False,
    "lambda_scale": 1.0, "threshold_scale": 0.6, "metric_scale": False, "lambda_dynamic_offset": 0.0,
    "lambda_dynamic_offset_std": 0.0, "lambda_laplacian": 0.0,
}  # fmt: skip
WEIGHTS = ("lambda_perceptual", "lambda_flow", "lambda_feature_stability")  # that of temporal has a switch
VALUES = {  # perceptual weight, ratio of adaptive densification, temporal weight
    "perceptual": (0.05, None, None), "adaptive": (None, 2.0, None), "temporal": (None, None, 1e-4),
    "all": (0.05, 2.0, 1e-4), "recommended": (None, 2.0, 1e-4), "high_quality": (0.1, 2.5, 1e-4),
    "fast": (None, 2.0, 1e-4)}  # fmt: skip


def test_help_lists_every_preset() -> None:
    said = next(option.metadata["help"] for option in dataclasses.fields(RunOptions) if option.name == "config")
    assert set(preset_names()) <= set(re.findall(r"\w+", said))


def test_the_baseline_is_frozen() -> None:
    preset = read_preset("baseline")
    assert {name: preset[name] for name in FROZEN} == FROZEN


def test_the_baseline_has_no_additions() -> None:
    flags = flags_from_options(parse(["-s", "x", "--bind_to_mesh", "--config", "baseline"], "train.py"))
    assert {name: flags[name] for name in FROZEN} == FROZEN
    assert [name for name, value in flags.items() if name.startswith("use_") and value] == []
    assert [name for name in WEIGHTS if flags.get(name)] == []


@pytest.mark.parametrize("name", VALUES)
def test_experiments_are_additions_only(name: str) -> None:
    """Read as YAML: what is no addition stays the baseline's."""
    preset = yaml.safe_load((PRESETS / f"{name}.yaml").read_text(encoding="utf-8"))
    values = tuple(preset.get(key) for key in ("lambda_perceptual", "adaptive_densify_ratio", "lambda_temporal"))
    assert values == VALUES[name] and not preset.keys() & FROZEN.keys() - {"iterations"}
    switches = ("use_vgg_loss", "use_adaptive_densification", "use_temporal_consistency")
    assert tuple(preset.get(key, False) for key in switches) == tuple(value is not None for value in values)
    assert preset.get("use_lpips_loss", False) is (name == "high_quality")
