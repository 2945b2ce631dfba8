"""Whole runs with the captured training step, on the emulated device and on a GPU: beside autograd and the CPU engine,
bit for bit under everything that must not matter, and when something goes wrong."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

import train
from tests.scene import test_insta
from tests.scene.make_static import make_blender
from tests.tiny import write_tiny
from utils.engine import device as device_module
from utils.engine.checkpoint import TENSORS, list_checkpoints
from utils.errors import run_main

pytest.importorskip("diff_gaussian_rasterization", reason="the native package is not installed")
from diff_gaussian_rasterization.training import Health, StepTables

ROOT = Path(__file__).resolve().parent.parent
STEPS = 14
SCHEDULE = ["--iterations", str(STEPS), "--densify_from_iter", "3", "--densify_until_iter", "12", "--sh_interval", "5",
            "--densification_interval", "4", "--densify_grad_threshold", "3e-4", "--opacity_reset_interval", "9",
            "--prune_opacity", "0.095", "--flame_trans_lr", "1e-4", "--flame_pose_lr", "1e-3", "--interval", "100",
            "--checkpoint_iterations", "10"]  # fmt: skip
AGREE = 0.05


@pytest.fixture(scope="module", params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def place(request: pytest.FixtureRequest) -> Iterator[str]:
    """What `--device` takes."""
    if request.param == "cuda":
        if reason := device_module.missing(device_module.Device("cuda:0"), True):
            pytest.skip(reason)
        yield "cuda:0"
    else:
        yield f"emulated:{request.getfixturevalue('emulated_library')}"
    device_module.emulate(None)


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    words = write_tiny(tmp_path_factory.mktemp("tiny")) + SCHEDULE
    words.remove("--quiet")  # what the log says is a part of the result
    return words


def run(folder: Path, flags: list[str], *more: str) -> int:
    """A run in a process that has not used a device before, as far as that goes."""
    try:
        return run_main(train.main, [*flags, "-m", str(folder), *more])
    finally:
        device_module.emulate(None)


def state(folder: Path, step: int = STEPS) -> dict[str, Tensor]:
    return safetensors.torch.load_file(folder / "checkpoints" / f"step_{step:07d}" / TENSORS)


def digests(folder: Path, step: int = STEPS) -> dict[str, str]:
    """SHA-256 of what a run leaves behind: the avatar and the whole optimiser state."""
    files = [folder / "point_cloud" / f"iteration_{step}" / "point_cloud.ply",
             folder / "checkpoints" / f"step_{step:07d}" / TENSORS]  # fmt: skip
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, flags: list[str], place: str) -> Path:
    """A captured run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("calm") / "run"
    assert run(folder, flags, "--device", place) == 0
    return folder


