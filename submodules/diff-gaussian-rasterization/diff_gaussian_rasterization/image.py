"""Image losses and conversions in native code: one pass instead of dozens of tensor operations."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ._library import check, library, thread_count


def l1_ssim(image: Tensor, target: Tensor, threads: int | None = None) -> tuple[Tensor, Tensor]:
    """Mean absolute error and mean structural similarity of two pictures, differentiable with respect to `image`.

    SSIM as in Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity" (IEEE TIP 2004):
    11x11 Gaussian window of sigma 1.5, zeros outside the picture, C1 = 0.01^2, C2 = 0.03^2, data range 1, mean over all
    channels and pixels. The derivative of |0| is 0. Same bits for any thread count.

    Args:
        image: [C, H, W] float32 on the CPU, nominally in [0, 1].
        target: [C, H, W] float32 on the CPU; it gets no gradient.
        threads: None = one per usable CPU.

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
    return _L1Ssim.apply(image, target, thread_count(threads))


def to_float(rgb: Tensor, threads: int | None = None) -> Tensor:
    """An 8-bit picture as float planes, the same values as `rgb.permute(2, 0, 1) / 255`.

    Args:
        rgb: [H, W, 3] uint8 on the CPU.
        threads: None = one per usable CPU.

    Returns:
        [3, H, W] float32 in [0, 1], contiguous.

    Raises:
        ValueError: wrong type, shape or device.
    """
    _check_picture("rgb", rgb, torch.uint8)
    height, width, channels = rgb.shape
    if channels != 3:
        raise ValueError(f"rgb: found shape {list(rgb.shape)}, expected [height, width, 3]")
    pixels = rgb.contiguous()
    planes = torch.empty((3, height, width), dtype=torch.float32)
    check(
        library().mien_image_to_float(
            _address(pixels), ctypes.c_int64(height * width), thread_count(threads), _address(planes)
        )
    )
    return planes


class _L1Ssim(torch.autograd.Function):
    @staticmethod
    def forward(ctx, image: Tensor, target: Tensor, threads: int) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        image, target = image.contiguous(), target.contiguous()
        native = library()
        derivatives = None
        if ctx.needs_input_grad[0]:
            native.mien_image_l1_ssim_derivatives.restype = ctypes.c_int64
            derivatives = torch.empty(native.mien_image_l1_ssim_derivatives(*image.shape), dtype=torch.float32)
        sums = (ctypes.c_double * 2)()
        check(
            native.mien_image_l1_ssim(
                _address(image),
                _address(target),
                *image.shape,
                threads,
                None if derivatives is None else _address(derivatives),
                sums,
            )
        )
        if derivatives is not None:
            ctx.save_for_backward(image, target, derivatives)
            ctx.threads = threads
        return image.new_tensor(sums[0] / image.numel()), image.new_tensor(sums[1] / image.numel())

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_l1: Tensor, grad_ssim: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        image, target, derivatives = ctx.saved_tensors
        gradient = torch.empty_like(image)
        check(
            library().mien_image_l1_ssim_backward(
                _address(image),
                _address(target),
                _address(derivatives),
                *image.shape,
                ctypes.c_float(grad_l1.item() / image.numel()),
                ctypes.c_float(grad_ssim.item() / image.numel()),
                ctx.threads,
                _address(gradient),
            )
        )
        return gradient, None, None


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
