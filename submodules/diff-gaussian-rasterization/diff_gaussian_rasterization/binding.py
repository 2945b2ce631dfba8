"""Limits on Gaussians that ride on a mesh, in native code: values and gradients in one pass."""

from __future__ import annotations

import ctypes
from ctypes import c_bool, c_float, c_int32, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ._calls import address
from ._device import device_call, device_library, on_device
from ._library import check, check_with, library, thread_count
from ._rasterize import check_tensor


class _Limits(ctypes.Structure):
    """Mirrors BindingLimits of csrc/binding.h."""

    _fields_ = [
        *[(name, c_void_p) for name in ("means", "scales", "radii")],
        *[(name, c_float) for name in ("threshold_xyz", "threshold_scale", "weight_xyz", "weight_scale")],
        *[(name, c_void_p) for name in ("g_means", "g_scales")],
    ]


class _DeviceLimits(ctypes.Structure):
    """Mirrors LimitTables of csrc/cuda/pieces.h."""

    _fields_ = [
        ("limits", _Limits),
        ("count", c_int64),
        *[(name, c_bool) for name in ("logarithmic", "accumulate")],
        *[(name, c_void_p) for name in ("scratch", "sums")],
        ("views", c_int32),
        *[(name, c_void_p * 2) for name in ("values", "factors")],
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
    Nothing is read back from a GPU.

    Args:
        means, scales: [N, 3] float32 on the CPU or on one GPU, in triangle scales.
        radii: [N] int32 beside them, 0 = not drawn.
        threads: on the CPU; None = one per usable CPU.

    Returns:
        xyz and scale, two 0-dim float32 tensors, differentiable with respect to means and scales.

    Raises:
        ValueError: wrong type, shape or device; names the argument.
        ImportError: the tensors are on a GPU, for which this package was not built.
    """
    means = check_tensor("means", means, ("N", 3), like=means)
    scales = check_tensor("scales", scales, (means.shape[0], 3), like=means)
    if not isinstance(radii, Tensor) or radii.dtype != torch.int32 or radii.device != means.device:
        raise ValueError(f"radii must be an int32 tensor on {'the CPU' if means.is_cpu else means.device}")
    if radii.shape != means.shape[:1]:
        raise ValueError(f"radii must have shape [{means.shape[0]}], got {list(radii.shape)}")
    if on_device(means):
        return _DeviceBindingLimits.apply(means, scales, radii.contiguous(), thresholds, weights)
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


class _DeviceBindingLimits(torch.autograd.Function):
    """Forward keeps how many are drawn; backward writes the gradients, and reads its factors there."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        means: Tensor,
        scales: Tensor,
        radii: Tensor,
        thresholds: tuple[float, float],
        weights: tuple[float, float],
    ) -> tuple[Tensor, Tensor]:
        xyz, scale = means.new_empty(()), means.new_empty(())
        native, floats = device_library(), c_int64()
        check_with(native, native.mien_cuda_binding_scratch(c_int64(radii.shape[0]), 1, ctypes.byref(floats)))
        scratch = means.new_empty(floats.value)
        tables = _device_limits(means, scales, radii, scratch, thresholds, weights)
        tables.values[:] = xyz.data_ptr(), scale.data_ptr()
        device_call("binding_limits", ctypes.byref(tables), near=means)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(means, scales, radii, scratch)
        ctx.options = (thresholds, weights)
        return xyz, scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *factors: Tensor | None) -> tuple[Tensor | None, ...]:
        means, scales, radii, scratch = ctx.saved_tensors
        gradients = [
            torch.empty_like(tensor) if needed and weight and factor is not None else None
            for tensor, needed, weight, factor in zip(
                (means, scales), ctx.needs_input_grad[:2], ctx.options[1], factors, strict=True
            )
        ]
        tables = _device_limits(means, scales, radii, scratch, *ctx.options)
        tables.limits.g_means, tables.limits.g_scales = map(address, gradients)
        tables.factors[:] = [address(factor) for factor in factors]
        device_call("binding_gradients", ctypes.byref(tables), near=means)
        return *gradients, None, None, None


def _device_limits(
    means: Tensor,
    scales: Tensor,
    radii: Tensor,
    scratch: Tensor,
    thresholds: tuple[float, float],
    weights: tuple[float, float],
) -> _DeviceLimits:
    inputs = [tensor if weight else None for tensor, weight in zip((means, scales), weights, strict=True)]
    limits = _Limits(*map(address, inputs), address(radii), *thresholds, *weights)
    return _DeviceLimits(limits, radii.shape[0], scratch=address(scratch), views=1)


def _scaled(gradient: Tensor | None, factor: Tensor | None) -> Tensor | None:
    if gradient is None or factor is None:
        return None
    return gradient if factor.item() == 1.0 else gradient * factor
