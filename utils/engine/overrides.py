"""Flags of training that may be given anew for a trained run: where things lie and how they are drawn, nothing else."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from utils.engine.options import CHOICES, GROUPS, known_flags

OVERRIDES = ("source_path", "data_root", "flame_model", "flame_masks", "cache_dir", "image_memory_gb",
             "select_camera_id", "rasterizer", "device", "threads")  # fmt: skip


def add_overrides(parser: argparse.ArgumentParser, names: Sequence[str] = OVERRIDES) -> None:
    """Add the flags `names`; nothing is stored for those that were not typed, so that the run's own values hold."""
    group, hints = parser.add_argument_group("flags of the run that may be given anew"), known_flags()
    for field in (field for _, options in GROUPS for field in fields(options) if field.name in names):
        short = [field.metadata["alias"]] if "alias" in field.metadata else []
        group.add_argument(
            *short,
            f"--{field.name}",
            default=argparse.SUPPRESS,
            type=hints[field.name],
            choices=CHOICES.get(field.name),
            help=field.metadata.get("help", "").replace("%", "%%"),
        )


def typed_overrides(typed: argparse.Namespace) -> dict[str, Any]:
    """Those of OVERRIDES that were typed."""
    return {name: getattr(typed, name) for name in OVERRIDES if hasattr(typed, name)}
