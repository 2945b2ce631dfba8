"""Render a trained avatar: `python render.py -m RUN`.

  -m RUN                        the splits of its own dataset: RUN/{train,val,test}, and how fast: RUN/render.json
  -m RUN -t DATASET             moved by another capture, seen by its cameras: RUN/<name of that folder>
  -m RUN --motion_path X.npz    moved by a motion file, seen by one of its own cameras: RUN/motion_X
  ... --orbit                   from an orbiting camera: RUN/orbit, or one of the above followed by _orbit

In each lies ours_N/renders/00000.png ... and renders.mp4, and beside them gt, masks, renders_mesh (--render_mesh),
alpha (--render_alpha) and depth (--render_depth, 16-bit PNG, millimetres): see `utils/io/rendered.py`. The splits also
get what `metrics.py` looks at: frames.json, region maps if the run's --flame_masks are there, RUN/tracked_motion.npz.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads stall beside a busy neighbour

import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from arguments.flags import OneLineParser, add_flags
from arguments.overrides import add_overrides, typed_overrides
from utils.contracts import Frame, Mesh, Rendered
from utils.engine.build import LoadedAvatar, LoadedRun
from utils.engine.device import choose_device
from utils.engine.device_faults import naming_device_faults
from utils.engine.mesh_overlay import overlay
from utils.engine.region_metrics import label_map
from utils.engine.render_record import detail_of, labels_of, leave_motion, record_of, why_no_regions
from utils.engine.shots import RenderOptions, Shot, Take, check_options, plan
from utils.errors import InputError, NumericalFault, run_main
from utils.io.atomic import write_json
from utils.io.progress import progress
from utils.io.rendered import ALPHA, DEPTH, MESHES, REGION_MAPS, SplitWriter

TIMED_FRAMES, TIMED_SECONDS, WARM_UP = 50, 20.0, 2
SOLID, FARTHEST = 0.5, 65535  # opacity above which there is a depth; its largest level


def parse_arguments(argv: list[str]) -> tuple[RenderOptions, dict[str, Any]]:
    """Command line -> options and overrides of the run's own flags."""
    parser = OneLineParser(prog="render.py", allow_abbrev=False)
    parser.add_argument("--debug", action="store_true", help="print a traceback with every error")
    add_flags(parser, "render", RenderOptions)
    add_overrides(parser)
    typed = parser.parse_args(argv)
    own = {f.name for f in fields(RenderOptions)}
    options = RenderOptions(**{name: value for name, value in vars(typed).items() if name in own})
    check_options(options)
    return options, typed_overrides(typed)


@torch.no_grad()
def render_take(loaded: LoadedAvatar, take: Take, options: RenderOptions) -> None:
    """Render a take in its order; its folder appears when all is done.

    Raises:
        NumericalFault: a render isn't finite; names the frame.
    """
    folder = Path(options.model_path) / take.name / f"ours_{loaded.iteration}"
    photographed = all(shot.photograph is not None for shot in take.shots)
    labels = labels_of(loaded.avatar.rig) if photographed and not options.skip_gt else None
    with SplitWriter(folder) as writer:
        for index in progress(range(len(take.shots)), len(take.shots), f"render {take.name}", options.quiet):
            shot = take.shots[index]
            mesh, picture = draw(loaded, shot, options.render_depth)
            if not picture.image.isfinite().all():
                raise NumericalFault(f"{folder}: frame {index} ({shot.name}): the render is not finite")
            wanted = shot.photograph is not None and (options.render_mesh or not options.skip_gt)
            frame = shot.photograph() if shot.photograph is not None and wanted else None
            truth = None if frame is None or options.skip_gt else pixels(frame.image)
            mask = None if truth is None or frame is None or frame.mask is None else pixels(frame.mask)[..., 0]
            others = further(loaded, shot, mesh, picture, frame, options)
            if labels is not None:
                others[REGION_MAPS] = label_map(mesh, shot.camera, labels, loaded.options.run.threads or None)
            writer.write(pixels(picture.image), truth, mask, others)
        if photographed:
            writer.describe(record_of(take, regions=labels is not None))


