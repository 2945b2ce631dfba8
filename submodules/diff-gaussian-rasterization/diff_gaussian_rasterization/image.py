"""Image losses and conversions in native code: one pass instead of dozens of tensor operations."""

from __future__ import annotations

import ctypes
import math
from ctypes import c_bool, c_float, c_int32, c_int64, c_void_p

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ._calls import address
from ._device import device_call, device_library, on_device
from ._library import check, check_with, library, thread_count


class _Pictures(ctypes.Structure):
    """Mirrors SsimTables of csrc/cuda/pieces.h."""

    _fields_ = [
        *[(name, c_int32) for name in ("views", "channels", "height", "width")],
        *[(name, c_void_p) for name in ("images", "targets", "store", "offset")],
        *[(name, c_float) for name in ("l1_scale", "ssim_scale")],
        *[(name, c_void_p) for name in ("gradients", "scratch", "sums")],
        *[(name, c_void_p * 2) for name in ("means", "factors")],
        ("derivatives", c_bool),
    ]


def l1_ssim(
    image: Tensor, target: Tensor, threads: int | None = None, weights: tuple[float, float] | None = None
) -> tuple[Tensor, Tensor]:
    """Mean absolute error and mean structural similarity of two pictures, differentiable with respect to `image`.

    SSIM as in Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity" (IEEE TIP 2004):
    11x11 Gaussian window of sigma 1.5, zeros outside the picture, C1 = 0.01^2, C2 = 0.03^2, data range 1, mean over all
    channels and pixels. The derivative of |0| is 0. Same bits for any thread count. Nothing is read back from a GPU.

    Args:
        image: [C, H, W] float32 on the CPU or a GPU, nominally in [0, 1].
        target: [C, H, W] float32 beside it; it gets no gradient.
        threads: on the CPU; None = one per usable CPU.
        weights: d loss / d l1 and d loss / d ssim, up to a common factor, if known now: on the CPU the gradient then
            comes out of the pass that computes the values. Without them, or with others, backward makes a pass of its
            own. A GPU does without.

    Returns:
        l1 and ssim, two 0-dim float32 tensors.

    Raises:
        ValueError: wrong type, shape or device; names the argument.
        ImportError: the pictures are on a GPU, for which this package was not built.
    """
    _check_picture("image", image, torch.float32)
    _check_picture("target", target, torch.float32)
    if image.shape != target.shape:
        raise ValueError(f"target: found shape {list(target.shape)}, expected that of image, {list(image.shape)}")
    if image.device != target.device:
        raise ValueError(f"target: is on {target.device}, expected the device of image, {image.device}")
    if target.requires_grad and torch.is_grad_enabled():
        raise ValueError("target: requires a gradient, which l1_ssim does not compute; detach it")
    if weights is not None and not (len(weights) == 2 and all(math.isfinite(weight) for weight in weights)):
        raise ValueError(f"weights: found {weights}, expected two finite numbers")
    if on_device(image):
        return _DeviceL1Ssim.apply(image, target)
    return _L1Ssim.apply(image, target, thread_count(threads), weights)


def to_float(levels: Tensor | np.ndarray, threads: int | None = None) -> Tensor:
    """An 8-bit picture as floats, the same values as `levels / 255`.

    Args:
        levels: uint8, of any shape: a tensor on the CPU or a GPU, or an array, which may be read-only.
        threads: on the CPU; None = one per usable CPU.

    Returns:
        float32 in [0, 1] of the same shape, contiguous, on the device of the tensor.

    Raises:
        ValueError: wrong type or device.
        ImportError: the picture is on a GPU, for which this package was not built.
    """
    if isinstance(levels, Tensor) and levels.dtype == torch.uint8 and (levels.is_cpu or levels.is_cuda):
        source: Tensor | np.ndarray = levels.contiguous()
        start, device = source.data_ptr(), source.device
    elif isinstance(levels, np.ndarray) and levels.dtype == np.uint8:
        source = np.ascontiguousarray(levels)
        start, device = source.ctypes.data, torch.device("cpu")
    else:
        found = f"{getattr(levels, 'dtype', type(levels).__name__)} on {getattr(levels, 'device', 'the CPU')}"
        raise ValueError(f"levels: found {found}, expected uint8 on the CPU or a GPU")
    floats = torch.empty(tuple(source.shape), dtype=torch.float32, device=device)
    count = c_int64(floats.numel())
    if isinstance(source, Tensor) and on_device(source):
        device_call("image_to_float", c_void_p(start), count, c_void_p(floats.data_ptr()), near=floats)
    else:
        check(library().mien_image_to_float(c_void_p(start), count, thread_count(threads), c_void_p(floats.data_ptr())))
    return floats


