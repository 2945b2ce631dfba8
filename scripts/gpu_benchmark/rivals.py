"""gsplat (Apache-2.0) on the same Gaussians, cameras and photographs, with the fused SSIM and Adam that are there."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scripts.gpu_benchmark.clock import Clock
from scripts.gpu_benchmark.ours import Measured, per_view
from scripts.gpu_benchmark.scenes import Scene, still
from utils.losses.photometric import ssim as torch_ssim

SHARE_OF_SSIM = 0.2
LEARNT = ("means", "quats", "scales", "opacities", "sh")


class Absent(Exception):
    """Something that is compared with is not on this machine; says why."""


def load_gsplat() -> Any:
    """The module.

    Raises:
        Absent: it is not installed, or can't draw on this machine.
    """
    try:
        module = importlib.import_module("gsplat")
        version = importlib.metadata.version("gsplat")
        kernels = importlib.import_module("gsplat.cuda._backend")._C
    except (ImportError, OSError, RuntimeError, IndexError) as error:
        raise Absent(f"gsplat: {error}") from error
    if kernels is None:
        raise Absent(f"gsplat {version}: its CUDA kernels are missing")
    return module


def version() -> str:
    return importlib.metadata.version("gsplat")


def choose_ssim() -> tuple[Callable[[Tensor, Tensor], Tensor], str]:
    """Mean SSIM of two pictures [1, 3, H, W]: the fused kernel where it is installed, and its name."""
    try:
        fused = importlib.import_module("fused_ssim").fused_ssim
    except (ImportError, OSError) as error:
        return lambda a, b: torch_ssim(a[0], b[0]), f"SSIM of PyTorch (fused_ssim is missing: {error})"
    return lambda a, b: fused(a, b, padding="same"), "fused_ssim"


def world_splats(scene: Scene) -> dict[str, Tensor]:
    """The scene's Gaussians in the world, activated, on the mesh of the first timestep."""
    with torch.no_grad():
        placed = scene.avatar.place_on(still(scene))
    return {name: getattr(placed, name).detach().clone() for name in LEARNT}


def draw(gsplat: Any, splats: dict[str, Tensor], poses: Tensor, matrices: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, H, W, 3] over white."""
    white = torch.ones(len(poses), 3, device=poses.device)
    return gsplat.rasterization(
        splats["means"], splats["quats"], splats["scales"], splats["opacities"], splats["sh"], poses, matrices, *size,
        sh_degree=3, near_plane=0.01, far_plane=100.0, packed=False, backgrounds=white,
    )[0]  # fmt: skip


def pictures(gsplat: Any, scene: Scene, clock: Clock) -> list[Measured]:
    """As `ours.pictures`; the Gaussians are in the world already, which spares gsplat the rig."""
    splats, tables = world_splats(scene), scene.frames.tables
    device, size = scene.device.torch, (scene.size.width, scene.size.height)
    poses, matrices = tables.world_to_camera[:1].to(device), tables.intrinsics[:1].to(device)

    @torch.no_grad()
    def call() -> None:
        draw(gsplat, splats, poses, matrices, size)

    times, how = clock.kernels(call)
    return [
        Measured("render, kernels", times, how),
        Measured("render, as called from Python", clock.wall(call), "one after another"),
        Measured("render, each waited for", clock.wall(call, block=1)),
    ]


def pictures_and_gradients(gsplat: Any, scene: Scene, clock: Clock) -> list[Measured]:
    """As `ours.pictures_and_gradients`, without the way through the rig."""
    splats, tables = {n: v.requires_grad_() for n, v in world_splats(scene).items()}, scene.frames.tables
    device, size = scene.device.torch, (scene.size.width, scene.size.height)
    poses, matrices = tables.world_to_camera[:1].to(device), tables.intrinsics[:1].to(device)
    gradient = torch.randn((1, size[1], size[0], 3), generator=torch.Generator().manual_seed(0)).to(device)

    def call() -> None:
        for value in splats.values():
            value.grad = None
        draw(gsplat, splats, poses, matrices, size).backward(gradient)

    times, how = clock.kernels(call)
    return [
        Measured("forward + backward, kernels", times, how),
        Measured("forward + backward, as called from Python", clock.wall(call), "one after another"),
    ]


def training_steps(gsplat: Any, scene: Scene, clock: Clock, views: int) -> list[Measured]:
    """A trainer as its users write it: activations, `rasterization`, L1 and SSIM, Adam. No rig, no densification."""
    step, how = trainer(gsplat, scene, views)
    name = "training step" if views == 1 else f"training step, batch of {views}, per view"
    kernels, kind = clock.kernels(step)
    rows = [] if kernels is None else [Measured(f"{name}, kernels", per_view(kernels, views), kind)]
    return [*rows, Measured(name, per_view(clock.wall(step), views), f"{how}; no rig")]


def trainer(gsplat: Any, scene: Scene, views: int) -> tuple[Callable[[], None], str]:
    """One step of it; and what it is made of."""
    raw, ssim_of, device = world_splats(scene), choose_ssim(), scene.device.torch
    raw["scales"], raw["opacities"] = raw["scales"].log(), raw["opacities"].logit()
    raw["sh0"], raw["shN"] = raw["sh"][:, :1].contiguous(), raw.pop("sh")[:, 1:].contiguous()
    learnt = {name: value.requires_grad_() for name, value in raw.items()}
    adam = torch.optim.Adam([{"params": [value], "lr": 0.0} for value in learnt.values()], eps=1e-15, fused=True)
    frames, tables = scene.frames, scene.frames.tables
    photographs = torch.stack([(frame.image * 255).round().byte() for frame in frames]).to(device)
    poses, matrices = tables.world_to_camera.to(device), tables.intrinsics.to(device)
    size, state = (scene.size.width, scene.size.height), {"at": 0}

    def step() -> None:
        rows = [(state["at"] + view) % len(frames) for view in range(views)]
        state["at"] += views
        splats = {
            "means": learnt["means"], "quats": learnt["quats"], "scales": learnt["scales"].exp(),
            "opacities": learnt["opacities"].sigmoid(), "sh": torch.cat([learnt["sh0"], learnt["shN"]], 1),
        }  # fmt: skip
        drawn = draw(gsplat, splats, poses[rows], matrices[rows], size).permute(0, 3, 1, 2).contiguous()
        truth = photographs[rows].float() / 255
        absolute = (drawn - truth).abs().mean()
        alike = torch.stack([ssim_of[0](a[None], b[None]) for a, b in zip(drawn, truth, strict=True)]).mean()
        ((1 - SHARE_OF_SSIM) * absolute + SHARE_OF_SSIM * (1 - alike)).backward()
        adam.step()
        adam.zero_grad(set_to_none=True)

    return step, f"gsplat {version()}, Adam(fused=True), {ssim_of[1]}"
