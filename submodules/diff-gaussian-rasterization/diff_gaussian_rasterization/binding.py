"""Limits on Gaussians that ride on a mesh, in native code: values and gradients in one pass."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ._calls import address
from ._library import check, library, thread_count
from ._rasterize import check_tensor


class _Limits(ctypes.Structure):
    """Mirrors BindingLimits of csrc/binding.h."""

    _fields_ = [
        *[(name, c_void_p) for name in ("means", "scales", "radii")],
        *[(name, c_float) for name in ("threshold_xyz", "threshold_scale", "weight_xyz", "weight_scale")],
        *[(name, c_void_p) for name in ("g_means", "g_scales")],
    ]


def binding_limits(
    means: Tensor,
    scales: Tensor,
    radii: Tensor,
    thresholds: tuple[float, float],
    weights: tuple[float, float],
    threads: int | None = None,
) -> tuple[Tensor, Tensor]:
    """What Gaussians cost that are far from their triangles or large (GaussianAvatars, CVPR 2024, section 3.4).

    Means over the Gaussians with radii > 0, and 0 if there are none:
        xyz    weights[0] * max(|mean| - thresholds[0], 0)
        scale  weights[1] * |max(scale - thresholds[1], 0)|, the maximum per axis
    The derivative at a threshold is 0. Same bits for any thread count. A limit of weight 0 is not computed.

    Args:
        means, scales: [N, 3] float32 on the CPU, in triangle scales.
        radii: [N] int32 on the CPU, 0 = not drawn.
        threads: None = one per usable CPU.

    Returns:
        xyz and scale, two 0-dim float32 tensors, differentiable with respect to means and scales.

    Raises:
        ValueError: wrong type, shape or device; names the argument.
    """
    means = check_tensor("means", means, ("N", 3))
    scales = check_tensor("scales", scales, (means.shape[0], 3))
    if not isinstance(radii, Tensor) or radii.dtype != torch.int32 or not radii.is_cpu:
        raise ValueError("radii must be an int32 tensor on the CPU")
    if radii.shape != means.shape[:1]:
        raise ValueError(f"radii must have shape [{means.shape[0]}], got {list(radii.shape)}")
    return _BindingLimits.apply(means, scales, radii.contiguous(), thresholds, weights, thread_count(threads))


class _BindingLimits(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        means: Tensor,
        scales: Tensor,
        radii: Tensor,
        thresholds: tuple[float, float],
        weights: tuple[float, float],
        threads: int,
    ) -> tuple[Tensor, Tensor]:
        inputs = [tensor if weight else None for tensor, weight in zip((means, scales), weights, strict=True)]
        gradients = [
            None if tensor is None or not needed else torch.empty_like(tensor)
            for tensor, needed in zip(inputs, ctx.needs_input_grad, strict=False)
        ]
        work = _Limits(*map(address, inputs), address(radii), *thresholds, *weights, *map(address, gradients))
        values = (ctypes.c_double * 2)()
        check(library().mien_binding_limits(ctypes.byref(work), c_int64(radii.shape[0]), threads, values))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*gradients)
        return means.new_tensor(values[0]), means.new_tensor(values[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return *map(_scaled, ctx.saved_tensors, grads), None, None, None, None


def _scaled(gradient: Tensor | None, factor: Tensor | None) -> Tensor | None:
    if gradient is None or factor is None:
        return None
    return gradient if factor.item() == 1.0 else gradient * factor
