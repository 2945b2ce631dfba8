"""What is drawn and trained: head shells of several sizes, or a trained avatar before one of its photographs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scene.flame_gaussian_model import FlameGaussianModel
from scene.frames import Split, View
from scene.gaussian_model import GaussianModel
from scene.image_store import ImageStore, Picture
from scripts.engine_benchmark.bounds import Facts
from scripts.engine_benchmark.shell import FREQUENCY, MovingShell, bind, head_shell
from utils.contracts import Camera, Frame
from utils.errors import InputError

SPLATS = ("means", "quats", "scales", "opacities", "sh")


@dataclass(frozen=True)
class Shell:
    """A head shell: how many splats, how many pixels."""

    splats: int
    width: int
    height: int
    frequency: int = FREQUENCY  # of the mesh

    @property
    def name(self) -> str:
        size = str(self.width) if self.width == self.height else f"{self.width}x{self.height}"
        return f"{self.splats // 1000}k/{size}"


SHELLS = tuple(Shell(n, size, size) for size in (256, 512) for n in (10_000, 50_000))
LARGE_SHELLS = tuple(Shell(n, 550, 802) for n in (50_000, 100_000, 200_000))
SCENES: Mapping[str, Shell] = {shell.name: shell for shell in (*SHELLS, *LARGE_SHELLS)}


@dataclass
class Scene:
    """An avatar, a photograph of it, and the splats that a rasteriser draws of it."""

    name: str
    avatar: GaussianModel
    frames: Split
    index: int  # of the frame that is trained on
    splats: dict[str, Tensor]  # names of SPLATS, activated, in the world; no gradient
    losses: Mapping[str, Any] = field(default_factory=dict)  # options by name in LOSSES, where not the defaults

    @property
    def camera(self) -> Camera:
        return self.frames.views[self.index].camera

    @property
    def frame(self) -> Frame:
        return self.frames[self.index]


def shell_scene(shell: Shell) -> Scene:
    """A head shell, bound to a mesh of its shape, before the picture of another one."""
    splats = head_shell(shell.splats)
    view = camera(shell.width, shell.height)
    other = draw(head_shell(shell.splats, seed=1), view, torch.ones(3))
    photograph = other.clamp(0.0, 1.0).mul(255.0).round().to(torch.uint8).numpy()
    file, size = Path("shell.png"), (shell.width, shell.height)
    store = ImageStore(np.ascontiguousarray(photograph).reshape(-1), [Picture(file, None, size, size, 255)])
    views = (View(view, 0, None, "0", "shell", file, None, None, "train"),)
    frames = Split(views, (0,), store, torch.ones(3))
    return Scene(shell.name, bind(splats, MovingShell(shell.frequency)), frames, 0, splats)


def camera(width: int, height: int) -> Camera:
    """A metre away, a little from the side; the head fills 3/4 of the height."""
    yaw, pitch = 0.35, -0.1
    turn = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    nod = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
    pose = np.eye(4)
    pose[:3, :3], pose[2, 3] = nod @ turn, 1.0
    focal = 0.75 * height / 0.22
    intrinsics = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    return Camera(torch.tensor(pose, dtype=torch.float32), torch.tensor(intrinsics, dtype=torch.float32), width, height)


def avatar_scene(folder: Path, overrides: Mapping[str, Any]) -> Scene:
    """A trained avatar before the middle photograph of its training frames, in the dataset's own resolution.

    Raises:
        InputError: not a trained avatar that is bound to a mesh, or not its dataset.
    """
    from utils.engine.build import load_run

    run = load_run(folder, -1, {**overrides, "device": "cpu", "rasterizer": "native"})
    if not run.avatar.rig.bound:
        raise InputError(folder, "", "found Gaussians that are bound to nothing, expected an avatar on a mesh")
    index = len(run.dataset.train) // 2
    view = run.dataset.train.views[index]
    with torch.no_grad():
        placed = run.avatar.place_on(run.avatar.rig(view.timestep))
    splats = {name: getattr(placed, name).contiguous() for name in SPLATS}
    name = f"avatar {len(run.avatar) / 1000:.1f}k/{view.camera.width}x{view.camera.height}"
    return Scene(name, run.avatar, run.dataset.train, index, splats, run.options.losses)


def draw(splats: Mapping[str, Tensor], view: Camera, background: Tensor, threads: int | None = None) -> Tensor:
    """[3, H, W], by the engine, without depth: as training draws."""
    from diff_gaussian_rasterization import rasterize

    return rasterize(
        *(splats[name] for name in SPLATS),
        sh_degree=round(splats["sh"].shape[1] ** 0.5) - 1,
        world_to_camera=view.world_to_camera,
        intrinsics=view.intrinsics,
        width=view.width,
        height=view.height,
        background=background,
        with_depth=False,
        threads=threads,
    )[0]


def facts_of(scene: Scene) -> Facts:
    """The size of a scene; what its picture takes is counted by drawing it once."""
    from diff_gaussian_rasterization._calls import Workspace

    draw(scene.splats, scene.camera, torch.zeros(3))
    pairs, blocks = Workspace.idle()[-1].work()
    rig, view = scene.avatar.rig, scene.camera
    flame = rig.flame.basis.numel() if isinstance(scene.avatar, FlameGaussianModel) else 0  # type: ignore[attr-defined]
    return Facts(
        gaussians=len(scene.avatar),
        coefficients=scene.splats["sh"].shape[1],
        pairs=pairs,
        blocks=blocks,
        pixels=view.width * view.height,
        faces=rig.faces.shape[0],
        vertices=rig.rest_mesh().vertices.shape[0],
        flame_floats=flame,
    )
