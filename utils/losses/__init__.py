"""Losses as named, weighted terms. Adding one = one module with an Options dataclass and `build`, one line in LOSSES.

Options                          dataclass fields with a default and metadata["help"] become flags of the same name
build(options, threads, subject) -> Loss: LossContext -> {term name: weight * value}; a term of weight 0 is absent
describe(options)                optional: one line for the run log on how it is computed here; empty: nothing to say
weights(options)                 term name -> its weight, for the report; a term of weight 0 is absent
check(options)                   optional: raises if a file that it needs is missing; runs before data are opened
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from torch import Tensor

from utils.contracts import Subject, Terms
from utils.losses import binding, flow, offsets, perceptual, photometric, temporal
from utils.losses.context import LossContext
from utils.losses.stopwatch import Stopwatch

__all__ = ["LOSSES", "Loss", "LossContext", "LossEntry", "Losses", "build_losses", "check_losses"]

Loss = Callable[[LossContext], Mapping[str, Tensor]]  # it may have `start`: where the motion begins, [T, ...] by name


@dataclass(frozen=True)
class LossEntry:
    """A row of the table: the options of a loss, and how it is built from them."""

    options: type
    build: Callable[[Any, int | None, Subject], Loss]
    weights: Callable[[Any], Mapping[str, float]]
    describe: Callable[[Any], str] | None = None
    check: Callable[[Any], None] | None = None


LOSSES: dict[str, LossEntry] = {
    "photometric": LossEntry(
        photometric.PhotometricOptions, photometric.build, photometric.weights, photometric.describe
    ),
    "binding": LossEntry(binding.BindingOptions, binding.build, binding.weights, binding.describe),
    "offsets": LossEntry(offsets.OffsetOptions, offsets.build, offsets.weights),
    "temporal": LossEntry(temporal.TemporalOptions, temporal.build, temporal.weights, temporal.describe),
    "flow": LossEntry(flow.FlowOptions, flow.build, flow.weights, flow.describe),
    "perceptual": LossEntry(
        perceptual.PerceptualOptions, perceptual.build, perceptual.weights, perceptual.describe, perceptual.check
    ),
}


@dataclass(frozen=True)
class Losses:
    """All losses of a run: `losses(context) -> Terms`."""

    parts: Mapping[str, Loss]
    notes: tuple[str, ...]  # lines for the run log
    weights: Mapping[str, Mapping[str, float]]  # name of a loss -> its terms -> their weights
    watch: Stopwatch = field(default_factory=Stopwatch)

    @property
    def start(self) -> dict[str, Tensor]:
        """name -> [T, ...] parameters of the motion that training begins with; the others begin as tracked."""
        return {name: values for part in self.parts.values() for name, values in getattr(part, "start", {}).items()}

    def __call__(self, context: LossContext) -> Terms:
        values: dict[str, Tensor] = {}
        timed = self.watch.samples(context.step)
        if timed and context.rendered.image.requires_grad:
            context.rendered.image.register_hook(lambda _: self.watch.turn(""))
        for name, part in self.parts.items():
            began = perf_counter()
            terms = part(context)
            if timed and terms:
                self.watch.add(name, perf_counter() - began)
                terms = self.watch.mark(name, terms)
            values.update(terms)
        return Terms(values)


def build_losses(options: Mapping[str, Any], threads: int | None = None, subject: Subject | None = None) -> Losses:
    """Build every loss of `LOSSES`, with the given options (its defaults where none are given).

    Args:
        options: name in `LOSSES` -> its Options.
        threads: of native CPU kernels; None leaves the choice to them.
        subject: whom the run is about; None: nothing is known.

    Raises:
        InputError: an option is out of its range.
        KeyError: options for a loss that does not exist.
    """
    if unknown := set(options) - set(LOSSES):
        raise KeyError(f"no such loss: {', '.join(sorted(unknown))}; the table has {', '.join(LOSSES)}")
    chosen = {name: options.get(name, entry.options()) for name, entry in LOSSES.items()}
    parts = {name: entry.build(chosen[name], threads, subject or Subject()) for name, entry in LOSSES.items()}
    weights = {name: {t: w for t, w in entry.weights(chosen[name]).items() if w} for name, entry in LOSSES.items()}
    notes = (entry.describe(chosen[name]) for name, entry in LOSSES.items() if entry.describe)
    return Losses(parts, tuple(filter(None, notes)), {name: terms for name, terms in weights.items() if terms})


def check_losses(options: Mapping[str, Any]) -> None:
    """Look for the files that losses need, before the minutes that opening a dataset may take.

    Raises:
        InputError: a file is missing; says which, where to get it, and its flag.
    """
    for name, chosen in options.items():
        if check := LOSSES[name].check:
            check(chosen)
