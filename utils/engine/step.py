"""One training step, either way: by PyTorch's autograd between the kernels, or captured whole on the GPU.

`build_step` chooses; the loop in train.py doesn't know which it is.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

from torch import Tensor

from flame_model.posing import NativePose
from gaussian_renderer import Renderer
from scene.densification import Strategy
from scene.frames import Split, index_at
from scene.gaussian_model import GaussianModel
from scene.rigs import FlameRig, MeshesRig, Rig, StillRig
from utils.contracts import Drawn, Frame, Terms
from utils.engine.appearance import draw_appearance
from utils.engine.device import Device
from utils.engine.guard import FiniteGuard
from utils.engine.neighbours import Neighbours
from utils.engine.optimiser import Optimiser
from utils.engine.options import Options
from utils.losses import LossContext, Losses

NATIVE = "diff_gaussian_rasterization.training"
CAPTURED_LOSSES, MOST_VIEWS = {"photometric", "binding"}, 8


@dataclass(frozen=True)
class Training:
    """What a training step works on."""

    options: Options
    device: Device
    frames: Split
    avatar: GaussianModel
    optimiser: Optimiser
    strategy: Strategy
    render: Renderer
    losses: Losses
    guard: FiniteGuard
    neighbours: Neighbours

    def rows(self, step: int) -> list[int]:
        """The frames of a step, one for each of its views."""
        views, seed = self.options.optimiser.batch_size, self.options.run.seed
        return [index_at(seed, view, len(self.frames)) for view in range((step - 1) * views, step * views)]


class Seen(NamedTuple):
    """The last view of a step: photograph, loss terms, our picture [3, H, W]."""

    frame: Frame
    terms: Terms
    image: Tensor


Look = Callable[[], Seen]  # only if somebody wants to know: on a GPU it waits for the step


class Step(Protocol):
    """Does step `step` (from 1), all but the rounds of densification."""

    def __call__(self, step: int, /) -> Look: ...


def build_step(training: Training) -> tuple[Step, str]:
    """The captured step where it can do all that the run asks for, else autograd's; and a line for the log."""
    reason = "--step autograd" if training.options.run.step == "autograd" else why_not_captured(training)
    if reason:
        return AutogradStep(training), f"step: autograd ({reason})"
    from utils.engine.captured import CapturedStep  # needs the native package

    return CapturedStep(training), "step: captured whole in a CUDA graph"


def why_not_captured(training: Training) -> str:
    """What of a run the captured step can't do; empty: nothing."""
    options, device = training.options, training.device
    if not device.accelerated:
        return "on the CPU"
    reasons = (
        (options.run.rasterizer != "native", f"--rasterizer {options.run.rasterizer}"),
        (options.pipeline.in_torch, "PyTorch does a part of the rasteriser's work"),
        (options.run.detect_anomaly, "--detect_anomaly"),
        (training.strategy.looks, "densification looks at the picture's error"),
    )
    found = next((why for fails, why in reasons if fails), "")
    return found or rig_lacks(training.avatar.rig) or losses_lack(training) or frames_lack(training) or native_lacks()


def rig_lacks(rig: Rig) -> str:
    if isinstance(rig, FlameRig):
        return "" if isinstance(rig.pose, NativePose) else "FLAME is posed by PyTorch"
    return "" if isinstance(rig, MeshesRig | StillRig) else "an unknown rig"


def losses_lack(training: Training) -> str:
    if others := sorted(training.losses.weights.keys() - CAPTURED_LOSSES):
        return f"the {others[0]} loss needs PyTorch"
    binding = training.options.losses["binding"]
    for name in ("xyz", "scale"):
        if training.avatar.rig.bound and getattr(binding, f"metric_{name}") and getattr(binding, f"lambda_{name}"):
            return f"--metric_{name} needs PyTorch"
    return ""


def frames_lack(training: Training) -> str:
    cameras = training.frames.cameras
    if len({(camera.width, camera.height, camera.near, camera.far) for camera in cameras}) > 1:
        return "frames of several sizes"
    return f"--batch_size over {MOST_VIEWS}" if training.options.optimiser.batch_size > MOST_VIEWS else ""


def native_lacks() -> str:
    try:
        importlib.import_module(NATIVE)
    except (ImportError, OSError) as error:
        return f"the native package can't be used: {error}"
    return ""


class AutogradStep:
    """Any loss, strategy and rasteriser: PyTorch keeps the way from parameters to losses and goes back."""

    def __init__(self, training: Training) -> None:
        self.training = training

    def __call__(self, step: int) -> Look:
        t = self.training
        rows = t.rows(step)
        drawn, seen, allowed = [], None, None
        for row in rows:
            frame = t.frames[row]
            with t.guard.drawing(step, frame.name, t.avatar.parameters):
                mesh = t.avatar.rig(frame.timestep)
                image = t.render(t.avatar.on(mesh), frame.camera, frame.background, with_depth=False)
            more = {"look": partial(t.neighbours.look, frame), "iterations": t.options.optimiser.iterations,
                    "appearance": partial(draw_appearance, t.avatar, mesh, frame, t.render)}  # fmt: skip
            terms = t.losses(LossContext(step, frame, image, **more, **t.avatar.local(mesh)))
            (terms.total / len(rows)).backward()
            allowed = t.guard.check(step, frame.name, terms, t.avatar.parameters)
            drawn.append(Drawn(frame, mesh, image))
            seen = Seen(frame, terms, image.image)
        t.strategy.observe(step, t.avatar, drawn)
        t.optimiser.step(allowed)
        return lambda: seen  # type: ignore[return-value] - a step has a view
