"""An avatar for other programs: `python scripts/export.py -m RUN [--frames 0 5 10] [--what splats mesh]`.

Writes, under RUN/export/ours_N or the folder given with -o:
  splats/frame_00005.{ply,splat,glb}   posed splats in world space: metres, y up, the face looks along +z
  share/frame_00005.{ply,splat}        the same for viewers that expect y down and room-sized scenes (--share)
  mesh/frame_00005.obj, mesh/head.glb  the posed mesh: a file per timestep, and all timesteps as one animated object
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads stall beside a busy neighbour

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from arguments.flags import OneLineParser
from arguments.overrides import add_overrides, typed_overrides
from scene.gaussian_model import GaussianModel
from utils.contracts import Splats
from utils.engine.build import load_avatar
from utils.errors import InputError, run_main
from utils.io.gltf import write_mesh_glb, write_splats_glb
from utils.io.obj import UvLayout, cylindrical_layout, template_layout, write_obj
from utils.io.progress import progress
from utils.io.splat_files import turned_for_viewers, write_dot_splat, write_splat_ply

SPLAT_FILES: dict[str, Callable[[Path, Splats], None]] = {
    "ply": write_splat_ply,
    "splat": write_dot_splat,
    "glb": write_splats_glb,
}
FORMATS = {"splats": ("ply", "splat", "glb"), "mesh": ("glb", "obj")}  # the first is the default
SHARED = ("ply", "splat")  # glTF has its own axes, which are ours


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = OneLineParser(prog="scripts/export.py", allow_abbrev=False)
    parser.add_argument("-m", "--model_path", required=True, metavar="RUN")
    parser.add_argument("--iteration", type=int, default=-1, help="which saved avatar; -1: the newest")
    parser.add_argument("--frames", nargs="+", default=["0"], metavar="TIMESTEP", help="timesteps, or all [0]")
    parser.add_argument("--what", nargs="+", default=["splats"], choices=list(FORMATS), help="[splats]")
    choices = sorted({kind for kinds in FORMATS.values() for kind in kinds})
    parser.add_argument("--format", nargs="+", choices=choices, help="[ply for splats, glb for the mesh]")
    parser.add_argument("-o", "--output", default="", metavar="FOLDER", help="[RUN/export/ours_N]")
    parser.add_argument(
        "--share", action="store_true", help="ply and splat for viewers: turned about z, 10 times larger"
    )
    parser.add_argument("--uv_template", default="", metavar="OBJ", help="texture coordinates: head_template_mesh.obj")
    parser.add_argument("--fps", type=float, default=25.0, help="timesteps per second of the animated mesh [25]")
    add_overrides(parser, ("flame_model",))
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--debug", action="store_true", help="print a traceback with every error")
    options = parser.parse_args(argv)
    options.kinds = chosen_formats(options.what, options.format)
    if options.share and not set(options.kinds.get("splats", ())) & set(SHARED):
        raise InputError("command line", "--share", "turns ply and splat files, and none was asked for",
                         "Add --what splats --format ply, or leave out --share.")  # fmt: skip
    if options.uv_template and "mesh" not in options.kinds:
        raise InputError(
            "command line", "--uv_template", "is for the mesh, which was not asked for", "Add --what mesh."
        )
    if not 0.001 <= options.fps <= 1000:
        raise InputError("command line", "--fps", f"found {options.fps}, expected 0.001 to 1000")
    return options


def chosen_formats(what: list[str], formats: list[str] | None) -> dict[str, list[str]]:
    """What is written as which files, e.g. {"splats": ["ply"]}; every format must be of use, and everything get one."""
    if formats is None:
        return {kind: [FORMATS[kind][0]] for kind in FORMATS if kind in what}
    chosen = {kind: [name for name in FORMATS[kind] if name in formats] for kind in FORMATS if kind in what}
    useless = sorted(set(formats) - {name for names in chosen.values() for name in names})
    if useless:
        raise InputError("command line", "--format", f"{useless[0]} can't hold {' or '.join(what)}", "Change --what.")
    if without := [kind for kind, names in chosen.items() if not names]:
        problem = f"none of {', '.join(formats)} can hold {without[0]}, expected {' or '.join(FORMATS[without[0]])}"
        raise InputError("command line", "--format", problem)
    return chosen


def chosen_frames(words: list[str], timesteps: int) -> list[int]:
    """`all`, or the timesteps named, ascending and once each."""
    if words == ["all"]:
        return list(range(timesteps))
    for word in words:
        if not (word.isascii() and word.isdigit() and len(word) < 10 and int(word) < timesteps):
            problem = f"found {word!r}, the avatar has timesteps 0 to {timesteps - 1}"
            raise InputError("command line", "--frames", problem, "Give numbers, or all.")
    return sorted({int(word) for word in words})


@torch.no_grad()
def export_splats(avatar: GaussianModel, frames: list[int], folder: Path, options: argparse.Namespace) -> None:
    """Write the splats of each frame in each format and say in which frame of reference they are."""
    count = 0
    for timestep in progress(frames, len(frames), "splats", options.quiet):
        splats = avatar.place_on(avatar.rig(timestep))
        turned, count = turned_for_viewers(splats) if options.share else splats, len(splats.means)
        for kind in options.kinds["splats"]:
            shared = options.share and kind in SHARED
            file = folder / ("share" if shared else "splats") / f"frame_{timestep:05d}.{kind}"
            SPLAT_FILES[kind](file, turned if shared else splats)
    for kind in options.kinds["splats"]:
        if options.share and kind in SHARED:
            where, frame = "share", "for viewers: turned 180 degrees about z, 10 times larger"
        else:
            where, frame = "splats", "world frame: metres, y up" if avatar.rig.bound else "the scene's own frame"
            if avatar.rig.bound and kind in SHARED:
                frame += "; --share turns it for viewers"
        print(f"{folder / where}: {listed(frames, kind)}, {count} splats, {frame}")


@torch.no_grad()
def export_mesh(avatar: GaussianModel, frames: list[int], folder: Path, layout: UvLayout,
                options: argparse.Namespace) -> None:  # fmt: skip
    """Write the posed mesh of each frame as OBJ, and all frames as one animated glTF object."""
    faces, poses = avatar.rig.faces.cpu().numpy(), []
    for timestep in progress(frames, len(frames), "mesh", options.quiet):
        poses.append(avatar.rig(timestep).vertices.cpu().numpy())
        if "obj" in options.kinds["mesh"]:
            write_obj(folder / "mesh" / f"frame_{timestep:05d}.obj", poses[-1], faces, layout)
    size = f"{len(poses[0])} vertices, {len(faces)} faces, metres, y up"
    if "obj" in options.kinds["mesh"]:
        print(f"{folder / 'mesh'}: {listed(frames, 'obj')}, {size}")
    if "glb" in options.kinds["mesh"]:
        times = [(timestep - frames[0]) / options.fps for timestep in frames]
        write_mesh_glb(folder / "mesh" / "head.glb", poses, times, faces, layout)
        length = f"{len(frames)} keys over {times[-1]:g} s" if len(frames) > 1 else "a still"
        print(f"{folder / 'mesh' / 'head.glb'}: {length}, {size}")


@torch.no_grad()
def uv_layout(avatar: GaussianModel, template: str) -> UvLayout:
    """Texture coordinates from the topology file, or unwrapped from the person's neutral head."""
    rest = avatar.rig.rest_mesh()
    vertices, faces = rest.vertices.cpu().numpy(), rest.faces.cpu().numpy()
    if template:
        return template_layout(Path(template), faces)
    print("texture coordinates: a cylinder around the head, cut at the back; --uv_template OBJ gives those of a file")
    return cylindrical_layout(vertices, faces)


