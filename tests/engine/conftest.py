"""What several tests of the engine share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from diff_gaussian_rasterization import _device
from diff_gaussian_rasterization._library import isa_name, select_isa


@pytest.fixture(params=["scalar", "avx2", "avx512"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set that this CPU has, in use while the test runs."""
    before = isa_name()
    try:
        select_isa(request.param)
    except ValueError as error:
        pytest.skip(str(error))
    yield request.param
    select_isa(before)


def why_no_gpu() -> str | None:
    """Why tests on a GPU can't run here; None: they can."""
    try:
        torch.cuda.init()
        _device.emulate(None)
        _device.device_library()
    except (RuntimeError, AssertionError, ImportError) as error:
        return str(error).splitlines()[0]
    return None


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def engine_device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Where tensors must lie for the CUDA engine to take them: on the CPU while it is emulated, then on the GPU."""
    if request.param == "cuda":
        if (reason := why_no_gpu()) is not None:
            pytest.skip(reason)
        yield torch.device("cuda")
        return
    _device.emulate(request.getfixturevalue("emulated_library"))
    yield torch.device("cpu")
    _device.emulate(None)


@contextmanager
def cpu_engine() -> Iterator[None]:
    """Within: CPU tensors are the CPU engine's, whether or not the CUDA engine is being emulated."""
    library = _device._emulated
    _device.emulate(None)
    yield
    _device._emulated = library
