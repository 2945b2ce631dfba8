"""From options to the objects of a run, for training and for everything that reads a trained run."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gaussian_renderer import Renderer, build_renderer
from scene.cameras import camera_extent
from scene.datasets import identify, open_dataset
from scene.flame_gaussian_model import FlameGaussianModel
from scene.frames import Dataset
from scene.gaussian_model import PLY, GaussianModel
from scene.rigs import RIGS, FlameRig, Rig
from utils.contracts import Camera, Mesh, Points
from utils.engine.cfg_args import CFG_ARGS, read_cfg_args
from utils.engine.check import check
from utils.engine.checkpoint import read_object
from utils.engine.device import AUTO, Device, choose_device, device_named
from utils.engine.options import Options, options_from_flags
from utils.engine.run import OPTIONS, RUN_FACTS
from utils.errors import InputError
from utils.losses import perceptual
from utils.maths.projection import project, to_camera
from utils.maths.random import generator
from utils.maths.triangle_frames import triangle_areas

HEAD_EXTENTS = (
    5.0  # a 0.2 m head gets extent 1: what a NeRSemble camera ring has, so the original's rates keep their sense
)


SAME = ("sh_degree", "bind_to_mesh", "disable_flame_static_offset", "not_finetune_flame_params")  # what an avatar is
VIEWS_LOOKED_AT = 24
STATIC_EXTENT = 1e-4  # metres: cameras closer together than this are one
UNBOUND_POINTS, UNBOUND_SIDE = 50_000, 0.3  # metres: a head at the origin of a tracked capture, if nothing is bound


@dataclass(frozen=True)
class LoadedAvatar:
    """A trained avatar (or scene), ready to render."""

    options: Options
    avatar: GaussianModel
    render: Renderer
    iteration: int
    note: str = field(default="", kw_only=True)  # for the log: which device, and why

    @property
    def device(self) -> Device:
        return device_named(self.options.run.device)


@dataclass(frozen=True)
class LoadedRun(LoadedAvatar):
    """A trained avatar and the dataset that it was trained on."""

    dataset: Dataset


def open_inputs(options: Options) -> tuple[Dataset, Rig]:
    """Open the dataset of a run and build the rig that its motion drives; everything is checked, nothing is written.

    The rig's own files are read first: what is missing is said before thousands of pictures are decoded.
    """
    source, format_ = identify(options.data)
    if options.data.bind_to_mesh and format_.rig == "still":
        raise InputError(source, "", "holds no tracked head", "Leave out --bind_to_mesh.")
    entry = RIGS[format_.rig if options.data.bind_to_mesh else "still"]
    model = entry.load(options.rig, device_named(options.run.device).torch)
    dataset = open_data(options)
    return dataset, entry.build(options.rig, model, dataset.motion, source)


def open_data(options: Options) -> Dataset:
    """Open the dataset of a run."""
    return open_dataset(options.data, Path(options.data.cache_dir or Path(options.run.model_path) / "cache"))


def model_class(rig: Rig) -> type[GaussianModel]:
    return FlameGaussianModel if isinstance(rig, FlameRig) else GaussianModel


def fingerprints(options: Options, dataset: Dataset, rig: Rig) -> dict[str, str]:
    """What a run was made from, by the flag that names it; masks and weights only if they decide what comes out."""
    found = {"source_path": dataset.fingerprint, "flame_model": rig.fingerprint}
    found.update(perceptual.fingerprints(options.losses["perceptual"]))
    if options.densification.needs_regions or options.losses["perceptual"].needs_regions:
        digest = hashlib.sha256()
        for name, inside in sorted(rig.regions.items()):
            digest.update(name.encode() + b"\0" + inside.cpu().numpy().tobytes())
        found["flame_masks"] = digest.hexdigest()
    return found


def build_avatar(options: Options, dataset: Dataset, rig: Rig) -> GaussianModel:
    """The avatar before its first step; InputError if there is nothing to train it on."""
    if not len(dataset.train):
        raise InputError(options.data.source_path, "", "has no training frames",
                         "Choose another --select_camera_id, or leave out --eval.")  # fmt: skip
    if rig.bound:
        refuse_unseen(dataset, rig)
    points = None if rig.bound else dataset.points or points_around_origin(options.run.seed)
    device = device_named(options.run.device).torch
    avatar = model_class(rig).on_rig(rig, options.model, options.run.seed, device, points)
    avatar.use_threads(options.run.threads or None)
    return avatar


@torch.no_grad()
def refuse_unseen(dataset: Dataset, rig: Rig) -> None:
    """Raise InputError if the posed mesh is in the picture of none of some training views: the cameras are wrong."""
    views = dataset.train.views[:: max(1, len(dataset.train) // VIEWS_LOOKED_AT)]
    for view in views:
        points = to_camera(rig(view.timestep).vertices.cpu(), view.camera.world_to_camera)
        pixels = project(points, view.camera.intrinsics)
        inside = (pixels >= 0) & (pixels < torch.tensor([view.camera.width, view.camera.height]))
        if bool((inside.all(dim=1) & (points[:, 2] > view.camera.near)).any()):
            return
    raise InputError(dataset.source, views[0].name, "no vertex of the mesh is in the picture, here and in "
                     f"{len(views) - 1} other training views", "scripts/inspect_dataset.py finds out what is wrong "
                     "with the cameras.")  # fmt: skip


def points_around_origin(seed: int) -> Points:
    """Where an unbound avatar of a tracked head starts: random points in a cube around it."""
    random = generator(seed, "unbound points").random((2, UNBOUND_POINTS, 3), dtype="float32")
    positions, colours = torch.from_numpy(random)
    return Points(UNBOUND_SIDE * (2.0 * positions - 1.0), colours)


def scene_extent(kind: str, rig: Rig, cameras: list[Camera]) -> float:
    """The length unit of rates and thresholds, metres.

    Args:
        kind: `head`: from the mesh, so that one static camera trains; `cameras`: as the original has it, 1.1 times the
            largest distance of a training camera from their mean. An unbound scene has only its cameras.
    """
    if kind == "cameras" or not rig.bound:
        return camera_extent(cameras)
    vertices = rig.rest_mesh().vertices
    return HEAD_EXTENTS * float((vertices - vertices.mean(dim=0)).norm(dim=-1).max())


def notes(options: Options, dataset: Dataset, rig: Rig) -> list[str]:
    """What a user should know before this dataset is trained on with these options."""
    found = list(dataset.notes)
    if dataset.motion is not None and not rig.bound:
        found.append("unbound: Gaussians stay where they are while the head moves; --bind_to_mesh binds them to it")
    if not rig.bound and camera_extent(dataset.train.cameras) < STATIC_EXTENT:
        found.append("one camera: the scene's extent is 0, so positions stay and nothing is pruned; give more views")
    if options.data.data_device == "cuda" and options.run.device == "cpu":
        found.append("--data_device has no effect with --device cpu")
    if rig.bound and (flat := flat_faces(rig.rest_mesh())):
        found.append(f"{flat} triangles of the mesh are without area: their Gaussians get no direction")
    if rig.bound and camera_extent(dataset.train.cameras) < STATIC_EXTENT:
        found.append("one static camera: light that stays in the room looks like colour that depends on the view; if "
                     "other views matter, compare --sh_degree 0")  # fmt: skip
        if options.optimiser.scene_extent == "cameras":
            found.append("--scene_extent cameras is 0 here, as in the original: positions will not move")
    return found


def flat_faces(mesh: Mesh) -> int:
    """How many triangles have (almost) no area: a millionth of the median's or less."""
    areas = triangle_areas(mesh.vertices, mesh.faces)
    return int((areas <= 1e-6 * areas.median()).sum())


