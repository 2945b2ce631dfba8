"""What a training step wants to know of gradients, in native code."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_int64, c_void_p

import torch
from torch import Tensor

from ._device import device_call, on_device
from ._library import check, library, thread_count


def add_view(
    screen_gradients: Tensor, radii: Tensor, factor: float, gradient: Tensor, seen: Tensor, radius: Tensor
) -> None:
    """Add one view to running sums per Gaussian, in place.

    Where radii > 0: gradient += factor * |screen gradient| and seen += 1. Everywhere: radius = max(radius, radii).

    Args:
        screen_gradients: [N, 2] float32. radii: [N] int32 pixels, 0 = not drawn.
        gradient, seen, radius: [N] float32, contiguous. All tensors are on the CPU, or all on one GPU.

    Raises:
        ValueError: wrong type, shape, layout or device; names the argument.
        ImportError: the tensors are on a GPU, for which this package was not built.
    """
    if not isinstance(radii, Tensor) or radii.dim() == 0:
        raise ValueError("radii: expected a torch.int32 tensor [N]")
    count = radii.shape[0]
    sums = {"gradient": gradient, "seen": seen, "radius": radius}
    _check("radii", radii, torch.int32, (count,), radii)
    _check("screen_gradients", screen_gradients, torch.float32, (count, 2), radii)
    for name, tensor in sums.items():
        _check(name, tensor, torch.float32, (count,), radii)
        if not tensor.is_contiguous():
            raise ValueError(f"{name}: is not contiguous")
    screen_gradients, radii = screen_gradients.contiguous(), radii.contiguous()
    arguments = (
        c_void_p(screen_gradients.data_ptr()),
        c_void_p(radii.data_ptr()),
        c_int64(count),
        ctypes.c_float(factor),
        *(c_void_p(tensor.data_ptr()) for tensor in sums.values()),
    )
    if on_device(radii):
        device_call("statistics_add_view", *arguments, 1, None, near=radii)
    else:
        check(library().mien_statistics_add_view(*arguments))


def squares_finite(tensors: Sequence[Tensor], threads: int | None = None) -> bool | Tensor:
    """Whether the square of every value is finite (below 1.8e19 in size, and no NaN).

    Args:
        tensors: float32, all on the CPU or all on one GPU.
        threads: on the CPU; None = one per usable CPU.

    Returns:
        A bool for the CPU; for a GPU a 0-dim bool tensor, which is not read back.

    Raises:
        ValueError: wrong type or device.
        ImportError: the tensors are on a GPU, for which this package was not built.
    """
    for tensor in tensors:
        if not (isinstance(tensor, Tensor) and tensor.dtype is torch.float32 and (tensor.is_cpu or tensor.is_cuda)):
            raise ValueError("tensors: expected float32 tensors on the CPU or a GPU")
        if tensor.device != tensors[0].device:
            raise ValueError("tensors: expected all of them on one device")
    flat = [tensor.contiguous() for tensor in tensors]  # kept until the call is over
    arrays = (c_void_p * len(flat))(*[tensor.data_ptr() for tensor in flat])
    counts = (c_int64 * len(flat))(*[tensor.numel() for tensor in flat])
    if flat and on_device(flat[0]):
        bad = torch.zeros((), dtype=torch.int32, device=flat[0].device)
        device_call("squares_finite", arrays, counts, c_int64(len(flat)), c_void_p(bad.data_ptr()), near=bad)
        return bad == 0
    finite = ctypes.c_int()
    check(
        library().mien_statistics_squares_finite(
            arrays, counts, c_int64(len(flat)), thread_count(threads), ctypes.byref(finite)
        )
    )
    return bool(finite.value)


def _check(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...], beside: Tensor) -> None:
    """Raise unless the tensor has that type and shape and is where `beside` is, on the CPU or a GPU."""
    if not isinstance(tensor, Tensor) or tensor.dtype is not dtype or not (tensor.is_cpu or tensor.is_cuda):
        raise ValueError(f"{name}: expected a {dtype} tensor on the CPU or a GPU")
    if tensor.device != beside.device:
        raise ValueError(f"{name}: is on {tensor.device}, expected {beside.device}, where radii are")
    if tensor.shape != shape:
        raise ValueError(f"{name}: found shape {list(tensor.shape)}, expected {list(shape)}")