def further(
    loaded: LoadedAvatar, shot: Shot, mesh: Mesh, picture: Rendered, frame: Frame | None, options: RenderOptions
) -> dict[str, np.ndarray]:
    """The other pictures that were asked for, by kind."""
    found = {}
    if options.render_mesh:
        size = (3, shot.camera.height, shot.camera.width)
        behind = shot.background[:, None, None].expand(size) if frame is None else frame.image.cpu()
        found[MESHES] = pixels(overlay(mesh, shot.camera, behind, loaded.options.run.threads or None))
    if options.render_alpha:
        found[ALPHA] = pixels(picture.alpha)[..., 0]
    if options.render_depth and picture.depth is not None:  # `draw` asks for it
        mean = torch.where(picture.alpha > SOLID, picture.depth / picture.alpha, 0.0)[0]
        found[DEPTH] = (1000 * mean).round().clamp(0, FARTHEST).int().cpu().numpy().astype(np.uint16)
    return found


@torch.no_grad()
def time_frames(loaded: LoadedAvatar, shots: Sequence[Shot]) -> float:
    """Median seconds from a timestep to its finished picture: posing the mesh and drawing its Gaussians.

    Frames spread over the shots, on an otherwise idle process: no reading, no writing.
    """
    chosen = [shots[i] for i in np.linspace(0, len(shots) - 1, TIMED_FRAMES).round().astype(int)]
    times, began = [], time.perf_counter()
    for count, shot in enumerate(chosen):
        start = time.perf_counter()
        draw(loaded, shot)
        times.append(time.perf_counter() - start)
        if count >= WARM_UP and time.perf_counter() - began > TIMED_SECONDS:
            break
    return statistics.median(times[WARM_UP:])


def write_speed(loaded: LoadedAvatar, takes: list[Take], file: Path) -> float:
    """Measure the frames per second of posing and drawing, before anything else is rendered, and write them."""
    shots = [shot for take in takes for shot in take.shots]
    fps, camera = 1.0 / time_frames(loaded, shots), shots[0].camera
    device = loaded.options.run.device
    write_json(file, {"iteration": loaded.iteration, "gaussians": len(loaded.avatar), "fps": round(fps, 2),
                      "width": camera.width, "height": camera.height, "device": device,
                      **detail_of(loaded.avatar)})  # fmt: skip
    return fps


def draw(loaded: LoadedAvatar, shot: Shot, with_depth: bool = False) -> tuple[Mesh, Rendered]:
    """The posed mesh and a finished picture of it, not clamped."""
    mesh = loaded.avatar.rig(shot.timestep)
    splats = loaded.avatar.on(mesh)
    device = splats.means.device
    picture = loaded.render(splats, shot.camera.to(device), shot.background.to(device), with_depth)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return mesh, picture


def pixels(image: torch.Tensor) -> np.ndarray:
    """[C, H, W] in [0, 1] -> uint8 [H, W, C], clamped and rounded."""
    return image.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).contiguous().cpu().numpy()


def render_all(loaded: LoadedAvatar, takes: list[Take], options: RenderOptions) -> str:
    """Measure the speed, render every take, leave what metrics need; returns what to say of the speed."""
    own = not (options.target_path or options.motion_path or options.orbit)
    said = ""
    if own:
        fps = write_speed(loaded, takes, Path(options.model_path) / "render.json")
        said = f"; posing and drawing alone: {fps:.1f} fps"
    if isinstance(loaded, LoadedRun):
        leave_motion(loaded)
        if not options.quiet and (reason := why_no_regions(loaded.avatar.rig)):
            print(f"no metrics by region: {reason}", file=sys.stderr)
    for take in takes:
        render_take(loaded, take, options)
    return said


def main(argv: list[str]) -> None:
    options, overrides = parse_arguments(argv)
    if "device" in overrides:
        choose_device(overrides["device"], native=False)  # refused before anything is opened
    loaded, takes = plan(options, overrides)
    if options.render_mesh and not loaded.avatar.rig.bound:
        raise InputError("command line", "--render_mesh", f"{options.model_path} is bound to no mesh", "Leave it out.")
    if loaded.device.accelerated and not options.quiet:
        print(loaded.note, file=sys.stderr)
    with naming_device_faults(loaded.device, avatar=loaded.avatar):
        said = render_all(loaded, takes, options)
    if not options.quiet:
        frames = sum(len(take.shots) for take in takes)
        where = ", ".join(f"{take.name}/ours_{loaded.iteration}" for take in takes)
        print(f"{options.model_path}: rendered iteration {loaded.iteration}: {frames} frames in {where}{said}")


if __name__ == "__main__":
    sys.exit(run_main(main))
