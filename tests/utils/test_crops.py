"""Crops lie in the picture and show what they are for."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from utils.contracts import Camera
from utils.maths.crops import bounds_in_picture, place_crop


@given(st.data())
def test_a_crop_is_inside_the_picture_and_holds_what_fits(data: st.DataObject) -> None:
    length = data.draw(st.integers(32, 900))
    side = data.draw(st.integers(32, length))
    begin = data.draw(st.integers(0, length - 1))
    end = data.draw(st.integers(begin + 1, length))
    share = data.draw(st.floats(0, 1, exclude_max=True))
    start = place_crop((begin, end), side, length, share)
    assert 0 <= start and start + side <= length
    if end - begin <= side:
        assert start <= begin and end <= start + side
        free = 0 < start < length - side  # in the middle, unless the picture's border is in the way
        assert not free or abs((begin - start) - (start + side - end)) <= 1
    else:
        assert begin <= start and start + side <= end


def test_a_long_region_is_seen_from_end_to_end() -> None:
    starts = {place_crop((100, 180), 64, 400, k * 0.7548776662466927 % 1) for k in range(200)}
    assert starts == set(range(100, 117))


def camera(rotation: np.ndarray | None = None) -> Camera:
    pose = np.eye(4, dtype=np.float32)
    pose[:3, :3] = np.eye(3) if rotation is None else rotation
    pose[2, 3] = 1.0
    intrinsics = torch.tensor([[200.0, 0, 50], [0, 220.0, 40], [0, 0, 1]])
    return Camera(torch.from_numpy(pose), intrinsics, 100, 80)


@given(st.integers(0, 2**32 - 1))
def test_bounds_hold_every_point_in_the_picture_and_touch_some(seed: int) -> None:
    """Each point projected by hand."""
    points = np.random.default_rng(seed).uniform([-0.4, -0.3, -1.6], [0.4, 0.3, 1.0], (20, 3)).astype(np.float32)
    inside = []
    for x, y, z in points + [0, 0, 1]:
        if z > 0.01:
            u, v = 200 * x / z + 50, 220 * y / z + 40
            if 0 <= u < 100 and 0 <= v < 80:
                inside.append((int(np.floor(u + 1e-9)), int(np.floor(v + 1e-9))))
    bounds = bounds_in_picture(torch.from_numpy(points), camera())
    if not inside:
        assert bounds is None
        return
    assert bounds is not None
    expected = (min(u for u, _ in inside), min(v for _, v in inside), max(u for u, _ in inside) + 1,
                max(v for _, v in inside) + 1)  # fmt: skip
    assert max(abs(a - b) for a, b in zip(bounds, expected, strict=True)) <= 1  # a float's rounding at a pixel's edge
    assert 0 <= bounds[0] < bounds[2] <= 100 and 0 <= bounds[1] < bounds[3] <= 80


def test_nothing_in_the_picture_has_no_bounds() -> None:
    for away in ([3.0, 0, 0], [0, 0, -2.0], [0, 0, -0.995]):  # beside it, behind the camera, before the near plane
        assert bounds_in_picture(torch.tensor([away]), camera()) is None
