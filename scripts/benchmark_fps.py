"""Frames per second of a trained avatar: posing the mesh, placing the Gaussians and drawing, one view again and again.

    python scripts/benchmark_fps.py -m RUN [-s DATA]             a view of the dataset that it was trained on
    python scripts/benchmark_fps.py -m RUN --no_dataset          a frontal view of --height x --width, 802 x 550
    python scripts/benchmark_fps.py --point_path FOLDER/point_cloud.ply --flame_model PKL      likewise, any avatar

The definition is the original's: --n_iter repeats of one view, the mesh update included. Nothing is read or written in
between. Prints the mean over all repeats and the spread of single frames; --json keeps them.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads stall beside a busy neighbour

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from arguments.flags import OneLineParser
from arguments.overrides import add_overrides, typed_overrides
from gaussian_renderer import Renderer, build_renderer
from scene.gaussian_model import GaussianModel
from utils.contracts import Camera
from utils.engine.build import load_avatar, load_run, open_avatar
from utils.engine.check import check
from utils.engine.device import AUTO, choose_device
from utils.engine.options import options_from_flags
from utils.engine.orbit import around_head
from utils.errors import InputError, run_main
from utils.io.atomic import write_json
from utils.io.images import to_uint8, write_png
from utils.io.progress import progress

WARM_UP = 10
HEIGHT, WIDTH = 802, 550  # of the original's benchmark


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = OneLineParser(prog="scripts/benchmark_fps.py", allow_abbrev=False)
    parser.add_argument("-m", "--model_path", default="", metavar="RUN", help="run folder")
    parser.add_argument("--iteration", type=int, default=-1, help="which saved avatar; -1: the newest")
    parser.add_argument(
        "--point_path", default="", metavar="PLY", help="point_cloud.ply with flame_param.npz beside it"
    )
    parser.add_argument("--no_dataset", action="store_true", help="a frontal view of --height x --width instead")
    parser.add_argument("--timestep", type=int, default=0, help="moment of the motion that is posed")
    parser.add_argument("--n_iter", type=int, default=500, help="repeats [500]")
    parser.add_argument("--height", type=int, default=0, help="pixels, without a dataset [802]")
    parser.add_argument("--width", type=int, default=0, help="pixels, without a dataset [550]")
    parser.add_argument(
        "--vis", nargs="?", const="benchmark_fps.png", default="", metavar="PNG", help="keep the picture"
    )
    parser.add_argument("--json", default="", metavar="FILE", help="write the result there too")
    add_overrides(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--debug", action="store_true", help="print a traceback with every error")
    options = parser.parse_args(argv)
    if bool(options.model_path) == bool(options.point_path):
        raise InputError("command line", "--model_path", "give either a run or --point_path")
    if options.model_path and not options.no_dataset and (options.height or options.width):
        raise InputError("command line", "--height/--width", "the dataset has its own size", "Add --no_dataset.")
    options.height, options.width = options.height or HEIGHT, options.width or WIDTH
    for name in ("n_iter", "height", "width"):
        if not 1 <= getattr(options, name) <= 65535:
            raise InputError("command line", f"--{name}", f"found {getattr(options, name)}, expected 1 to 65535")
    return options


def open_view(chosen: argparse.Namespace) -> tuple[GaussianModel, Renderer, Camera]:
    """The avatar, its renderer and the camera to look through."""
    overrides = typed_overrides(chosen)
    if chosen.model_path and not chosen.no_dataset:
        run = load_run(Path(chosen.model_path), chosen.iteration, overrides)
        views = [view for split in run.dataset.splits().values() for view in split.views]
        at = [view for view in views if view.timestep == chosen.timestep]
        if not at:
            raise InputError("command line", "--timestep", f"the dataset has no view of timestep {chosen.timestep}")
        return run.avatar, run.render, at[0].camera
    if chosen.model_path:
        loaded = load_avatar(Path(chosen.model_path), chosen.iteration, overrides)
        return loaded.avatar, loaded.render, frontal(loaded.avatar, chosen)
    path = Path(chosen.point_path)
    if path.name != "point_cloud.ply" or not os.path.isfile(path):
        raise InputError(path, "", "found no such file, expected a point_cloud.ply with its motion beside it")
    flags = {"bind_to_mesh": True, "source_path": str(path.parent), "device": AUTO, **overrides}  # opens no dataset
    options = options_from_flags(flags, "command line")
    check(options)
    options.run.device = choose_device(options.run.device, options.run.rasterizer == "native")[0].name
    avatar = open_avatar(path.parent, options)
    return avatar, build_renderer(options.run.rasterizer, options.run.threads or None), frontal(avatar, chosen)


def frontal(avatar: GaussianModel, chosen: argparse.Namespace) -> Camera:
    """A camera of the size asked for that sees the whole head from the front."""
    if not avatar.rig.bound:
        raise InputError("command line", "--no_dataset", "an unbound scene has no front", "Leave it out.")
    return around_head(avatar.rig, [], (chosen.width, chosen.height)).camera(0.0, 0.0)


@torch.no_grad()
def time_frames(
    avatar: GaussianModel, render: Renderer, camera: Camera, chosen: argparse.Namespace
) -> tuple[np.ndarray, torch.Tensor]:
    """Seconds of each repeat [n_iter], and the picture [3, H, W]."""
    device = avatar.binding.device
    camera, background = camera.to(device), torch.ones(3, device=device)
    seconds, image = [], torch.empty(0)
    for _ in progress(range(WARM_UP + chosen.n_iter), WARM_UP + chosen.n_iter, "drawing", chosen.quiet):
        start = time.perf_counter()
        image = render(avatar.on(avatar.rig(chosen.timestep)), camera, background, with_depth=False).image
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return np.array(seconds[WARM_UP:]), image


def main(argv: list[str]) -> None:
    chosen = parse_arguments(argv)
    avatar, render, camera = open_view(chosen)
    if not 0 <= chosen.timestep < avatar.rig.timesteps:
        problem = f"found {chosen.timestep}, expected 0 to {avatar.rig.timesteps - 1}"
        raise InputError("command line", "--timestep", problem)
    seconds, image = time_frames(avatar, render, camera, chosen)
    slow, median, fast = (1.0 / np.percentile(seconds, q) for q in (95, 50, 5))
    result = {
        "fps": round(float(1.0 / seconds.mean()), 2), "fps_median": round(float(median), 2),
        "fps_5_percent": round(float(slow), 2), "fps_95_percent": round(float(fast), 2), "n_iter": chosen.n_iter,
        "gaussians": len(avatar), "width": camera.width, "height": camera.height, "device": str(avatar.binding.device),
    }  # fmt: skip
    print(f"{result['fps']:.1f} fps (single frames: median {median:.1f}, 5 to 95 %: {slow:.1f} to {fast:.1f}), "
          f"{len(avatar)} Gaussians, {camera.width} x {camera.height}, {result['device']}")  # fmt: skip
    if chosen.vis:
        write_png(Path(chosen.vis), to_uint8(image.cpu().permute(1, 2, 0).numpy()))
    if chosen.json:
        write_json(Path(chosen.json), result)


if __name__ == "__main__":
    sys.exit(run_main(main))
