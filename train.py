"""Train an avatar: `python train.py -s DATA -m OUT --bind_to_mesh --eval --white_background`."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads stall beside a busy neighbour

import sys
from functools import partial

import torch

from arguments import parse
from gaussian_renderer import build_renderer, describe
from scene.densification import build_strategy
from scene.frames import index_at
from scene.image_store import choose_conversion
from utils.contracts import Drawn
from utils.engine.appearance import draw_appearance
from utils.engine.build import build_avatar, fingerprints, notes, open_inputs, scene_extent
from utils.engine.device import check_device
from utils.engine.guard import FiniteGuard
from utils.engine.neighbours import Neighbours, subject_of
from utils.engine.optimiser import Optimiser
from utils.engine.options import Options
from utils.engine.report import Reporter
from utils.engine.run import Run, choose_folder
from utils.errors import run_main
from utils.losses import LossContext, build_losses, check_losses


def train(options: Options) -> None:
    """Train one avatar from the options; every file goes to the run folder."""
    choose_folder(options)
    check_losses(options.losses)
    data, rig = open_inputs(options)
    avatar = build_avatar(options, data, rig)
    render = build_renderer(options.run.rasterizer, options.run.threads or None, options.pipeline)
    tune = not options.rig.not_finetune_flame_params
    subject = subject_of(data, rig, tune)
    loss = build_losses(options.losses, options.run.threads or None, subject)
    rig.begin(loss.start)
    extent = scene_extent(options.optimiser.scene_extent, rig, data.train.cameras)
    optimiser = Optimiser(options.optimiser, avatar, extent, tune, options.run.threads or None)
    strategy = build_strategy(options.densification, options.optimiser.iterations, extent, options.run.seed,
                              options.data.white_background, avatar)  # fmt: skip
    run = Run(options, fingerprints(options, data, rig), (avatar, optimiser, strategy))
    guard = FiniteGuard(
        options.run.device != "cpu", run.checkpoint, options.run.debug_from, options.run.threads or None
    )
    report = Reporter(run, data, avatar, strategy, render, guard, loss)
    drawing = describe(options.run.rasterizer, options.run.device, options.pipeline)
    report.say(*notes(options, data, rig), choose_conversion()[1], drawing, *loss.notes,
               *filter(None, (rig.note, avatar.note, optimiser.note, guard.how, strategy.note)))  # fmt: skip
    frames = data.train.to(options.run.device, options.data.data_device)
    views = options.optimiser.batch_size
    neighbours = Neighbours(frames, avatar, render, subject.sequence)

    for step in run.steps():
        optimiser.schedule(step)
        drawn = []
        for view in range((step - 1) * views, step * views):
            frame = frames[index_at(options.run.seed, view, len(frames))]
            with guard.drawing(step, frame.name, avatar.parameters):
                mesh = avatar.rig(frame.timestep)
                image = render(avatar.on(mesh), frame.camera, frame.background, with_depth=False)
            more = {"look": partial(neighbours.look, frame), "iterations": options.optimiser.iterations,
                    "appearance": partial(draw_appearance, avatar, mesh, frame, render)}  # fmt: skip
            terms = loss(LossContext(step, frame, image, **more, **avatar.local(mesh)))
            (terms.total / views).backward()
            allowed = guard.check(step, frame.name, terms, avatar.parameters)
            drawn.append(Drawn(frame, mesh, image))
        strategy.observe(step, avatar, drawn)
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
