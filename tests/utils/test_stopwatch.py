"""The cost of each loss is measured without changing what is computed."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor

from tests.utils.test_losses import context
from utils.losses import Losses, build_losses
from utils.losses.stopwatch import EVERY, SAMPLED, Stopwatch


class _Slow(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value: Tensor, seconds: float) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.seconds = seconds
        return value.clone()

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        time.sleep(ctx.seconds)
        return grads[0], None


def losses(**seconds: float) -> Losses:
    def part(name: str, slow: float):  # type: ignore[no-untyped-def]
        return lambda c: {name: _Slow.apply(c.rendered.image.square().sum(), slow)}

    return Losses({name: part(name, slow) for name, slow in seconds.items()}, (), {})


def test_each_loss_gets_the_time_of_its_own_backward_pass() -> None:
    """Bounds from below only: a busy machine makes everything longer, the order stays."""
    loss, c = losses(quick=0.0, slow=0.2, other=0.05), context()
    object.__setattr__(c, "step", EVERY)
    loss(c).total.backward()
    found = loss.watch.per_step()
    assert found["slow"] >= 0.2 and found["other"] >= 0.05 and found["quick"] < found["slow"]
    assert loss.watch.per_step() == {}


def test_only_the_last_steps_of_a_hundred_are_timed_and_their_mean_is_told() -> None:
    watch = Stopwatch()
    assert [step for step in range(1, 2 * EVERY + 1) if watch.samples(step)] == [
        *range(EVERY - SAMPLED + 1, EVERY + 1), *range(2 * EVERY - SAMPLED + 1, 2 * EVERY + 1)
    ]  # fmt: skip
    watch.add("a", 1.0)
    assert watch.per_step() == {"a": pytest.approx(1.0 / (2 * SAMPLED))}


def test_views_of_one_step_count_as_one() -> None:
    watch = Stopwatch()
    assert watch.samples(EVERY) and watch.samples(EVERY)
    watch.add("a", 1.0)
    watch.add("a", 1.0)
    assert watch.per_step() == {"a": 2.0}


def test_values_and_gradients_keep_their_bits() -> None:
    found = []
    for step in (1, EVERY):
        c, loss = context(), build_losses({})
        object.__setattr__(c, "step", step)
        terms = loss(c)
        terms.total.backward()
        leaves = (c.rendered.image, c.local_means, c.local_scales)
        found.append([*terms.values.values(), *(leaf.grad for leaf in leaves)])
        assert bool(loss.watch.per_step()) == (step == EVERY)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_the_weight_of_every_term_is_known() -> None:
    loss = build_losses({})
    known = {term: weight for terms in loss.weights.values() for term, weight in terms.items()}
    assert set(loss(context()).values) == set(known) == {"l1", "ssim", "xyz", "scale"}
    assert known["l1"] == pytest.approx(0.8) and known["xyz"] == pytest.approx(0.01)