def iterations_saved(folder: Path) -> list[int]:
    """Iterations of the avatars saved in a run folder, ascending. The PLY is written last, so its folder is whole."""
    names = [path.parent.name for path in (folder / "point_cloud").glob(f"iteration_*/{PLY}")]
    return sorted(int(name[10:]) for name in names if name[10:].isdecimal())


def load_run(folder: Path, iteration: int = -1, overrides: Mapping[str, Any] | None = None) -> LoadedRun:
    """Open a trained run and its dataset, with the options it was trained with (`load_avatar`); with the regions of its
    face if its masks are still where they were."""
    options, typed = saved_options(folder, overrides), overrides or {}
    masks = options.rig.flame_masks
    there = "flame_masks" in typed or os.path.isfile(masks)
    loaded = load_avatar(folder, iteration, {**typed, "flame_masks": masks if there else ""})
    dataset = open_data(options)
    check_inputs(folder, {"source_path": dataset.fingerprint})
    needed = 1 + max(view.timestep for split in dataset.splits().values() for view in split.views)
    if loaded.avatar.rig.bound and loaded.avatar.rig.timesteps < needed:
        raise InputError(folder / "point_cloud" / f"iteration_{loaded.iteration}", "motion",
                         f"found {loaded.avatar.rig.timesteps} timesteps, the dataset has {needed}",
                         "Give the dataset as a driver: -t FOLDER --transfer absolute.")  # fmt: skip
    return LoadedRun(**vars(loaded), dataset=dataset)


