"""The CUDA engine seen from Python: which tensors are its business, and the queue that its work joins.

The same kernels can be run on the CPU, thread by thread (`emulate`): for tests on machines without a GPU. CPU tensors
then count as the device's.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ._library import check_with, library, open_library


class Queue(ctypes.Structure):
    """Mirrors Queue of csrc/cuda/device.h."""

    _fields_ = [("device", ctypes.c_int32), ("stream", ctypes.c_void_p)]


_emulated: ctypes.CDLL | None = None


def emulate(path: str | Path | None) -> None:
    """From now on run the CUDA kernels on the CPU, by the emulated library at `path`; None: no longer.

    Raises:
        ImportError: it does not load, or was built from another version of this package.
    """
    global _emulated
    _emulated = None if path is None else open_library(Path(path))


def emulated() -> bool:
    """Whether CPU tensors are the CUDA engine's business."""
    return _emulated is not None


def device_library() -> ctypes.CDLL:
    """The library that holds the mien_cuda_* functions.

    Raises:
        ImportError: this build has none; says why.
    """
    if _emulated is not None:
        return _emulated
    native = library()
    native.mien_cuda_missing.restype = ctypes.c_char_p
    why = native.mien_cuda_missing()
    if why is not None:
        raise ImportError(why.decode())
    return native


def usable(where: Tensor | torch.device | str) -> str | None:
    """Why this package can't work on a device, or on that of a tensor; None if it can."""
    device = where.device if isinstance(where, Tensor) else torch.device(where)
    if device.type == "cpu":
        return None
    if device.type != "cuda":
        return f"there are no kernels for {device.type}"
    try:
        device_library()
    except ImportError as error:
        return str(error)
    return None


def on_device(tensor: Tensor) -> bool:
    """Whether work on this tensor is the CUDA engine's; else it is the CPU kernels'."""
    return tensor.is_cuda or (_emulated is not None and tensor.is_cpu)


def queue_of(tensor: Tensor) -> Queue:
    """Behind what PyTorch has already asked of the tensor's device."""
    if not tensor.is_cuda:
        return Queue(0, None)
    return Queue(tensor.device.index, torch.cuda.current_stream(tensor.device).cuda_stream)


def device_call(function: str, *arguments: Any, near: Tensor) -> None:
    """Call `mien_cuda_<function>(*arguments, queue)` on the device of the tensor `near`; raise what its status means.

    The call returns before the work is done; PyTorch operations on the same stream wait for it.
    """
    native = device_library()
    queue = queue_of(near)
    check_with(native, getattr(native, f"mien_cuda_{function}")(*arguments, ctypes.byref(queue)))
