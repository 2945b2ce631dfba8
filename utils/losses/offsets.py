"""Limits on trained vertex offsets: small, steady over time, and smooth over the mesh.

With o [V, 3] the dynamic offset of this timestep:
    dynamic_offset      mean over vertices of |o|
    dynamic_offset_std  mean over vertices and axes of the standard deviation over all timesteps
    laplacian           mean over vertices of |L(v) - L(v + o)|^2 with L the uniform mesh Laplacian; as L is linear,
                        this is |L(o)|^2 and the canonical vertices v drop out
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from utils.contracts import Subject
from utils.errors import InputError
from utils.losses.context import LossContext
from utils.maths.table_rows import take_row


@dataclass
class OffsetOptions:
    """Weights of the limits on dynamic offsets; they need `--train_dynamic_offset`."""

    lambda_dynamic_offset: float = field(default=0.0, metadata={"help": "weight of the size of dynamic offsets"})
    lambda_dynamic_offset_std: float = field(default=0.0, metadata={"help": "weight of their spread over time"})
    lambda_laplacian: float = field(default=0.0, metadata={"help": "weight of their roughness over the mesh"})

    def __post_init__(self) -> None:
        for option in fields(self):
            value = getattr(self, option.name)
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"--{option.name}", "", f"is {value}, expected a finite number of at least 0")


def build(
    options: OffsetOptions, threads: int | None = None, subject: Subject | None = None
) -> Callable[[LossContext], dict[str, Tensor]]:
    """The terms whose weight is not 0."""
    neighbours: dict[int, tuple[Tensor, Tensor]] = {}  # of the one mesh of the run

    def loss(context: LossContext) -> dict[str, Tensor]:
        offsets, terms = context.motion.get("dynamic_offset"), {}
        if offsets is None or not any(vars(options).values()):
            return terms
        offset = take_row(context.frame.timestep, offsets)[0]
        if options.lambda_dynamic_offset:
            terms["dynamic_offset"] = options.lambda_dynamic_offset * safe_root(offset.square().sum(-1)).mean()
        if options.lambda_dynamic_offset_std:
            spread = safe_root((offsets - offsets.mean(0)).square().sum(0) / max(1, len(offsets) - 1))
            terms["dynamic_offset_std"] = options.lambda_dynamic_offset_std * spread.mean()
        if options.lambda_laplacian:
            if not neighbours:
                neighbours[0] = directed_edges(context.mesh.faces, len(offset))
            rough = laplacian(offset, *neighbours[0])
            terms["laplacian"] = options.lambda_laplacian * rough.square().sum(-1).mean()
        return terms

    return loss


def weights(options: OffsetOptions) -> dict[str, float]:
    return {name.removeprefix("lambda_"): weight for name, weight in vars(options).items()}


def safe_root(squares: Tensor) -> Tensor:
    """Square root whose slope at 0 is 0 (offsets start there, and PyTorch's slope is infinite)."""
    positive = squares > 0
    return torch.where(positive, torch.where(positive, squares, 1.0).sqrt(), 0.0)


def directed_edges(faces: Tensor, n_vertices: int) -> tuple[Tensor, Tensor]:
    """Every edge of the mesh in both directions, once: (from [E], to [E]) int64, sorted."""
    pairs = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    keys = torch.cat([pairs, pairs.flip(1)]) @ torch.tensor([n_vertices, 1], device=faces.device)
    unique = torch.unique(keys)
    return unique // n_vertices, unique % n_vertices


def laplacian(values: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Uniform Laplacian of values [V, 3]: the mean of a vertex's neighbours minus itself; 0 without neighbours."""
    degree = torch.zeros_like(values[:, 0]).index_add_(0, source, torch.ones_like(source, dtype=values.dtype))
    mean = torch.zeros_like(values).index_add(0, source, values[target]) / degree.clamp_min(1.0)[:, None]
    return torch.where(degree[:, None] > 0, mean - values, 0.0)
