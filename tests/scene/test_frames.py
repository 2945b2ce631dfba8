"""Cameras, sizes and the order of frames."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scene.cameras import (
    Intrinsics,
    camera_extent,
    make_camera,
    opencv_from_opengl,
    rigid_fault,
    target_size,
)
from scene.frames import background_colour, index_at, order
from utils.contracts import Camera
from utils.errors import InputError


@given(seed=st.integers(0, 2**63), epoch=st.integers(0, 10**9), n=st.integers(1, 300))
@settings(max_examples=50, deadline=None)
def test_order_is_a_permutation_and_a_pure_function(seed: int, epoch: int, n: int) -> None:
    first = order(seed, epoch, n).copy()
    assert sorted(first) == list(range(n))
    order.cache_clear()
    np.testing.assert_array_equal(order(seed, epoch, n), first)


def test_orders_differ_between_epochs_and_seeds() -> None:
    orders = {tuple(order(seed, epoch, 50)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_every_epoch_visits_every_frame_once() -> None:
    visited = [index_at(7, step, 13) for step in range(39)]
    for epoch in range(3):
        part = visited[13 * epoch : 13 * epoch + 13]
        assert sorted(part) == list(range(13)) and part == order(7, epoch, 13).tolist()


def test_positions_in_an_epoch_are_uniform() -> None:
    """The first frame of an epoch is each of 8 frames about equally often (chi-squared, 7 degrees of freedom)."""
    counts = np.bincount([index_at(0, 8 * epoch, 8) for epoch in range(2000)], minlength=8)
    assert ((counts - 250) ** 2 / 250).sum() < 24.3  # p = 0.001


def test_order_can_not_be_changed_and_needs_frames() -> None:
    with pytest.raises(ValueError, match="read-only"):
        order(0, 0, 3)[0] = 1
    with pytest.raises(ValueError, match="no frames"):
        order(0, 0, 0)


def test_background_colour() -> None:
    assert background_colour(True).tolist() == [1, 1, 1] and background_colour(False).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    "size, resolution, expected",
    [
        ((802, 550), -1, (802, 550)),
        ((3208, 2200), -1, (1600, 1097)),
        ((2200, 3208), -1, (1600, 2333)),
        ((1600, 9), -1, (1600, 9)),
        ((802, 550), 1, (802, 550)),
        ((802, 550), 2, (401, 275)),
        ((3208, 2200), 8, (401, 275)),
        ((802, 550), 401, (401, 275)),
        ((10, 1000), 3, (3, 300)),
        ((8, 7), 2, (4, 4)),
        ((4, 2), 8, (1, 1)),
    ],
)
def test_target_size(size: tuple[int, int], resolution: int, expected: tuple[int, int]) -> None:
    assert target_size(*size, resolution) == expected


@pytest.mark.parametrize("resolution", [0, -2, 100_000])
def test_target_size_refuses(resolution: int) -> None:
    with pytest.raises(InputError, match="--resolution"):
        target_size(10, 10, resolution)


def random_rigid(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    matrix = np.eye(4)
    matrix[:3, :3] = rotation * np.sign(np.linalg.det(rotation))
    matrix[:3, 3] = rng.normal(size=3)
    return matrix


@pytest.mark.parametrize("seed", range(5))
def test_opencv_from_opengl(seed: int) -> None:
    """The same point in both camera frames: x agrees, y and z change sign."""
    camera_to_world = random_rigid(seed)
    assert rigid_fault(camera_to_world) == ""
    point = np.array([0.1, -0.4, 0.7, 1.0])
    in_opengl = np.linalg.inv(camera_to_world) @ point
    np.testing.assert_allclose(opencv_from_opengl(camera_to_world) @ point, in_opengl * [1, -1, -1, 1], atol=1e-12)


def test_resizing_keeps_rays() -> None:
    """A ray through a relative position of the picture stays the same ray."""
    before = Intrinsics(900.0, 880.0, 186.5, 171.25, 360, 300)
    after = before.resized(90, 100)
    for u, v in [(0.0, 0.0), (0.3, 0.9), (1.0, 0.5)]:
        rays = [((u * k.width - k.cx) / k.fx, (v * k.height - k.cy) / k.fy) for k in (before, after)]
        np.testing.assert_allclose(rays[0], rays[1], rtol=1e-12)


def test_camera_extent() -> None:
    k = Intrinsics(1.0, 1.0, 0.0, 0.0, 2, 2)

    def at(*position: float) -> Camera:
        matrix = random_rigid(3)
        matrix[:3, 3] = position
        return make_camera(np.linalg.inv(matrix), k)

    cameras = [at(1.0, 0.0, 0.0), at(-1.0, 0.0, 0.0), at(0.0, 3.0, 0.0)]
    assert camera_extent(cameras) == pytest.approx(1.1 * 2.0, rel=1e-5)  # the mean is (0, 1, 0)
    assert camera_extent(cameras[:1]) == 0.0
    with pytest.raises(ValueError, match="at least one"):
        camera_extent([])
