"""Command line -> Options. Precedence: defaults < --config preset < what was typed.

Without --config, bound avatars take the preset `default` and unbound scenes `static`.

The flags themselves are declared as dataclass fields by the components that use them; `utils/engine/options.py` lists
the groups. Here is only the machinery: flags, presets, the saved options of a run.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from arguments.flags import OneLineParser, add_flags
from utils.engine.check import check
from utils.engine.options import GROUPS, Options, known_flags, options_from_flags
from utils.errors import InputError
from utils.losses.perceptual import RANDOM

PRESETS = Path(__file__).parent / "presets"
WEIGHTS = ("vgg_weights", "lpips_vgg16_weights", "lpips_alex_weights")
PATHS = ("source_path", "data_root", "flame_model", "flame_masks", "cache_dir", "start_checkpoint",
         *WEIGHTS)  # fmt: skip


def parse(argv: list[str], program: str) -> Options:
    """Parse the command line of a program that takes every flag (train.py).

    Raises:
        InputError: an unknown flag, a bad value, an unknown preset, or options that contradict each other.
    """
    parser = OneLineParser(prog=program, allow_abbrev=False)
    parser.add_argument("--debug", action="store_true", help="print a traceback with every error")
    for title, options_class in GROUPS:
        add_flags(parser, title, options_class)
    parser.add_argument("-t", "--target_path", default="", help=argparse.SUPPRESS)
    typed = vars(parser.parse_args(argv))
    if typed.pop("target_path"):
        raise InputError("command line", "--target_path", "is for rendering", "python render.py -m RUN -t TARGET.")
    config = typed.get("config") or ("default" if typed.get("bind_to_mesh") else "static")
    typed.pop("debug")
    flat = {**read_preset(config), **typed, "config": config}
    for name in PATHS:  # a run must open from any folder later
        if flat.get(name) and not (name in WEIGHTS and flat[name] == RANDOM):
            flat[name] = str(Path(os.path.expanduser(flat[name])).absolute())
    options = options_from_flags(flat, "command line")
    check(options)
    return options


def preset_names() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def read_preset(name: str) -> dict[str, Any]:
    """Read `arguments/presets/NAME.yaml` or a YAML file given by path: flat, `flag: value`, differences only.

    Raises:
        InputError: no such preset, not YAML, or a key that is no flag.
    """
    import yaml  # not at the top: what needs no preset runs without it

    path = Path(name) if name.endswith((".yaml", ".yml")) else PRESETS / f"{name}.yaml"
    if not path.is_file():
        raise InputError("--config", name, "no such preset", f"Known: {', '.join(preset_names())}, or a .yaml file.")
    try:
        preset = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(path, "", f"not readable as YAML: {error}", "Write one `flag: value` per line.") from error
    if not isinstance(preset, dict):
        raise InputError(path, "", f"found a {type(preset).__name__}, expected `flag: value` lines")
    for key in preset:
        if key not in known_flags():
            raise InputError(path, str(key), "is no flag", "`python train.py --help` lists every flag.")
    refuse_repeated_keys(path)
    options_from_flags(preset, path)  # a value of the wrong type is the file's fault, not the command line's
    return preset


def refuse_repeated_keys(path: Path) -> None:
    """YAML lets the last of several equal keys count; here it is an error."""
    import yaml

    root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    keys = [key.value for key, _ in root.value] if isinstance(root, yaml.MappingNode) else []
    for key in keys:
        if keys.count(key) > 1:
            raise InputError(path, str(key), "is there twice, expected once")
