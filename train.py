"""Train an avatar: `python train.py -s DATA -m OUT --bind_to_mesh --eval --white_background`."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads stall beside a busy neighbour

import sys

import torch

from arguments import parse
from gaussian_renderer import build_renderer, describe
from scene.densification import STRATEGIES
from scene.frames import index_at
from scene.image_store import choose_conversion
from utils.engine.build import build_avatar, fingerprints, notes, open_inputs, scene_extent
from utils.engine.device import check_device
from utils.engine.guard import FiniteGuard
from utils.engine.optimiser import Optimiser
from utils.engine.options import Options
from utils.engine.report import Reporter
from utils.engine.run import Run, choose_folder
from utils.errors import run_main
from utils.losses import LossContext, build_losses


def train(options: Options) -> None:
    """Train one avatar from the options; every file goes to the run folder."""
    choose_folder(options)
    data, rig = open_inputs(options)
    avatar = build_avatar(options, data, rig)
    render = build_renderer(options.run.rasterizer, options.run.threads or None, options.pipeline)
    loss = build_losses(options.losses, options.run.threads or None)
    extent = scene_extent(options.optimiser.scene_extent, rig, data.train.cameras)
    tune = not options.rig.not_finetune_flame_params
    optimiser = Optimiser(options.optimiser, avatar, extent, tune, options.run.threads or None)
    strategy = STRATEGIES[options.densification.densification](
        options.densification, options.optimiser.iterations, extent, options.run.seed, options.data.white_background
    )
    strategy.start(avatar)
    run = Run(options, fingerprints(data, rig), (avatar, optimiser, strategy))
    guard = FiniteGuard(
        options.run.device != "cpu", run.checkpoint, options.run.debug_from, options.run.threads or None
    )
    report = Reporter(run, data, avatar, strategy, render, guard)
    drawing = describe(options.run.rasterizer, options.run.device, options.pipeline)
    report.say(*notes(options, data, rig), choose_conversion()[1], drawing, *loss.notes,
               *filter(None, (rig.note, avatar.note, optimiser.note, guard.how, strategy.note)))  # fmt: skip
    frames = data.train.to(options.run.device, options.data.data_device)
    views = options.optimiser.batch_size

    for step in run.steps():
        optimiser.schedule(step)
        images = []
        for view in range((step - 1) * views, step * views):
            frame = frames[index_at(options.run.seed, view, len(frames))]
            with guard.drawing(step, frame.name, avatar.parameters):
                mesh = avatar.rig(frame.timestep)
                image = render(avatar.on(mesh), frame.camera, frame.background, with_depth=False)
            terms = loss(LossContext(step, frame, image, **avatar.local(mesh)))
            (terms.total / views).backward()
            allowed = guard.check(step, frame.name, terms, avatar.parameters)
            images.append(image)
        for image in images:  # a step counts as a whole or, if the guard stops it, not at all
            strategy.observe(step, image, views)
        optimiser.step(allowed)
        strategy.refine(step, avatar, optimiser)
        report.step(step, frame, terms, image)
    guard.poll()


def main(argv: list[str]) -> None:
    options = parse(argv, "train.py")
    check_device(options.run.device)
    if options.run.device == "cpu":
        torch.set_num_threads(1)  # the native kernels have their own threads; torch's sums would depend on their number
    torch.autograd.set_detect_anomaly(options.run.detect_anomaly)
    train(options)


if __name__ == "__main__":
    sys.exit(run_main(main))
