"""Dataset formats. To add one: a module with `recognise` and `read`, and a line in DATASETS."""

from __future__ import annotations

import math
import os
from pathlib import Path

from scene.datasets import blender, colmap, flame_nerf, flash_avatar, imavatar, insta, metrical_tracker, nersemble
from scene.datasets.capture import Capture, Format, decode
from scene.datasets.options import DataOptions
from scene.frames import Dataset
from utils.errors import InputError

__all__ = ["DATASETS", "Capture", "DataOptions", "Format", "check_loading", "identify", "open_dataset"]

# Asked in this order: the first that recognises the folder reads it.
DATASETS: dict[str, Format] = {
    "colmap": Format(colmap.recognise, colmap.read, rig="still"),
    "flame_nerf": Format(flame_nerf.recognise, flame_nerf.read),
    "insta": Format(insta.recognise, insta.read, rig="meshes"),  # before blender: the same file names
    "blender": Format(blender.recognise, blender.read, rig="still"),
    "metrical_tracker": Format(metrical_tracker.recognise, metrical_tracker.read),
    "flash_avatar": Format(flash_avatar.recognise, flash_avatar.read),
    "nersemble": Format(nersemble.recognise, nersemble.read),
    "imavatar": Format(imavatar.recognise, imavatar.read),
}


def identify(options: DataOptions) -> tuple[Path, Format]:
    """The dataset folder and its format; decodes nothing.

    Raises:
        InputError: not a folder, or of no known format: says what each format looked for.
    """
    source = Path(os.path.expanduser(options.source_path))
    if not options.source_path or not os.path.isdir(source):
        raise InputError(
            options.source_path or "--source_path", "", "is not a folder, expected a dataset", "Check the path."
        )
    reasons = []
    for name, format_ in DATASETS.items():
        reason = format_.recognise(source)
        if reason is None:
            return source, format_
        reasons.append(f"{name}: {reason}")
    raise InputError(source, "", f"is no dataset of a known format ({'; '.join(reasons)})", "Check the path.")


def open_dataset(options: DataOptions, cache: Path) -> Dataset:
    """Recognise, check and decode the dataset at `options.source_path`.

    Every file is read and judged here, so that training meets no bad input later. Nothing is written, except a cache
    of the pictures if they need more than `options.image_memory_gb`.

    Args:
        options: the loading flags.
        cache: folder for that cache, unless `options.cache_dir` names another.
    Raises:
        InputError: names the file, the field or frame, what was found and what was expected.
        EnvironmentFault: the cache can't be written.
    """
    source, format_ = identify(options)
    return decode(format_.read(source, options), source, options, check_loading(source, options, cache))


def check_loading(source: Path, options: DataOptions, cache: Path) -> Path:
    """The folder for the cache of pictures; InputError for a budget or a folder that can't be."""
    if not (math.isfinite(options.image_memory_gb) and options.image_memory_gb >= 0.0):
        raise InputError("command line", "--image_memory_gb", f"found {options.image_memory_gb}, expected >= 0")
    cache = Path(os.path.expanduser(options.cache_dir)) if options.cache_dir else cache
    if cache.resolve().is_relative_to(source.resolve()):
        flag = "--cache_dir" if options.cache_dir else "--model_path"
        raise InputError("command line", flag, f"{cache} lies inside the dataset", "Choose another folder.")
    return cache
