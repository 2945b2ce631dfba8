"""Our engine: pictures, gradients and whole training steps, by the objects that train.py uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from scene.densification import build_strategy
from scripts.gpu_benchmark.clock import Clock, Times
from scripts.gpu_benchmark.scenes import Scene, first_camera, still
from utils.engine.build import scene_extent
from utils.engine.guard import FiniteGuard
from utils.engine.neighbours import Neighbours
from utils.engine.optimiser import Optimiser
from utils.engine.options import Options, options_from_flags
from utils.engine.step import AutogradStep, Step, Training, build_step
from utils.losses import build_losses

ITERATIONS, START = 30_000, 10_000  # of the run that a step is taken from: all harmonics, statistics still gathered
RATES = ("position_lr_init", "position_lr_final", "feature_lr", "opacity_lr", "scaling_lr", "rotation_lr",
         "flame_expr_lr", "flame_trans_lr", "flame_pose_lr")  # fmt: skip
NOTHING = 1e-30  # a rate that has to be positive


@dataclass
class Measured:
    """What was measured of one thing."""

    what: str
    times: Times | None
    note: str = ""


def pictures(scene: Scene, clock: Clock) -> list[Measured]:
    """A picture of Gaussians on a posed mesh, without gradients."""
    mesh, camera = still(scene), first_camera(scene)
    white = torch.ones(3, device=scene.device.torch)
    columns = scene.avatar.on(mesh)

    @torch.no_grad()
    def draw() -> None:
        scene.render(columns, camera, white, with_depth=False)

    times, how = clock.kernels(draw)
    return [
        Measured("render, kernels", times, how),
        Measured("render, as called from Python", clock.wall(draw), "one after another"),
        Measured("render, each waited for", clock.wall(draw, block=1)),
    ]


def pictures_and_gradients(scene: Scene, clock: Clock) -> list[Measured]:
    """A picture, and its gradient to every column and to the mesh's vertices."""
    mesh, camera = still(scene), first_camera(scene)
    device = scene.device.torch
    white, size = torch.ones(3, device=device), (3, camera.height, camera.width)
    gradient = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(device)
    vertices = mesh.vertices.detach().requires_grad_()
    posed = type(mesh)(vertices, mesh.faces)

    def there_and_back() -> None:
        for tensor in (vertices, *scene.avatar.columns.values()):
            tensor.grad = None
        image = scene.render(scene.avatar.on(posed), camera, white, with_depth=False).image
        image.backward(gradient)

    times, how = clock.kernels(there_and_back)
    return [
        Measured("forward + backward, kernels", times, how),
        Measured("forward + backward, as called from Python", clock.wall(there_and_back), "one after another"),
    ]


@dataclass
class Steps:
    """A run that can be stepped."""

    training: Training
    take: Step
    how: str
    number: int = START

    def __call__(self) -> None:
        self.number += 1
        self.training.optimiser.schedule(self.number)
        self.take(self.number)

    def settle(self) -> None:
        """Wait until what was asked for is known to be done, and well."""
        self.training.guard.poll()


def steps(scene: Scene, views: int, captured: bool, moving: bool = False) -> Steps:
    """A run in the middle of its training.

    Args:
        views: of a step. captured: whole as a CUDA graph, where that can be; else by autograd. moving: with the default
            rates; else with rates of (almost) 0, so that every step draws the same pictures.
    """
    options = run_options(scene, views, captured, moving)
    avatar, device = scene.avatar, scene.device
    avatar.sh_degree = avatar.max_sh_degree
    frames = scene.frames.on(device, "auto", views)
    optimiser = Optimiser(options.optimiser, avatar, scene_extent("head", avatar.rig, []), True)
    strategy = build_strategy(options.densification, ITERATIONS, optimiser.extent, 0, True, avatar)
    guard = FiniteGuard(device.accelerated, lambda _: None)
    losses, neighbours = build_losses(options.losses), Neighbours(frames, avatar, scene.render, None)
    training = Training(options, device, frames, avatar, optimiser, strategy, scene.render, losses, guard, neighbours)
    take, how = build_step(training) if captured else (AutogradStep(training), "step: autograd")
    return Steps(training, take, how)


def run_options(scene: Scene, views: int, captured: bool, moving: bool) -> Options:
    flags = {"source_path": "shell", "iterations": ITERATIONS, "batch_size": views, "sh_interval": 1,
             "device": scene.device.name, "step": "auto" if captured else "autograd", "bind_to_mesh": True,
             "densification": "none" if moving else "gradient"}  # fmt: skip
    return options_from_flags(flags if moving else {**flags, **dict.fromkeys(RATES, NOTHING)}, "benchmark")


def training_steps(scene: Scene, clock: Clock, views: int, captured: bool) -> list[Measured]:
    """The step of a batch of views, per view."""
    run = steps(scene, views, captured)
    if captured and isinstance(run.take, AutogradStep):
        raise RuntimeError(f"the step can't be captured: {run.how}")
    name = "training step" if views == 1 else f"training step, batch of {views}, per view"
    name += "" if captured else ", autograd"
    kernels, how = clock.kernels(run, run.settle)
    whole = clock.wall(run, run.settle)
    rows = [] if kernels is None else [Measured(f"{name}, kernels", per_view(kernels, views), how)]
    return [*rows, Measured(name, per_view(whole, views), run.how.removeprefix("step: "))]


def per_view(times: Times, views: int) -> Times:
    return Times(times.median / views, times.low / views, times.high / views, times.calls)


def frames_per_second(scene: Scene, clock: Clock) -> list[Measured]:
    """A moving avatar: FLAME parameters to picture, another timestep each time."""
    camera, white = first_camera(scene), torch.ones(3, device=scene.device.torch)
    turn = iter_timesteps(scene.avatar.rig.timesteps)

    @torch.no_grad()
    def draw() -> None:
        mesh = scene.avatar.rig(turn())
        scene.render(scene.avatar.on(mesh), camera, white, with_depth=False)

    return [
        Measured("avatar with mesh update", clock.wall(draw), "one after another"),
        Measured("avatar with mesh update, each waited for", clock.wall(draw, block=1)),
    ]


def iter_timesteps(count: int) -> Callable[[], int]:
    state = {"at": -1}

    def turn() -> int:
        state["at"] = (state["at"] + 1) % count
        return state["at"]

    return turn
