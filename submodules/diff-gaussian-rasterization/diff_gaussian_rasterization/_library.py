"""Loads the native library and turns its status codes into Python exceptions."""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path

ABI_VERSION = 4


class NonFiniteError(ValueError):
    """A tensor holds NaN or infinity; the message names the tensor and the first row."""


class DeviceFault(RuntimeError):
    """A GPU, or its driver, refuses."""


@functools.lru_cache(maxsize=1)
def library() -> ctypes.CDLL:
    """The native library, loaded once.

    Raises:
        ImportError: it is missing, does not load, or was built from another version of this package.
    """
    folder = Path(__file__).parent
    suffix = ".dll" if os.name == "nt" else ".so"
    native = open_library(folder / f"_native{suffix}")
    native.mien_isa_name.restype = ctypes.c_char_p
    check_with(native, native.mien_initialise(), ImportError)
    return native


def open_library(path: Path) -> ctypes.CDLL:
    """A native library of this package's version.

    Raises:
        ImportError: it is missing, does not load, or was built from another version.
    """
    if not path.is_file():
        raise ImportError(f"{path} is missing: the package was not built; run `pip install` on its source folder again")
    try:
        native = ctypes.CDLL(str(path))
    except OSError as error:
        raise ImportError(f"{path} does not load ({error}); run `pip install` on its source folder again") from error
    native.mien_last_error.restype = ctypes.c_char_p
    if native.mien_abi_version() != ABI_VERSION:
        raise ImportError(f"{path} was built from another version of this package; run `pip install` again")
    return native


def check(status: int) -> None:
    """Raise what a status code of the library means; 0 passes.

    Raises:
        ValueError: a wrong argument. NonFiniteError: NaN or infinity in an input. MemoryError: not enough memory.
        DeviceFault: a GPU or its driver refuses. RuntimeError: a fault of the library itself.
    """
    if status != 0:
        check_with(library(), status)


def check_with(native: ctypes.CDLL, status: int, always: type[Exception] | None = None) -> None:
    """The same for a library that need not be the usual one; `always`: the exception whatever the code."""
    if status == 0:
        return
    message = native.mien_last_error().decode(errors="replace")
    kinds = {1: ValueError, 2: MemoryError, 4: NonFiniteError, 5: DeviceFault}
    raise (always or kinds.get(status, RuntimeError))(message)


def thread_count(threads: int | None) -> int:
    """`threads` if given, else the environment variable MIEN_THREADS, else the number of CPUs this process may use.

    Raises:
        ValueError: the number is not a positive integer.
    """
    if threads is None:
        text = os.environ.get("MIEN_THREADS", "")
        if not text:
            return int(library().mien_usable_cpus())
        if not text.isdecimal() or int(text) < 1:
            raise ValueError(f"MIEN_THREADS must be a positive integer, got {text!r}")
        return int(text)
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise ValueError(f"threads must be a positive integer or None, got {threads!r}")
    return threads


def isa_name() -> str:
    """The instruction set in use: `avx512`, `avx2` or `scalar` (choose one with the environment variable MIEN_ISA)."""
    return library().mien_isa_name().decode()


def select_isa(name: str) -> None:
    """Use another instruction set from now on; for tests and benchmarks.

    Raises:
        ValueError: there is no such set, or this CPU lacks it.
    """
    check(library().mien_select_isa(name.encode()))
