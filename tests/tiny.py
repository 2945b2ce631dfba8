"""A tiny head (an ellipsoid in FLAME's file format) and a tiny capture of it: a whole training run in a second."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np

from tests.scene.make_capture import CAMERAS, TIMESTEPS, make_capture

RINGS, SECTORS = 7, 10


def ellipsoid() -> tuple[np.ndarray, np.ndarray]:
    """Vertices [V, 3] in metres and outward faces [F, 3] of a closed ellipsoid of head size."""
    rows = []
    for ring in range(1, RINGS + 1):
        polar, azimuth = np.pi * ring / (RINGS + 1), 2 * np.pi * np.arange(SECTORS) / SECTORS
        rows.append(np.stack([np.sin(polar) * np.sin(azimuth), np.full(SECTORS, np.cos(polar)),
                              np.sin(polar) * np.cos(azimuth)], -1))  # fmt: skip
    vertices = np.concatenate([[[0, 1, 0]], *rows, [[0, -1, 0]]]) * [0.08, 0.12, 0.1]
    faces, last = [], len(vertices) - 1
    for sector in range(SECTORS):
        after = (sector + 1) % SECTORS
        faces.append((0, 1 + sector, 1 + after))
        faces.append((last, last - SECTORS + after, last - SECTORS + sector))
        for ring in range(RINGS - 1):
            a, b = 1 + ring * SECTORS, 1 + (ring + 1) * SECTORS
            faces += [(a + sector, b + sector, b + after), (a + sector, b + after, a + after)]
    return vertices, np.array(faces)


def write_model(path: Path) -> Path:
    """A pickle with FLAME's keys: 5 joints along the height, expressions that bend the surface, pose correctives."""
    rng = np.random.default_rng(0)
    vertices, faces = ellipsoid()
    count = len(vertices)
    directions = np.zeros((count, 3, 305))
    directions[:, :, :7] = 0.002 * rng.normal(size=(1, 3, 7)) * vertices[:, :1, None] / 0.08
    directions[:, :, 300:] = (
        0.004 * np.sin(np.arange(1, 6) * 20 * vertices[:, 1:2])[:, None, :] * rng.normal(size=(1, 3, 5))
    )
    height = (vertices[:, 1] + 0.12) / 0.24
    weights = np.stack([np.exp(-(((height - centre) / 0.3) ** 2)) for centre in (0.1, 0.3, 0.5, 0.7, 0.8)], -1)
    regressor = np.exp(-(((height[None] - np.array([[0.0], [0.2], [0.4], [0.7], [0.7]])) / 0.1) ** 2))
    model = {
        "v_template": vertices, "shapedirs": directions, "posedirs": 0.0005 * rng.normal(size=(count, 3, 36)),
        "J_regressor": regressor / regressor.sum(1, keepdims=True), "weights": weights / weights.sum(1, keepdims=True),
        "kintree_table": np.array([[2**32 - 1, 0, 1, 1, 1], [0, 1, 2, 3, 4]], np.uint32),
        "f": faces.astype(np.uint32), "edition": "tiny",
    }  # fmt: skip
    path.write_bytes(pickle.dumps(model, protocol=2))
    return path


def write_masks(path: Path) -> Path:
    """FLAME's 14 region names over bands of the ellipsoid."""
    names = ("face", "neck", "scalp", "boundary", "right_eyeball", "left_eyeball", "right_ear", "left_ear", "forehead",
             "eye_region", "nose", "lips", "right_eye_region", "left_eye_region")  # fmt: skip
    count = len(ellipsoid()[0])
    path.write_bytes(pickle.dumps({name: np.arange(i, count, 3) for i, name in enumerate(names)}, protocol=2))
    return path


def write_tiny(folder: Path) -> list[str]:
    """Write model and capture under `folder`; returns the flags that train on them."""
    folder.mkdir(parents=True, exist_ok=True)
    model, masks = write_model(folder / "head.pkl"), write_masks(folder / "masks.pkl")
    capture = make_capture(folder / "capture")
    rng = np.random.default_rng(1)
    widths = {"translation": 3, "rotation": 3, "neck_pose": 3, "jaw_pose": 3, "eyes_pose": 6, "expr": 5}
    for timestep in range(TIMESTEPS):
        values = {name: 0.02 * rng.normal(size=(1, width)).astype(np.float32) for name, width in widths.items()}
        values["shape"] = np.linspace(-1, 1, 7).astype(np.float32)
        np.savez(capture / f"flame_param/{timestep:05d}.npz", **values)
    return ["-s", str(capture), "--bind_to_mesh", "--eval", "--white_background", "--flame_model", str(model),
            "--flame_masks", str(masks), "--quiet"]  # fmt: skip


TRAIN_FRAMES = (CAMERAS - 1) * 3
