"""Flags of training that may be given anew for a trained run: where things lie and how they are loaded and drawn."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, get_type_hints

from arguments.flags import kind_of
from utils.engine.build import SAME
from utils.engine.options import CHOICES, GROUPS

OVERRIDES = ("source_path", "data_root", "images", "resolution", "white_background", "eval", "data_device",
             "flame_model", "flame_masks", "cache_dir", "image_memory_gb", "select_camera_id", "rasterizer", "device",
             "threads", "convert_SHs_python", "compute_cov3D_python")  # fmt: skip


def add_overrides(parser: argparse.ArgumentParser, names: Sequence[str] = (*OVERRIDES, *SAME)) -> None:
    """Add the flags `names`; nothing is stored for those that were not typed, so that the run's own values hold.

    Those of SAME are accepted because the original's users type them; the run refuses another value than its own.
    """
    group = parser.add_argument_group("flags of the run that may be given anew")
    for _, options in GROUPS:
        hints = get_type_hints(options)
        for field in (field for field in fields(options) if field.name in names):
            short = [field.metadata["alias"]] if "alias" in field.metadata else []
            kind = {**kind_of(hints[field.name], field), "choices": CHOICES.get(field.name)}
            group.add_argument(
                *short,
                f"--{field.name}",
                default=argparse.SUPPRESS,
                help=field.metadata.get("help", "").replace("%", "%%"),
                **kind,
            )


def typed_overrides(typed: argparse.Namespace) -> dict[str, Any]:
    """The overrides that were typed."""
    return {name: getattr(typed, name) for name in (*OVERRIDES, *SAME) if hasattr(typed, name)}
