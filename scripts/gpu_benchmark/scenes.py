"""What is drawn and trained: Gaussians on a head-sized shell that FLAME's machinery moves, before photographs of
another such shell."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flame_model import FlameModel
from flame_model.flame_assets import FlameAssets
from gaussian_renderer import Renderer, build_renderer
from scene.flame_gaussian_model import FlameGaussianModel
from scene.frames import Split, View
from scene.gaussian_model import GaussianModel
from scene.image_store import ImageStore, Picture
from scene.rigs import FlameRig
from scripts.engine_benchmark.shell import AXES, FREQUENCY, bind, geodesic, head_shell
from utils.contracts import Camera, Mesh, Motion
from utils.engine.device import Device

EXPRESSIONS, IDENTITIES = 100, 10  # of the model; FLAME's expressions
TIMESTEPS = 16
FRONT = 0.75  # of the picture's height that the head fills


@dataclass(frozen=True)
class Size:
    """How many Gaussians, how many pixels, how fine a mesh."""

    gaussians: int
    width: int = 550
    height: int = 802
    frequency: int = FREQUENCY

    @property
    def name(self) -> str:
        count = f"{self.gaussians // 1000}k" if self.gaussians % 1000 == 0 else str(self.gaussians)
        return f"{count}, {self.height} x {self.width}"


@dataclass(frozen=True)
class Scene:
    """An avatar on a device, the frames that it is trained on, and who draws it."""

    size: Size
    device: Device
    avatar: GaussianModel
    frames: Split
    render: Renderer


def make_scene(size: Size, device: Device) -> Scene:
    """A scene on its device; the same numbers every time."""
    render = build_renderer("native")
    shown, avatar = (shell_avatar(size, device, seed) for seed in (1, 0))
    return Scene(size, device, avatar, photographs(size, device, shown, render), render)


def shell_avatar(size: Size, device: Device, seed: int) -> GaussianModel:
    rig = flame_shell(size.frequency, device.torch)
    splats = {name: values.to(device.torch) for name, values in head_shell(size.gaussians, seed).items()}
    bound = bind(splats, rig)  # type: ignore[arg-type] - it wants a rest mesh
    return FlameGaussianModel({n: c.detach() for n, c in bound.columns.items()}, bound.binding, 3, rig)


def flame_shell(frequency: int, device: torch.device | str) -> FlameRig:
    """A closed mesh of head size, with FLAME's joints, correctives and number of expressions, and some motion."""
    random = np.random.default_rng(0)
    vertices, faces = geodesic(frequency)
    vertices = vertices * AXES
    count, height = len(vertices), vertices[:, 1] / AXES[1]
    waves = np.sin(40 * vertices @ random.normal(size=(3, EXPRESSIONS + IDENTITIES)))
    directions = 0.0002 * waves[:, None, :] * random.normal(size=(1, 3, EXPRESSIONS + IDENTITIES))
    near = np.exp(-(((height[:, None] - np.array([-0.9, -0.6, -0.3, 0.3, 0.3])) / 0.3) ** 2))
    assets = FlameAssets(
        template=vertices.astype(np.float32),
        shape_dirs=directions[:, :, EXPRESSIONS:].astype(np.float32),
        expr_dirs=directions[:, :, :EXPRESSIONS].astype(np.float32),
        pose_dirs=(0.0002 * random.normal(size=(count, 3, 36))).astype(np.float32),
        joint_regressor=(near / near.sum(0)).T.astype(np.float32).copy(),
        parents=np.array([-1, 0, 1, 1, 1]),
        weights=(near / near.sum(1, keepdims=True)).astype(np.float32),
        faces=faces.astype(np.int64),
        edition="shell",
        fingerprint="",
        source=Path("shell"),
    )
    flame = FlameModel(assets).to(device)
    return FlameRig(flame, motion(random), "shell", device)


def motion(random: np.random.Generator) -> Motion:
    """Small movements of every parameter."""
    widths = {"rotation": 3, "neck_pose": 3, "jaw_pose": 3, "eyes_pose": 6}
    moved: dict[str, Any] = {name: 0.05 * random.normal(size=(TIMESTEPS, width)) for name, width in widths.items()}
    moved["translation"] = 0.005 * random.normal(size=(TIMESTEPS, 3))
    moved["expr"] = 0.5 * random.normal(size=(TIMESTEPS, EXPRESSIONS))
    per_frame = {name: torch.tensor(values, dtype=torch.float32) for name, values in moved.items()}
    return Motion(per_frame, {"shape": torch.zeros(IDENTITIES)})


@torch.no_grad()
def photographs(size: Size, device: Device, shown: GaussianModel, render: Renderer) -> Split:
    """A picture of each timestep, from as many directions, over white."""
    views, planes = [], []
    for timestep in range(TIMESTEPS):
        camera = camera_at(size, 0.6 * np.sin(timestep), 0.1 * np.cos(timestep))
        there = camera.to(device.torch)
        image = render(shown.on(shown.rig(timestep)), there, torch.ones(3, device=device.torch), with_depth=False).image
        planes.append(image.clamp(0, 1).mul(255).round().byte().cpu().numpy().reshape(-1))
        file = Path(f"{timestep}.png")
        views.append(View(camera, timestep, timestep, str(timestep), str(timestep), file, None, None, "train"))
    shape = (size.width, size.height)
    store = ImageStore(np.concatenate(planes), [Picture(view.image, None, shape, shape, 255) for view in views])
    return Split(views, range(len(views)), store, torch.ones(3))


def camera_at(size: Size, yaw: float, pitch: float) -> Camera:
    """A metre away from the head, from a little beside and above the front."""
    turn = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    nod = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
    pose = np.eye(4)
    pose[:3, :3], pose[2, 3] = nod @ turn, 1.0
    focal = FRONT * size.height / (2 * AXES[1])
    matrix = np.array([[focal, 0, size.width / 2], [0, focal, size.height / 2], [0, 0, 1]])
    return Camera(torch.tensor(pose, dtype=torch.float32), torch.tensor(matrix, dtype=torch.float32), size.width,
                  size.height)  # fmt: skip


def still(scene: Scene) -> Mesh:
    """The mesh of the first timestep, without a way back to FLAME."""
    with torch.no_grad():
        return scene.avatar.rig(0)


def first_camera(scene: Scene) -> Camera:
    return replace(scene.frames.views[0].camera).to(scene.device.torch)
