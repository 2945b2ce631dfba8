"""Cameras on an orbit around a head, or around what the cameras of an unbound scene look at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from scene.cameras import camera_centres
from scene.rigs import Rig
from utils.contracts import Camera
from utils.errors import InputError

MOMENTS = 16  # timesteps whose meshes say where the head is
ELEVATION = 1 / 3, 15.0  # of an orbit's swing to the side, but at most so many degrees
FIT_SIDE, FIT_FOCAL = 512, 1024.0  # pixels
FIT_DISTANCE = 5.0  # half heights of the head: it fills 80 % of that picture


def swing(degrees: float, phase: float) -> tuple[float, float]:
    """Azimuth and elevation in radians at a phase in [0, 1] of an orbit."""
    turn, (share, most) = 2 * math.pi * phase, ELEVATION
    upward = math.radians(min(share * degrees, most))
    return math.radians(degrees) * math.sin(turn), upward * math.sin(2 * turn)


@dataclass(frozen=True)
class Sphere:
    """Cameras on a sphere that look at its centre, in the middle of their pictures."""

    centre: Tensor  # [3] metres
    front: Tensor  # [3] unit, from the centre to the camera at azimuth and elevation 0
    up: Tensor  # [3] unit, at right angles to `front`
    distance: float  # metres
    lens: Camera  # focal lengths and picture size

    def camera(self, azimuth: float, elevation: float) -> Camera:
        """Azimuth turns from `front` towards `up` x `front`, elevation towards `up`; radians."""
        side = torch.linalg.cross(self.up, self.front)
        level = math.cos(azimuth) * self.front + math.sin(azimuth) * side
        outward = math.cos(elevation) * level + math.sin(elevation) * self.up
        right = unit(torch.linalg.cross(-outward, self.up))
        axes = torch.stack([right, torch.linalg.cross(-outward, right), -outward])  # x right, y down, z forward
        pose = torch.eye(4, dtype=torch.float64)
        pose[:3, :3], pose[:3, 3] = axes, -axes @ (self.centre + self.distance * outward)
        return replace(self.lens, world_to_camera=pose.float(), intrinsics=centred(self.lens))


def centred(lens: Camera) -> Tensor:
    """Intrinsics with the principal point in the middle."""
    fx, fy = float(lens.intrinsics[0, 0]), float(lens.intrinsics[1, 1])
    return torch.tensor([[fx, 0.0, lens.width / 2], [0.0, fy, lens.height / 2], [0.0, 0.0, 1.0]])


@torch.no_grad()
def around_head(rig: Rig, cameras: Sequence[Camera], size: tuple[int, int] = (FIT_SIDE, FIT_SIDE)) -> Sphere:
    """Around the middle of the posed head's bounds, averaged over its motion; the front is the world's +z.

    Args:
        cameras: the first gives focal lengths, picture size and distance; empty: fitted to the head.
        size: of the fitted pictures, (width, height) in pixels; the head fills 80 % of the shorter side.
    """
    moments = np.linspace(0, rig.timesteps - 1, min(MOMENTS, rig.timesteps)).round().astype(int)
    bounds = [torch.stack([v.amin(0), v.amax(0)]).double().cpu() for v in (rig(int(t)).vertices for t in moments)]
    low, high = torch.stack(bounds).mean(0)
    centre, half_height = (low + high) / 2, float(high[1] - low[1]) / 2
    front, up = torch.eye(3, dtype=torch.float64)[[2, 1]]
    if cameras:
        lens = cameras[0].to("cpu")
        distance = float((camera_centres([lens])[0].double() - centre).norm())
    else:
        focal = FIT_FOCAL * min(size) / FIT_SIDE
        lens = Camera(torch.eye(4), torch.diag(torch.tensor([focal, focal, 1.0])), *size)
        distance = FIT_DISTANCE * half_height
    return Sphere(centre, front, up, distance, lens)


def around_scene(cameras: Sequence[Camera]) -> Sphere:
    """Around the point nearest to all cameras' axes (least squares), from the first camera, with their mean up.

    Raises:
        InputError: that point is not before the first camera: the cameras look at no common place.
    """
    centres = camera_centres(cameras).double().numpy()
    rotations = torch.stack([camera.world_to_camera[:3, :3] for camera in cameras]).double().numpy()
    axes = rotations[:, 2]
    across = np.eye(3) - axes[:, :, None] * axes[:, None, :]  # takes away what lies along an axis
    target = np.linalg.lstsq(across.sum(0), (across @ centres[..., None]).sum(0)[:, 0], rcond=1e-9)[0]
    offset = torch.from_numpy(centres[0] - target)
    if float(offset @ torch.from_numpy(axes[0])) >= 0:
        raise InputError("command line", "--orbit", "the cameras of this scene look at no common place")
    front = unit(offset)
    up = level_up(-rotations[:, 1].mean(0), front)
    up = up if float(up.norm()) > 1e-3 else level_up(-rotations[0, 1], front)
    return Sphere(torch.from_numpy(target), front, unit(up), float(offset.norm()), cameras[0].to("cpu"))


def level_up(up: np.ndarray, front: Tensor) -> Tensor:
    """The part of `up` at right angles to `front`."""
    upward = torch.from_numpy(up)
    return upward - (upward @ front) * front


def unit(vector: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vector, dim=0)
