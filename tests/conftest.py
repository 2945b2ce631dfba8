"""Shared fixtures. Threads wait passively: with a busy neighbour, spinning ones were seen to be 170 times slower."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["MIEN_DEVICE"] = "cpu"  # what the tests expect of `--device auto` on a machine with a GPU too

from pathlib import Path

import pytest
import torch

from scripts.emulated_library import build
from utils.errors import EnvironmentFault

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def one_torch_thread() -> None:
    """Tests see the same bits on every machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real inputs, beside the checkout or at $MIEN_SHARED; tests that need it skip without it."""
    folder = Path(os.environ.get("MIEN_SHARED", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"real inputs are not on this machine: {folder}/data does not exist (set MIEN_SHARED)")
    return folder


@pytest.fixture(scope="session")
def emulated_library() -> Path:
    """The CUDA engine as a library for the CPU."""
    try:
        return build()
    except EnvironmentFault as error:
        if "not found" in str(error):
            pytest.skip(str(error))
        raise
