"""Train an avatar: `python train.py -s DATA -m OUT --bind_to_mesh --eval --white_background`."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads stall beside a busy neighbour

import sys
from pathlib import Path

import torch

from arguments import parse
from gaussian_renderer import build_renderer, describe
from scene.densification import build_strategy
from utils.engine.build import build_avatar, fingerprints, notes, open_inputs, scene_extent
from utils.engine.device import choose_device
from utils.engine.device_faults import Work, naming_device_faults
from utils.engine.guard import FiniteGuard
from utils.engine.neighbours import Neighbours, subject_of
from utils.engine.optimiser import Optimiser
from utils.engine.options import Options
from utils.engine.report import Reporter
from utils.engine.run import Run, choose_folder, wanted_device
from utils.engine.step import Training, build_step
from utils.errors import run_main
from utils.losses import build_losses, check_losses


def train(options: Options, work: Work, chosen: str) -> None:
    """Train one avatar from the options on a device; every file goes to the run folder. chosen: says why there."""
    device = work.device
    check_losses(options.losses)
    data, rig = open_inputs(options)
    work.avatar = avatar = build_avatar(options, data, rig)
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
    guard = FiniteGuard(device.accelerated, run.checkpoint, options.run.debug_from, options.run.threads or None)
    report = Reporter(run, data, avatar, strategy, render, guard, loss)
    drawing = describe(options.run.rasterizer, device.torch, options.pipeline)
    frames = data.train.on(device, options.data.data_device, options.optimiser.batch_size)
    neighbours = Neighbours(frames, avatar, render, subject.sequence)
    take_step, how = build_step(
        Training(options, device, frames, avatar, optimiser, strategy, render, loss, guard, neighbours)
    )
    report.say(chosen, *notes(options, data, rig), frames.note, drawing, *loss.notes,
               *filter(None, (rig.note, avatar.note, optimiser.note, guard.how, strategy.note, how)))  # fmt: skip

    for step in run.steps(guard.poll):
        optimiser.schedule(step)
        look = take_step(step)
        strategy.refine(step, avatar, optimiser)
        report.step(step, look)
    guard.poll()


def main(argv: list[str]) -> None:
    options = parse(argv, "train.py")
    choose_folder(options)
    device, chosen = choose_device(wanted_device(options), options.run.rasterizer == "native")
    options.run.device = device.name
    torch.autograd.set_detect_anomaly(options.run.detect_anomaly)
    with naming_device_faults(device, Path(options.run.model_path)) as work:
        train(options, work, chosen)


if __name__ == "__main__":
    sys.exit(run_main(main))
