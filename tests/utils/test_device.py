"""`--device`: what is chosen, and the one line where it can't be used."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from utils.engine import device as devices
from utils.engine.device import Device, choose_device, device_named
from utils.errors import EnvironmentFault, InputError


@pytest.fixture(autouse=True)
def nobody_prefers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MIEN_DEVICE", raising=False)
    monkeypatch.delenv("MIEN_EMULATED", raising=False)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Two GPUs, of which a test says by name what is missing; nothing is made current."""
    faults: dict[str, str] = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda where: f"Card {where.index}")
    monkeypatch.setattr(devices, "torch_lacks", lambda device: faults.get(f"torch {device.name}", ""))
    monkeypatch.setattr(devices, "library_lacks", lambda device: faults.get(f"library {device.name}", ""))
    monkeypatch.setattr(devices, "begin_use", lambda device: None)
    return faults


@pytest.mark.parametrize("name", ["gpu", "cpu:0", "cuda:", "cuda:x", "cuda:-1", "cuda:12345", "", "auto ", "CPU", "mps",
                                  "emulated", "emulated:", "cuda:\u0661"])  # fmt: skip
def test_names_that_do_not_exist(name: str) -> None:
    with pytest.raises(InputError, match="--device"):
        choose_device(name)


def test_full_names() -> None:
    assert [device_named(name).name for name in ("cpu", "cuda", "cuda:07")] == ["cpu", "cuda:0", "cuda:7"]
    assert device_named("emulated:x.so").name == f"emulated:{Path('x.so').absolute()}"
    assert device_named("cuda:3").torch == torch.device("cuda", 3)
    assert device_named("emulated:/x.so").torch == torch.device("cpu")
    assert [device_named(name).accelerated for name in ("cpu", "cuda", "emulated:/x.so")] == [False, True, True]


def test_without_a_gpu_auto_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    device, line = choose_device("auto")
    assert device == Device("cpu")
    assert line.startswith("device: cpu: no GPU can be used (cuda:0: ") and "\n" not in line
    assert choose_device("cpu") == (Device("cpu"), "device: cpu")


@pytest.mark.filterwarnings("error")
def test_what_pytorch_warns_of_is_not_shown_to_users_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")

    def old_driver() -> bool:
        warnings.warn("CUDA initialization: The NVIDIA driver on your system is too old", stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", old_driver)
    assert choose_device("auto")[0] == Device("cpu")


def test_auto_is_the_first_gpu_that_both_can_use(gpus: dict[str, str]) -> None:
    assert choose_device("auto") == (Device("cuda:0"), "device: cuda:0 (Card 0): the first GPU that can be used")
    gpus["torch cuda:0"] = "too old"
    device, line = choose_device("auto")
    assert device == Device("cuda:1") and line.endswith("the first GPU that can be used (cuda:0: too old)")
    gpus["library cuda:1"] = "not built"
    device, line = choose_device("auto")
    assert device == Device("cpu") and line.endswith("no GPU can be used (cuda:0: too old; cuda:1: not built)")
    assert choose_device("auto", native=False)[0] == Device("cuda:1")


def test_an_environment_variable_says_what_auto_is(gpus: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIEN_DEVICE", "cpu")
    assert choose_device("auto") == (Device("cpu"), "device: cpu: MIEN_DEVICE is set")
    assert choose_device("cuda:1")[0] == Device("cuda:1")
    monkeypatch.setenv("MIEN_DEVICE", "auto")
    assert choose_device("auto")[0] == Device("cuda:0")


def test_a_gpu_that_lacks_something_is_refused_in_one_line(gpus: dict[str, str]) -> None:
    gpus["library cuda:0"] = "built without nvcc"
    with pytest.raises(EnvironmentFault, match="^--device cuda:0: built without nvcc; --device cpu works anywhere$"):
        choose_device("cuda")
    assert choose_device("cuda", native=False)[0] == Device("cuda:0")


def test_pytorch_without_cuda_or_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(EnvironmentFault, match="is built without CUDA"):
        choose_device("cuda")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def refuse() -> None:
        raise RuntimeError("Found no NVIDIA driver on your system. Please check this.\nMore lines")

    monkeypatch.setattr(torch.cuda, "init", refuse)
    with pytest.raises(EnvironmentFault, match="can't use a GPU: Found no NVIDIA driver on your system; --device cpu"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(EnvironmentFault, match="cuda:2: PyTorch finds 2 GPUs here, numbered from 0"):
        choose_device("cuda:2")


def test_an_emulated_library_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="nowhere.so is missing"):
        choose_device(f"emulated:{tmp_path}/nowhere.so")
    (tmp_path / "text.so").write_text("no library")
    with pytest.raises(EnvironmentFault, match="text.so does not load"):
        choose_device(f"emulated:{tmp_path}/text.so")


def test_emulation_ends_when_another_device_is_chosen(emulated_library: Path) -> None:
    from diff_gaussian_rasterization import _device

    device, line = choose_device(f"emulated:{emulated_library}")
    assert _device.emulated() and device.model == "emulated" and line == f"device: emulated:{emulated_library}"
    choose_device("cpu")
    assert not _device.emulated()


def test_memory_of_the_emulated_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Device("cpu").free_bytes() is None and Device("emulated:/x.so").free_bytes() is None
    monkeypatch.setenv("MIEN_EMULATION_BYTES", "1000")
    assert Device("cpu").free_bytes() is None and Device("emulated:/x.so").free_bytes() == 1000
