"""Coloured balls seen from all sides, as a Blender/NeRF scene or a COLMAP model; without the code under test."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.scene.make_capture import png

CENTRES = np.array([[0.0, 0.0, 0.0], [0.75, 0.1, 0.0], [-0.7, -0.1, 0.2], [0.1, 0.65, -0.1], [0.0, -0.2, 0.8]])
RADII = np.array([0.35, 0.25, 0.28, 0.22, 0.3])
COLOURS = np.array([[220, 220, 60], [230, 40, 40], [40, 200, 60], [50, 70, 230], [200, 60, 210]], float)
OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])  # OpenCV camera axes <-> OpenGL camera axes
COLMAP_NUMBERS = {"SIMPLE_PINHOLE": 0, "PINHOLE": 1, "SIMPLE_RADIAL": 2, "OPENCV": 4, "OPENCV_FISHEYE": 5}


@dataclass(frozen=True)
class Lens:
    width: int = 64
    height: int = 64
    fx: float = 80.0
    fy: float = 80.0
    cx: float = 32.0
    cy: float = 32.0  # from the top


OFF_CENTRE = Lens(48, 32, 55.0, 56.5, 25.25, 14.5)


def world_to_camera(index: int, count: int) -> np.ndarray:
    """OpenCV [4, 4]: on a spiral at distance 3, looking at the origin."""
    height, turn = 0.8 - 1.6 * (index + 0.5) / count, 2.4 * index
    centre = 3.0 * np.array([np.sqrt(1 - height**2) * np.sin(turn), height, np.sqrt(1 - height**2) * np.cos(turn)])
    forward = -centre / 3.0
    right = np.cross(forward, [0.0, 1.0, 0.0])
    right /= np.linalg.norm(right)
    matrix = np.eye(4)
    matrix[:3, :3] = [right, np.cross(forward, right), forward]
    matrix[:3, 3] = -matrix[:3, :3] @ centre
    return matrix


def quaternion_of(rotation: np.ndarray) -> np.ndarray:
    """(w, x, y, z): the largest eigenvector of Bar-Itzhack's matrix."""
    (a, b, c), (d, e, f), (g, h, i) = rotation
    k = np.array([[a - e - i, b + d, c + g, h - f], [b + d, e - a - i, f + h, c - g],
                  [c + g, f + h, i - a - e, d - b], [h - f, c - g, d - b, a + e + i]])  # fmt: skip
    x, y, z, w = np.linalg.eigh(k)[1][:, -1]
    return np.array([w, x, y, z]) * (1.0 if w >= 0 else -1.0)


def photograph(lens: Lens, pose: np.ndarray, samples: int = 3) -> np.ndarray:
    """uint8 RGBA [H, W, 4]: rays through samples x samples places of each pixel meet the nearest ball."""
    steps = (np.arange(samples) + 0.5) / samples
    rows, columns = ((np.arange(side)[:, None] + steps).ravel() for side in (lens.height, lens.width))
    v, u = np.meshgrid(rows, columns, indexing="ij")
    rays = np.stack([(u - lens.cx) / lens.fx, (v - lens.cy) / lens.fy, np.ones_like(u)], -1)
    rays = rays / np.linalg.norm(rays, axis=-1, keepdims=True) @ pose[:3, :3]
    eye = -pose[:3, :3].T @ pose[:3, 3]
    along = rays @ (CENTRES - eye).T
    missed = ((eye - CENTRES) ** 2).sum(-1) - along**2
    depth = np.where(missed < RADII**2, along - np.sqrt(np.maximum(RADII**2 - missed, 0)), np.inf)
    nearest = depth.argmin(-1)
    hit = np.isfinite(depth.min(-1))
    normal = (eye + rays * np.where(hit, depth.min(-1), 0)[..., None] - CENTRES[nearest]) / RADII[nearest][..., None]
    shade = 0.75 + 0.25 * np.sign(np.sin(7 * normal[..., 1]))  # stripes fixed to the ball
    colour = COLOURS[nearest] * (shade * hit)[..., None]
    blocks = np.concatenate([colour, 255.0 * hit[..., None]], -1).reshape(lens.height, samples, lens.width, samples, 4)
    mean = blocks.mean((1, 3))
    mean[..., :3] *= 255.0 / np.maximum(mean[..., 3:], 1e-9)  # straight, not premultiplied
    return np.clip(np.rint(mean), 0, 255).astype(np.uint8)


