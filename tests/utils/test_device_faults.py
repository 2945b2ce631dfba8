"""Memory that runs out, and GPUs that refuse, as one line; programs end with exit code 3."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diff_gaussian_rasterization._library import DeviceFault

from utils.engine.checkpoint import MANIFEST, META, save_checkpoint
from utils.engine.device import Device
from utils.engine.device_faults import naming_device_faults
from utils.errors import EnvironmentFault, run_main

TORCH_SAYS = ("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 23.69 GiB of which 1.81 "
              "MiB is free.\nMore about PYTORCH_ALLOC_CONF")  # fmt: skip
EMULATED = Device("emulated:/x.so")


def line(error: Exception, folder: Path | None = None, gaussians: int = 0) -> str:
    """What becomes of an error."""
    with pytest.raises(EnvironmentFault) as caught, naming_device_faults(EMULATED, folder) as work:
        work.avatar = range(gaussians) if gaussians else None
        raise error
    assert caught.value.exit_code == 3
    return str(caught.value)


def checkpoint(folder: Path, step: int) -> Path:
    return save_checkpoint(folder / "checkpoints", step, {"x": torch.ones(2)}, {})


def test_out_of_memory_names_bytes_gaussians_and_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIEN_EMULATION_BYTES", str(3 << 20))
    checkpoint(tmp_path, 10)
    last = checkpoint(tmp_path, 20)
    said = line(torch.cuda.OutOfMemoryError(TORCH_SAYS), tmp_path, 120_000)
    assert said.startswith("emulated:/x.so: out of memory (asked for 20.00 MiB, 3.0 MiB are free, 120000 Gaussians). ")
    assert (
        f"The last checkpoint is whole: {last}. With --data_device cpu or another --device go on with --resume" in said
    )
    assert "--gaussian_budget" in said and "--start_checkpoint" in said
    said = line(MemoryError("allocating 5242880 bytes: out of memory"), tmp_path)
    assert "(asked for 5.0 MiB, 3.0 MiB are free)" in said


def test_a_damaged_checkpoint_is_not_called_whole(tmp_path: Path) -> None:
    first, last = checkpoint(tmp_path, 10), checkpoint(tmp_path, 20)
    (last / META).write_text("{}")
    assert f"is whole: {first}." in line(MemoryError("x"), tmp_path)
    (first / MANIFEST).unlink()
    said = line(MemoryError("x"), tmp_path)
    assert said.endswith("out of memory. There is no checkpoint yet. Start with a smaller --gaussian_budget, "
                         "--batch_size or pictures (-r)")  # fmt: skip


def test_programs_that_train_nothing_say_nothing_of_checkpoints() -> None:
    assert line(MemoryError("x")) == "emulated:/x.so: out of memory. Give another --device, or smaller pictures"


def test_a_refusing_gpu_is_named(tmp_path: Path) -> None:
    said = line(DeviceFault("launch: unspecified launch failure\nmore"), tmp_path)
    assert said == "emulated:/x.so: launch: unspecified launch failure. There is no checkpoint yet."
    if hasattr(torch, "AcceleratorError"):
        assert line(torch.AcceleratorError("CUDA error: ECC\nmore")) == "emulated:/x.so: CUDA error: ECC."


def test_other_errors_pass(tmp_path: Path) -> None:
    for error in (RuntimeError("a bug"), ValueError("a bug")):
        with pytest.raises(type(error), match="a bug"), naming_device_faults(EMULATED, tmp_path):
            raise error


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError(TORCH_SAYS), DeviceFault("launch: no\nmore"),
                                   MemoryError("allocating 12 bytes: no")])  # fmt: skip
def test_every_program_ends_with_one_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def main(_: list[str]) -> None:
        raise error

    assert run_main(main, []) == 3
    said = capsys.readouterr().err
    assert said == f"error: {str(error).splitlines()[0]}\n"


def test_a_bug_keeps_its_traceback() -> None:
    def main(_: list[str]) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        run_main(main, [])
