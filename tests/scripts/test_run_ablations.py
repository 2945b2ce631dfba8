"""The ablations' script on a tiny capture: what is run, what is skipped, what is resumed, what is reported."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diff_gaussian_rasterization", reason="the native package is not installed")

import metrics
import render
import train
from arguments import read_preset
from scripts import run_ablations
from scripts.ablations import plan as planning
from scripts.ablations.plan import experiment_of, held_to_baseline, lacks_weights
from scripts.ablations.programs import Ended, Programs, R, T, last_error
from tests.tiny import write_tiny
from utils.errors import InputError, run_main

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = {"train.py": train.main, "render.py": render.main, "metrics.py": metrics.main}
NO_WEIGHTS = "vgg19-dcbb9e9d.pth: is not in /x/checkpoints. Get it."


class InProcess(Programs):
    """Runs the same programs in this process: imports take longer than a tiny training."""

    calls: list[tuple[str, tuple[str, ...]]] = []

    def run(self, log: Path, script: str, *words: str) -> Ended:
        self.calls.append((script, words))
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a", encoding="utf-8") as file, contextlib.redirect_stderr(file):
            with contextlib.redirect_stdout(file):
                code = run_main(PROGRAMS[script], list(words))
        return Ended(code, last_error(log.read_text().splitlines()))

    def do_all(self, work: Callable[[T], R], items: Sequence[T], side_by_side: int) -> list[R]:
        return [work(item) for item in items]  # signal handlers belong to the main thread


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[str, ...]]]:
    """The programs that were run, in order."""
    monkeypatch.setattr(run_ablations, "Programs", InProcess)
    monkeypatch.setattr(InProcess, "calls", [])
    return InProcess.calls


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[str]]:
    """The capture, and flags that name its head."""
    words = write_tiny(tmp_path_factory.mktemp("tiny"))
    return words[1], words[words.index("--flame_model") : words.index("--quiet")]


def preset(folder: Path, name: str, text: str) -> str:
    (folder / f"{name}.yaml").write_text(text)
    return str(folder / f"{name}.yaml")


def run(capture: str, output: Path, *words: str, head: list[str]) -> int:
    return run_main(run_ablations.main, [capture, *words, "--output", str(output), "--", *head])


@pytest.mark.parametrize(
    "text, found", [("[", "is not JSON"), ('{"a": 1}', "is no list of objects"), ("[3]", "is no list")]
)
def test_a_broken_record_is_refused_before_training(
    text: str, found: str, tmp_path: Path, tiny: tuple[str, list[str]], calls: list[Any],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "ablations.json").write_text(text)
    assert run(tiny[0], tmp_path, "1", "--iterations", "2", head=tiny[1]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and found in lines[0] and not calls


def test_paths_are_those_of_where_the_user_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`-- --flame_model head.pkl` and `--experiments mine.yaml` name files beside the user, not in the repository."""
    script = tmp_path / "where.py"
    script.write_text("import os; print(os.getcwd())")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    ended = Programs().run(tmp_path / "log", str(script))
    assert ended.code == 0 and Path(ended.error) == (tmp_path / "here").resolve()  # its last line


