"""Losses as named, weighted terms. Adding one = one module with an Options dataclass and `build`, one line in LOSSES.

Options                      dataclass fields with a default and metadata["help"] become flags of the same name
build(options, threads)      -> Loss: LossContext -> {term name: weight * value}; a term of weight 0 is absent
describe(options)            optional: one line for the run log on how it is computed here
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from utils.contracts import Terms
from utils.losses import binding, offsets, photometric
from utils.losses.context import LossContext

__all__ = ["LOSSES", "Loss", "LossContext", "LossEntry", "Losses", "build_losses"]

Loss = Callable[[LossContext], Mapping[str, Tensor]]


@dataclass(frozen=True)
class LossEntry:
    """A row of the table: the options of a loss, and how it is built from them."""

    options: type
    build: Callable[[Any, int | None], Loss]
    describe: Callable[[Any], str] | None = None


LOSSES: dict[str, LossEntry] = {
    "photometric": LossEntry(photometric.PhotometricOptions, photometric.build, photometric.describe),
    "binding": LossEntry(binding.BindingOptions, binding.build, binding.describe),
    "offsets": LossEntry(offsets.OffsetOptions, offsets.build),
}


@dataclass(frozen=True)
class Losses:
    """All losses of a run: `losses(context) -> Terms`."""

    parts: tuple[Loss, ...]
    notes: tuple[str, ...]  # lines for the run log

    def __call__(self, context: LossContext) -> Terms:
        values: dict[str, Tensor] = {}
        for part in self.parts:
            values.update(part(context))
        return Terms(values)


def build_losses(options: Mapping[str, Any], threads: int | None = None) -> Losses:
    """Build every loss of `LOSSES`, with the given options (its defaults where none are given).

    Args:
        options: name in `LOSSES` -> its Options.
        threads: of native CPU kernels; None leaves the choice to them.

    Raises:
        InputError: an option is out of its range.
        KeyError: options for a loss that does not exist.
    """
    if unknown := set(options) - set(LOSSES):
        raise KeyError(f"no such loss: {', '.join(sorted(unknown))}; the table has {', '.join(LOSSES)}")
    chosen = {name: options.get(name, entry.options()) for name, entry in LOSSES.items()}
    parts = tuple(entry.build(chosen[name], threads) for name, entry in LOSSES.items())
    notes = tuple(entry.describe(chosen[name]) for name, entry in LOSSES.items() if entry.describe)
    return Losses(parts, notes)