def listed(frames: list[int], kind: str) -> str:
    names = [f"frame_{timestep:05d}.{kind}" for timestep in frames]
    return names[0] if len(names) == 1 else f"{len(names)} files {names[0]} to {names[-1]}"


def main(argv: list[str]) -> None:
    options = parse_arguments(argv)
    # Posing needs no GPU, no built rasteriser and no masks.
    overrides = {"device": "cpu", "rasterizer": "reference", "flame_masks": "", **typed_overrides(options)}
    torch.set_num_threads(1)  # the same bits on every machine
    run = load_avatar(Path(options.model_path), options.iteration, overrides)
    if not run.avatar.rig.bound and ("mesh" in options.kinds or options.share):
        flag, problem = ("--share", "is for heads") if options.share else ("--what mesh", "needs an avatar on a mesh")
        raise InputError("command line", flag, f"{problem}, and {options.model_path} is an unbound scene")
    frames = chosen_frames(options.frames, run.avatar.rig.timesteps)
    folder = Path(options.output or Path(options.model_path) / "export" / f"ours_{run.iteration}")
    layout = uv_layout(run.avatar, options.uv_template) if "mesh" in options.kinds else None
    if "splats" in options.kinds:
        export_splats(run.avatar, frames, folder, options)
    if layout is not None:
        export_mesh(run.avatar, frames, folder, layout, options)


if __name__ == "__main__":
    sys.exit(run_main(main))
