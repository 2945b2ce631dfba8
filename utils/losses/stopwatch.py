"""What each loss costs: seconds forward and backward, sampled while training goes on as it would anyway.

Autograd runs the nodes of a graph in the reverse order of their making, so the gradients of one loss are done before
those of the loss made before it begin: a mark at the end of each loss tells when. Marks hand values and gradients on
as they are. On a GPU, where work is only queued, the times are those of queueing.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter
from typing import Any

from torch import Tensor
from torch.autograd import Function

EVERY, SAMPLED = 100, 10  # of a hundred steps the last ten are timed: a loss due at every n-th has its turn, n <= 10


class Stopwatch:
    """Seconds a step by name of a loss, mean over the sampled steps."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.steps, self.last_step = 0, -1
        self.running, self.since = "", 0.0

    def samples(self, step: int) -> bool:
        """Whether this step (from 1) is timed; to be asked before every view."""
        wanted = (step - 1) % EVERY >= EVERY - SAMPLED
        if wanted and step != self.last_step:
            self.steps, self.last_step = self.steps + 1, step
        return wanted

    def add(self, name: str, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def turn(self, name: str) -> None:
        """Backward reaches another loss (empty: none)."""
        now = perf_counter()
        if self.running:
            self.add(self.running, now - self.since)
        self.running, self.since = name, now

    def mark(self, name: str, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same terms of a loss; when a gradient reaches one of them, that loss has its turn."""
        return {term: _Mark.apply(value, self, name) for term, value in terms.items()}  # type: ignore[misc]

    def per_step(self) -> dict[str, float]:
        """Mean seconds a step since the last call, by name; empty if nothing was timed."""
        found = {name: total / self.steps for name, total in self.seconds.items()} if self.steps else {}
        self.seconds, self.steps, self.running = {}, 0, ""
        return found


class _Mark(Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, watch: Stopwatch, name: str) -> Tensor:
        ctx.watch, ctx.name = watch, name
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        if ctx.watch.running != ctx.name:
            ctx.watch.turn(ctx.name)
        return grads[0], None, None
