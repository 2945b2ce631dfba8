"""The search on a CUDA device. The same kernels can be run on the CPU (`emulate`), for tests without a GPU."""

from __future__ import annotations

import ctypes
from contextlib import nullcontext
from ctypes import c_int64, c_void_p
from pathlib import Path

import torch
from torch import Tensor

from ._library import check, library, open_library

_CELLS = 2**21 - 1  # of the grid, along each axis
# Shift and mask that put two zero bits before each of 21.
_SPREAD = (
    (32, 0x001F00000000FFFF),
    (16, 0x001F0000FF0000FF),
    (8, 0x100F00F00F00F00F),
    (4, 0x10C30C30C30C30C3),
    (2, 0x1249249249249249),
)
_emulated: ctypes.CDLL | None = None


def emulate(path: str | Path | None) -> None:
    """From now on search CPU tensors with the CUDA kernels, by the emulated library at `path`; None: no longer."""
    global _emulated
    _emulated = None if path is None else open_library(Path(path))


def device_library(points: Tensor) -> ctypes.CDLL | None:
    """The library that searches these points where they are, with CUDA kernels; None: the CPU kernels have to."""
    if _emulated is not None:
        return _emulated if points.is_cpu else None
    return library() if points.is_cuda and library().knn_cuda_missing() is None else None


def mean_squared_distances(native: ctypes.CDLL, points: Tensor) -> Tensor:
    """[N] for points [N, 3], all on one device. Waits for the device, to see whether the points are finite.

    Raises:
        ValueError: a coordinate is not finite; names the row. RuntimeError: the GPU refuses.
    """
    finite = points.isfinite().all(1)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0])
        found = ", ".join(f"{value:g}" for value in points[row].tolist())
        raise ValueError(f"points: row {row} is [{found}], expected finite coordinates")
    means = points.new_empty(len(points))
    if not len(points):
        return means
    order, size = morton_order(points), c_int64()
    check(native, native.knn_cuda_scratch(c_int64(len(points)), ctypes.byref(size)))
    scratch = torch.empty(size.value, dtype=torch.uint8, device=points.device)
    in_order = points[order]
    with torch.cuda.device(points.device) if points.is_cuda else nullcontext():
        stream = torch.cuda.current_stream(points.device).cuda_stream if points.is_cuda else None
        status = native.knn_cuda_mean_squared_distances(
            c_void_p(in_order.data_ptr()),
            c_void_p(order.data_ptr()),
            c_int64(len(points)),
            c_void_p(scratch.data_ptr()),
            c_void_p(means.data_ptr()),
            c_void_p(stream),
        )
    check(native, status)
    return means


def morton_order(points: Tensor) -> Tensor:
    """The rows [N] of points [N, 3], N > 0, finite, along a Morton curve through the cube around them."""
    wide = points.double()
    low, high = torch.aminmax(wide, dim=0)
    extent = (high - low).max().clamp_min(1e-300)  # far below what float32 can tell apart
    cells = ((wide - low) * (_CELLS / extent)).long()
    for shift, mask in _SPREAD:
        cells = (cells | cells << shift) & mask
    return (cells[:, 0] | cells[:, 1] << 1 | cells[:, 2] << 2).argsort(stable=True)