def load_avatar(folder: Path, iteration: int = -1, overrides: Mapping[str, Any] | None = None) -> LoadedAvatar:
    """Open a trained avatar, ours or the original's, without its dataset.

    Args:
        iteration: which saved avatar; -1: the newest.
        overrides: flags that replace the run's own. The device is never the run's own: `auto` if not given here.

    Raises:
        InputError: no run there, no such iteration, or broken files.
        EnvironmentFault: the device can't be used.
    """
    given = {"device": AUTO, **(overrides or {})}
    masks = given.pop("flame_masks", "")
    options = saved_options(folder, given)
    options.rig.flame_masks = masks  # not the run's own: nothing that is rendered needs them, and they may have moved
    device, note = choose_device(options.run.device, options.run.rasterizer == "native")
    options.run.device = device.name
    saved = iterations_saved(folder)
    if not saved:
        raise InputError(
            folder / "point_cloud", "", "holds no saved avatar", "Continue the run: train.py ... --resume."
        )
    if iteration != -1 and iteration not in saved:
        raise InputError(folder / "point_cloud", f"iteration_{iteration}", f"not found, saved are {saved}")
    chosen = saved[-1] if iteration == -1 else iteration
    avatar = open_avatar(folder / "point_cloud" / f"iteration_{chosen}", options)
    check_inputs(folder, {"flame_model": avatar.rig.fingerprint})
    render = build_renderer(options.run.rasterizer, options.run.threads or None, options.pipeline)
    return LoadedAvatar(options, avatar, render, chosen, note=note)


def open_avatar(folder: Path, options: Options) -> GaussianModel:
    """The avatar in a folder with `point_cloud.ply` and the motion beside it, if it is bound; on the device of the
    options, which has been chosen."""
    device = device_named(options.run.device).torch
    entry = RIGS[rig_of(folder, options)]
    model = entry.load(options.rig, device)
    rig = entry.build(options.rig, model, entry.read(folder / entry.file) if entry.read else None, folder)
    avatar = model_class(rig).load(folder, rig, device)
    avatar.use_threads(options.run.threads or None)
    return avatar


def rig_of(avatar_folder: Path, options: Options) -> str:
    """The rig of a saved avatar: the one whose file lies beside the PLY; `still` if nothing is bound."""
    if not options.data.bind_to_mesh:
        return "still"
    files = {name: entry.file for name, entry in RIGS.items() if entry.file}
    for name, file in files.items():
        if (avatar_folder / file).is_file():
            return name
    raise InputError(avatar_folder / next(iter(files.values())), "", "is missing, expected the motion of the avatar")


def saved_options(folder: Path, overrides: Mapping[str, Any] | None = None) -> Options:
    """The options of a run: `options.json`, or the `cfg_args` of the original."""
    source = folder / OPTIONS
    if os.path.isfile(source):  # False for names that are too long
        flat = read_object(source)
    elif os.path.isfile(folder / CFG_ARGS):
        source = folder / CFG_ARGS
        flat = read_cfg_args(source)
    else:
        raise InputError(source, "", "is missing, expected a run folder", "Train first: train.py -m FOLDER.")
    for name in SAME:
        if name in flat and (overrides or {}).get(name, flat[name]) != flat[name]:
            problem = f"found {(overrides or {})[name]}, the run was trained with {flat[name]}"
            raise InputError("command line", f"--{name}", problem, "Leave it out.")
    trained_on = flat.get("device", AUTO)
    if isinstance(trained_on, str) and trained_on != AUTO:
        device_named(trained_on, source)  # a name that says nothing is a fault of the file, used or not
    options = options_from_flags({**flat, "model_path": str(folder), **(overrides or {})}, source)
    check(options, source)
    return options


def check_inputs(folder: Path, found: Mapping[str, str]) -> None:
    """Refuse other files than those that the run was trained with: FLAME editions and sequences do not mix.

    Args:
        found: fingerprints by flag; `run.json` holds those of the run.
    """
    facts = read_object(folder / RUN_FACTS) if (folder / RUN_FACTS).is_file() else {}
    trained = facts.get("inputs", {})
    if not isinstance(trained, dict):
        raise InputError(folder / RUN_FACTS, "inputs", f"found {trained!r}, expected fingerprints by flag")
    for flag, fingerprint in found.items():
        if fingerprint and trained.get(flag, fingerprint) != fingerprint:
            raise InputError(f"--{flag}", "", f"has fingerprint {fingerprint[:12]}, the run was trained with "
                             f"{str(trained[flag])[:12]}", "Give the files of the run.")  # fmt: skip
