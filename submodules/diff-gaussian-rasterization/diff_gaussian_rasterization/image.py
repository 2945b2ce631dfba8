"""Image losses and conversions in native code: one pass instead of dozens of tensor operations."""

from __future__ import annotations

import ctypes
import math

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ._library import check, library, thread_count


def l1_ssim(
    image: Tensor, target: Tensor, threads: int | None = None, weights: tuple[float, float] | None = None
) -> tuple[Tensor, Tensor]:
    """Mean absolute error and mean structural similarity of two pictures, differentiable with respect to `image`.

    SSIM as in Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity" (IEEE TIP 2004):
    11x11 Gaussian window of sigma 1.5, zeros outside the picture, C1 = 0.01^2, C2 = 0.03^2, data range 1, mean over all
    channels and pixels. The derivative of |0| is 0. Same bits for any thread count.

    Args:
        image: [C, H, W] float32 on the CPU, nominally in [0, 1].
        target: [C, H, W] float32 on the CPU; it gets no gradient.
        threads: None = one per usable CPU.
        weights: d loss / d l1 and d loss / d ssim, up to a common factor, if known now: the gradient then comes out of
            the pass that computes the values. Without them, or with others, backward makes a pass of its own.

    Returns:
        l1 and ssim, two 0-dim float32 tensors.

    Raises:
        ValueError: wrong type, shape or device; names the argument.
    """
    _check_picture("image", image, torch.float32)
    _check_picture("target", target, torch.float32)
    if image.shape != target.shape:
        raise ValueError(f"target: found shape {list(target.shape)}, expected that of image, {list(image.shape)}")
    if target.requires_grad and torch.is_grad_enabled():
        raise ValueError("target: requires a gradient, which l1_ssim does not compute; detach it")
    if weights is not None and not (len(weights) == 2 and all(math.isfinite(weight) for weight in weights)):
        raise ValueError(f"weights: found {weights}, expected two finite numbers")
    return _L1Ssim.apply(image, target, thread_count(threads), weights)


def to_float(levels: Tensor | np.ndarray, threads: int | None = None) -> Tensor:
    """An 8-bit picture as floats, the same values as `levels / 255`.

    Args:
        levels: uint8, of any shape: a tensor on the CPU or an array, which may be read-only.
        threads: None = one per usable CPU.

    Returns:
        float32 in [0, 1] of the same shape, contiguous.

    Raises:
        ValueError: wrong type or device.
    """
    if isinstance(levels, Tensor) and levels.dtype == torch.uint8 and levels.is_cpu:
        source: Tensor | np.ndarray = levels.contiguous()
        address = source.data_ptr()
    elif isinstance(levels, np.ndarray) and levels.dtype == np.uint8:
        source = np.ascontiguousarray(levels)
        address = source.ctypes.data
    else:
        found = f"{getattr(levels, 'dtype', type(levels).__name__)} on {getattr(levels, 'device', 'the CPU')}"
        raise ValueError(f"levels: found {found}, expected uint8 on the CPU")
    floats = torch.empty(tuple(source.shape), dtype=torch.float32)
    count = ctypes.c_int64(floats.numel())
    check(library().mien_image_to_float(ctypes.c_void_p(address), count, thread_count(threads), _address(floats)))
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
            _address(image),
            _address(target),
            *image.shape,
            ctypes.c_float(l1_scale),
            ctypes.c_float(ssim_scale),
            threads,
            None if gradient is None else _address(gradient),
            sums,
        )
    )
    return gradient, sums


def _check_picture(name: str, picture: Tensor, dtype: torch.dtype) -> None:
    if not isinstance(picture, Tensor) or picture.dtype != dtype:
        found = getattr(picture, "dtype", type(picture).__name__)
        raise ValueError(f"{name}: found {found}, expected a {dtype} tensor")
    if picture.device.type != "cpu":
        raise ValueError(f"{name}: is on {picture.device}, expected a CPU tensor")
    if picture.ndim != 3 or 0 in picture.shape:
        raise ValueError(f"{name}: found shape {list(picture.shape)}, expected three axes, none of them empty")


def _address(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())