def agree(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """The same Gaussians, and numbers that differ by AGREE of a tensor's spread, but for that share of them.

    A pixel or a Gaussian may fall on the other side of a threshold, and Adam makes whole steps of gradients that are
    rounding alone, as those of a round Gaussian's rotation.
    """
    assert one.keys() == other.keys() and torch.equal(one["binding"], other["binding"])
    for name, values in one.items():
        first, second = values.double(), other[name].double()
        far = (first - second).abs() > AGREE * max(float(second.std(correction=0)), 1e-8)
        if not name.startswith("optimiser.quats"):
            assert int(far.sum()) <= AGREE * far.numel() + 1, f"{name}: {int(far.sum())} of {far.numel()}"


@pytest.mark.parametrize("more", [
    [], ["--batch_size", "3", "--flame_update", "dense", "--lambda_dssim", "0"],
    ["--not_finetune_flame_params", "--densification", "none", "--lambda_xyz", "0", "--lambda_dssim", "1"],
    ["--train_dynamic_offset", "--use_adaptive_densification", "--region_source", "masks"]],
    ids=["default", "batch", "columns alone", "adaptive"])  # fmt: skip
def test_captured_autograd_and_cpu_agree(
    tmp_path: Path, flags: list[str], place: str, more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    steps, states = 5, {}
    ways = {"captured": ["--device", place], "autograd": ["--device", place, "--step", "autograd"],
            "cpu": ["--device", "cpu"]}  # fmt: skip
    for name, words in ways.items():
        assert run(tmp_path / name, flags, *more, "--iterations", str(steps), *words) == 0
        said = capsys.readouterr().err
        assert ("step: captured" if name == "captured" else "step: autograd") in said
        states[name] = state(tmp_path / name, steps)
    agree(states["captured"], states["autograd"])
    agree(states["captured"], states["cpu"])


@pytest.mark.parametrize("kind", ["unbound", "meshes"])
def test_rigs_without_parameters(tmp_path: Path, flags: list[str], place: str, kind: str) -> None:
    words = [*SCHEDULE, "--iterations", "5", "--batch_size", "2"]
    if kind == "unbound":
        words += ["-s", str(make_blender(tmp_path / "data", points=200))]
    else:
        words += ["-s", str(test_insta.write(tmp_path / "data")), "--bind_to_mesh"]
    assert run(tmp_path / "captured", words, "--device", place) == 0
    assert run(tmp_path / "cpu", words, "--device", "cpu") == 0
    agree(state(tmp_path / "captured", 5), state(tmp_path / "cpu", 5))


def test_what_must_not_matter_does_not(
    tmp_path: Path, flags: list[str], place: str, calm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look after every step; room for no pair at first; both at once."""
    from utils.engine import captured

    assert run(tmp_path / "looks", flags, "--device", place, "--debug_from", "1") == 0
    assert digests(tmp_path / "looks") == digests(calm)
    monkeypatch.setattr(captured, "PAIRS_PER_GAUSSIAN", 0)
    monkeypatch.setattr(captured, "LEAST_PAIRS", 1)
    assert run(tmp_path / "room", flags, "--device", place) == 0
    assert digests(tmp_path / "room") == digests(calm)
    assert run(tmp_path / "both", flags, "--device", place, "--debug_from", "1") == 0
    assert digests(tmp_path / "both") == digests(calm)


def test_room_follows_what_was_needed(
    tmp_path: Path, flags: list[str], place: str, calm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All room for pairs is sorted at every step: a capture makes no more of it than those before it showed use for."""
    from utils.engine import captured

    rooms: list[tuple[int, int]] = []
    needs: list[int] = [0]

    class Native(captured.TrainingStep):
        def bind(self, tables: StepTables) -> None:
            rooms.append((tables.pair_capacity, needs[-1]))
            super().bind(tables)

        def poll(self) -> Health:
            health = super().poll()
            needs.append(health.pairs)
            return health

    monkeypatch.setattr(captured, "TrainingStep", Native)
    monkeypatch.setattr(captured, "LEAST_PAIRS", 1)
    assert run(tmp_path / "run", flags, "--device", place) == 0
    assert digests(tmp_path / "run") == digests(calm)
    assert rooms[0][0] == 8 * 140 and len(rooms) > 2
    assert all(captured.GROWTH * need <= room <= 3 * need for room, need in rooms[1:])


@pytest.mark.parametrize("order", ["reverse", "3"])
def test_the_order_of_threads_does_not_change_a_bit(
    tmp_path: Path, flags: list[str], place: str, calm: Path, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not place.startswith("emulated"):
        pytest.skip("a GPU chooses its order itself")
    monkeypatch.setenv("MIEN_EMULATION_ORDER", order)
    assert run(tmp_path / "run", flags, "--device", place) == 0
    assert digests(tmp_path / "run") == digests(calm)


def test_killed_and_resumed_is_bit_identical(tmp_path: Path, flags: list[str], place: str, calm: Path) -> None:
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
import train, utils.engine.report as report
step = report.Reporter.step
def kill(self, number, *rest):
    if number == 12:
        os.kill(os.getpid(), signal.SIGKILL)
    step(self, number, *rest)
report.Reporter.step = kill
train.run_main(train.main, {[*flags, "-m", str(tmp_path / "run"), "--device", place]!r})
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [path.name for path in list_checkpoints(tmp_path / "run" / "checkpoints")] == ["step_0000010"]
    assert run(tmp_path / "run", flags, "--device", place, "--resume") == 0
    assert digests(tmp_path / "run") == digests(calm)


def test_a_signal_saves_what_was_done(
    tmp_path: Path, flags: list[str], place: str, calm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from utils.engine.report import Reporter

    step = Reporter.step

    def stop(self: Reporter, number: int, *rest: object) -> None:
        if number == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        step(self, number, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(Reporter, "step", stop)
        assert run(tmp_path / "run", flags, "--device", place) == 143
    assert [path.name for path in list_checkpoints(tmp_path / "run" / "checkpoints")] == ["step_0000006"]
    assert run(tmp_path / "run", flags, "--device", place, "--resume") == 0
    assert digests(tmp_path / "run") == digests(calm)


@pytest.mark.parametrize("more, found", [
    (["--lambda_scale", "1e30", "--threshold_scale", "0.5"], "gradient of scales"),
    (["--scaling_lr", "200", "--lambda_scale", "0"], "leaves the range of numbers"),
    (["--flame_expr_lr", "1e38", "--flame_pose_lr", "1e38"], "flame: timestep")],
    ids=["gradient", "scales", "motion"])  # fmt: skip
def test_what_is_not_finite_stops_with_the_words_and_the_state_of_the_cpu(
    tmp_path: Path, flags: list[str], place: str, more: list[str], found: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = {}
    for name, device in {"captured": place, "cpu": "cpu"}.items():
        assert run(tmp_path / name, flags, *more, "--device", device) == 4
        lines[name] = capsys.readouterr().err.splitlines()[-1]
    assert found in lines["captured"] and lines["captured"] == lines["cpu"]
    saved = {name: [path.name for path in list_checkpoints(tmp_path / name / "checkpoints")] for name in lines}
    assert saved["captured"] == saved["cpu"]


def test_a_device_without_memory_is_one_line(
    tmp_path: Path, flags: list[str], place: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not place.startswith("emulated"):
        pytest.skip("a GPU's memory is not ours to fill")
    from utils.engine import captured

    monkeypatch.setattr(captured, "PAIRS_PER_GAUSSIAN", 10**6)
    monkeypatch.setenv("MIEN_EMULATION_BYTES", str(1 << 26))
    assert run(tmp_path / "run", flags, "--device", place) == 3
    line = capsys.readouterr().err.splitlines()[-1]
    assert "out of memory" in line and "140 Gaussians" in line and "There is no checkpoint yet" in line


@pytest.mark.parametrize("more, why", [
    (["--lambda_temporal", "1", "--use_temporal_consistency"], "temporal"), (["--metric_scale"], "--metric_scale"),
    (["--convert_SHs_python"], "rasteriser"), (["--use_adaptive_densification", "--region_source", "error"], "error"),
    (["--batch_size", "9"], "--batch_size"), (["--step", "autograd"], "--step autograd")])  # fmt: skip
def test_why_autograd(
    tmp_path: Path, flags: list[str], place: str, more: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the captured step can't do is done by autograd, and the log says why."""
    assert run(tmp_path / "run", flags, *more, "--iterations", "1", "--device", place) == 0
    line = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("step:"))
    assert line.startswith("step: autograd (") and why in line
