"""`distCUDA2` under the module path that 3D Gaussian splatting projects import it from.

The names are theirs; the function is computed on the CPU by our own native library.
"""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path

import torch
from torch import Tensor

ABI_VERSION = 1


def distCUDA2(points: Tensor) -> Tensor:  # noqa: N802 - the known name
    """Mean squared distance from every point to its three nearest other points, exact.

    With fewer than three others, the mean is over those that exist; a single point gets 0. Points at the same place
    count as neighbours at distance 0. Not differentiable. Same bits for any number of threads (environment variable
    SIMPLE_KNN_THREADS, default one per usable CPU) and any instruction set (MIEN_ISA: avx512, avx2 or scalar).

    Args:
        points: [N, 3] float32. A tensor on another device is copied to the CPU, and the result back.

    Returns:
        [N] float32 on the device of `points`, in the square of their unit.

    Raises:
        ValueError: wrong type or shape, or a coordinate that is not finite (names the row); MIEN_ISA names an
            instruction set that this CPU lacks.
    """
    if not isinstance(points, Tensor) or points.dtype != torch.float32:
        found = getattr(points, "dtype", type(points).__name__)
        raise ValueError(f"points: found {found}, expected a torch.float32 tensor")
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"points: found shape {list(points.shape)}, expected [N, 3]")
    positions = points.detach().cpu().contiguous()
    means = torch.empty(len(positions), dtype=torch.float32)
    native = _library()
    status = native.knn_mean_squared_distances(
        ctypes.c_void_p(positions.data_ptr()),
        ctypes.c_int64(len(positions)),
        _thread_count(),
        ctypes.c_void_p(means.data_ptr()),
    )
    if status != 0:
        kind = {1: ValueError, 2: MemoryError, 4: ValueError}.get(status, RuntimeError)
        raise kind(native.knn_last_error().decode(errors="replace"))
    return means.to(points.device)


@functools.lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    path = Path(__file__).parent / ("_native.dll" if os.name == "nt" else "_native.so")
    advice = "run `pip install` on the source folder of simple-knn again"
    if not path.is_file():
        raise ImportError(f"{path} is missing: {advice}")
    try:
        native = ctypes.CDLL(str(path))
    except OSError as error:
        raise ImportError(f"{path} does not load ({error}): {advice}") from error
    if native.knn_abi_version() != ABI_VERSION:
        raise ImportError(f"{path} was built from another version of this package: {advice}")
    native.knn_last_error.restype = ctypes.c_char_p
    return native


def _thread_count() -> int:
    text = os.environ.get("SIMPLE_KNN_THREADS", "")
    if text:
        if not text.isdecimal() or int(text) < 1:
            raise ValueError(f"SIMPLE_KNN_THREADS must be a positive integer, got {text!r}")
        return min(int(text), 256)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
