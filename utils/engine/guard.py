"""A loss or gradient that is not finite stops the run before the update that would spread it."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from utils.contracts import Terms
from utils.errors import NumericalFault
from utils.maths.table_rows import stored_values

NATIVE, AVAILABLE = "diff_gaussian_rasterization.statistics", "diff_gaussian_rasterization._device"
POLL_EVERY = 50  # steps between looks at the device flag


class FiniteGuard:
    """Watches loss terms and gradients.

    On the CPU a fault raises at once. On a GPU looking would stall the queue: a flag on the device suppresses this and
    every later update, and the next poll raises, naming the first step that went wrong.

    Args:
        deferred: True for devices whose values should not be read every step.
        debug_from: from this step on look every step on a GPU too; negative: never.
        save: called with the last good step before a fault raises, while the state is still that step's.
        threads: of the native kernel on the CPU.
    """

    def __init__(
        self, deferred: bool, save: Callable[[int], None], debug_from: int = -1, threads: int | None = None
    ) -> None:
        self.deferred, self.save, self.debug_from = deferred, save, debug_from
        self.all_fine, self.how = choose_check(deferred, threads)
        self.healthy: Tensor | None = None  # 0-dim bool: no fault so far
        self.first_bad: Tensor | None = None  # 0-dim int64: the first bad step, 0 = none
        self.bad_terms: dict[str, Tensor] = {}
        self.recent: dict[int, str] = {}
        self.watch: Callable[[], None] = lambda: None  # asked at every poll: whoever else knows how the steps went

    def check(self, step: int, view: str, terms: Terms, parameters: Mapping[str, Tensor]) -> Tensor | None:
        """Call between backward and the update.

        Returns:
            None where faults raise at once; else a 0-dim bool on the device that the update must obey.

        Raises:
            NumericalFault: names the iteration, the view and the terms or gradients that are not finite.
        """
        gradients = {name: stored_values(values.grad) for name, values in parameters.items() if values.grad is not None}
        if self.deferred and not 0 <= self.debug_from <= step:
            return self.note(step, view, terms, gradients)
        self.poll()
        if all(math.isfinite(value.item()) for value in terms.values.values()) and self.all_fine(gradients.values()):
            return None
        bad = [
            f"loss term {name} ({float(value.detach())})"
            for name, value in terms.values.items()
            if not value.isfinite()
        ]
        bad += [f"gradient of {name} ({int((~grad.square().isfinite()).sum())} values)"
                for name, grad in gradients.items() if not bool(grad.square().isfinite().all())]  # fmt: skip
        if not bad:  # only a sum overflowed: every square is finite
            return None
        self.save(step - 1)
        raise NumericalFault(fault_line(step, view, bad))

    def note(self, step: int, view: str, terms: Terms, gradients: Mapping[str, Tensor]) -> Tensor:
        """Fold this step into the device flags without reading them, except every POLL_EVERY steps."""
        fine = terms.total.detach().isfinite() & self.all_fine(gradients.values())
        if self.healthy is None or self.first_bad is None:
            self.healthy, self.first_bad = torch.ones_like(fine), torch.zeros_like(fine, dtype=torch.int64)
        newly = self.healthy & ~fine
        self.first_bad = torch.where(newly, step, self.first_bad)
        for name, value in terms.values.items():
            before = self.bad_terms.get(name, torch.zeros_like(fine))
            self.bad_terms[name] = before | (newly & ~value.detach().isfinite())
        self.healthy = self.healthy & fine
        self.recent[step] = f"{self.recent[step]}, {view}" if step in self.recent else view  # of a batch, one of them
        if step % POLL_EVERY == 0:
            self.poll()
        return self.healthy

    @contextmanager
    def drawing(self, step: int, view: str, parameters: Mapping[str, Tensor]) -> Iterator[None]:
        """A renderer that refuses its input doesn't know when and where: say it, and save a state that is good."""
        try:
            yield
        except NumericalFault as fault:
            if step > 1 and all(bool(values.detach().isfinite().all()) for values in parameters.values()):
                self.save(step - 1)
            raise NumericalFault(f"iteration {step}, view {view}: {fault}") from fault

    def poll(self, step: int = 0, parameters: Mapping[str, Tensor] | None = None) -> None:
        """Read the flag; raise if a step since the last look went wrong. Call once more after the last step.

        Args:
            parameters: looked at as well, before they are saved: a value may be infinite behind a finite activation.
        """
        self.watch()
        if self.first_bad is not None and (first := int(self.first_bad)):
            bad = [f"loss term {name}" for name, flag in self.bad_terms.items() if bool(flag)] or ["a gradient"]
            raise NumericalFault(fault_line(first, self.recent[first], bad))
        self.recent.clear()
        for name, values in (parameters or {}).items():
            bad = ~values.detach().isfinite()
            if bool(bad.any()):
                row = int(torch.nonzero(bad)[0, 0])
                raise NumericalFault(f"iteration {step}: {name}: row {row} is not finite. Nothing was saved; the last "
                                     "checkpoint is good")  # fmt: skip


def choose_check(deferred: bool, threads: int | None) -> tuple[Callable[[Iterable[Tensor]], bool | Tensor], str]:
    """How gradients are looked at each step, in native code or by PyTorch, and a line for the log.

    Adam squares gradients: one whose square overflows would freeze its parameter for ever. Where looking is deferred,
    the answer stays on the device.
    """
    try:
        squares_finite = importlib.import_module(NATIVE).squares_finite
        why = importlib.import_module(AVAILABLE).usable("cuda" if deferred else "cpu")
    except (ImportError, OSError) as error:
        squares_finite, why = None, str(error)
    if squares_finite is None or why is not None:
        plain = squares_finite_on_device if deferred else sums_of_squares_finite
        return plain, f"gradient check: PyTorch (the native kernel can't be used: {why})"

    def check(gradients: Iterable[Tensor]) -> bool | Tensor:
        return squares_finite(list(gradients), threads)

    return check, "gradient check: native kernel"


def squares_finite_on_device(gradients: Iterable[Tensor]) -> bool | Tensor:
    """Whether the square of every value is finite, 0-dim bool."""
    fine: bool | Tensor = True
    for gradient in gradients:
        fine = gradient.square().isfinite().all() & fine
    return fine


def sums_of_squares_finite(gradients: Iterable[Tensor]) -> bool:
    """Whether every gradient's sum of squares is finite; False may also mean that only the sum overflowed."""
    return all(bool(torch.dot(g.reshape(-1), g.reshape(-1)).isfinite()) for g in gradients)


def fault_line(step: int, view: str, bad: list[str]) -> str:
    return (f"iteration {step}, view {view}: not finite: {', '.join(bad)}. The update was not made; lower the learning "
            "rates or look at this view's picture and FLAME parameters.")  # fmt: skip
