"""Image quality: the definitions in use for head avatars, each under its own name, because papers mix them.

| name | definition |
|---|---|
| psnr | whole image: one mean squared error over all pixels and channels (offline scripts of the literature) |
| psnr_channel_mean | mean of the PSNRs of the three channels, never lower than psnr (training logs of the literature) |
| psnr_foreground | squared error weighted by the matte, so that a plain background doesn't inflate the figure |
| ssim | Wang et al. 2004: 11x11 Gaussian window, sigma 1.5, zero padding, mean over pixels and channels |
| l1 | mean absolute error |

Images are [3, H, W] float tensors in [0, 1], mattes [1, H, W] in [0, 1]. LPIPS is in `utils/perceptual_networks.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from utils.losses.photometric import similarity

PSNR_CEILING = 100.0  # dB; two equal images would give infinity, which has no mean and no place in JSON

Scores = dict[str, float | None]  # None: not defined for this view


def image_tensor(pixels: np.ndarray) -> Tensor:
    """uint8 [H, W, C] -> float [C, H, W] in [0, 1]."""
    return torch.from_numpy(pixels).permute(2, 0, 1) / 255


def psnr(image: Tensor, truth: Tensor) -> float:
    """Peak signal-to-noise ratio over the whole image, dB, at most `PSNR_CEILING`."""
    return decibels(float((image - truth).double().square().mean()))


def psnr_channel_mean(image: Tensor, truth: Tensor) -> float:
    """Mean over the channels of the PSNR of each, dB. By Jensen's inequality >= `psnr`."""
    errors = (image - truth).double().square().mean(dim=(1, 2)).tolist()
    return sum(map(decibels, errors)) / len(errors)


def psnr_foreground(image: Tensor, truth: Tensor, mask: Tensor | None) -> float | None:
    """PSNR inside the matte m, dB: MSE = sum(m (a - b)^2) / (3 sum m). None without a matte or where it is all zero."""
    if mask is None:
        return None
    weight = float(mask.double().sum())
    if weight <= 0:
        return None
    squared = float((mask * (image - truth).double().square()).sum())
    return decibels(squared / (image.shape[0] * weight))


def l1(image: Tensor, truth: Tensor) -> float:
    """Mean absolute error, in units of the full range."""
    return float((image - truth).abs().double().mean())


def ssim(image: Tensor, truth: Tensor, threads: int | None = None) -> float:
    """Structural similarity (Wang, Bovik, Sheikh, Simoncelli 2004, eq. 13), mean over pixels and channels."""
    return similarity(image, truth, threads)


def score(image: Tensor, truth: Tensor, mask: Tensor | None, threads: int | None = None) -> Scores:
    """All metrics of this module for one view, under the names of the table above.

    Args:
        threads: of the native kernel; None: one per CPU. The result is the same.
    """
    return {
        "psnr": psnr(image, truth),
        "psnr_channel_mean": psnr_channel_mean(image, truth),
        "psnr_foreground": psnr_foreground(image, truth, mask),
        "ssim": ssim(image, truth, threads),
        "l1": l1(image, truth),
    }


def mean_scores(views: Iterable[Mapping[str, float | None]]) -> Scores:
    """Mean over the views of each metric; views where it is None don't count; None where no view has it."""
    columns: dict[str, list[float]] = {}
    for view in views:
        for name, value in view.items():
            columns.setdefault(name, []).extend([] if value is None else [value])
    return {name: math.fsum(values) / len(values) if values else None for name, values in columns.items()}


def decibels(mean_squared_error: float) -> float:
    """PSNR of values in [0, 1], at most `PSNR_CEILING`."""
    if mean_squared_error <= 0:
        return PSNR_CEILING
    return min(PSNR_CEILING, -10 * math.log10(mean_squared_error))
