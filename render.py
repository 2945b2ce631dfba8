"""Render a trained avatar: `python render.py -m RUN`.

Writes RUN/SPLIT/ours_N/{renders,gt,masks}/00000.png, renders.mp4, gt.mp4 (`utils/io/rendered.py`) and RUN/render.json.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads stall beside a busy neighbour

import argparse
import re
import statistics
import sys
import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from arguments.flags import OneLineParser, add_flags
from scene.frames import Split, View
from utils.contracts import Camera, Splats
from utils.engine.build import LoadedRun, load_run
from utils.engine.device import check_device
from utils.engine.options import CHOICES, known_flags
from utils.errors import InputError, NumericalFault, run_main
from utils.io.atomic import write_json
from utils.io.progress import progress
from utils.io.rendered import SplitWriter

# Flags of training that may be given anew: where things lie and how they are drawn, not what they are.
OVERRIDES = ("source_path", "data_root", "flame_model", "flame_masks", "cache_dir", "image_memory_gb",
             "select_camera_id", "rasterizer", "device", "threads")  # fmt: skip
TIMED_FRAMES, TIMED_SECONDS, WARM_UP = 50, 20.0, 2


@dataclass
class RenderOptions:
    """What to render."""

    model_path: str = field(default="", metadata={"alias": "-m", "help": "run folder"})
    iteration: int = field(default=-1, metadata={"help": "which saved avatar; -1: the newest"})
    skip_train: bool = field(default=False, metadata={"help": "leave out the training frames"})
    skip_val: bool = field(default=False, metadata={"help": "leave out the validation frames (held-out cameras)"})
    skip_test: bool = field(default=False, metadata={"help": "leave out the test frames (held-out timesteps)"})
    quiet: bool = field(default=False, metadata={"help": "no progress"})


def parse_arguments(argv: list[str]) -> tuple[RenderOptions, dict[str, Any]]:
    """Command line -> options and overrides of the run's own flags."""
    parser = OneLineParser(prog="render.py", allow_abbrev=False)
    parser.add_argument("--debug", action="store_true", help="print a traceback with every error")
    add_flags(parser, "render", RenderOptions)
    group = parser.add_argument_group("flags of the run that may be given anew")
    for name in OVERRIDES:
        kind, short = known_flags()[name], ["-s"] if name == "source_path" else []
        group.add_argument(*short, f"--{name}", default=argparse.SUPPRESS, type=kind, choices=CHOICES.get(name))
    typed = vars(parser.parse_args(argv))
    own = {f.name for f in fields(RenderOptions)}
    options = RenderOptions(**{name: value for name, value in typed.items() if name in own})
    if not options.model_path:
        raise InputError("command line", "--model_path", "is missing", "Give the run folder: -m RUN.")
    return options, {name: value for name, value in typed.items() if name in OVERRIDES}


def render_run(run: LoadedRun, options: RenderOptions, camera: str) -> float:
    """Render every split that isn't skipped and has frames, and write `render.json`. Returns frames per second.

    Args:
        camera: given to render.py, names the folders (`test_8`); "-1": the run's own cameras.

    Raises:
        InputError: no frames are left.
    """
    folder = Path(options.model_path)
    suffix = "" if camera == "-1" else "_" + re.sub(r"[^\w.-]", "_", camera)
    skipped = {"train": options.skip_train, "val": options.skip_val, "test": options.skip_test}
    splits = {name: split for name, split in run.dataset.splits().items() if len(split) and not skipped[name]}
    if not splits:
        raise InputError(run.dataset.source, "", "has no frames in the splits asked for", "Skip fewer splits.")
    seconds = time_frames(run, [view for split in splits.values() for view in split.views])
    for name, split in splits.items():
        render_split(run, split, folder / f"{name}{suffix}" / f"ours_{run.iteration}", options.quiet)
    view = next(iter(splits.values())).views[0]
    splats, fps = place(run, view.timestep), 1.0 / seconds
    write_json(folder / "render.json", {
        "iteration": run.iteration, "gaussians": splats.means.shape[0], "fps": round(fps, 2),
        "width": view.camera.width, "height": view.camera.height, "device": str(splats.means.device),
    })  # fmt: skip
    return fps


@torch.no_grad()
def render_split(run: LoadedRun, split: Split, folder: Path, quiet: bool) -> None:
    """Render the frames of a split in their order; the folder appears when all are done.

    Raises:
        NumericalFault: a render isn't finite; names the frame.
    """
    with SplitWriter(folder) as writer:
        for index in progress(range(len(split)), len(split), f"render {folder.parent.name}", quiet):
            frame = split[index]
            image = draw(run, frame.camera, frame.timestep, frame.background)
            if not image.isfinite().all():
                raise NumericalFault(f"{folder}: frame {index} ({frame.name}): the render is not finite")
            mask = None if frame.mask is None else pixels(frame.mask)[..., 0]
            writer.write(pixels(image), pixels(frame.image), mask)


@torch.no_grad()
def time_frames(run: LoadedRun, views: list[View]) -> float:
    """Median seconds from a timestep to its finished picture: posing the mesh, placing the Gaussians, drawing.

    Frames spread over the views, on an otherwise idle process: no reading, no writing.
    """
    chosen = [views[i] for i in np.linspace(0, len(views) - 1, TIMED_FRAMES).round().astype(int)]
    background, times, began = torch.zeros(3), [], time.perf_counter()
    for count, view in enumerate(chosen):
        start = time.perf_counter()
        draw(run, view.camera, view.timestep, background)
        times.append(time.perf_counter() - start)
        if count >= WARM_UP and time.perf_counter() - began > TIMED_SECONDS:
            break
    return statistics.median(times[WARM_UP:])


def place(run: LoadedRun, timestep: int) -> Splats:
    return run.avatar.place_on(run.avatar.rig(timestep))


def draw(run: LoadedRun, camera: Camera, timestep: int, background: Tensor) -> Tensor:
    """A finished picture, [3, H, W], not clamped."""
    splats = place(run, timestep)
    device = splats.means.device
    image = run.render(splats, camera.to(device), background.to(device)).image
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return image


def pixels(image: Tensor) -> np.ndarray:
    """[C, H, W] in [0, 1] -> uint8 [H, W, C], clamped and rounded."""
    return image.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).contiguous().cpu().numpy()


def main(argv: list[str]) -> None:
    options, overrides = parse_arguments(argv)
    check_device(overrides.get("device", "cpu"))
    run = load_run(Path(options.model_path), options.iteration, overrides)
    if run.options.run.device == "cpu":
        torch.set_num_threads(1)  # the native kernels have their own threads
    fps = render_run(run, options, str(overrides.get("select_camera_id", "-1")))
    if not options.quiet:
        print(f"{options.model_path}: rendered iteration {run.iteration}; posing and drawing alone: {fps:.1f} fps")


if __name__ == "__main__":
    sys.exit(run_main(main))
