"""Single rows of a table [T, ...] of parameters: a step that touches one of ten thousand costs no more than one of ten.

Their gradients are PyTorch's sparse ones, as of `torch.nn.Embedding(sparse=True)`: rows of several views add up, and so
does the dense gradient of a loss that looks at the whole table.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def take_row(row: int, *tables: Tensor) -> tuple[Tensor, ...]:
    """Row `row` of each table [T, ...]; what flows back is sparse and holds that row alone."""
    return _Rows.apply(row, *tables)  # type: ignore[return-value]


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, row: int, *tables: Tensor) -> tuple[Tensor, ...]:
        ctx.row, ctx.shapes = row % len(tables[0]), [table.shape for table in tables]
        ctx.set_materialize_grads(False)
        return tuple(table[row].clone() for table in tables)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return None, *(
            None if grad is None else row_gradient(ctx.row, grad, shape)
            for grad, shape in zip(grads, ctx.shapes, strict=True)
        )


def row_gradient(row: int, gradient: Tensor, shape: torch.Size) -> Tensor:
    """The sparse gradient of a table of this shape of which one row alone has a gradient."""
    index = torch.full((1, 1), row, device=gradient.device)
    # A copy: adding sparse gradients up trusts the stride of a single row, and what comes in may have any.
    values = gradient.clone(memory_format=torch.contiguous_format)[None]
    return torch.sparse_coo_tensor(index, values, shape, check_invariants=False, is_coalesced=True)


def rows_with_gradient(gradient: Tensor) -> tuple[Tensor | None, Tensor]:
    """Which rows [n] of a table a gradient reaches, each once, and their gradients [n, ...]; None: all rows."""
    if not gradient.is_sparse:
        return None, gradient
    if not gradient.is_coalesced():
        if gradient.device.type != "cpu":  # counting the rows would wait for the device
            return None, gradient.to_dense()
        gradient = gradient.coalesce()
    return gradient.indices()[0], gradient.values()


def stored_values(gradient: Tensor) -> Tensor:
    """All values of a gradient that are not zero by its layout."""
    return gradient._values() if gradient.is_sparse else gradient
