"""Cameras: from the conventions of dataset files to ours, and what is derived from a set of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from utils.contracts import Camera
from utils.errors import InputError

MAX_AUTOMATIC_WIDTH = 1600  # pixels; wider pictures are reduced unless a resolution is asked for (as in 3DGS)
ORTHONORMAL_TOLERANCE = 1e-3
FARTHEST = 1e6  # metres


@dataclass(frozen=True)
class Intrinsics:
    """A pinhole in pixels of its picture; cy counts from the top."""

    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int

    def resized(self, width: int, height: int) -> Intrinsics:
        """The same pinhole for the picture resized to width x height.

        Pixel coordinates start at the corner of the picture (the first centre is at 0.5), so they only scale.
        """
        sx, sy = width / self.width, height / self.height
        return Intrinsics(self.fx * sx, self.fy * sy, self.cx * sx, self.cy * sy, width, height)


def opencv_from_opengl(camera_to_world: np.ndarray) -> np.ndarray:
    """World-to-camera [4, 4] with OpenCV axes from camera-to-world [4, 4] with OpenGL axes (x right, y up, z back)."""
    flipped = np.array(camera_to_world, dtype=np.float64)
    flipped[:3, 1:3] *= -1.0
    return np.linalg.inv(flipped)


def rigid_fault(matrix: np.ndarray) -> str:
    """Why a [4, 4] matrix is not a rigid motion (to 1e-3), or an empty string."""
    rotation = matrix[:3, :3]
    if not np.abs(matrix[:3, 3]).max() <= FARTHEST:
        return f"found a camera {np.abs(matrix[:3, 3]).max():.3g} m from the origin, expected at most {FARTHEST:g}"
    if np.abs(matrix[3] - [0.0, 0.0, 0.0, 1.0]).max() > 1e-6:
        return f"found last row {matrix[3].tolist()}, expected [0, 0, 0, 1]"
    with np.errstate(over="ignore", invalid="ignore"):
        deviation = np.abs(rotation.T @ rotation - np.eye(3)).max()
    if not deviation <= ORTHONORMAL_TOLERANCE:
        return f"found a rotation part that is {deviation:.3g} from orthonormal, expected {ORTHONORMAL_TOLERANCE:g}"
    if np.linalg.det(rotation) < 0.0:
        return "found a rotation part that mirrors (determinant -1), expected +1"
    return ""


def matrix_fault(matrix: np.ndarray) -> str:
    """Why a [3, 3] matrix is not that of a pinhole without skew (to 1e-6), or an empty string."""
    if np.abs(matrix[[0, 1, 2, 2, 2], [1, 0, 0, 1, 2]] - [0.0, 0.0, 0.0, 0.0, 1.0]).max() > 1e-6:
        return f"found {matrix.tolist()}, expected [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]"
    return ""


def pinhole_fault(pinhole: Intrinsics) -> str:
    """Why focal lengths or principal point are impossible, or an empty string."""
    k = pinhole
    if not (1e-3 <= k.fx <= 1e9 and 1e-3 <= k.fy <= 1e9):
        return f"found focal lengths {k.fx:g}, {k.fy:g} px, expected positive ones"
    if not (abs(k.cx) <= 100 * k.width and abs(k.cy) <= 100 * k.height):
        return f"found a principal point at {k.cx:g}, {k.cy:g} px of {k.width}x{k.height}, expected near the centre"
    return ""


def make_camera(world_to_camera: np.ndarray, intrinsics: Intrinsics, far: float = Camera.far) -> Camera:
    """Our Camera (float32) from a [4, 4] OpenCV world-to-camera matrix and a pinhole; `far` in units of the world."""
    k = intrinsics
    matrix = [[k.fx, 0.0, k.cx], [0.0, k.fy, k.cy], [0.0, 0.0, 1.0]]
    return Camera(
        torch.tensor(world_to_camera, dtype=torch.float32),
        torch.tensor(matrix, dtype=torch.float32),
        k.width,
        k.height,
        far=far,
    )


def target_size(width: int, height: int, resolution: int) -> tuple[int, int]:
    """(width, height) in pixels that `--resolution` asks for.

    1, 2, 4 and 8 divide; -1 keeps pictures up to 1600 pixels wide and reduces wider ones to that; another number is the
    width itself. The height follows, rounded.

    Raises:
        InputError: the resolution is none of these.
    """
    if resolution == 0 or resolution < -1 or resolution > 16384:
        raise InputError("command line", "--resolution", f"found {resolution}, expected -1, 1, 2, 4, 8 or a width")
    if resolution in (1, 2, 4, 8):
        new_width = max(1, round(width / resolution))
    elif resolution == -1:
        new_width = min(width, MAX_AUTOMATIC_WIDTH)
    else:
        new_width = resolution
    scale = resolution if resolution in (1, 2, 4, 8) else width / new_width
    return new_width, max(1, round(height / scale))


def camera_centres(cameras: Sequence[Camera]) -> torch.Tensor:
    """[n, 3] camera positions in the world, metres."""
    matrices = torch.stack([camera.world_to_camera for camera in cameras])
    return -(matrices[:, :3, :3].transpose(1, 2) @ matrices[:, :3, 3:])[..., 0]


def camera_extent(cameras: Sequence[Camera]) -> float:
    """1.1 x the largest distance of a camera from the mean camera position, metres (the scene extent of 3DGS).

    Zero for one static camera, which is why only the preset `gaussian_avatars` uses it.
    """
    if not cameras:
        raise ValueError("camera_extent needs at least one camera")
    centres = camera_centres(cameras)
    return 1.1 * float((centres - centres.mean(dim=0)).norm(dim=1).max())
