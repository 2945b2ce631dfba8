"""Consecutive pictures of one camera: do renders move as photographs do (docs/metrics.md)?

Pictures are uint8 [H, W, 3], RGB.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from utils.io.take_record import FrameRecord

PRESET = cv2.DISOPTICAL_FLOW_PRESET_MEDIUM
LEAST_SIDE = 16  # pixels; below, DIS has no level to search on
SOLID = 127  # of a matte; more is foreground
PLAIN = 2  # levels; a pixel that is no further from the background is background


@dataclass(frozen=True)
class Step:
    """Two consecutive pictures of one camera."""

    first: str  # their files
    second: str


def steps_of(frames: Sequence[FrameRecord]) -> list[Step]:
    """All pairs of pictures of one camera and one recording, a timestep apart."""
    place = {(frame.camera_id, frame.sequence, frame.timestep): frame.file for frame in frames}
    return [
        Step(file, place[camera, sequence, timestep + 1])
        for (camera, sequence, timestep), file in place.items()
        if (camera, sequence, timestep + 1) in place
    ]


def psnr_frame_variance(psnr: Mapping[str, float], frames: Sequence[FrameRecord]) -> float | None:
    """Mean over cameras of the variance of PSNR[t + 1] - PSNR[t], dB^2; None without a camera that has two of these.

    Args:
        psnr: by file.
    """
    camera_of = {frame.file: frame.camera_id for frame in frames}
    differences: dict[str, list[float]] = {}
    for step in steps_of(frames):
        differences.setdefault(camera_of[step.first], []).append(psnr[step.second] - psnr[step.first])
    variances = [float(np.var(values)) for values in differences.values() if len(values) > 1]
    return float(np.mean(variances)) if variances else None


def foreground(truth: np.ndarray, mask: np.ndarray | None, background: Sequence[float]) -> np.ndarray:
    """bool [H, W]: the matte is over a half or, without one, the photograph isn't the background.

    Args:
        mask: uint8 [H, W, 1]. background: of the take, RGB in [0, 1].
    """
    if mask is not None:
        return mask[..., 0] > SOLID
    plain = np.rint(255 * np.asarray(background)).astype(np.int16)
    return np.any(np.abs(truth.astype(np.int16) - plain) > PLAIN, axis=-1, keepdims=True)[..., 0]


def use_one_thread() -> None:
    """DIS cuts a picture into as many stripes as OpenCV has threads, and the flow depends on them."""
    cv2.setNumThreads(1)


def flow(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Where the pixels of the first picture go, float32 [H, W, 2] (x, y) pixels.

    Dense inverse search (Kroeger, Timofte, Dai, Van Gool 2016, "Fast optical flow using dense inverse search").
    """
    grey = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (first, second)]
    found = np.zeros((*first.shape[:2], 2), np.float32)
    return cv2.DISOpticalFlow.create(PRESET).calc(grey[0], grey[1], found)


def flow_error(
    renders: tuple[np.ndarray, np.ndarray], truths: tuple[np.ndarray, np.ndarray], inside: np.ndarray
) -> float | None:
    """Mean over the pixels `inside` [H, W] of the distance between the flow of renders and of photographs, pixels."""
    if min(inside.shape) < LEAST_SIDE or not inside.any():
        return None
    distance = np.linalg.norm(flow(*renders) - flow(*truths), axis=-1)
    return float(distance[inside].mean(dtype=np.float64))


def temporal_stability(
    renders: tuple[np.ndarray, np.ndarray], truths: tuple[np.ndarray, np.ndarray], inside: np.ndarray
) -> float | None:
    """1 - sum |dR - dG| / sum (|dR| + |dG|) over pixels `inside` [H, W] and channels: dR and dG are how render and
    photograph change from one picture to the next. 1: they change alike; 0: they have no change in common."""
    if not inside.any():
        return None
    render, truth = (pair[1][inside].astype(np.int64) - pair[0][inside] for pair in (renders, truths))
    total = int(np.abs(render).sum() + np.abs(truth).sum())
    return 1.0 - int(np.abs(render - truth).sum()) / total if total else 1.0
