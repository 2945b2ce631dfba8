"""A tiny capture in the VHAP export layout, written without the code under test: own PNG writer, plain json."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

CAMERAS, TIMESTEPS, TRAIN_TIMESTEPS = 3, 4, 3
WIDTH, HEIGHT = 24, 20
VAL_CAMERA = 2
EXPRESSIONS, SHAPES, VERTICES = 5, 7, 11


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(pixels: np.ndarray, colour: int | None = None, depth: int = 8, extra: bytes = b"") -> bytes:
    """PNG bytes of [H, W, C] (big-endian samples of `depth` bits); `extra` chunks go before the pixels."""
    height, width, channels = pixels.shape
    colour = {1: 0, 3: 2, 4: 6}[channels] if colour is None else colour
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2" if depth == 16 else "u1").tobytes() for row in pixels)
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def matte_of(timestep: int, camera: int) -> np.ndarray:
    """[H, W, 1] uint8: a soft-edged block that moves; zero at the border."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    distance = np.maximum(np.abs(x - 12 - camera), np.abs(y - 9 - timestep))
    return np.clip((8 - distance) * 64, 0, 255).astype(np.uint8)[..., None]


def foreground_of(timestep: int, camera: int) -> np.ndarray:
    """[H, W, 3] uint8: the subject without a matte."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([(9 * x + 20 * timestep) % 256, (11 * y + 30 * camera) % 256, (5 * x + 7 * y) % 256], -1).astype(
        np.uint8
    )


def over(foreground: np.ndarray, matte: np.ndarray, level: float) -> np.ndarray:
    """Rounded compositing in floating point."""
    m = matte / 255.0
    return np.floor(foreground * m + level * (1.0 - m) + 0.5).astype(np.uint8)


def camera_to_world(camera: int) -> np.ndarray:
    """OpenGL camera-to-world [4, 4]: turned about y and x, at 1 m, looking near the origin."""
    a, b = 0.3 * (camera - 1), 0.1 * camera
    turn = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    tilt = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    matrix = np.eye(4)
    matrix[:3, :3] = turn @ tilt
    matrix[:3, 3] = matrix[:3, 2] + [0.01, 0.02, 0.03]
    return matrix


def frame_of(timestep: int, camera: int) -> dict[str, Any]:
    name = f"{timestep:05d}_{camera:02d}.png"
    fx, fy = 60.0 + camera, 61.0 + camera
    return {
        "timestep_index": timestep,
        "timestep_index_original": 2 * timestep,
        "timestep_id": f"frame_{timestep}",
        "camera_index": camera,
        "camera_id": f"2222{camera}",
        "cx": 11.5 + camera,
        "cy": 8.25 - camera,
        "fl_x": fx,
        "fl_y": fy,
        "w": WIDTH,
        "h": HEIGHT,
        "camera_angle_x": 2 * np.arctan(WIDTH / (2 * fx)),
        "camera_angle_y": 2 * np.arctan(HEIGHT / (2 * fy)),
        "transform_matrix": camera_to_world(camera).tolist(),
        "file_path": f"images/{name}",
        "fg_mask_path": f"fg_masks/{name}",
        "flame_param_path": f"flame_param/{timestep:05d}.npz",
    }


def flame_params(timestep: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(timestep)
    sizes = {"translation": 3, "rotation": 3, "neck_pose": 3, "jaw_pose": 3, "eyes_pose": 6, "expr": EXPRESSIONS}
    values = {name: rng.normal(size=(1, size)).astype(np.float32) for name, size in sizes.items()}
    values["shape"] = np.linspace(-1, 1, SHAPES).astype(np.float32)
    values["static_offset"] = np.full((1, VERTICES, 3), 0.001, np.float32)
    return values


def split_of(timestep: int, camera: int) -> str:
    if timestep >= TRAIN_TIMESTEPS:
        return "test"
    return "val" if camera == VAL_CAMERA else "train"


def make_capture(folder: Path) -> Path:
    """Write the capture into `folder` (made here) and return it."""
    for name in ("images", "fg_masks", "flame_param"):
        (folder / name).mkdir(parents=True)
    frames: dict[str, list[dict[str, Any]]] = {"train": [], "val": [], "test": []}
    for timestep in range(TIMESTEPS):
        np.savez(folder / f"flame_param/{timestep:05d}.npz", **flame_params(timestep))
        for camera in range(CAMERAS):
            frame, matte = frame_of(timestep, camera), matte_of(timestep, camera)
            image = over(foreground_of(timestep, camera), matte, 255)
            (folder / frame["file_path"]).write_bytes(png(image))
            (folder / frame["fg_mask_path"]).write_bytes(png(matte))
            frames[split_of(timestep, camera)].append(frame)
    np.savez(folder / "canonical_flame_param.npz", **flame_params(0))
    for split, members in frames.items():
        write_transforms(folder, split, members)
    return folder


def write_transforms(folder: Path, split: str, frames: list[dict[str, Any]]) -> None:
    (folder / f"transforms_{split}.json").write_text(json.dumps({"frames": frames}))


def read_transforms(folder: Path, split: str = "train") -> list[dict[str, Any]]:
    return json.loads((folder / f"transforms_{split}.json").read_text())["frames"]
