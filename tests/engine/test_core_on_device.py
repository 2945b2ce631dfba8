"""The maths core compiles as device code: the CUDA kernels will be made of the same functions as the CPU's."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CORE = HERE.parents[1] / "submodules" / "diff-gaussian-rasterization" / "csrc"


def test_the_core_compiles_for_a_gpu(tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not on the PATH")
    command = [nvcc, "-std=c++17", "-arch=sm_80", "-Werror", "all-warnings", "-I", str(CORE), "-cubin",
               "-o", str(tmp_path / "core.cubin"), str(HERE / "core_on_device.cu")]  # fmt: skip
    plain = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}  # nvcc crashes under sanitizers
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=plain)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "core.cubin").stat().st_size > 0
