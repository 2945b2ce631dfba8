"""The training step captured in a CUDA graph: one launch a step, and a look at how it went every so often."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple, NoReturn

import torch
from diff_gaussian_rasterization.training import COLUMNS, MOTION, TERMS, Reason, TrainingStep
from torch import Tensor

from utils.contracts import Terms
from utils.engine.guard import POLL_EVERY, fault_line
from utils.engine.step import Look, Seen, Training
from utils.engine.step_tables import Desk
from utils.errors import NumericalFault

PAIRS_PER_GAUSSIAN, LEAST_PAIRS = 8, 1 << 14  # (splat, tile) pairs of a view that there is room for at first
GROWTH, MOST_PAIRS = 1.5, 2**31 - 1  # over what was needed, all of which is sorted; what 31 bits can count


class Request(NamedTuple):
    """What one step was asked to do."""

    step: int
    count: int  # of Adam
    rows: list[int]  # frames
    rates: dict[str, float]


class CapturedStep:
    """Picture, photometric loss and limits, gradients, sums for densification and Adam, without PyTorch in between.

    The host runs ahead of the device, by POLL_EVERY steps at most. A step that goes wrong and all behind it change
    nothing: one that needed more pairs than there was room for is done again with more, and those behind it; anything
    else raises, with the state of the last good step, which is saved.
    """

    def __init__(self, training: Training) -> None:
        self.training = training
        self.desk = Desk(training)
        self.native = TrainingStep(self.desk.image)
        limits = training.losses.weights.get("binding", {}) if training.avatar.rig.bound else {}
        self.names = {**training.losses.weights.get("photometric", {}), **limits}
        self.pending: list[Request] = []  # since the last look
        self.capacity = 0
        self.needed = 0.0  # of these for each Gaussian, as far as is known; 0: nothing is
        self.bound: list[Tensor] = []
        self.degree = -1
        training.guard.watch = self.settle

    def __call__(self, step: int) -> Look:
        t = self.training
        self.follow(step)
        t.optimiser.count += 1
        request = Request(step, t.optimiser.count, t.rows(step), dict(t.optimiser.rates))
        self.send([request])
        t.frames.ahead(t.rows(step + 1))
        if step % POLL_EVERY == 0 or t.strategy.edits(step) or 0 <= t.guard.debug_from <= step:
            self.settle()
        return lambda: self.look(request)

    def send(self, requests: list[Request]) -> None:
        """Ask for steps, after those that were asked for before."""
        for request in requests:
            offsets = self.training.frames.stage(request.rows)
            self.native.enqueue(request.step, request.count, request.rows, offsets, request.rates)
            self.pending.append(request)

    def follow(self, step: int) -> None:
        """Capture anew if the step works on other tensors than before: rows were edited, say, or the degree rose."""
        tensors, degree = self.desk.worked_on(step), self.training.avatar.sh_degree
        same = len(tensors) == len(self.bound) and all(a is b for a, b in zip(tensors, self.bound, strict=True))
        if not same or degree != self.degree:
            self.settle()
            self.bind(step)
            self.bound, self.degree = tensors, degree

    def bind(self, step: int) -> None:
        views, count = len(self.desk.image), len(self.training.avatar)
        wanted = self.needed * GROWTH if self.needed else float(views * PAIRS_PER_GAUSSIAN)
        self.capacity = min(MOST_PAIRS, max(math.ceil(wanted * count), views * LEAST_PAIRS))
        tables = self.desk.tables(step, self.capacity)
        try:
            self.native.bind(tables)
        except MemoryError:
            if not self.desk.image.is_cuda:
                raise
            torch.cuda.empty_cache()  # PyTorch keeps what it no longer needs
            self.native.bind(tables)

    def make_room(self, pairs: int, request: Request) -> None:
        if pairs > MOST_PAIRS:
            self.training.optimiser.count = request.count - 1
            self.training.guard.save(request.step - 1)
            views = ", ".join(self.training.frames.views[row].name for row in request.rows)
            raise NumericalFault(f"iteration {request.step}, view {views}: renderer: the splats cover too many tiles. "
                                 "Take smaller pictures, or fewer Gaussians or views a step.")  # fmt: skip
        self.needed = pairs / max(1, len(self.training.avatar))

    def settle(self) -> None:
        """Wait for the steps so far; each of them was done, or the run ends here.

        Raises:
            NumericalFault: with the messages of `FiniteGuard`.
        """
        while self.pending:
            health = self.native.poll()
            if not health.stopped:
                self.needed = health.pairs / max(1, len(self.training.avatar))
                break
            first = next(i for i, request in enumerate(self.pending) if request.step == health.step)
            left, self.pending = self.pending[first:], []
            if Reason.TOO_MANY_PAIRS not in health.stopped or Reason.BAD_INPUT in health.stopped:
                self.fail(left[0])
            self.make_room(health.pairs, left[0])
            self.bind(left[0].step)
            self.native.clear()
            self.send(left)
        if self.pending:
            for tensor in self.bound:
                torch.autograd.graph.increment_version(tensor)
        self.pending = []

    def look(self, request: Request) -> Seen:
        """The last view of a step that is still the last one."""
        self.settle()
        return Seen(self.training.frames[request.rows[-1]], self.terms(-1), self.desk.image[-1])

    def terms(self, view: int) -> Terms:
        found = zip(TERMS, self.desk.terms[view].clone().unbind(), strict=True)
        return Terms({name: value for name, value in found if name in self.names})

    def fail(self, request: Request) -> NoReturn:
        """Do a step that went wrong once more, to see what it was about: it changes nothing this time either."""
        t = self.training
        t.optimiser.count = request.count - 1
        self.native.clear()
        self.send([request])
        health, self.pending = self.native.poll(), []
        names = [t.frames.views[row].name for row in request.rows]
        if Reason.BAD_INPUT in health.stopped:
            view, problem = bad_input(t, request.rows, health.bad_row)
            with t.guard.drawing(request.step, names[view], t.avatar.parameters):
                raise NumericalFault(f"{problem}. A step before this one diverged")
        terms = [bad_terms(self.terms(view)) for view in range(len(names))]
        view = next((i for i, lines in enumerate(terms) if lines), -1)
        lines = (terms[view] if view >= 0 else []) + bad_gradients(self.desk.gradients)
        t.guard.save(request.step - 1)
        raise NumericalFault(fault_line(request.step, names[view] if view >= 0 else ", ".join(names), lines))


def bad_terms(terms: Terms) -> list[str]:
    return [f"loss term {name} ({float(value)})" for name, value in terms.values.items() if not value.isfinite()]


def bad_gradients(gradients: Mapping[str, Tensor]) -> list[str]:
    counts = {name: int((~gradient.square().isfinite()).sum()) for name, gradient in gradients.items()}
    return [f"gradient of {name} ({count} values)" for name, count in counts.items() if count]


def bad_input(training: Training, rows: list[int], beyond: int) -> tuple[int, str]:
    """Which view could not be drawn, and why, in the words of the CPU's kernels.

    Args:
        beyond: the Gaussian that is out of range on its triangle, if every parameter is finite.
    """
    for view, row in enumerate(rows):
        timestep = training.frames.views[row].timestep
        tables = training.avatar.rig.parameters
        for name in (name for name in MOTION if name in tables):
            if (value := first_bad(tables[name][timestep])) >= 0:
                return view, f"flame: timestep {timestep}: {name}: value {value} is not finite"
        for name in COLUMNS:
            column = training.avatar.columns[name]
            if (value := first_bad(column)) >= 0:
                return view, f"renderer: {name}: row {value // max(1, column[0].numel())} is not finite"
    return 0, f"renderer: scales or means: row {beyond} leaves the range of numbers on its triangle"


def first_bad(values: Tensor) -> int:
    """Where, row after row, the first value is that is not finite; -1: nowhere."""
    bad = torch.nonzero(~values.detach().isfinite().reshape(-1))
    return int(bad[0]) if len(bad) else -1
