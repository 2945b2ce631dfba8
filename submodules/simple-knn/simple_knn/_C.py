"""`distCUDA2` under the module path that 3D Gaussian splatting projects import it from.

The names are theirs; the function is computed by our own native library, on the CPU or by CUDA kernels.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from ._device import device_library, mean_squared_distances
from ._library import check, library, thread_count


def distCUDA2(points: Tensor) -> Tensor:  # noqa: N802 - the known name
    """Mean squared distance from every point to its three nearest other points, exact.

    With fewer than three others, the mean is over those that exist; a single point gets 0. Points at the same place
    count as neighbours at distance 0. Not differentiable. Same bits on every device, for any number of threads
    (environment variable SIMPLE_KNN_THREADS, default one per usable CPU) and any instruction set (MIEN_ISA: avx512,
    avx2 or scalar).

    Args:
        points: [N, 3] float32. A CUDA tensor is searched on its device. Where this build has no CUDA kernels, and on
            other devices, it is copied to the CPU, and the result back.

    Returns:
        [N] float32 on the device of `points`, in the square of their unit.

    Raises:
        ValueError: wrong type or shape, or a coordinate that is not finite (names the row); MIEN_ISA names an
            instruction set that this CPU lacks. RuntimeError: a GPU refuses.
    """
    if not isinstance(points, Tensor) or points.dtype != torch.float32:
        found = getattr(points, "dtype", type(points).__name__)
        raise ValueError(f"points: found {found}, expected a torch.float32 tensor")
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"points: found shape {list(points.shape)}, expected [N, 3]")
    points = points.detach()
    if (native := device_library(points)) is not None:
        return mean_squared_distances(native, points)
    positions = points.cpu().contiguous()
    means, native = torch.empty(len(positions), dtype=torch.float32), library()
    status = native.knn_mean_squared_distances(
        ctypes.c_void_p(positions.data_ptr()),
        ctypes.c_int64(len(positions)),
        thread_count(),
        ctypes.c_void_p(means.data_ptr()),
    )
    check(native, status)
    return means.to(points.device)
