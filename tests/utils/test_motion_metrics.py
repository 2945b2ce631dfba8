"""Jitter of a motion and its distance to the truth."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from utils.engine.motion_metrics import (
    PARAMETERS,
    RunMotion,
    TrackedMotion,
    jitter,
    motion_facts,
    read_run_motion,
    read_tracked,
    read_truth,
    rmse,
    truth_facts,
    write_tracked,
)
from utils.errors import InputError

WIDTHS = {"rotation": 3, "translation": 3, "expr": 4, "neck_pose": 3, "jaw_pose": 3, "eyes_pose": 6}


def motion(timesteps: int, level: float = 0.0) -> dict[str, np.ndarray]:
    return {name: np.full((timesteps, width), level, np.float32) for name, width in WIDTHS.items()}


def test_jitter_is_the_second_difference() -> None:
    t = np.arange(6.0)
    values = np.stack([3 * t + 1, t**2, np.where(t == 3, 1.0, 0.0)], 1)
    # second differences of t^2 are 2; of a spike at 3: 1, -2, 1 at t = 2, 3, 4
    assert jitter(values[:, :1], np.zeros(6)) == 0
    assert jitter(values[:, 1:2], np.zeros(6)) == pytest.approx(2)
    assert jitter(values[:, 2:], np.zeros(6)) == pytest.approx(math.sqrt((1 + 4 + 1) / 4))
    assert jitter(values, np.zeros(6)) == pytest.approx(math.sqrt((0 + 16 + 6) / 12))


def test_jitter_stays_within_a_recording_and_what_was_trained() -> None:
    values = np.array([0, 1, 2, 50, 49, 48, -7, 3.0])[:, None]
    assert jitter(values, np.array([0, 0, 0, 1, 1, 1, -1, -1])) == 0
    assert jitter(values, np.array([0, 0, 1, 1, -1, -1, -1, -1])) is None
    assert jitter(values, np.full(8, -1)) is None
    assert jitter(values[:2], np.zeros(2)) is None


def test_root_mean_square_error_over_the_components_of_the_truth() -> None:
    truth = np.array([[1.0, 2.0, 2.0], [0.0, 0.0, 4.0]])
    assert rmse(truth + 0.5, truth) == pytest.approx(0.5)
    assert rmse(truth[:, :2], truth) == pytest.approx(math.sqrt((4 + 16) / 6))  # FLAME takes what lacks for zero
    assert rmse(np.pad(truth, ((0, 0), (0, 5)), constant_values=9), truth) == 0  # nothing is known of the others
    assert rmse(truth[:0], truth[:0]) is None


def test_only_trained_timesteps_count_and_the_tracker_stands_beside() -> None:
    own, tracked, truth = motion(4, 1.0), motion(4, 3.0), motion(4)
    own["rotation"][3] = 100
    found = truth_facts(
        RunMotion(own, TrackedMotion(tracked, np.array([0, 0, 0, -1]))),
        {name: truth[name] for name in ("rotation", "translation", "expr")},
        Path("truth.npz"),
    )
    assert found["rmse_rotation"] == pytest.approx(1) and found["rmse_rotation_tracked"] == pytest.approx(3)
    assert found["rmse_rotation_change_percent"] == pytest.approx(-200 / 3)
    for name in ("rmse_jaw_pose", "rmse_jaw_pose_tracked", "rmse_jaw_pose_change_percent"):
        assert found[name] is None and found[f"{name}_reason"] == "truth.npz has no jaw_pose"


def test_nothing_to_divide_by_has_a_reason() -> None:
    own, tracked, truth = motion(3, 1.0), motion(3), motion(3)
    found = truth_facts(RunMotion(own, TrackedMotion(tracked, np.zeros(3))), truth, Path("truth.npz"))
    assert found["rmse_expr_tracked"] == 0 and found["rmse_expr_change_percent"] is None
    assert found["rmse_expr_change_percent_reason"]
    found = truth_facts(RunMotion(own, TrackedMotion(tracked, np.full(3, -1))), truth, Path("truth.npz"))
    assert found["rmse_expr"] is None and found["rmse_expr_reason"] and found["rmse_expr_tracked_reason"]


def test_facts_name_every_parameter_or_say_why_not() -> None:
    own, tracked = motion(5), motion(5)
    own["jaw_pose"][2] = 1.0
    found = motion_facts(RunMotion(own, TrackedMotion(tracked, np.zeros(5))))
    assert found["jitter_jaw_pose"] == pytest.approx(math.sqrt(2)) and found["jitter_jaw_pose_tracked"] == 0
    lacking = motion_facts("no file")
    for name in PARAMETERS:
        assert lacking[f"jitter_{name}"] is None and lacking[f"jitter_{name}_reason"] == "no file"


def test_tracked_motion_comes_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = {name: rng.normal(size=array.shape).astype(np.float32) for name, array in motion(7).items()}
    sequence = np.array([0, 0, 0, 1, 1, -1, -1])
    write_tracked(tmp_path, TrackedMotion(values, sequence))
    found = read_tracked(tmp_path / "tracked_motion.npz")
    assert np.array_equal(found.sequence, sequence) and found.sequence.dtype == np.int64
    assert all(np.array_equal(found.values[name], values[name]) for name in PARAMETERS)


def test_a_run_without_the_files_says_so(tmp_path: Path) -> None:
    assert "flame_param.npz" in str(read_run_motion(tmp_path, 30))
    avatar = tmp_path / "point_cloud/iteration_30"
    avatar.mkdir(parents=True)
    arrays: dict[str, Any] = {**motion(3), "shape": np.zeros(7)}
    np.savez(avatar / "flame_param.npz", **arrays)
    assert "tracked_motion.npz" in str(read_run_motion(tmp_path, 30))
    write_tracked(tmp_path, TrackedMotion(motion(3), np.zeros(3, np.int64)))
    assert isinstance(read_run_motion(tmp_path, 30), RunMotion)
    write_tracked(tmp_path, TrackedMotion(motion(4), np.zeros(4, np.int64)))
    with pytest.raises(InputError, match=r"tracked_motion.npz: sequence: found 4 timesteps, the avatar has 3"):
        read_run_motion(tmp_path, 30)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rotation": None}, "rotation: is missing"),
        ({"expr": None}, "expr: is missing"),
        ({"translation": np.zeros((4, 2))}, "translation: found shape"),
        ({"expr": np.zeros((5, 4))}, "expr: found shape"),
        ({"rotation": np.full((4, 3), np.nan)}, "rotation: found nan"),
        ({"neck_pose": np.zeros((4, 6))}, "neck_pose: found shape"),
        ({"jaw_pose": np.array([["x"] * 3] * 4, object)}, "jaw_pose: found Python objects"),
    ],
)
def test_a_bad_truth_is_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    arrays = {**motion(4), **change}
    kept: dict[str, Any] = {name: values for name, values in arrays.items() if values is not None}
    np.savez(tmp_path / "truth.npz", **kept)
    with pytest.raises(InputError, match=message):
        read_truth(tmp_path / "truth.npz")


def test_the_truth_of_another_capture_is_refused() -> None:
    run = RunMotion(motion(4), TrackedMotion(motion(4), np.zeros(4)))
    with pytest.raises(InputError, match=r"truth.npz: rotation: found 6 timesteps, the run has 4"):
        truth_facts(run, motion(6), Path("truth.npz"))
