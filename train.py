"""Train an avatar: `python train.py -s DATA -m OUT --bind_to_mesh --eval --white_background`."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads stall beside a busy neighbour

import sys

import torch

from arguments import parse
from gaussian_renderer import build_renderer
from scene.cameras import camera_extent
from scene.densification import STRATEGIES
from scene.frames import index_at
from scene.rigs import load_face_model
from utils.engine.build import build_avatar, open_data, scene_extent
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
    face = load_face_model(options.rig, options.run.device)
    data = open_data(options)
    avatar = build_avatar(options, data, face)
    render = build_renderer(options.run.rasterizer, options.run.threads or None)
    loss = build_losses(options.losses, options.run.threads or None)
    extent = scene_extent(options.optimiser.scene_extent, avatar.rig.rest_mesh(), camera_extent(data.train.cameras))
    optimiser = Optimiser(
        options.optimiser, avatar, extent, not options.rig.not_finetune_flame_params, options.run.threads or None
    )
    strategy = STRATEGIES[options.densification.densification](
        options.densification, options.optimiser.iterations, extent, options.run.seed, options.data.white_background
    )
    strategy.start(avatar)
    inputs = {"source_path": data.fingerprint, "flame_model": avatar.rig.flame.fingerprint}
    run = Run(options, inputs, (avatar, optimiser, strategy))
    guard = FiniteGuard(options.run.device != "cpu", run.checkpoint)
    report = Reporter(run, data, avatar, render, guard)
    report.say(*loss.notes, optimiser.note)

    for step in run.steps():
        frame = data.train[index_at(options.run.seed, step - 1, len(data.train))].to(options.run.device)
        optimiser.schedule(step)
        frames = avatar.frames(frame.timestep)
        image = render(avatar.place(frames), frame.camera, frame.background)
        terms = loss(
            LossContext(step, frame, image, avatar.columns["means"], avatar.local_scales, avatar.face_scales(frames))
        )
        terms.total.backward()
        allowed = guard.check(step, frame.name, terms, avatar.parameters)
        strategy.observe(step, image)
        optimiser.step(allowed)
        strategy.refine(step, avatar, optimiser)
        report.step(step, frame, terms, image)
    guard.poll()


def main(argv: list[str]) -> None:
    options = parse(argv, "train.py")
    check_device(options.run.device)
    if options.run.device == "cpu":
        torch.set_num_threads(1)  # the native kernels have their own threads; torch's sums would depend on their number
    train(options)


if __name__ == "__main__":
    sys.exit(run_main(main))
