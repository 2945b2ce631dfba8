"""Whole training runs on a tiny capture: determinism, exact resume, signals, refusals."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import train
from scene.densification import STRATEGIES
from tests.tiny import write_tiny
from utils.engine.build import load_run
from utils.engine.checkpoint import TENSORS, list_checkpoints
from utils.errors import InputError, run_main

ROOT = Path(__file__).resolve().parent.parent
STEPS = 24
SCHEDULE = ["--iterations", str(STEPS), "--densify_from_iter", "3", "--densify_until_iter", "20", "--sh_interval", "6",
            "--densification_interval", "4", "--densify_grad_threshold", "3e-4", "--opacity_reset_interval", "9",
            "--prune_opacity", "0.095", "--flame_trans_lr", "1e-4", "--flame_pose_lr", "1e-3",
            "--checkpoint_iterations", "10"]  # fmt: skip


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_tiny(tmp_path_factory.mktemp("tiny")) + SCHEDULE


def run(folder: Path, flags: list[str], *more: str) -> int:
    return run_main(train.main, [*flags, "-m", str(folder), *more])


def digests(folder: Path, step: int = STEPS) -> dict[str, str]:
    """SHA-256 of what a run leaves behind: the avatar and the whole optimiser state."""
    saved = folder / "point_cloud" / f"iteration_{step}"
    files = [saved / "point_cloud.ply", folder / "checkpoints" / f"step_{step:07d}" / TENSORS]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, flags: list[str]) -> Path:
    """A run that nothing disturbed."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("calm") / "run"
    assert run(folder, flags, "--threads", "1") == 0
    return folder


def test_run_folder_is_what_users_know(calm: Path) -> None:
    assert json.loads((calm / "options.json").read_text())["iterations"] == STEPS
    assert (calm / "cfg_args").read_text().startswith("Namespace(")
    cameras = json.loads((calm / "cameras.json").read_text())
    assert {"id", "img_name", "width", "height", "position", "rotation", "fx", "fy"} <= cameras[0].keys()
    assert len(cameras) == 12
    facts = json.loads((calm / "run.json").read_text())
    assert facts["iteration"] == STEPS and facts["gaussians"] > 0 and facts["train_seconds"] > 0
    rows = (calm / "log.csv").read_text().splitlines()
    assert any(row.startswith(f"{STEPS},val,psnr,") for row in rows) and any(",test,psnr," in row for row in rows)
    assert list(calm.glob("events.out.tfevents.*"))


def test_rows_changed_and_motion_was_trained(calm: Path) -> None:
    loaded = load_run(calm)
    assert len(loaded.avatar) != loaded.avatar.rig.faces.shape[0]
    tracked = loaded.dataset.motion
    assert tracked is not None
    for name, values in loaded.avatar.rig.parameters.items():
        moved = (values.detach() - tracked.per_frame[name]).abs().amax(1)
        assert bool((moved[:3] > 0).all()), f"{name} was not trained"
        assert float(moved[3]) == 0, f"{name} of a held-out timestep moved"


@pytest.mark.parametrize("threads", ["1", "2", "3"])
def test_same_seed_same_bits_for_any_thread_count(tmp_path: Path, flags: list[str], calm: Path, threads: str) -> None:
    assert run(tmp_path / "run", flags, "--threads", threads) == 0
    assert digests(tmp_path / "run") == digests(calm)


def test_other_seed_other_bits(tmp_path: Path, flags: list[str], calm: Path) -> None:
    assert run(tmp_path / "run", flags, "--seed", "1") == 0
    assert digests(tmp_path / "run") != digests(calm)


@pytest.mark.parametrize("kill_at", [11, 17])
def test_killed_and_resumed_is_bit_identical(tmp_path: Path, flags: list[str], calm: Path, kill_at: int) -> None:
    """SIGKILL from inside the loop, in a process of its own; the checkpoint of step 10 is what is left."""
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
import train, utils.engine.report as report
step = report.Reporter.step
def kill(self, number, *rest):
    if number == {kill_at}:
        os.kill(os.getpid(), signal.SIGKILL)
    step(self, number, *rest)
