"""From options to the objects of a run, for training and for everything that reads a trained run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flame_model import FlameModel
from gaussian_renderer import build_renderer
from scene.datasets import open_dataset
from scene.datasets.flame_params import STATIC, read_flame_params
from scene.flame_gaussian_model import MOTION_FILE, PLY, FlameGaussianModel
from scene.frames import Dataset
from scene.rigs import RIGS, load_face_model
from utils.contracts import Camera, Mesh, Motion, Rendered, Splats
from utils.engine.check import check
from utils.engine.checkpoint import read_object
from utils.engine.device import check_device
from utils.engine.options import Options, options_from_flags
from utils.engine.run import OPTIONS, RUN_FACTS
from utils.errors import InputError

Render = Callable[[Splats, Camera, Tensor], Rendered]
HEAD_EXTENTS = (
    5.0  # a 0.2 m head gets extent 1: what a NeRSemble camera ring has, so the original's rates keep their sense
)


@dataclass(frozen=True)
class LoadedRun:
    """A trained run, ready to render."""

    options: Options
    dataset: Dataset
    avatar: FlameGaussianModel
    render: Render
    iteration: int


def open_data(options: Options) -> Dataset:
    """Open the dataset of a run; everything in it is checked here, before anything is written."""
    dataset = open_dataset(options.data, Path(options.data.cache_dir or Path(options.run.model_path) / "cache"))
    if dataset.motion is None:
        raise InputError(options.data.source_path, "", "holds no FLAME parameters, expected a tracked head",
                         "Unbound scenes are not supported yet.")  # fmt: skip
    if not options.data.bind_to_mesh:
        raise InputError(
            options.data.source_path, "", "is FLAME-rigged, but --bind_to_mesh is off", "Add --bind_to_mesh."
        )
    return dataset


def build_avatar(options: Options, dataset: Dataset, face: FlameModel) -> FlameGaussianModel:
    """The avatar before its first step; InputError if there is nothing to train it on."""
    if not len(dataset.train):
        raise InputError(options.data.source_path, "", "has no training frames",
                         "Choose another --select_camera_id, or leave out --eval.")  # fmt: skip
    device = options.run.device
    if dataset.motion is None:
        raise InputError(dataset.source, "", "holds no motion")
    rig = RIGS["flame"](options.rig, face, dataset.motion, dataset.source)
    return FlameGaussianModel.on_rig(rig, options.model, options.run.seed, device)


def scene_extent(kind: str, rest: Mesh, cameras: float) -> float:
    """The length unit of rates and thresholds, metres.

    Args:
        kind: `head`: from the mesh, so that one static camera trains; `cameras`: as the original has it.
        cameras: 1.1 times the largest distance of a training camera from their mean.
    """
    if kind == "cameras":
        return cameras
    centre = rest.vertices.mean(dim=0)
    return HEAD_EXTENTS * float((rest.vertices - centre).norm(dim=-1).max())


def iterations_saved(folder: Path) -> list[int]:
    """Iterations of the avatars saved in a run folder, ascending. The PLY is written last, so its folder is whole."""
    names = [path.parent.name for path in (folder / "point_cloud").glob(f"iteration_*/{PLY}")]
    return sorted(int(name[10:]) for name in names if name[10:].isdigit())


def load_run(folder: Path, iteration: int = -1, overrides: Mapping[str, Any] | None = None) -> LoadedRun:
    """Open a trained run with the options it was trained with.

    Args:
        iteration: which saved avatar; -1: the newest.
        overrides: flags that replace the run's own.

    Raises:
        InputError: no run there, no such iteration, or broken files.
    """
    if not (folder / OPTIONS).is_file():
        raise InputError(folder / OPTIONS, "", "is missing, expected a run folder", "Train first: train.py -m FOLDER.")
    flat = {**read_object(folder / OPTIONS), "model_path": str(folder), **(overrides or {})}
    options = options_from_flags(flat, folder / OPTIONS)
    check(options)
    check_device(options.run.device)
    saved = iterations_saved(folder)
    if not saved:
        raise InputError(
            folder / "point_cloud", "", "holds no saved avatar", "Continue the run: train.py ... --resume."
        )
    if iteration != -1 and iteration not in saved:
        raise InputError(folder / "point_cloud", f"iteration_{iteration}", f"not found, saved are {saved}")
    chosen = saved[-1] if iteration == -1 else iteration
    avatar_folder = folder / "point_cloud" / f"iteration_{chosen}"
    dataset = open_data(options)
    face = load_face_model(options.rig, options.run.device)
    check_inputs(folder, {"source_path": dataset.fingerprint, "flame_model": face.fingerprint})
    rig = RIGS["flame"](options.rig, face, read_motion(avatar_folder / MOTION_FILE), avatar_folder)
    avatar = FlameGaussianModel.load(avatar_folder, rig, options.run.device)
    render = build_renderer(options.run.rasterizer, options.run.threads or None)
    return LoadedRun(options, dataset, avatar, render, chosen)


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
        if trained.get(flag, fingerprint) != fingerprint:
            raise InputError(f"--{flag}", "", f"has fingerprint {fingerprint[:12]}, the run was trained with "
                             f"{str(trained[flag])[:12]}", "Give the files of the run.")  # fmt: skip


def read_motion(path: Path) -> Motion:
    """Read an avatar's `flame_param.npz` as saved by us or by the original; InputError names what is wrong with it."""
    tensors = {name: torch.from_numpy(values) for name, values in read_flame_params(path).items()}
    return Motion({name: values for name, values in tensors.items() if name not in STATIC},
                  {name: values for name, values in tensors.items() if name in STATIC})  # fmt: skip