class _L1Ssim(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx, image: Tensor, target: Tensor, threads: int, weights: tuple[float, float] | None
    ) -> tuple[Tensor, Tensor]:
        image, target = image.contiguous(), target.contiguous()
        known = weights if ctx.needs_input_grad[0] else None
        gradient, sums = _pass(image, target, threads, known)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(image, target, *([] if gradient is None else [gradient]))
            ctx.threads, ctx.weights = threads, known
        return image.new_tensor(sums[0] / image.numel()), image.new_tensor(sums[1] / image.numel())

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_l1: Tensor, grad_ssim: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        image, target, *made = ctx.saved_tensors
        wanted = (grad_l1.item(), grad_ssim.item())
        factor = None if ctx.weights is None else _common_factor(wanted, ctx.weights)
        if factor is None:
            gradient, _ = _pass(image, target, ctx.threads, wanted)
        else:
            gradient = made[0] if factor == 1.0 else made[0] * factor
        return gradient, None, None, None


class _DeviceL1Ssim(torch.autograd.Function):
    """Forward keeps the derivatives of ssim by its window means; backward filters them, and reads its factors there."""

    @staticmethod
    def forward(ctx, image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        image, target = image.contiguous(), target.contiguous()
        l1, ssim = image.new_empty(()), image.new_empty(())
        pictures = _pictures(image, target)
        pictures.derivatives = ctx.needs_input_grad[0]
        pictures.means[:] = l1.data_ptr(), ssim.data_ptr()
        native, floats = device_library(), c_int64()
        check_with(native, native.mien_cuda_image_l1_ssim_scratch(ctypes.byref(pictures), ctypes.byref(floats)))
        scratch = image.new_empty(floats.value)
        pictures.scratch = address(scratch)
        device_call("image_l1_ssim", ctypes.byref(pictures), near=image)
        if ctx.needs_input_grad[0]:
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(image, target, scratch)
        return l1, ssim

    @staticmethod
    @once_differentiable
    def backward(ctx, *factors: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        image, target, scratch = ctx.saved_tensors
        gradient = torch.empty_like(image)
        pictures = _pictures(image, target)
        pictures.scratch, pictures.gradients = address(scratch), address(gradient)
        pictures.l1_scale, pictures.ssim_scale = (0.0 if factor is None else 1.0 / image.numel() for factor in factors)
        pictures.factors[:] = [address(factor) for factor in factors]
        device_call("image_l1_ssim_gradient", ctypes.byref(pictures), near=image)
        return gradient, None


def _pictures(image: Tensor, target: Tensor) -> _Pictures:
    return _Pictures(1, *image.shape, address(image), address(target))


def _common_factor(wanted: tuple[float, float], made: tuple[float, float]) -> float | None:
    """The f with wanted = f * made, up to what float32 rounds away; None if there is none."""
    largest = 0 if abs(made[0]) >= abs(made[1]) else 1
    if made[largest] == 0.0:
        return None
    factor = wanted[largest] / made[largest]
    if any(abs(w - factor * m) > 1e-6 * abs(w) for w, m in zip(wanted, made, strict=True)):
        return None
    return 1.0 if abs(factor - 1.0) < 1e-6 else factor


def _pass(
    image: Tensor, target: Tensor, threads: int, weights: tuple[float, float] | None
) -> tuple[Tensor | None, ctypes.Array[ctypes.c_double]]:
    """The gradient of weights[0] * l1 + weights[1] * ssim, unless they are None; and the sums over all pixels."""
    gradient = None if weights is None else torch.empty_like(image)
    l1_scale, ssim_scale = (0.0, 0.0) if weights is None else (weight / image.numel() for weight in weights)
    sums = (ctypes.c_double * 2)()
    check(
        library().mien_image_l1_ssim(
            c_void_p(address(image)),
            c_void_p(address(target)),
            *image.shape,
            c_float(l1_scale),
            c_float(ssim_scale),
            threads,
            c_void_p(address(gradient)),
            sums,
        )
    )
    return gradient, sums


def _check_picture(name: str, picture: Tensor, dtype: torch.dtype) -> None:
    if not isinstance(picture, Tensor) or picture.dtype != dtype:
        found = getattr(picture, "dtype", type(picture).__name__)
        raise ValueError(f"{name}: found {found}, expected a {dtype} tensor")
    if not (picture.is_cpu or picture.is_cuda):
        raise ValueError(f"{name}: is on {picture.device}, expected a tensor on the CPU or a GPU")
    if picture.ndim != 3 or 0 in picture.shape:
        raise ValueError(f"{name}: found shape {list(picture.shape)}, expected three axes, none of them empty")
