"""Adam's update rule (Kingma & Ba 2015, algorithm 1), for whole columns and for single rows."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch
from torch import Tensor

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-15  # epsilon: GaussianAvatars; gradients of splats are tiny
NATIVE = "diff_gaussian_rasterization.adam"
Moments = tuple[Tensor, Tensor]  # running means of the gradient and of its square, shaped like the parameter
Step = Callable[[Tensor, Tensor, Moments, float, int], None]


def choose_adam(device: torch.device | str, threads: int | None) -> tuple[Step, str]:
    """The fused native step on the CPU, plain PyTorch elsewhere; and a line for the log that says which."""
    if torch.device(device).type != "cpu":
        return adam_step, "adam: PyTorch"
    try:
        native = importlib.import_module(NATIVE).adam_step
    except (ImportError, OSError) as error:
        return adam_step, f"adam: PyTorch (the native kernel can't be used: {error})"

    def step(parameter: Tensor, gradient: Tensor, moments: Moments, rate: float, count: int) -> None:
        native(parameter.detach(), gradient.contiguous(), *moments, lr=rate, beta1=BETA1, beta2=BETA2, eps=EPSILON,
               step=count, threads=threads)  # fmt: skip

    return step, "adam: native kernel"


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


@torch.no_grad()
def adam_rows(
    parameter: Tensor,
    gradient: Tensor,
    moments: Moments,
    rate: float,
    steps: Tensor,
) -> None:
    """One Adam step in place for the rows that have a gradient; each row counts its own steps.

    Args:
        parameter: [T, ...]. steps: [T] float, how often each row was updated; changed in place.
    """
    touched = (gradient != 0).flatten(1).any(dim=1)
    steps += touched
    # On a GPU, picking rows would wait for the device: all rows are computed there, and those without gradient kept.
    rows = torch.nonzero(touched)[:, 0] if parameter.device.type == "cpu" else slice(None)
    column = (-1,) + (1,) * (parameter.dim() - 1)
    mask, count, slope = touched[rows].view(column), steps[rows].clamp_min(1.0).view(column), gradient[rows]
    first, second = moments
    mean, square = first[rows], second[rows]
    mean = torch.where(mask, mean.lerp(slope, 1.0 - BETA1), mean)
    square = torch.where(mask, square.mul(BETA2).addcmul_(slope, slope, value=1.0 - BETA2), square)
    first[rows], second[rows] = mean, square
    root = square.div(1.0 - BETA2**count).sqrt_().add_(EPSILON)
    parameter[rows] -= torch.where(mask, rate * mean / (1.0 - BETA1**count) / root, 0.0)
