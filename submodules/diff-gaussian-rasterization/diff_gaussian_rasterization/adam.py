"""Adam in native code: parameter and both moments in one pass over memory."""

from __future__ import annotations

import ctypes
import math

import torch
from torch import Tensor

from ._library import check, library, thread_count


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
    """One step of Adam, in place on `param`, `exp_avg` and `exp_avg_sq`.

    Kingma and Ba, "Adam: A Method for Stochastic Optimization" (ICLR 2015), with the formula of `torch.optim.Adam`:
    both moments bias-corrected, `eps` added after the square root. Same bits for any thread count.

    Args:
        param, grad, exp_avg, exp_avg_sq: float32 CPU tensors of one shape, contiguous, sharing no memory.
        lr: learning rate, finite and not negative.
        beta1, beta2: decay rates in [0, 1).
        eps: finite and not negative.
        step: number of this step, counted from 1.
        threads: None = one per usable CPU.

    Raises:
        ValueError: wrong type, shape, layout or range; names the argument.
    """
    tensors = {"param": param, "grad": grad, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    for name, tensor in tensors.items():
        _check_tensor(name, tensor, param)
    for name, rate in (("beta1", beta1), ("beta2", beta2)):
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"{name}: found {rate}, expected a number in [0, 1)")
    for name, value in (("lr", lr), ("eps", eps)):
        if not (math.isfinite(value) and value >= 0.0):
            raise ValueError(f"{name}: found {value}, expected a finite number, not negative")
    if isinstance(step, bool) or not isinstance(step, int) or step < 1:
        raise ValueError(f"step: found {step!r}, expected an integer from 1")
    check(
        library().mien_adam_step(
            _address(grad),
            ctypes.c_int64(param.numel()),
            ctypes.c_double(lr),
            ctypes.c_double(beta1),
            ctypes.c_double(beta2),
            ctypes.c_double(eps),
            ctypes.c_int64(step),
            thread_count(threads),
            _address(param),
            _address(exp_avg),
            _address(exp_avg_sq),
        )
    )
    # Autograd must notice that values saved for a backward pass are gone.
    for tensor in (param, exp_avg, exp_avg_sq):
        torch.autograd.graph.increment_version(tensor)


def _check_tensor(name: str, tensor: Tensor, param: Tensor) -> None:
    if not isinstance(tensor, Tensor) or tensor.dtype != torch.float32:
        found = getattr(tensor, "dtype", type(tensor).__name__)
        raise ValueError(f"{name}: found {found}, expected a torch.float32 tensor")
    if tensor.device.type != "cpu":
        raise ValueError(f"{name}: is on {tensor.device}, expected a CPU tensor")
    if tensor.shape != param.shape:
        raise ValueError(f"{name}: found shape {list(tensor.shape)}, expected that of param, {list(param.shape)}")
    if not tensor.is_contiguous():
        raise ValueError(f"{name}: is not contiguous")


def _address(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())
