"""The independent oracle: gsplat's plain-PyTorch functions, run on the CPU."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def oracle(shared: Path) -> ModuleType:
    """The oracle script beside the real inputs, as a module; needs gsplat's Python part, no GPU."""
    path = shared / "oracle" / "gsplat_cpu_oracle.py"
    if not path.is_file():
        pytest.skip(f"{path} does not exist")
    if importlib.util.find_spec("gsplat") is None:
        pytest.skip("gsplat is not installed (pip install --no-deps gsplat==1.5.3 jaxtyping packaging rich)")
    spec = importlib.util.spec_from_file_location("gsplat_cpu_oracle", path)
    if spec is None or spec.loader is None:
        pytest.skip(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
