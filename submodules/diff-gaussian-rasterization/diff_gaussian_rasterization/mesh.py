"""Which triangle is seen at every pixel: an exact z-buffer for meshes. Forward only."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._library import check, library, thread_count

COORDINATE_LIMIT = float(2**20 - 1)  # pixels; keeps the 64-bit edge functions of csrc/mesh.cpp free of overflow
SIDE_LIMIT = 16384  # pixels


def rasterize_mesh(
    vertices: Tensor | np.ndarray,
    faces: Tensor | np.ndarray,
    width: int,
    height: int,
    near: float = 0.01,
    threads: int | None = None,
) -> tuple[Any, ...]:
    """Find the nearest triangle at every pixel centre.

    Both windings are drawn. Coordinates are rounded to 1/1024 pixel; coverage is exact after that, with the top-left
    rule, so a pixel centre on an edge that two triangles share belongs to exactly one of them. At equal depth the lower
    face index wins. Triangles with a vertex at z <= near are not drawn (there is no clipping). Same bits for any thread
    count.

    Args:
        vertices: [V, 3] float32: screen x, y in pixels (the centre of the top-left pixel is (0.5, 0.5), y down) and
            camera depth z. Where z > near, |x| and |y| must be below 2^20; elsewhere they are not looked at.
        faces: [F, 3] int32 or int64 indices into `vertices`.
        width, height: of the image, 1 to 16384 pixels.
        near: in the unit of z, positive.
        threads: None = one per usable CPU.

    Returns:
        face_id [H, W] int32, -1 = empty; barycentrics [H, W, 3] float32 in [0, 1], perspective-correct, 0 where empty;
        depth [H, W] float32, infinite where empty. NumPy arrays if `vertices` is one, else CPU tensors.

    Raises:
        ValueError: wrong shape, type or range; names the argument and the row.
    """
    points = _rows_of_three("vertices", vertices, (np.float32,))
    corners = _rows_of_three("faces", faces, (np.int32, np.int64))
    _check_size(width, height, near)
    _check_points(points, near)
    corners = _checked_faces(corners, len(points))
    face_id = np.empty((height, width), np.int32)
    barycentrics = np.empty((height, width, 3), np.float32)
    depth = np.empty((height, width), np.float32)
    check(
        library().mien_mesh_rasterize(
            _address(points),
            ctypes.c_int64(len(points)),
            _address(corners),
            ctypes.c_int64(len(corners)),
            width,
            height,
            ctypes.c_float(near),
            thread_count(threads),
            _address(face_id),
            _address(barycentrics),
            _address(depth),
        )
    )
    results = (face_id, barycentrics, depth)
    return results if isinstance(vertices, np.ndarray) else tuple(map(torch.from_numpy, results))


def _rows_of_three(name: str, values: Tensor | np.ndarray, types: tuple[type, ...]) -> np.ndarray:
    if isinstance(values, Tensor):
        if values.device.type != "cpu":
            raise ValueError(f"{name}: is on {values.device}, expected a CPU tensor")
        values = values.detach().numpy()
    expected = " or ".join(np.dtype(t).name for t in types)
    if not isinstance(values, np.ndarray) or values.dtype not in types:
        found = getattr(values, "dtype", type(values).__name__)
        raise ValueError(f"{name}: found {found}, expected a tensor or array of {expected}")
    if values.ndim != 2 or values.shape[1] != 3:
        raise ValueError(f"{name}: found shape {list(values.shape)}, expected [n, 3]")
    return np.ascontiguousarray(values)


def _check_size(width: int, height: int, near: float) -> None:
    for name, side in (("width", width), ("height", height)):
        if not isinstance(side, (int, np.integer)) or not 1 <= side <= SIDE_LIMIT:
            raise ValueError(f"{name}: found {side}, expected an integer from 1 to {SIDE_LIMIT}")
    if not 0.0 < near < float("inf"):
        raise ValueError(f"near: found {near}, expected a positive number")


def _check_points(points: np.ndarray, near: float) -> None:
    z = points[:, 2]
    # Behind the near plane a projection may be anything; a NaN depth is never right.
    wrong = ~np.isfinite(z)
    if not wrong.any():
        with np.errstate(invalid="ignore"):
            wrong = (z > np.float32(near)) & ~(np.abs(points[:, :2]) <= COORDINATE_LIMIT).all(axis=1)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ValueError(
            f"vertices: row {row} is {points[row].tolist()}, expected finite z and, before the camera, |x|, |y| < 2^20"
        )


def _checked_faces(faces: np.ndarray, vertices: int) -> np.ndarray:
    if len(faces) > 2**31 - 1:
        raise ValueError(f"faces: found {len(faces)} rows, expected less than 2^31")
    if faces.size and (faces.min() < 0 or faces.max() >= vertices):
        row = int(np.argmax(((faces < 0) | (faces >= vertices)).any(axis=1)))
        raise ValueError(f"faces: row {row} is {faces[row].tolist()}, expected indices from 0 to {vertices - 1}")
    return np.ascontiguousarray(faces, dtype=np.int32)


def _address(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
