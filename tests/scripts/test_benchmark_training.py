"""The stopwatch around train.py."""

from __future__ import annotations

import pytest

from scripts import benchmark_training
from utils.errors import EnvironmentFault, run_main


def test_evaluations_are_read_from_the_log_line() -> None:
    line = "step 600 (13.8 s), val: psnr 32.7238, psnr_channel_mean 32.7574, psnr_foreground 30.1638, ssim 0.9659"
    assert benchmark_training.evaluations(line) == [(600, "val", 32.7238)]
    assert benchmark_training.evaluations("step 600/3000, 59 it/s, l1 0.0056, psnr 36.03, gaussians 20224") == []


def test_a_failed_training_is_no_measurement() -> None:
    with pytest.raises(EnvironmentFault, match=r"ended with 2: error: .*no_such_folder"):
        benchmark_training.train(["-s", "no_such_folder", "-m", "nowhere"], "val", 31.0)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "the following arguments are required: TRAIN_FLAGS"),
        (["--repeat", "0", "--", "-s", "x", "-m", "y"], "--repeat: found 0, expected at least 1"),
        (["--", "-s", "x", "--metric_xyz"], "TRAIN_FLAGS: name no output folder"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(
    capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert run_main(benchmark_training.main, flags) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: command line: ") and message in said and said.count("\n") == 1
