"""All options of a run: which groups there are, and how they travel as flat `flag: value` pairs.

Every flag is a field of the Options dataclass of the component that uses it; this file is the one list of those groups.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from gaussian_renderer import PipelineOptions
from gaussian_renderer.backends import BACKENDS
from scene.datasets import DataOptions
from scene.datasets.options import KEEP
from scene.densification import SOURCES, STRATEGIES, DensificationOptions
from scene.gaussian_model import ModelOptions
from scene.rigs import RigOptions
from utils.engine.optimiser import OptimiserOptions
from utils.errors import InputError
from utils.losses import LOSSES


@dataclass
class RunOptions:
    """The run folder, randomness, device, and when to look, save and stop."""

    model_path: str = field(default="", metadata={"alias": "-m", "help": "run folder (default: output/<10 letters>)"})
    config: str = field(default="", metadata={"help": "preset: default (bound), static (unbound), demo, "
                                                      "gaussian_avatars, recommended, high_quality, fast; of the "
                                                      "ablations baseline, perceptual, adaptive, temporal, all; or a "
                                                      "YAML file"})  # fmt: skip
    seed: int = field(default=0, metadata={"help": "same seed, same inputs: same bits"})
    device: str = field(default="auto", metadata={"help": "cpu, cuda[:i], or auto: a GPU if one can be used"})
    step: str = field(default="auto", metadata={"help": "auto: whole as one CUDA graph, where that can be; autograd: "
                                                        "PyTorch between the kernels"})  # fmt: skip
    rasterizer: str = field(default="native", metadata={"help": f"splat engine: {', '.join(BACKENDS)}"})
    threads: int = field(default=0, metadata={"help": "threads of the native kernels; results do not depend on it"})
    start_checkpoint: str = field(default="", metadata={"help": "begin a new run from this state and step"})
    resume: str = field(default="", metadata={"bare": "latest", "help": "bare: newest good checkpoint; or a path"})
    overwrite: bool = field(default=False, metadata={"help": "replace a run that the folder already holds"})
    interval: int = field(default=-1, metadata={"help": "iterations between tests, saves, checkpoints; -1: a tenth"})
    test_iterations: list[int] = field(default_factory=list, metadata={"help": "evaluate at these instead"})
    save_iterations: list[int] = field(default_factory=list, metadata={"help": "save the avatar at these instead"})
    checkpoint_iterations: list[int] = field(default_factory=list, metadata={"help": "checkpoint at these"})
    quiet: bool = field(default=False, metadata={"help": "no progress bar"})
    debug_from: int = field(default=-1, metadata={"help": "on a GPU, look for NaN after every step from this one on"})
    detect_anomaly: bool = field(default=False, metadata={"help": "PyTorch names the operation that made a NaN; slow"})
    ip: str = field(default="127.0.0.1", metadata={"help": "of the viewer, which does not exist yet"})
    port: int = field(default=0, metadata={"help": "of the viewer, which does not exist yet"})


@dataclass
class Options:
    """Everything that decides what a run does, one group per component."""

    run: RunOptions
    data: DataOptions
    rig: RigOptions
    model: ModelOptions
    optimiser: OptimiserOptions
    densification: DensificationOptions
    pipeline: PipelineOptions
    losses: dict[str, Any]  # name in LOSSES -> its options


COMPONENTS = {f.name: get_type_hints(Options)[f.name] for f in fields(Options) if f.name != "losses"}
GROUPS: tuple[tuple[str, type], ...] = (*COMPONENTS.items(), *((f"loss: {n}", e.options) for n, e in LOSSES.items()))
CHOICES = {
    "step": ("auto", "autograd"),
    "rasterizer": tuple(BACKENDS),
    "densification": tuple(STRATEGIES),
    "region_source": SOURCES,
    "flame_update": ("rows", "dense"),
    "scene_extent": ("head", "cameras"),
    "data_device": KEEP,
}


def known_flags() -> dict[str, Any]:
    """Every flag with its type."""
    return {name: hint for _, group in GROUPS for name, hint in get_type_hints(group).items()}


def options_from_flags(flat: Mapping[str, Any], source: str | Path) -> Options:
    """Build Options from flat `flag: value` pairs; flags that are not named keep their defaults.

    Raises:
        InputError: an unknown flag or a value of the wrong type; names `source` and the flag.
    """
    hints = known_flags()
    for name, value in flat.items():
        if name not in hints:
            raise InputError(source, name, "is no flag", "`python train.py --help` lists every flag.")
        if not fits(value, hints[name]):
            raise InputError(source, name, f"found {value!r}, expected {type_name(hints[name])}")
        if hints[name] is float and not math.isfinite(value):
            raise InputError(source, name, f"found {value!r}, expected a finite number")
        if isinstance(value, str) and any(c == "\0" or 0xD800 <= ord(c) < 0xE000 for c in value):
            raise InputError(source, name, f"found {value!r}, expected UTF-8 text without NUL", "Rename the file.")
        if name in CHOICES and value not in CHOICES[name]:
            raise InputError(source, name, f"found {value!r}, expected one of {', '.join(CHOICES[name])}")
    try:
        groups = {title: build_group(group, flat, hints) for title, group in COMPONENTS.items()}
        losses = {name: build_group(entry.options, flat, hints) for name, entry in LOSSES.items()}
    except InputError as error:  # from a component, which doesn't know where its options come from
        raise InputError(source, "", str(error)) from error
    return Options(**groups, losses=losses)


def build_group(group: type, flat: Mapping[str, Any], hints: Mapping[str, Any]) -> Any:
    """One component's options from the flat pairs that are its own."""
    chosen = {f.name: flat[f.name] for f in fields(group) if f.name in flat}
    return group(**{name: float(value) if hints[name] is float else value for name, value in chosen.items()})


def flags_from_options(options: Options) -> dict[str, Any]:
    """The inverse of `options_from_flags`."""
    groups = asdict(options)
    losses = groups.pop("losses")
    return {name: value for group in (*groups.values(), *losses.values()) for name, value in group.items()}


def fits(value: Any, hint: Any) -> bool:
    """Is a value from YAML, JSON or argparse of a field's type? Whole numbers may stand for floats."""
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint == list[int]:
        return isinstance(value, list) and all(fits(item, int) for item in value)
    return isinstance(value, hint)


def type_name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and hint is not list else str(hint)


def due_at(chosen: list[int], interval: int, iterations: int) -> frozenset[int]:
    """Iterations at which something periodic is due; the last iteration always is.

    Args:
        chosen: the iterations named by the user; empty: every `interval`.
        interval: negative: a tenth of `iterations`.
    """
    if chosen:
        return frozenset(step for step in chosen if 1 <= step <= iterations) | {iterations}
    every = interval if interval > 0 else max(1, iterations // 10)
    return frozenset(range(every, iterations + 1, every)) | {iterations}
