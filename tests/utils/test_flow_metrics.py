"""Consecutive pictures: motion that is known, sums written out."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from utils.engine.flow_metrics import (
    Step,
    flow,
    flow_error,
    foreground,
    psnr_frame_variance,
    steps_of,
    temporal_stability,
    use_one_thread,
)
from utils.io.take_record import FrameRecord

HEIGHT, WIDTH = 96, 128


def texture(right: float = 0.0, down: float = 0.0) -> np.ndarray:
    """A smooth pattern, moved; uint8 [H, W, 3]."""
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float64)
    x, y = x - right, y - down
    waves = np.sin(x / 5) * np.cos(y / 6) + 0.6 * np.sin((x + 2 * y) / 9) + 0.4 * np.cos((2 * x - y) / 13)
    levels = np.clip(128 + 55 * waves, 0, 255).round().astype(np.uint8)
    return np.repeat(levels[..., None], 3, axis=2)


def inner() -> np.ndarray:
    inside = np.zeros((HEIGHT, WIDTH), bool)
    inside[16:-16, 16:-16] = True
    return inside


def frames(*places: tuple[str, int, int]) -> list[FrameRecord]:
    return [FrameRecord(f"{k:05d}.png", "x", *place) for k, place in enumerate(places)]


def test_steps_join_consecutive_timesteps_of_one_camera_and_recording() -> None:
    listed = frames(("a", 0, 0), ("b", 0, 0), ("a", 1, 0), ("b", 2, 0), ("a", 2, 1), ("b", 1, 0), ("a", 3, 1))
    expected = {("00000.png", "00002.png"), ("00001.png", "00005.png"), ("00005.png", "00003.png"),
                ("00004.png", "00006.png")}  # fmt: skip
    assert {(step.first, step.second) for step in steps_of(listed)} == expected and len(steps_of(listed)) == 4
    assert steps_of(listed)[0] == Step("00000.png", "00002.png")


def test_variance_of_the_psnr_from_frame_to_frame() -> None:
    listed = frames(("a", 0, 0), ("a", 1, 0), ("a", 2, 0), ("a", 3, 0), ("b", 0, 0), ("b", 1, 0), ("b", 2, 0))
    values = [30.0, 31.0, 33.0, 33.0, 20.0, 24.0, 22.0]
    psnr = {frame.file: value for frame, value in zip(listed, values, strict=True)}
    # differences of a: 1, 2, 0 (mean 1, variance 2 / 3); of b: 4, -2 (mean 1, variance 9)
    assert psnr_frame_variance(psnr, listed) == pytest.approx((2 / 3 + 9) / 2)
    assert psnr_frame_variance(psnr, listed[:2]) is None
    lonely = [*listed[:4], *frames(*[("c", 0, 0)] * 8)[7:]]
    assert psnr_frame_variance({**psnr, "00007.png": 1.0}, lonely) == pytest.approx(2 / 3)


def test_foreground_by_matte_or_by_background() -> None:
    picture = np.full((2, 3, 3), 255, np.uint8)
    picture[0, 0, 2], picture[0, 1, 0], picture[1, 2] = 200, 253, 252
    expected = [[True, False, False], [False, False, True]]
    assert foreground(picture, None, (1.0, 1.0, 1.0)).tolist() == expected
    assert foreground(picture, None, (0.0, 0.0, 0.0)).all()
    matte = np.array([[0, 127, 128], [255, 1, 0]], np.uint8)[..., None]
    assert foreground(picture, matte, (1.0, 1.0, 1.0)).tolist() == [[False, False, True], [True, False, False]]


def test_flow_finds_a_known_shift() -> None:
    found = flow(texture(), texture(right=3.0, down=-2.0))[inner()]
    assert np.abs(found - [3.0, -2.0]).max() < 0.5 and np.abs(found.mean(0) - [3.0, -2.0]).max() < 0.1


def test_flow_error_is_the_distance_between_two_motions() -> None:
    truths = (texture(), texture(right=1.0))
    assert flow_error(truths, truths, inner()) == 0
    assert flow_error((texture(), texture(right=4.0, down=4.0)), truths, inner()) == pytest.approx(5.0, abs=0.15)
    assert flow_error((texture(), texture()), truths, inner()) == pytest.approx(1.0, abs=0.1)


def test_flow_error_counts_the_foreground_alone() -> None:
    moved = texture(right=3.0)
    truths, renders = (texture(), texture()), (texture(), np.where(inner()[..., None], texture(), moved))
    assert flow_error(renders, truths, inner()) < 0.5 < flow_error(renders, truths, ~inner())  # type: ignore[operator]
    assert flow_error(renders, truths, np.zeros((HEIGHT, WIDTH), bool)) is None


def test_small_pictures_have_no_flow() -> None:
    small = (texture()[:15, :40], texture()[:15, :40])
    assert flow_error(small, small, np.ones((15, 40), bool)) is None
    least = (texture()[:16, :16], texture()[:16, :16])
    assert flow_error(least, least, np.ones((16, 16), bool)) == 0


def test_flow_does_not_depend_on_opencv_s_threads() -> None:
    before = cv2.getNumThreads()
    try:
        cv2.setNumThreads(4)
        use_one_thread()
        first = flow(texture(), texture(right=2.5))
        assert cv2.getNumThreads() == 1 and np.array_equal(first, flow(texture(), texture(right=2.5)))
    finally:
        cv2.setNumThreads(before)


def test_stability_is_the_share_of_the_change_that_is_alike() -> None:
    inside = np.array([[True, True, False]])
    truths = tuple(np.array([[row, row, row]], np.uint8).transpose(0, 2, 1) for row in ([10, 20, 0], [30, 20, 255]))
    renders = tuple(np.array([[row, row, row]], np.uint8).transpose(0, 2, 1) for row in ([0, 50, 9], [10, 40, 9]))
    # the photograph changes by (20, 0), the render by (10, -10): differ by 10 and 10 of 20 + 0 and 10 + 10
    assert temporal_stability(renders, truths, inside) == pytest.approx(1 - 20 / 40)  # type: ignore[arg-type]
    assert temporal_stability(truths, truths, inside) == 1  # type: ignore[arg-type]
    assert temporal_stability(renders, truths, ~np.ones((1, 3), bool)) is None  # type: ignore[arg-type]


def test_stability_ignores_lasting_errors_and_sees_flicker_and_stillness() -> None:
    rng = np.random.default_rng(0)
    truths, everywhere = (texture() // 2 + 60, texture(right=2.0) // 2 + 60), np.ones((HEIGHT, WIDTH), bool)
    lasting = rng.integers(-20, 20, truths[0].shape)
    steady = tuple((truth + lasting).astype(np.uint8) for truth in truths)
    flickering = (steady[0], (truths[1] - lasting).astype(np.uint8))
    assert temporal_stability(steady, truths, everywhere) == 1  # type: ignore[arg-type]
    assert temporal_stability(flickering, truths, everywhere) < 0.6  # type: ignore[operator]
    assert temporal_stability((truths[0], truths[0]), truths, everywhere) == 0
    assert temporal_stability((truths[0], truths[0]), (truths[0], truths[0]), everywhere) == 1
