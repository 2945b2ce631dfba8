"""L1 and SSIM between picture and photograph: (1 - lambda) L1 + lambda (1 - SSIM), as in 3D Gaussian splatting.

SSIM: Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004; 11 x 11 Gaussian
window of sigma 1.5, zero padding, C1 = 0.01^2, C2 = 0.03^2, mean over pixels and channels.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from utils.contracts import Subject
from utils.errors import InputError
from utils.losses.context import LossContext

WINDOW = 11
SIGMA = 1.5
C1, C2 = 0.01**2, 0.03**2
_BELL = [math.exp(-((i - WINDOW // 2) ** 2) / (2 * SIGMA**2)) for i in range(WINDOW)]
WEIGHTS = [value / sum(_BELL) for value in _BELL]

NATIVE, AVAILABLE = "diff_gaussian_rasterization.image", "diff_gaussian_rasterization._device"


@dataclass
class PhotometricOptions:
    """How the picture is compared with the photograph."""

    lambda_dssim: float = field(
        default=0.2, metadata={"help": "share of 1 - SSIM in the photometric loss; the rest is L1"}
    )

    def __post_init__(self) -> None:
        if not 0 <= self.lambda_dssim <= 1:
            raise InputError("--lambda_dssim", "", f"is {self.lambda_dssim}, expected 0 to 1")


def build(
    options: PhotometricOptions, threads: int | None = None, subject: Subject | None = None
) -> Callable[[LossContext], dict[str, Tensor]]:
    """Terms `l1` and `ssim`, by the native kernel where it is installed (`describe` says so)."""
    native, _ = _native()
    share = options.lambda_dssim

    def loss(context: LossContext) -> dict[str, Tensor]:
        image, target = context.rendered.image, context.frame.image
        if share == 0:
            return {"l1": l1(image, target)}
        if native is not None and image.dtype == torch.float32 and _why_not_on(image.device) is None:
            absolute, similarity = native(image, target, threads, (1 - share, -share))
        else:
            absolute, similarity = l1(image, target), ssim(image, target)
        terms = {"l1": (1 - share) * absolute, "ssim": share * (1 - similarity)}
        return terms if share < 1 else {"ssim": terms["ssim"]}

    return loss


def weights(options: PhotometricOptions) -> dict[str, float]:
    return {"l1": 1 - options.lambda_dssim, "ssim": options.lambda_dssim}


def describe(options: PhotometricOptions) -> str:
    """Which implementation this machine uses."""
    native, reason = _native()
    if options.lambda_dssim == 0:
        return "l1: PyTorch; ssim: off"
    if native is None:
        return f"l1, ssim: PyTorch (the native kernel can't be used: {reason})"
    return "l1, ssim: native kernel" + ("" if _why_not_on("cuda") is None else " on the CPU, PyTorch on a GPU")


def _native() -> tuple[Callable[..., tuple[Tensor, Tensor]] | None, str]:
    """The native L1 + SSIM kernel, or None and why."""
    try:
        return importlib.import_module(NATIVE).l1_ssim, ""
    except (ImportError, OSError) as error:
        return None, str(error)


def _why_not_on(device: torch.device | str) -> str | None:
    """Why the native kernel, which is installed, can't work on a device; None if it can."""
    return importlib.import_module(AVAILABLE).usable(device)


def l1(image: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of two images of one shape."""
    return (image - target).abs().mean()


def ssim(image: Tensor, target: Tensor) -> Tensor:
    """Mean structural similarity of two images [C, H, W] in [0, 1]."""
    return ssim_map(image, target).mean()


@torch.no_grad()
def similarity(image: Tensor, target: Tensor, threads: int | None = None) -> float:
    """The same as a number, summed in double: by the native kernel where it can be used."""
    native, _ = _native()
    if native is not None and image.dtype == target.dtype == torch.float32 and _why_not_on(image.device) is None:
        return float(native(image.contiguous(), target.contiguous(), threads)[1])
    return float(ssim_map(image, target).double().mean())


def ssim_map(image: Tensor, target: Tensor) -> Tensor:
    """Structural similarity of two images [C, H, W] in [0, 1] at every pixel, [C, H, W]."""
    stack = torch.stack([image, target, image * image, target * target, image * target])
    mean_x, mean_y, square_x, square_y, product = _Blur.apply(stack)
    variance_x, variance_y = square_x - mean_x * mean_x, square_y - mean_y * mean_y
    covariance = product - mean_x * mean_y
    numerator = (2 * mean_x * mean_y + C1) * (2 * covariance + C2)
    denominator = (mean_x * mean_x + mean_y * mean_y + C1) * (variance_x + variance_y + C2)
    return numerator / denominator


class _Blur(torch.autograd.Function):
    """The Gaussian window over [..., H, W], zero outside. It is symmetric, so it is its own derivative.

    Sums of shifted images: one sixteenth of the time of a convolution with one channel on the CPU.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        return _blur_axis(_blur_axis(images, -1), -2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _blur_axis(_blur_axis(grads[0], -1), -2)


def _blur_axis(images: Tensor, axis: int) -> Tensor:
    n, half = images.shape[axis], WINDOW // 2
    padded = torch.nn.functional.pad(images, (half, half) if axis == -1 else (0, 0, half, half))
    total = images * WEIGHTS[half]
    for i in range(half):
        pair = padded.narrow(axis, i, n) + padded.narrow(axis, WINDOW - 1 - i, n)
        total.add_(pair, alpha=WEIGHTS[i])
    return total
