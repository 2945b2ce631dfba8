"""Whole runs and the device that they are on: what is written down, what a resumed run does, memory that runs out."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import render
import train
from tests.tiny import write_tiny
from utils.engine import device as devices
from utils.engine.checkpoint import TENSORS
from utils.engine.device import Device, choose_device
from utils.engine.report import Reporter
from utils.errors import run_main


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [*write_tiny(tmp_path_factory.mktemp("tiny")), "--iterations", "6", "--checkpoint_iterations", "3"]


@pytest.fixture(autouse=True)
def back_to_the_cpu() -> Iterator[None]:
    yield
    choose_device("cpu")


def run(folder: Path, flags: list[str], *more: str) -> int:
    return run_main(train.main, [*flags, "-m", str(folder), *more])


def facts(folder: Path, name: str = "run.json") -> dict[str, Any]:
    return json.loads((folder / name).read_text())


def digest(folder: Path, step: int = 6) -> str:
    return hashlib.sha256((folder / "checkpoints" / f"step_{step:07d}" / TENSORS).read_bytes()).hexdigest()


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, error: Exception) -> None:
    """The report of a step meets an error, once."""
    report, waiting = Reporter.step, [error]

    def fail(self: Reporter, now: int, *more: Any) -> None:
        if now == step and waiting:
            raise waiting.pop()
        report(self, now, *more)

    monkeypatch.setattr(Reporter, "step", fail)


def test_out_of_memory_is_one_line_and_the_run_goes_on_from_its_checkpoint(
    tmp_path: Path, flags: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "calm", flags, "--device", "cpu") == 0
    stop_at(monkeypatch, 5, torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0"))
    capsys.readouterr()
    assert run(tmp_path / "run", flags, "--device", "cpu") == 3
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    last = tmp_path / "run" / "checkpoints" / "step_0000003"
    assert len(lines) == 1 and "cpu: out of memory (asked for 2.00 GiB, " in lines[0]
    assert f"The last checkpoint is whole: {last}." in lines[0]
    assert run(tmp_path / "run", flags, "--resume") == 0
    assert digest(tmp_path / "run") == digest(tmp_path / "calm")


def test_memory_of_a_device_that_runs_out(
    tmp_path: Path, flags: list[str], emulated_library: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("MIEN_EMULATION_BYTES", "300000")
    assert run(tmp_path / "run", flags, "--device", f"emulated:{emulated_library}") == 3
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(lines) == 1 and "out of memory (asked for " in lines[0] and " are free" in lines[0]
    assert "There is no checkpoint yet. Start with a smaller --gaussian_budget" in lines[0]


def test_a_resumed_run_keeps_its_device(
    tmp_path: Path, flags: list[str], emulated_library: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    emulated = Device(f"emulated:{emulated_library}")
    stop_at(monkeypatch, 4, KeyboardInterrupt())  # type: ignore[arg-type]
    assert run(tmp_path / "cpu", flags, "--device", "cpu") == 130
    monkeypatch.delenv("MIEN_DEVICE")
    monkeypatch.setattr(devices, "first_usable", lambda native: (emulated, "as if it were a GPU"))
    assert run(tmp_path / "cpu", flags, "--resume") == 0  # `auto` would be the other one
    assert facts(tmp_path / "cpu")["device"] == facts(tmp_path / "cpu", "options.json")["device"] == "cpu"
    assert "warning" not in capsys.readouterr().err

    stop_at(monkeypatch, 4, KeyboardInterrupt())  # type: ignore[arg-type]
    assert run(tmp_path / "device", flags) == 130
    assert facts(tmp_path / "device", "options.json")["device"] == emulated.name
    capsys.readouterr()
    assert run(tmp_path / "device", flags, "--resume", "--device", "cpu") == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert len(warnings) == 1 and "was trained on emulated, goes on on cpu" in warnings[0]
    assert facts(tmp_path / "device")["device"] == "cpu"


def test_pictures_that_are_streamed_train_to_the_same_bits(
    tmp_path: Path, flags: list[str], emulated_library: Path
) -> None:
    device = ["--device", f"emulated:{emulated_library}"]
    assert run(tmp_path / "kept", flags, *device, "--data_device", "cuda", "--batch_size", "2") == 0
    assert run(tmp_path / "streamed", flags, *device, "--data_device", "cpu", "--batch_size", "2") == 0
    assert digest(tmp_path / "kept") == digest(tmp_path / "streamed")


def test_an_avatar_is_not_tied_to_the_device_it_was_trained_on(
    tmp_path: Path, flags: list[str], emulated_library: Path
) -> None:
    assert run(tmp_path / "run", flags, "--device", f"emulated:{emulated_library}") == 0
    assert run_main(render.main, ["-m", str(tmp_path / "run"), "--quiet", "--skip_train", "--skip_test"]) == 0
    assert facts(tmp_path / "run", "render.json")["device"] == "cpu"


def test_a_run_needs_neither_plyfile_nor_tensorboard(
    tmp_path: Path, flags: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A machine with a GPU is used as it is."""
    words = [word for word in flags if word != "--quiet"]
    assert run(tmp_path / "all", words, "--device", "cpu") == 0
    assert "tensorboard" not in capsys.readouterr().err
    for package in ("plyfile", "torch.utils.tensorboard.writer"):
        monkeypatch.setitem(sys.modules, package, None)
    assert run(tmp_path / "few", words, "--device", "cpu") == 0
    assert "tensorboard: no event file (" in capsys.readouterr().err
    ours, theirs = (
        sorted(path.relative_to(tmp_path / name) for path in (tmp_path / name).rglob("*")) for name in ("few", "all")
    )
    assert [path for path in theirs if "tfevents" not in path.name] == ours != theirs
    assert digest(tmp_path / "few") == digest(tmp_path / "all")