def test_experiments_seeds_and_what_is_done_again(
    tmp_path: Path, tiny: tuple[str, list[str]], calls: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    capture, head = tiny
    other = preset(tmp_path, "other", "lambda_dssim: 0.4\n")
    words = ["2", "--experiments", "baseline", other, "--iterations", "2", "--budgets", "90"]
    assert run(capture, tmp_path / "out", *words, head=head) == 0
    names = {f"{name}_seed{seed}" for name in ("baseline", "other", "baseline_budget90") for seed in (0, 1)}
    assert {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()} == names
    assert [script for script, _ in calls] == ["train.py"] * 6 + ["render.py", "metrics.py"] * 6
    options = {name: json.loads((tmp_path / "out" / name / "options.json").read_text()) for name in names}
    assert options["other_seed1"]["lambda_dssim"] == 0.4 and options["other_seed1"]["seed"] == 1
    assert options["baseline_seed0"]["lambda_dssim"] == 0.2 and options["baseline_seed0"]["iterations"] == 2
    assert options["baseline_budget90_seed0"]["gaussian_budget"] == 90
    assert all((tmp_path / "out" / f"{name}.log").is_file() for name in names)
    assert {"comparison.csv", "comparison.tex", "comparison.html"} <= {p.name for p in (tmp_path / "out").iterdir()}
    rows = json.loads((tmp_path / "out/ablations.json").read_text())
    assert {row["name"] for row in rows} == names and {row["status"] for row in rows} == {"finished"}
    assert "other" in capsys.readouterr().out
    calls.clear()
    assert run(capture, tmp_path / "out", *words, head=head) == 0  # finished: train.py looks, nothing is drawn again
    assert [script for script, _ in calls] == ["train.py"] * 6 and all("--resume" in flags for _, flags in calls)
    (tmp_path / "out/other_seed0/metrics.json").unlink()
    calls.clear()
    assert run(capture, tmp_path / "out", *words, head=head) == 0
    assert [script for script, _ in calls if script != "train.py"] == ["render.py", "metrics.py"]


def test_a_run_of_other_options_is_refused_and_the_others_go_on(
    tmp_path: Path, tiny: tuple[str, list[str]], calls: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    capture, head = tiny
    path = preset(tmp_path, "other", "lambda_dssim: 0.4\n")
    assert run(capture, tmp_path / "out", "1", "--experiments", path, "--iterations", "2", head=head) == 0
    preset(tmp_path, "other", "lambda_dssim: 0.5\n")
    words = ["1", "--experiments", path, "baseline", "--iterations", "2"]
    capsys.readouterr()
    assert run(capture, tmp_path / "out", *words, head=head) == 2
    said = capsys.readouterr()
    assert "other_seed0: failed: train.py: " in said.err and "lambda_dssim: found 0.4" in said.err
    assert said.err.splitlines()[-1].startswith("error: 1 of 2 failed: other_seed0; logs in ")
    assert (tmp_path / "out/baseline_seed0/metrics.json").is_file()


def test_missing_weights_are_not_a_failure(
    tmp_path: Path, tiny: tuple[str, list[str]], calls: list[Any], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """`all` is replaced by itself without the perceptual part, under a name that says so."""
    capture, head = tiny
    lines = "use_vgg_loss: true\nlambda_perceptual: 0.05\n"
    presets = [preset(tmp_path, "perceptual", lines),
               preset(tmp_path, "all", lines + "use_temporal_consistency: true\n")]  # fmt: skip

    def refuse(words: list[str]) -> None:
        if words[words.index("--config") + 1].endswith(".yaml"):
            if "--use_vgg_loss" not in words:
                raise InputError("vgg19-dcbb9e9d.pth", "", "is not in /x/checkpoints", "Get it.")
            at = words.index("--use_vgg_loss")
            assert words[at:] == ["--use_vgg_loss", "False", "--lambda_perceptual", "0"]
            words = [*words[:at], "--config", "baseline"]
        train.main(words)

    monkeypatch.setitem(PROGRAMS, "train.py", refuse)
    words = ["1", "--experiments", "baseline", *presets, "--iterations", "2"]
    assert run(capture, tmp_path / "out", *words, head=head) == 0
    status = {row["experiment"]: row["status"] for row in json.loads((tmp_path / "out/ablations.json").read_text())}
    assert status == {"baseline": "finished", "perceptual": "not run", "all": "not run",
                      "all_without_perceptual": "finished"}  # fmt: skip
    said = capsys.readouterr()
    assert f"perceptual_seed0: not run: {NO_WEIGHTS}" in said.err
    assert "all_seed0: instead all_without_perceptual: the same with --use_vgg_loss False" in said.out
    html = (tmp_path / "out/comparison.html").read_text()
    assert "all_without_perceptual" in html and f"<b>perceptual</b>: not run: {NO_WEIGHTS}" in html


def test_what_counts_as_missing_weights() -> None:
    assert lacks_weights(2, NO_WEIGHTS) and not lacks_weights(3, NO_WEIGHTS)
    assert not lacks_weights(2, "command line: --lambda_dssim: found x")
    assert last_error(["error: a. b.", "warning: c"]) == "a. b." and last_error(["x", " "]) == "x"


def test_experiments_keep_the_baselines_values(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where a default has moved since the baseline was frozen, its old value is typed."""
    assert held_to_baseline({}) == ()
    frozen = {"lambda_dssim": 0.25, "densification": "gradient", "metric_xyz": True, "iterations": 7}
    monkeypatch.setattr(planning, "read_preset", lambda name: frozen if name == "baseline" else read_preset(name))
    assert held_to_baseline({"metric_xyz": False}) == ("--lambda_dssim", "0.25")
    assert experiment_of(preset(tmp_path, "x", "sh_degree: 1\n")).held == (
        "--lambda_dssim", "0.25", "--metric_xyz", "True")  # fmt: skip
    assert experiment_of("baseline").held == ()


@pytest.mark.parametrize("words, named", [
    (["{}", "0"], "seeds: found 0"), (["{}", "--jobs", "0"], "--jobs: found 0"), (["/nowhere"], "is no folder"),
    (["{}", "--", "--seed", "3"], "-- --seed: is set by the script itself"), (["{}", "--truth", "x"], "--truth: x"),
    (["{}", "--experiments", "nosuch"], "nosuch: no such preset"), (["{}", "--budgets", "0"], "--budgets: found 0"),
    (["{}", "--experiments", "baseline", "baseline"], "baseline twice")])  # fmt: skip
def test_refusals(
    tmp_path: Path, tiny: tuple[str, list[str]], words: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(run_ablations.main, [word.format(tiny[0]) for word in words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and named in lines[0]


def test_stopped_and_gone_on_with(
    tmp_path: Path, tiny: tuple[str, list[str]], calls: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """A signal to the script and its programs, as a terminal sends it: the training saves and ends; the same command
    then ends with the undisturbed run's bits."""
    capture, head = tiny
    words = [capture, "1", "--experiments", "baseline", "--iterations", "200"]
    command = ["bash", str(ROOT / "scripts/run_ablations.sh"), *words, "--output", str(tmp_path / "out"), "--", *head]
    script = subprocess.Popen(command, env={**os.environ, "PYTHON": sys.executable}, stderr=subprocess.PIPE, text=True,
                              start_new_session=True)  # fmt: skip
    folder = tmp_path / "out/baseline_seed0"
    while script.poll() is None and not list(folder.glob("checkpoints/step_*")):
        time.sleep(0.01)
    os.killpg(script.pid, signal.SIGTERM)
    _, said = script.communicate(timeout=60)
    assert script.returncode == 128 + signal.SIGTERM, said
    assert "error: stopped by SIGTERM" in (tmp_path / "out/baseline_seed0.log").read_text()
    assert 20 <= max(int(path.name[5:]) for path in folder.glob("checkpoints/step_*")) < 200
    assert run(capture, tmp_path / "out", *words[1:], head=head) == 0
    assert calls[0][0] == "train.py" and "--resume" in calls[0][1]
    assert run(capture, tmp_path / "calm", *words[1:], head=head) == 0
    saved = "baseline_seed0/point_cloud/iteration_200/point_cloud.ply"
    assert (tmp_path / "out" / saved).read_bytes() == (tmp_path / "calm" / saved).read_bytes()
