"""Where to cut a piece of fixed size out of a picture, so that it shows some points."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from utils.contracts import Camera
from utils.maths.projection import project, to_camera


@torch.no_grad()
def bounds_in_picture(points: Tensor, camera: Camera) -> tuple[int, int, int, int] | None:
    """The pixels that points [V, 3] (world, metres) span in a picture: left, top, right, bottom (these two exclusive).

    Points before the near plane or beside the picture don't count; None if none is left. Waits for a GPU once.
    """
    seen = to_camera(points, camera.world_to_camera)
    pixels = project(seen, camera.intrinsics)
    size = torch.tensor([camera.width, camera.height], device=points.device)
    inside = (seen[:, 2] > camera.near) & ((pixels >= 0) & (pixels < size)).all(1)
    low = torch.where(inside[:, None], pixels, math.inf).amin(0)
    high = torch.where(inside[:, None], pixels, -math.inf).amax(0)
    left, top, right, bottom = torch.cat([low, high]).tolist()
    if left > right:
        return None
    return math.floor(left), math.floor(top), math.floor(right) + 1, math.floor(bottom) + 1


def place_crop(bounds: tuple[int, int], side: int, length: int, share: float) -> int:
    """Where a crop of `side` pixels begins along an axis of `length` >= `side` pixels: within the picture, around what
    lies in `bounds` (begin, end); a `share` in [0, 1) of the way along it if that is longer than the crop."""
    begin, end = bounds
    slack = side - (end - begin)
    wanted = begin - slack // 2 if slack >= 0 else begin + math.floor(share * (1 - slack))
    return min(max(wanted, 0), length - side)
