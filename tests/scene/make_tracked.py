"""Folders of metrical-tracker and FlashAvatar, written without the code under test, and where a vertex must be seen."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from scipy.spatial.transform import Rotation

from flame_model import FlameAssets, FlameModel, load_flame
from scene.frames import Dataset, View
from tests.flame_model import synthetic
from tests.flame_model.test_model import reference
from tests.scene.make_capture import png
from utils.maths.projection import project, to_camera

EXPRESSIONS, SHAPES, VERTICES = 12, 20, 40
SIZE = (64, 64)  # width, height


def head(folder: Path) -> FlameAssets:
    """A small random FLAME model."""
    return load_flame(synthetic.write(folder / "model.pkl", synthetic.fields(VERTICES, EXPRESSIONS)))


def turns(frame: int) -> dict[str, Rotation]:
    """The rotations of a frame: jaw, left and right eye, and the camera's."""
    rng = np.random.default_rng(frame)
    names = {"jaw": 0.3, "left": 0.4, "right": 0.4, "camera": 1.0}
    return {name: Rotation.from_rotvec(scale * rng.normal(size=3)) for name, scale in names.items()}


def six(rotation: Rotation) -> np.ndarray:
    """The 6-D form: the first two rows of the matrix."""
    return rotation.as_matrix()[:2].reshape(6)


def tracked(frame: int, size: tuple[int, int] = SIZE) -> dict[str, Any]:
    """The content of a `.frame` file, as numpy arrays; what Mien does not read is there too."""
    rng = np.random.default_rng(1000 + frame)
    turned = turns(frame)
    focal, centre = 1.7 * max(size) + frame, np.array(size) / 2 + [1.5, -0.75]
    return {
        "opencv": {
            "R": turned["camera"].as_matrix()[None].astype(np.float32),
            "t": np.array([[0.02, -0.03, 0.9 + 0.01 * frame]], np.float32),
            "K": np.array([[[focal, 0, centre[0]], [0, focal + 2, centre[1]], [0, 0, 1]]], np.float32),
        },
        "camera": {"R": np.eye(3)[None], "t": np.zeros((1, 3)), "fl": np.ones((1, 1)), "pp": np.zeros((1, 2))},
        "flame": {
            "exp": rng.normal(size=(1, EXPRESSIONS)).astype(np.float32),
            "shape": np.linspace(-1, 1, SHAPES, dtype=np.float32)[None],
            "tex": np.zeros((1, 50), np.float32),
            "sh": np.zeros((1, 9, 3), np.float32),
            "jaw": six(turned["jaw"])[None].astype(np.float32),
            "eyes": np.concatenate([six(turned["left"]), six(turned["right"])])[None].astype(np.float32),
            "eyelids": np.zeros((1, 2), np.float32),
        },
        "img_size": np.array(size[::-1]),
        "frame_id": f"{frame:05d}",
        "global_step": 1000,
    }


def as_tensors(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: as_tensors(value) for key, value in content.items()}
    return torch.from_numpy(content) if isinstance(content, np.ndarray) else content


def write_frame(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)


def grey_of(number: int) -> int:
    """The level by which a picture is told from the others."""
    return 20 + 10 * number


def write_picture(path: Path, level: int, size: tuple[int, int] = SIZE, channels: int = 3) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((size[1], size[0], channels), level, np.uint8)
    path.write_bytes(png(pixels) if path.suffix == ".png" else cv2.imencode(".jpg", pixels)[1].tobytes())


def write_metrical(folder: Path, count: int = 4, first_picture: int = 0, size: tuple[int, int] = SIZE) -> Path:
    """Frames 0, 1, ... with pictures that start at another number."""
    for frame in range(count):
        write_frame(folder / f"checkpoint/{frame:05d}.frame", tracked(frame, size))
        write_picture(folder / f"images/{frame + first_picture:05d}.png", grey_of(frame), size)
    return folder


def expected_pixels(assets: FlameAssets, content: dict[str, Any], frame: int) -> np.ndarray:
    """[V, 2]: FLAME by its definition with the tracker's parameters, then K (R x + t)."""
    turned, flame, camera = turns(frame), content["flame"], content["opencv"]
    eyes = np.concatenate([turned["left"].as_rotvec(), turned["right"].as_rotvec()])
    pose = {"rotation": np.zeros(3), "neck_pose": np.zeros(3), "translation": np.zeros(3), "eyes_pose": eyes}
    pose |= {"jaw_pose": turned["jaw"].as_rotvec(), "expr": flame["exp"][0].astype(float)}
    none = np.zeros((VERTICES, 3))
    vertices = reference(assets, flame["shape"][0].astype(float), none, none, pose)
    seen = (vertices @ camera["R"][0].astype(float).T + camera["t"][0]) @ camera["K"][0].astype(float).T
    assert (seen[:, 2] > 0.1).all()
    return seen[:, :2] / seen[:, 2:]


def found_pixels(assets: FlameAssets, data: Dataset, view: View) -> np.ndarray:
    """[V, 2]: where our motion, head model and camera put the vertices of a view's timestep."""
    assert data.motion is not None
    model = FlameModel(assets)
    row = {name: values[view.timestep] for name, values in data.motion.per_frame.items()}
    vertices = model.posed(model.fold_identity(data.motion.static["shape"]), **row)
    return project(to_camera(vertices, view.camera.world_to_camera), view.camera.intrinsics).numpy()


def all_views(data: Dataset) -> list[View]:
    return list(itertools.chain(*(split.views for split in data.splits().values())))
