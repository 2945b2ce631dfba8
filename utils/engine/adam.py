"""Adam's update rule (Kingma & Ba 2015, algorithm 1), for whole columns and for single rows."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from utils.maths.table_rows import rows_with_gradient

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-15  # epsilon: GaussianAvatars; gradients of splats are tiny
NATIVE, AVAILABLE = "diff_gaussian_rasterization.adam", "diff_gaussian_rasterization._device"
Moments = tuple[Tensor, Tensor]  # running means of the gradient and of its square, shaped like the parameter


class Update(NamedTuple):
    """What one step does to one parameter."""

    parameter: Tensor
    gradient: Tensor
    moments: Moments
    rate: float


class Step(Protocol):
    """One step of whole columns, as `adam_steps`."""

    def __call__(self, updates: Sequence[Update], count: int, allowed: Tensor | None = None, /) -> None: ...


class RowStep(Protocol):
    """One step of single rows, as `adam_rows`."""

    def __call__(
        self, parameter: Tensor, gradient: Tensor, moments: Moments, rate: float, steps: Tensor,
        allowed: Tensor | None = None, /,
    ) -> None: ...  # fmt: skip


class Adam(NamedTuple):
    """Who computes Adam's steps: of whole columns and of single rows; and a line for the log that says which."""

    step: Step
    rows: RowStep
    note: str


def choose_adam(device: torch.device | str, threads: int | None) -> Adam:
    """The fused native steps where the package works on this device, else plain PyTorch."""
    try:
        native, why = importlib.import_module(NATIVE), importlib.import_module(AVAILABLE).usable(device)
    except (ImportError, OSError) as error:
        native, why = None, str(error)
    if native is None or why is not None:
        return Adam(adam_steps, adam_rows, f"adam: PyTorch (the native kernel can't be used: {why})")
    return Adam(*native_steps(native, threads), "adam: native kernel")


def native_steps(native: ModuleType, threads: int | None) -> tuple[Step, RowStep]:
    """The steps of the native package. On a GPU they look at `allowed` themselves, and take sparse gradients as they
    are: rows that are there more than once add up."""
    rule = {"beta1": BETA1, "beta2": BETA2, "eps": EPSILON, "threads": threads}

    def steps(updates: Sequence[Update], count: int, allowed: Tensor | None = None) -> None:
        columns = [native.AdamColumn(u.parameter, u.gradient.contiguous(), *u.moments, u.rate) for u in updates]
        work = partial(native.adam_steps, columns, step=count, **rule)
        if allowed is not None and native.on_device(allowed):
            work(allowed=allowed)
        else:
            guarded(allowed, tuple(values for u in updates for values in (u.parameter.data, *u.moments)), work)

    def rows(
        parameter: Tensor, gradient: Tensor, moments: Moments, rate: float, steps: Tensor, allowed: Tensor | None = None
    ) -> None:
        table = parameter.detach()
        if native.on_device(table):
            touched, slopes = (gradient._indices()[0], gradient._values()) if gradient.is_sparse else (None, gradient)
            native.adam_rows(table, slopes.contiguous(), touched, *moments, steps, lr=rate, allowed=allowed, **rule)
            return
        touched, slopes = rows_with_gradient(gradient)
        work = partial(native.adam_rows, table, slopes.contiguous(), touched, *moments, steps, lr=rate, **rule)
        guarded(allowed, (table, *moments, steps), work)

    return steps, rows


def adam_steps(updates: Sequence[Update], count: int, allowed: Tensor | None = None) -> None:
    """One Adam step in place for each parameter; `count` is the number of this step from 1.

    Args:
        allowed: 0-dim bool on the device; False: everything stays as it is, without anybody reading it. None: step.
    """
    for update in updates:
        guarded(allowed, (update.parameter.data, *update.moments), partial(adam_step, *update, count))


@torch.no_grad()
def adam_step(parameter: Tensor, gradient: Tensor, moments: Moments, rate: float, count: int) -> None:
    """One Adam step in place; `rate` is the learning rate, `count` the number of this step from 1."""
    first, second = moments
    first.lerp_(gradient, 1.0 - BETA1)
    second.mul_(BETA2).addcmul_(gradient, gradient, value=1.0 - BETA2)
    root = second.sqrt().div_((1.0 - BETA2**count) ** 0.5).add_(EPSILON)
    parameter.addcdiv_(first, root, value=-rate / (1.0 - BETA1**count))


@torch.no_grad()
def guarded(allowed: Tensor | None, tensors: tuple[Tensor, ...], update: Callable[[], None]) -> None:
    """Run an update of `tensors`, and undo it on the device if `allowed` (0-dim bool) is False, without reading it."""
    before = [values.clone() for values in tensors] if allowed is not None else []
    update()
    for values, old in zip(tensors, before, strict=allowed is not None):
        values.copy_(torch.where(allowed, values, old))  # type: ignore[arg-type]


def adam_rows(
    parameter: Tensor,
    gradient: Tensor,
    moments: Moments,
    rate: float,
    steps: Tensor,
    allowed: Tensor | None = None,
) -> None:
    """One Adam step in place for the rows that have a gradient; each row counts its own steps.

    Args:
        parameter: [T, ...]. gradient: likewise, dense or sparse (`utils.maths.table_rows`).
        steps: [T] float, how often each row was updated; changed in place.
        allowed: as in `adam_steps`.
    """
    work = partial(step_rows, parameter, gradient, moments, rate, steps)
    guarded(allowed, (parameter.data, *moments, steps), work)


@torch.no_grad()
def step_rows(parameter: Tensor, gradient: Tensor, moments: Moments, rate: float, steps: Tensor) -> None:
    """`adam_rows`, whatever is allowed."""
    touched, slope = rows_with_gradient(gradient)
    rows = slice(None) if touched is None else touched
    mask = (slope != 0).flatten(1).any(dim=1)
    steps[rows] += mask
    column = (-1,) + (1,) * (parameter.dim() - 1)
    moved, count = mask.view(column), steps[rows].clamp_min(1.0).view(column)
    first, second = moments
    mean, square = first[rows], second[rows]
    mean = torch.where(moved, mean.lerp(slope, 1.0 - BETA1), mean)
    square = torch.where(moved, square.mul(BETA2).addcmul_(slope, slope, value=1.0 - BETA2), square)
    first[rows], second[rows] = mean, square
    root = square.div(1.0 - BETA2**count).sqrt_().add_(EPSILON)
    parameter[rows] -= torch.where(moved, rate * mean / (1.0 - BETA1**count) / root, 0.0)
