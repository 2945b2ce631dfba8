"""What a training step wants to know of gradients, in native code."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_int64, c_void_p

import torch
from torch import Tensor

from ._library import check, library, thread_count


def add_view(
    screen_gradients: Tensor, radii: Tensor, factor: float, gradient: Tensor, seen: Tensor, radius: Tensor
) -> None:
    """Add one view to running sums per Gaussian, in place.

    Where radii > 0: gradient += factor * |screen gradient| and seen += 1. Everywhere: radius = max(radius, radii).

    Args:
        screen_gradients: [N, 2] float32. radii: [N] int32 pixels, 0 = not drawn.
        gradient, seen, radius: [N] float32, contiguous. All tensors are on the CPU.

    Raises:
        ValueError: wrong type, shape, layout or device; names the argument.
    """
    count = radii.shape[0]
    sums = {"gradient": gradient, "seen": seen, "radius": radius}
    _check("screen_gradients", screen_gradients, torch.float32, (count, 2))
    _check("radii", radii, torch.int32, (count,))
    for name, tensor in sums.items():
        _check(name, tensor, torch.float32, (count,))
        if not tensor.is_contiguous():
            raise ValueError(f"{name}: is not contiguous")
    screen_gradients, radii = screen_gradients.contiguous(), radii.contiguous()
    check(
        library().mien_statistics_add_view(
            c_void_p(screen_gradients.data_ptr()),
            c_void_p(radii.data_ptr()),
            c_int64(count),
            ctypes.c_float(factor),
            *(c_void_p(tensor.data_ptr()) for tensor in sums.values()),
        )
    )


def squares_finite(tensors: Sequence[Tensor], threads: int | None = None) -> bool:
    """Whether the square of every value is finite (below 1.8e19 in size, and no NaN).

    Args:
        tensors: float32 on the CPU.
        threads: None = one per usable CPU.

    Raises:
        ValueError: wrong type or device.
    """
    for tensor in tensors:
        if not (isinstance(tensor, Tensor) and tensor.dtype is torch.float32 and tensor.is_cpu):
            raise ValueError("tensors: expected float32 tensors on the CPU")
    flat = [tensor.contiguous() for tensor in tensors]  # kept until the call is over
    arrays = (c_void_p * len(flat))(*[tensor.data_ptr() for tensor in flat])
    counts = (c_int64 * len(flat))(*[tensor.numel() for tensor in flat])
    finite = ctypes.c_int()
    check(
        library().mien_statistics_squares_finite(
            arrays, counts, c_int64(len(flat)), thread_count(threads), ctypes.byref(finite)
        )
    )
    return bool(finite.value)


def _check(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if not isinstance(tensor, Tensor) or tensor.dtype is not dtype or not tensor.is_cpu:
        raise ValueError(f"{name}: expected a {dtype} tensor on the CPU")
    if tensor.shape != shape:
        raise ValueError(f"{name}: found shape {list(tensor.shape)}, expected {list(shape)}")