report.Reporter.step = kill
train.run_main(train.main, {[*flags, "-m", str(tmp_path / "run")]!r})
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [path.name for path in list_checkpoints(tmp_path / "run" / "checkpoints")] == ["step_0000010"]
    assert run(tmp_path / "run", flags, "--resume") == 0
    assert digests(tmp_path / "run") == digests(calm)


def state_names() -> list[str]:
    """Everything a checkpoint holds that may matter to what follows."""
    columns = ("means", "sh0", "shN", "opacities", "scales", "quats")
    motion = ("rotation", "neck_pose", "jaw_pose", "eyes_pose", "translation", "expr")
    moments = [f"optimiser.{name}.{m}" for name in (*columns, *motion) for m in ("exp_avg", "exp_avg_sq")]
    return [*(f"columns.{name}" for name in columns), "binding", *(f"flame.{name}" for name in motion), *moments,
            "optimiser.count", *(f"optimiser.{name}.steps" for name in motion), "densification.gradient",
            "densification.seen"]  # fmt: skip


@pytest.mark.parametrize("lost", ["nothing", *state_names()])
def test_every_part_of_the_state_matters(
    tmp_path: Path, flags: list[str], calm: Path, lost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutation check: a checkpoint that forgets one item must not end in the same bits; one that forgets none must."""
    from utils.engine import run as run_module

    folder = tmp_path / "run"
    assert run(folder, flags) == 0
    newest = list_checkpoints(folder / "checkpoints")[0]
    assert newest.name == f"step_{STEPS:07d}"
    original = run_module.load_checkpoint

    def forgetful(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
        tensors, meta = original(path)
        if lost != "nothing":
            state = tensors[lost]
            tensors[lost] = torch.roll(state, 1, 0) if lost == "binding" else torch.zeros_like(state)
        return tensors, meta

    monkeypatch.setattr(run_module, "load_checkpoint", forgetful)
    resumed = run(folder, flags, "--resume", str(folder / "checkpoints" / "step_0000010"))
    if lost == "optimiser.count":  # Adam refuses to divide by a bias correction of zero, or other bits come out
        assert resumed != 0 or digests(folder) != digests(calm)
    else:
        assert resumed == 0 and (digests(folder) == digests(calm)) == (lost == "nothing")


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_save_and_exit(tmp_path: Path, flags: list[str], calm: Path, number: int, code: int) -> None:
    folder = tmp_path / "run"
    words = [sys.executable, "train.py", *flags, "-m", str(folder), "--iterations", "100000", "--interval", "100000"]
    process = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (folder / "cameras.json").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(number)
    errors = process.communicate(timeout=30)[1]
    assert process.returncode == code, errors
    line = errors.splitlines()[-1]
    assert "Traceback" not in errors and "continue with --resume" in line
    newest = list_checkpoints(folder / "checkpoints")[0]
    assert f"after saving step {int(newest.name[5:])};" in line


def test_folder_rules(tmp_path: Path, flags: list[str], calm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = digests(calm)
    assert run(calm, flags) == 2 and "already holds a run" in capsys.readouterr().err
    assert run(tmp_path / "none", flags, "--resume") == 2 and not (tmp_path / "none").exists()
    assert run(tmp_path / "none", flags, "--resume", str(tmp_path / "no")) == 2 and not (tmp_path / "none").exists()
    assert run(calm, flags, "--resume", "--opacity_lr", "0.1") == 2
    assert "opacity_lr" in capsys.readouterr().err
    assert digests(calm) == before


def test_another_flame_file_is_refused(tmp_path: Path, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Same counts, other numbers: another edition must not slip in on resume or when rendering."""
    folder = tmp_path / "run"
    assert run(folder, flags) == 0
    other = tmp_path / "other.pkl"
    content = Path(flags[flags.index("--flame_model") + 1]).read_bytes()
    other.write_bytes(content.replace(b"tiny", b"tinx"))
    assert run(folder, flags, "--flame_model", str(other), "--resume") == 2
    assert "flame_model" in capsys.readouterr().err
    with pytest.raises(InputError, match="trained with"):
        load_run(folder, overrides={"flame_model": str(other)})


def test_two_runs_in_one_folder(tmp_path: Path, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    from utils.engine.run import lock_folder

    descriptor = lock_folder(tmp_path / "run")
    assert run(tmp_path / "run", flags) == 3
    assert f"process {os.getpid()}" in capsys.readouterr().err
    os.close(descriptor)
    assert run(tmp_path / "run", flags) == 0


def test_a_refused_overwrite_leaves_the_run_alone(tmp_path: Path, flags: list[str], calm: Path) -> None:
    assert run(tmp_path / "run", flags) == 0
    assert run(tmp_path / "run", flags, "--overwrite", "--opacity_lr", "nan") == 2
    assert digests(tmp_path / "run") == digests(calm)


def test_what_a_power_cut_leaves_does_not_stop_a_resume(tmp_path: Path, flags: list[str], calm: Path) -> None:
    """Junk at the end of the log, half a checkpoint, a lost avatar."""
    folder = tmp_path / "run"
    assert run(folder, flags) == 0
    with open(folder / "log.csv", "ab") as file:
        file.write(b"9,tr\0\0\0\xff\xfe\n")
    leftover = folder / "checkpoints" / ".step_0000020.tmp-abcd"
    leftover.mkdir()
    shutil.rmtree(folder / "point_cloud" / f"iteration_{STEPS}")
    assert run(folder, flags, "--resume") == 0
    assert digests(folder) == digests(calm) and not leftover.exists()


def test_overwrite_starts_anew(tmp_path: Path, flags: list[str], calm: Path) -> None:
    assert run(tmp_path / "run", flags, "--seed", "5") == 0
    (tmp_path / "run" / "notes.txt").write_text("mine")
    (tmp_path / "run" / "val_8" / "ours_24").mkdir(parents=True)
    assert run(tmp_path / "run", flags, "--overwrite") == 0
    assert digests(tmp_path / "run") == digests(calm)
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "run" / "val_8" / "ours_24").exists()


@pytest.mark.parametrize("name", sorted(STRATEGIES))
@pytest.mark.parametrize("rasterizer", ["native", "reference"])
def test_every_registered_strategy_runs(tmp_path: Path, flags: list[str], name: str, rasterizer: str) -> None:
    more = ["--densification", name, "--rasterizer", rasterizer, "--iterations", "2", "--densify_from_iter", "0",
            "--densify_until_iter", "3", "--densification_interval", "1"]  # fmt: skip
    assert run(tmp_path / "run", flags, *more) == 0
    assert len(load_run(tmp_path / "run").avatar) > 0


def test_non_finite_loss_stops_with_code_4(
    tmp_path: Path, flags: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import utils.losses.binding as binding

    build = binding.build

    def poisoned(options: object, threads: int | None, subject: object) -> object:
        loss = build(options, threads, subject)  # type: ignore[arg-type]
        return lambda context: {k: v * float("nan") if context.step == 7 else v for k, v in loss(context).items()}

    from utils.losses import LOSSES, LossEntry

    monkeypatch.setitem(LOSSES, "binding", LossEntry(binding.BindingOptions, poisoned, binding.weights))  # type: ignore[arg-type]
    assert run(tmp_path / "run", flags) == 4
    error = capsys.readouterr().err
    assert "iteration 7, view 0000" in error and "loss term" in error
    assert [path.name for path in list_checkpoints(tmp_path / "run" / "checkpoints")] == ["step_0000006"]


def test_a_run_tells_the_weights_of_its_terms(tmp_path: Path, flags: list[str]) -> None:
    assert run(tmp_path / "run", flags, "--use_temporal_consistency", "--lambda_temporal", "0.5") == 0
    facts = json.loads((tmp_path / "run/run.json").read_text())["losses"]
    assert {name: part["weights"] for name, part in facts.items()} == {
        "photometric": {"l1": 0.8, "ssim": 0.2},
        "binding": {"xyz": 0.01, "scale": 1.0},
        "temporal": {"temporal": 0.5},
    }
    rows = (tmp_path / "run/log.csv").read_text()
    assert ",weight,temporal,0.5" in rows and ",train,temporal," in rows