def surface_points(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy points [N, 3] on the balls, and their colours [N, 3] uint8."""
    rng = np.random.default_rng(0)
    ball, direction = rng.integers(0, len(CENTRES), count), rng.normal(size=(count, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    positions = CENTRES[ball] + RADII[ball, None] * direction + 0.02 * rng.normal(size=(count, 3))
    return positions, COLOURS[ball].astype(np.uint8)


def ply(positions: np.ndarray, colours: np.ndarray) -> bytes:
    """Binary PLY as 3DGS leaves it beside a scene: normals between positions and colours."""
    names = [f"property float {name}" for name in ("x", "y", "z", "nx", "ny", "nz")]
    names += [f"property uchar {name}" for name in ("red", "green", "blue")]
    head = ["ply", "format binary_little_endian 1.0", f"element vertex {len(positions)}", *names, "end_header\n"]
    rows = (struct.pack("<6f3B", *p, 0.0, 0.0, 0.0, *map(int, c)) for p, c in zip(positions, colours, strict=True))
    return "\n".join(head).encode() + b"".join(rows)


def make_blender(folder: Path, cameras: int = 6, test: int = 2, lens: Lens | None = None, points: int = 0) -> Path:
    """A scene of that many training and test cameras: with `camera_angle_x` only, or with a whole `lens`."""
    k = lens or Lens()
    top = {"camera_angle_x": 2 * np.arctan(k.width / (2 * k.fx))}
    if lens:
        top = {"w": k.width, "h": k.height, "fl_x": k.fx, "fl_y": k.fy, "cx": k.cx, "cy": k.cy}
    folder.mkdir(parents=True)
    for split, first, count in (("train", 0, cameras), ("test", cameras, test)):
        (folder / split).mkdir()
        frames = []
        for i in range(count):
            pose = world_to_camera(first + i, cameras + test)
            (folder / f"{split}/r_{i}.png").write_bytes(png(photograph(k, pose)))
            matrix = np.linalg.inv(pose) @ OPENGL
            frames.append({"file_path": f"./{split}/r_{i}", "rotation": 0.01, "transform_matrix": matrix.tolist()})
        (folder / f"transforms_{split}.json").write_text(json.dumps({**top, "frames": frames}))
    if points:
        (folder / "points3d.ply").write_bytes(ply(*surface_points(points)))
    return folder


@dataclass(frozen=True)
class Sparse:
    """What goes into a COLMAP model: plain rows, so that tests can spoil them."""

    cameras: list[tuple]  # id, model, width, height, parameters
    images: list[tuple]  # id, quaternion, translation, camera, name
    points: list[tuple]  # id, xyz, rgb, length of the track


def sparse_of(count: int = 9, lens: Lens = OFF_CENTRE, points: int = 40) -> Sparse:
    """Two cameras of the same lens (odd and even pictures), as SIMPLE_PINHOLE cannot say."""
    parameters = [lens.fx, lens.fy, lens.cx, lens.cy]
    images = []
    for i in range(count):
        pose = world_to_camera(i, count)
        camera = 3 if i % 2 else 7
        # Ids run against the names: readers that sort by id hold out other pictures.
        images.append(
            (100 - i, quaternion_of(pose[:3, :3]).tolist(), pose[:3, 3].tolist(), camera, f"view_{i:02d}.png")
        )
    rows = zip(*surface_points(points), strict=True)
    return Sparse(
        [(7, "PINHOLE", lens.width, lens.height, parameters), (3, "PINHOLE", lens.width, lens.height, parameters)],
        images,
        [(i + 5, p.tolist(), c.tolist(), i % 3) for i, (p, c) in enumerate(rows)],
    )


def binary_files(sparse: Sparse) -> dict[str, bytes]:
    cameras, images, points = [struct.pack("<Q", len(rows)) for rows in (sparse.cameras, sparse.images, sparse.points)]
    for number, model, width, height, parameters in sparse.cameras:
        cameras += struct.pack(f"<IiQQ{len(parameters)}d", number, COLMAP_NUMBERS[model], width, height, *parameters)
    for number, quaternion, translation, camera, name in sparse.images:
        images += struct.pack("<I7dI", number, *quaternion, *translation, camera) + name.encode() + b"\0"
        images += struct.pack("<QddQddQ", 2, 1.5, 2.5, 5, 3.5, 4.5, 2**64 - 1)
    for number, position, colour, track in sparse.points:
        points += struct.pack("<Q3d3BdQ", number, *position, *colour, 0.5, track) + struct.pack("<II", 9, 1) * track
    return {"cameras.bin": cameras, "images.bin": images, "points3D.bin": points}


def text_files(sparse: Sparse) -> dict[str, bytes]:
    def line(*words: object) -> str:
        return " ".join(str(part) for word in words for part in (word if isinstance(word, list) else [word]))

    cameras = [line(*row) for row in sparse.cameras]
    images = []
    for i, row in enumerate(sparse.images):
        images += [line(*row), "1.5 2.5 5 3.5 4.5 -1" if i % 2 else ""]
    points = [line(n, p, c, 0.5, [9, 1] * track) for n, p, c, track in sparse.points]
    named = {"cameras.txt": cameras, "images.txt": images, "points3D.txt": points}
    return {name: "\n".join(["# made by a test", *rows, ""]).encode() for name, rows in named.items()}


def make_colmap(folder: Path, binary: bool = True, sparse: Sparse | None = None, lens: Lens = OFF_CENTRE) -> Path:
    """A folder with `sparse/0` and `images` (black behind the balls)."""
    sparse = sparse or sparse_of(lens=lens)
    (folder / "sparse/0").mkdir(parents=True)
    (folder / "images").mkdir()
    for name, data in (binary_files(sparse) if binary else text_files(sparse)).items():
        (folder / "sparse/0" / name).write_bytes(data)
    count = len(sparse.images)
    for i in range(count):
        picture = photograph(lens, world_to_camera(i, count), samples=2)
        colour = np.rint(picture[..., :3] * (picture[..., 3:] / 255.0)).astype(np.uint8)
        (folder / f"images/view_{i:02d}.png").write_bytes(png(colour))
    return folder
