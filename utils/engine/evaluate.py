"""Held-out quality during training."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from gaussian_renderer import Renderer
from utils.contracts import Frame, Mesh, RiggedSplats
from utils.engine.metrics import Scores, mean_scores, score


class Avatar(Protocol):
    """What evaluation needs of an avatar."""

    def rig(self, timestep: int) -> Mesh: ...

    def on(self, mesh: Mesh) -> RiggedSplats: ...


class Frames(Protocol):
    """A split of a dataset, or a list of frames."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Frame: ...


@torch.no_grad()
def evaluate(avatar: Avatar, render: Renderer, split: Frames, background: Tensor, threads: int | None = None) -> Scores:
    """Means over the frames of a split of psnr, psnr_channel_mean, psnr_foreground, ssim, l1 (`utils.engine.metrics`).

    Renders are clamped to [0, 1] but stay floats; `metrics.py` reads 8-bit PNGs, whose rounding adds 1.3e-6 to the
    squared error: 0.01 dB at 33 dB.
    One frame is in memory at a time. An empty split gives an empty dict; psnr_foreground is None without mattes.

    Args:
        background: [3] in [0, 1], drawn behind the splats; the one that the frames were composited over.
        threads: of the metrics; None: one per CPU. The result is the same.
    """
    return mean_scores(_score_frame(avatar, render, split[i], background, threads) for i in range(len(split)))


def _score_frame(avatar: Avatar, render: Renderer, frame: Frame, background: Tensor, threads: int | None) -> Scores:
    splats = avatar.on(avatar.rig(frame.timestep))
    device = splats.means.device
    image = render(splats, frame.camera.to(device), background.to(device), with_depth=False).image
    truth = frame.image.to(device)
    mask = None if frame.mask is None else frame.mask.to(device)
    return score(image.clamp(0, 1), truth, mask, threads)
