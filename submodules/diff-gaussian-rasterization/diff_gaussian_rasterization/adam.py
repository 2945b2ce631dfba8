"""Adam in native code: parameter and both moments in one pass over memory, all tensors in one call."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._calls import address
from ._device import device_call, on_device
from ._library import check, library, thread_count

_TENSORS = ("param", "grad", "exp_avg", "exp_avg_sq")


class AdamColumn(NamedTuple):
    """One tensor of an optimiser: float32 tensors of one shape, contiguous, sharing no memory."""

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


class _Rows(ctypes.Structure):
    """Mirrors AdamRows of csrc/cuda/pieces.h."""

    _fields_ = [
        *[(name, ctypes.c_void_p) for name in ("grad", "rows")],
        *[(name, ctypes.c_int64) for name in ("count", "table_rows", "width")],
        *[(name, ctypes.c_void_p) for name in ("steps", "param", "exp_avg", "exp_avg_sq")],
        *[(name, ctypes.c_double) for name in ("lr", "beta1", "beta2", "eps")],
        *[(name, ctypes.c_void_p) for name in ("rate", "health", "allowed")],
    ]


def adam_steps(  # noqa: PLR0913 - the constants of the method
    columns: Sequence[AdamColumn],
    *,
    beta1: float,
    beta2: float,
    eps: float,
    step: int,
    threads: int | None = None,
    allowed: Tensor | None = None,
) -> None:
    """One step of Adam on several tensors at once, in place on each `param`, `exp_avg` and `exp_avg_sq`.

    Kingma and Ba, "Adam: A Method for Stochastic Optimization" (ICLR 2015), with the formula of `torch.optim.Adam`:
    both moments bias-corrected, `eps` added after the square root. Same bits for any thread count.

    Args:
        columns: the tensors, all on the CPU or all on one GPU, each with its own learning rate.
        beta1, beta2: decay rates in [0, 1).
        eps: finite and not negative.
        step: number of this step, counted from 1.
        threads: on the CPU; None = one per usable CPU.
        allowed: 0-dim bool on the GPU; False: nothing is changed. It is not read back.

    Raises:
        ValueError: wrong type, shape, layout, device or range; names the argument.
        ImportError: the tensors are on a GPU, for which this package was not built.
    """
    for column in columns:
        _check_column(column, columns[0].param)
    if columns:
        _check_allowed(allowed, columns[0].param)
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
    rule = (table, ctypes.c_int64(len(columns)), *map(ctypes.c_double, (beta1, beta2, eps)), ctypes.c_int64(step))
    if columns and on_device(columns[0].param):
        device_call("adam_step", *rule, ctypes.c_void_p(address(allowed)), None, near=columns[0].param)
    else:
        check(library().mien_adam_step(*rule, thread_count(threads)))
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
    allowed: Tensor | None = None,
) -> None:
    """One step of Adam for single rows of a table, in place; each row counts its own steps.

    The formula is that of `adam_step` with the row's own count. A row whose gradient is zero is left alone.

    Args:
        param, exp_avg, exp_avg_sq: [T, ...] float32 tensors, contiguous, sharing no memory; all on the CPU or all on
            one GPU, with `grad`, `rows` and `steps`.
        grad: [n, ...] likewise, for the rows `rows` [n] int64; None: for all, n = T. On the CPU each row is there once;
            on a GPU the gradients of a row add up, in order, and rows that the table does not have are ignored,
            because looking at them first would mean waiting for the GPU.
        steps: [T] float32, how often each row was updated; changed in place.
        lr, beta1, beta2, eps, threads, allowed: as in `adam_steps`.

    Raises:
        ValueError: wrong type, shape, layout or range; names the argument.
    """
    if not isinstance(param, Tensor) or param.dim() == 0:
        raise ValueError(f"param: found {getattr(param, 'shape', type(param).__name__)}, expected a table [T, ...]")
    if rows is not None:
        _check_rows(rows, param)
    table = param.shape
    count = table[0] if rows is None else rows.shape[0]
    _check_tensor("param", param, table, "", param)
    _check_tensor("grad", grad, (count, *table[1:]), "rows of param", param)
    _check_tensor("exp_avg", exp_avg, table, "that of param", param)
    _check_tensor("exp_avg_sq", exp_avg_sq, table, "that of param", param)
    _check_tensor("steps", steps, table[:1], "one for each row of param", param)
    _check_allowed(allowed, param)
    _check_rates(beta1, beta2, lr=lr, eps=eps)
    rows = None if rows is None else rows.contiguous()
    width = param.numel() // max(1, table[0])
    work = _Rows(address(grad), address(rows), count, table[0], width,
                 *map(address, (steps, param, exp_avg, exp_avg_sq)), lr, beta1, beta2, eps)  # fmt: skip
    if on_device(param):
        work.allowed = address(allowed)
        device_call("adam_rows", ctypes.byref(work), near=param)
    else:
        _rows_on_cpu(work, thread_count(threads))
    _changed(param, exp_avg, exp_avg_sq, steps)


def _rows_on_cpu(work: _Rows, threads: int) -> None:
    check(
        library().mien_adam_rows(
            *map(ctypes.c_void_p, (work.grad, work.rows)),
            *map(ctypes.c_int64, (work.count, work.table_rows, work.width)),
            *map(ctypes.c_double, (work.lr, work.beta1, work.beta2, work.eps)),
            threads,
            *map(ctypes.c_void_p, (work.steps, work.param, work.exp_avg, work.exp_avg_sq)),
        )
    )


def _check_rows(rows: Any, param: Tensor) -> None:
    if not (isinstance(rows, Tensor) and rows.dtype == torch.int64 and rows.device == param.device and rows.dim() == 1):
        found = f"{list(rows.shape)} {rows.dtype} on {rows.device}" if isinstance(rows, Tensor) else type(rows).__name__
        raise ValueError(f"rows: found {found}, expected [n] int64 on {param.device}")


def _check_allowed(allowed: Any, param: Tensor) -> None:
    if allowed is None:
        return
    if not on_device(param):
        raise ValueError("allowed: is for tensors on a GPU; on the CPU leave the step out instead")
    if not (isinstance(allowed, Tensor) and allowed.dtype == torch.bool and allowed.device == param.device):
        raise ValueError(f"allowed: expected a 0-dim bool tensor on {param.device}")
    if allowed.dim() != 0:
        raise ValueError(f"allowed: found shape {list(allowed.shape)}, expected a 0-dim tensor")


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


def _check_column(column: AdamColumn, first: Tensor) -> None:
    for name, tensor in zip(_TENSORS, column, strict=False):
        _check_tensor(name, tensor, column.param.shape, "that of param", first)
    _check_rates(0.0, 0.0, lr=column.lr)


def _check_tensor(name: str, tensor: Any, shape: Sequence[int], meaning: str, beside: Tensor) -> None:
    """Raise unless the tensor has that shape and is where `beside` is, on the CPU or a GPU."""
    if not isinstance(tensor, Tensor) or tensor.dtype is not torch.float32:
        found = getattr(tensor, "dtype", type(tensor).__name__)
        raise ValueError(f"{name}: found {found}, expected a torch.float32 tensor")
    if tensor.device != beside.device or not (tensor.is_cpu or tensor.is_cuda):
        raise ValueError(f"{name}: is on {tensor.device}, expected all tensors on the CPU or all on one GPU")
    if tensor.shape != shape:
        raise ValueError(f"{name}: found shape {list(tensor.shape)}, expected {meaning}, {list(shape)}")
    if not tensor.is_contiguous():
        raise ValueError(f"{name}: is not contiguous")
