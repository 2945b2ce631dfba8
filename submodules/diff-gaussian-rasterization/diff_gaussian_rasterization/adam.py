"""Adam in native code: parameter and both moments in one pass over memory, all tensors in one call."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._library import check, library, thread_count

_TENSORS = ("param", "grad", "exp_avg", "exp_avg_sq")


class AdamColumn(NamedTuple):
    """One tensor of an optimiser: float32 CPU tensors of one shape, contiguous, sharing no memory."""

    param: Tensor
    grad: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    lr: float  # learning rate, finite and not negative


class _Column(ctypes.Structure):
    """Mirrors AdamColumn of csrc/adam.cpp."""

    _fields_ = [
        *[(name, ctypes.c_void_p) for name in ("grad", "param", "exp_avg", "exp_avg_sq")],
        ("count", ctypes.c_int64),
        ("lr", ctypes.c_double),
    ]


def adam_steps(
    columns: Sequence[AdamColumn], *, beta1: float, beta2: float, eps: float, step: int, threads: int | None = None
) -> None:
    """One step of Adam on several tensors at once, in place on each `param`, `exp_avg` and `exp_avg_sq`.

    Kingma and Ba, "Adam: A Method for Stochastic Optimization" (ICLR 2015), with the formula of `torch.optim.Adam`:
    both moments bias-corrected, `eps` added after the square root. Same bits for any thread count.

    Args:
        columns: the tensors, each with its own learning rate.
        beta1, beta2: decay rates in [0, 1).
        eps: finite and not negative.
        step: number of this step, counted from 1.
        threads: None = one per usable CPU.

    Raises:
        ValueError: wrong type, shape, layout or range; names the argument.
    """
    for column in columns:
        _check_column(column)
    _check_rates(beta1, beta2, eps=eps)
    if isinstance(step, bool) or not isinstance(step, int) or step < 1:
        raise ValueError(f"step: found {step!r}, expected an integer from 1")
    table = (_Column * len(columns))(
        *[
            (
                c.grad.data_ptr(),
                c.param.data_ptr(),
                c.exp_avg.data_ptr(),
                c.exp_avg_sq.data_ptr(),
                c.param.numel(),
                c.lr,
            )
            for c in columns
        ]
    )
    check(
        library().mien_adam_step(
            table,
            ctypes.c_int64(len(columns)),
            ctypes.c_double(beta1),
            ctypes.c_double(beta2),
            ctypes.c_double(eps),
            ctypes.c_int64(step),
            thread_count(threads),
        )
    )
    for column in columns:
        _changed(column.param, column.exp_avg, column.exp_avg_sq)


def adam_step(  # noqa: PLR0913 - the four tensors and five constants of the method
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    step: int,
    threads: int | None = None,
) -> None:
    """`adam_steps` on one tensor."""
    column = AdamColumn(param, grad, exp_avg, exp_avg_sq, lr)
    adam_steps([column], beta1=beta1, beta2=beta2, eps=eps, step=step, threads=threads)


def adam_rows(  # noqa: PLR0913 - the tensors and constants of the method
    param: Tensor,
    grad: Tensor,
    rows: Tensor | None,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    steps: Tensor,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    threads: int | None = None,
) -> None:
    """One step of Adam for single rows of a table, in place; each row counts its own steps.

    The formula is that of `adam_step` with the row's own count. A row whose gradient is zero is left alone.

    Args:
        param, exp_avg, exp_avg_sq: [T, ...] float32 CPU tensors, contiguous, sharing no memory.
        grad: [n, ...] likewise, for the rows `rows` [n] int64, each of them once; None: for all, n = T.
        steps: [T] float32, how often each row was updated; changed in place.
        lr, beta1, beta2, eps, threads: as in `adam_step`.

    Raises:
        ValueError: wrong type, shape, layout or range; names the argument.
    """
    if not isinstance(param, Tensor) or param.dim() == 0:
        raise ValueError(f"param: found {getattr(param, 'shape', type(param).__name__)}, expected a table [T, ...]")
    if rows is not None:
        _check_rows(rows)
    table = param.shape
    count = table[0] if rows is None else rows.shape[0]
    _check_tensor("param", param, table, "")
    _check_tensor("grad", grad, (count, *table[1:]), "rows of param")
    _check_tensor("exp_avg", exp_avg, table, "that of param")
    _check_tensor("exp_avg_sq", exp_avg_sq, table, "that of param")
    _check_tensor("steps", steps, table[:1], "one for each row of param")
    _check_rates(beta1, beta2, lr=lr, eps=eps)
    rows = None if rows is None else rows.contiguous()
    check(
        library().mien_adam_rows(
            _pointer(grad),
            None if rows is None else _pointer(rows),
            ctypes.c_int64(count),
            ctypes.c_int64(table[0]),
            ctypes.c_int64(param.numel() // max(1, table[0])),
            ctypes.c_double(lr),
            ctypes.c_double(beta1),
            ctypes.c_double(beta2),
            ctypes.c_double(eps),
            thread_count(threads),
            _pointer(steps),
            _pointer(param),
            _pointer(exp_avg),
            _pointer(exp_avg_sq),
        )
    )
    _changed(param, exp_avg, exp_avg_sq, steps)


def _check_rows(rows: Any) -> None:
    if not (isinstance(rows, Tensor) and rows.dtype == torch.int64 and rows.is_cpu and rows.dim() == 1):
        found = f"{list(rows.shape)} {rows.dtype} on {rows.device}" if isinstance(rows, Tensor) else type(rows).__name__
        raise ValueError(f"rows: found {found}, expected [n] int64 on the CPU")


def _changed(*tensors: Tensor) -> None:
    """Autograd must notice that values saved for a backward pass are gone."""
    for tensor in tensors:
        torch.autograd.graph.increment_version(tensor)


def _check_rates(beta1: float, beta2: float, **others: float) -> None:
    for name, rate in (("beta1", beta1), ("beta2", beta2)):
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"{name}: found {rate}, expected a number in [0, 1)")
    for name, value in others.items():
        if not (math.isfinite(value) and value >= 0.0):
            raise ValueError(f"{name}: found {value}, expected a finite number, not negative")


def _check_column(column: AdamColumn) -> None:
    for name, tensor in zip(_TENSORS, column, strict=False):
        _check_tensor(name, tensor, column.param.shape, "that of param")
    _check_rates(0.0, 0.0, lr=column.lr)


def _check_tensor(name: str, tensor: Any, shape: Sequence[int], meaning: str) -> None:
    if not isinstance(tensor, Tensor) or tensor.dtype is not torch.float32:
        found = getattr(tensor, "dtype", type(tensor).__name__)
        raise ValueError(f"{name}: found {found}, expected a torch.float32 tensor")
    if not tensor.is_cpu:
        raise ValueError(f"{name}: is on {tensor.device}, expected a CPU tensor")
    if tensor.shape != shape:
        raise ValueError(f"{name}: found shape {list(tensor.shape)}, expected {meaning}, {list(shape)}")
    if not tensor.is_contiguous():
        raise ValueError(f"{name}: is not contiguous")


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())
