"""Adam's update rule (Kingma & Ba 2015, algorithm 1), for whole columns and for single rows."""

from __future__ import annotations

import torch
from torch import Tensor

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-15


@torch.no_grad()
def adam_step(
    parameter: Tensor,
    gradient: Tensor,
    moments: tuple[Tensor, Tensor],
    rate: float,
    count: int,
    allowed: Tensor | None = None,
) -> None:
    """One Adam step in place.

    Args:
        moments: running means of the gradient and of its square, shaped like the parameter.
        rate: learning rate. count: number of this step, from 1.
        allowed: 0-dim bool on the device; False leaves everything as it was.
    """
    kept: tuple[Tensor, ...] = ()
    if allowed is not None:
        kept = (parameter.clone(), moments[0].clone(), moments[1].clone())
    first, second = moments
    first.lerp_(gradient, 1.0 - BETA1)
    second.mul_(BETA2).addcmul_(gradient, gradient, value=1.0 - BETA2)
    root = second.sqrt().div_((1.0 - BETA2**count) ** 0.5).add_(EPSILON)
    parameter.addcdiv_(first, root, value=-rate / (1.0 - BETA1**count))
    if allowed is not None:
        for current, before in zip((parameter, first, second), kept, strict=True):
            current.copy_(torch.where(allowed, current, before))


@torch.no_grad()
def adam_rows(
    parameter: Tensor,
    gradient: Tensor,
    moments: tuple[Tensor, Tensor],
    rate: float,
    steps: Tensor,
    allowed: Tensor | None = None,
) -> None:
    """One Adam step in place for the rows that have a gradient; each row counts its own steps.

    Args:
        parameter: [T, ...]. steps: [T] float, how often each row was updated; changed in place.
        allowed: as in `adam_step`.
    """
    touched = (gradient != 0).flatten(1).any(dim=1)
    if allowed is not None:
        touched &= allowed
    steps += touched
    column = (-1,) + (1,) * (parameter.dim() - 1)
    mask, count = touched.view(column), steps.clamp_min(1.0).view(column)
    first, second = moments
    first.copy_(torch.where(mask, first.lerp(gradient, 1.0 - BETA1), first))
    second.copy_(torch.where(mask, second.mul(BETA2).addcmul_(gradient, gradient, value=1.0 - BETA2), second))
    root = second.div(1.0 - BETA2**count).sqrt_().add_(EPSILON)
    parameter.sub_(torch.where(mask, rate * first / (1.0 - BETA1**count) / root, 0.0))
