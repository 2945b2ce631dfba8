"""Loads the native library and turns its status codes into Python exceptions."""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path

ABI_VERSION = 2
_ADVICE = "run `pip install` on the source folder of simple-knn again"


@functools.lru_cache(maxsize=1)
def library() -> ctypes.CDLL:
    """The native library, loaded once.

    Raises:
        ImportError: it is missing, does not load, or was built from another version of this package.
    """
    return open_library(Path(__file__).parent / ("_native.dll" if os.name == "nt" else "_native.so"))


def open_library(path: Path) -> ctypes.CDLL:
    """A native library of this package's version; raises ImportError as `library` does."""
    if not path.is_file():
        raise ImportError(f"{path} is missing: {_ADVICE}")
    try:
        native = ctypes.CDLL(str(path))
    except OSError as error:
        raise ImportError(f"{path} does not load ({error}): {_ADVICE}") from error
    if native.knn_abi_version() != ABI_VERSION:
        raise ImportError(f"{path} was built from another version of this package: {_ADVICE}")
    native.knn_last_error.restype = ctypes.c_char_p
    native.knn_cuda_missing.restype = ctypes.c_char_p
    return native


def check(native: ctypes.CDLL, status: int) -> None:
    """Raise what a status code means: ValueError, MemoryError or RuntimeError; 0 passes."""
    if status != 0:
        kind = {1: ValueError, 2: MemoryError, 4: ValueError}.get(status, RuntimeError)
        raise kind(native.knn_last_error().decode(errors="replace"))


def thread_count() -> int:
    """The environment variable SIMPLE_KNN_THREADS, else the number of CPUs this process may use."""
    text = os.environ.get("SIMPLE_KNN_THREADS", "")
    if text:
        if not text.isdecimal() or int(text) < 1:
            raise ValueError(f"SIMPLE_KNN_THREADS must be a positive integer, got {text!r}")
        return min(int(text), 256)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
