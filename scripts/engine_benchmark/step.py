"""One training step, as train.py takes it: the same objects, the same calls."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch

from gaussian_renderer import Renderer, build_renderer
from scene.densification import STRATEGIES, DensificationOptions
from scene.densification.gradient import GradientStrategy
from scene.gaussian_model import GaussianModel
from scripts.engine_benchmark.scenes import Scene
from utils.contracts import Drawn
from utils.engine.build import scene_extent
from utils.engine.guard import FiniteGuard
from utils.engine.optimiser import Optimiser, OptimiserOptions
from utils.losses import LossContext, Losses, build_losses

ITERATIONS = 30_000
START = 10_000  # of the steps that are timed: all harmonics in use, densification still watching

# Adam computes the same with a rate of 0, and every repeat draws the same picture.
STILL = OptimiserOptions(
    iterations=ITERATIONS, sh_interval=1, position_lr_init=0.0, position_lr_final=0.0, feature_lr=0.0, opacity_lr=0.0,
    scaling_lr=0.0, rotation_lr=0.0, flame_expr_lr=0.0, flame_trans_lr=0.0, flame_pose_lr=0.0, flame_offset_lr=0.0,
)  # fmt: skip


@dataclass
class Training:
    """What train.py builds before its loop."""

    scene: Scene
    avatar: GaussianModel
    render: Renderer
    loss: Losses
    optimiser: Optimiser
    strategy: GradientStrategy
    guard: FiniteGuard
    step: int = START


@dataclass
class Laps:
    """A stopwatch: `laps(NAME)` notes the time since the last call."""

    seconds: dict[str, float] = field(default_factory=dict)
    last: float = field(default_factory=time.perf_counter)

    def __call__(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = now - self.last
        self.last = now


def training(scene: Scene, threads: int) -> Training:
    """Everything that a step needs, with so many threads."""
    avatar = scene.avatar
    avatar.use_threads(threads)
    extent = scene_extent("head", avatar.rig, scene.frames.cameras)
    strategy = STRATEGIES["gradient"](DensificationOptions(), ITERATIONS, extent, 0, True)
    strategy.start(avatar)
    return Training(
        scene=scene,
        avatar=avatar,
        render=build_renderer("native", threads),
        loss=build_losses(scene.losses, threads),
        optimiser=Optimiser(STILL, avatar, extent, True, threads),
        strategy=strategy,
        guard=FiniteGuard(False, lambda _: None, threads=threads),
    )


def training_step(t: Training, lap: Laps) -> None:
    """The body of train.py's loop, without what does not happen in every step: growing, log, checkpoints."""
    t.step += 1
    t.optimiser.schedule(t.step)
    frame = t.scene.frame
    lap("picture")
    mesh = t.avatar.rig(frame.timestep)
    lap("rig")
    with t.guard.drawing(t.step, frame.name, t.avatar.parameters):
        image = t.render(t.avatar.on(mesh), frame.camera, frame.background, with_depth=False)
    lap("render")
    terms = t.loss(LossContext(t.step, frame, image, **t.avatar.local(mesh)))
    lap("loss")
    terms.total.backward()
    lap("backward")
    allowed = t.guard.check(t.step, frame.name, terms, t.avatar.parameters)
    lap("guard")
    t.strategy.observe(t.step, t.avatar, [Drawn(frame, mesh, image)])
    lap("observe")
    t.optimiser.step(allowed)
    lap("adam")


def plant_gradients(avatar: GaussianModel, seed: int = 0) -> dict[str, torch.Tensor]:
    """A gradient for every column, of ordinary size."""
    random = torch.Generator().manual_seed(seed)
    return {name: 1e-3 * torch.randn(c.shape, generator=random) for name, c in avatar.columns.items()}
