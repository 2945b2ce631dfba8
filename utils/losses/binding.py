"""Limits that keep Gaussians near their triangles and not much larger (GaussianAvatars, section 3.4).

Over the Gaussians that the picture shows, with local mean mu, local scale s, triangle scale k, relu per element:
    xyz    mean of relu(|mu| - threshold);        with metric_xyz    mean of |relu(k mu - threshold)|
    scale  mean of |relu(s - threshold)|;         with metric_scale  mean of |relu(k s - threshold)|
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from utils.contracts import Subject
from utils.errors import InputError
from utils.losses.context import LossContext
from utils.maths.triangle_frames import triangle_frames

NATIVE, AVAILABLE = "diff_gaussian_rasterization.binding", "diff_gaussian_rasterization._device"


@dataclass
class BindingOptions:
    """How far Gaussians may stray from their triangles."""

    lambda_xyz: float = field(default=0.01, metadata={"help": "weight of the limit on local positions"})
    threshold_xyz: float = field(
        default=1.0, metadata={"help": "distance that costs nothing, in triangle scales (metres with metric_xyz)"}
    )
    metric_xyz: bool = field(default=False, metadata={"help": "limit positions in metres instead of triangle scales"})
    lambda_scale: float = field(default=1.0, metadata={"help": "weight of the limit on local scales"})
    threshold_scale: float = field(
        default=0.6, metadata={"help": "scale that costs nothing, in triangle scales (metres with metric_scale)"}
    )
    metric_scale: bool = field(default=False, metadata={"help": "limit scales in metres instead of triangle scales"})

    def __post_init__(self) -> None:
        for option in fields(self):
            value = getattr(self, option.name)
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"--{option.name}", "", f"is {value}, expected a finite number of at least 0")


def build(
    options: BindingOptions, threads: int | None = None, subject: Subject | None = None
) -> Callable[[LossContext], dict[str, Tensor]]:
    """Terms `xyz` and `scale`; each is absent if its weight is 0. `describe` says which code computes them."""
    native, _ = _native(options)
    thresholds = (options.threshold_xyz, options.threshold_scale)
    weights = (0.0 if options.metric_xyz else options.lambda_xyz, 0.0 if options.metric_scale else options.lambda_scale)
    position = metric_excess if options.metric_xyz else distance_excess
    size = metric_excess if options.metric_scale else local_excess

    def loss(context: LossContext) -> dict[str, Tensor]:
        means, scales, rendered = context.local_means, context.local_scales, context.rendered
        terms: dict[str, Tensor] = {}
        if not context.bound:
            return terms
        if native is not None and means.dtype == torch.float32 and _why_not_on(means.device) is None:
            both = native(means, scales, rendered.radii, thresholds, weights, threads)
            terms = {name: value for name, value, weight in zip(("xyz", "scale"), both, weights, strict=True) if weight}
        if options.lambda_xyz and "xyz" not in terms:
            excess = position(means, context, options.threshold_xyz)
            terms["xyz"] = options.lambda_xyz * visible_mean(excess, rendered.visible)
        if options.lambda_scale and "scale" not in terms:
            excess = size(scales, context, options.threshold_scale)
            terms["scale"] = options.lambda_scale * visible_mean(excess, rendered.visible)
        return {name: terms[name] for name in ("xyz", "scale") if name in terms}

    return loss


def weights(options: BindingOptions) -> dict[str, float]:
    return {"xyz": options.lambda_xyz, "scale": options.lambda_scale}


def describe(options: BindingOptions) -> str:
    """Which implementation this machine uses."""
    native, reason = _native(options)
    if native is None:
        return f"xyz, scale: PyTorch ({reason})"
    metric = [name for name in ("xyz", "scale") if getattr(options, f"metric_{name}")]
    rest = f"; {metric[0]}: PyTorch (in metres)" if metric else ""
    local = ", ".join(name for name in ("xyz", "scale") if name not in metric)
    where = "" if _why_not_on("cuda") is None else " on the CPU, PyTorch on a GPU"
    return f"{local}: native kernel{where}{rest}"


def _native(options: BindingOptions) -> tuple[Callable[..., tuple[Tensor, Tensor]] | None, str]:
    """The native kernel of the limits in triangle scales, or None and why."""
    if options.metric_xyz and options.metric_scale:
        return None, "in metres"
    try:
        return importlib.import_module(NATIVE).binding_limits, ""
    except (ImportError, OSError) as error:
        return None, f"the native kernel can't be used: {error}"


def _why_not_on(device: torch.device | str) -> str | None:
    """Why the native kernel, which is installed, can't work on a device; None if it can."""
    return importlib.import_module(AVAILABLE).usable(device)


def distance_excess(local: Tensor, _: LossContext, threshold: float) -> Tensor:
    """[N] relu(|local| - threshold) of vectors [N, 3]."""
    return torch.relu(_Length.apply(local) - threshold)


def local_excess(local: Tensor, _: LossContext, threshold: float) -> Tensor:
    """[N] |relu(local - threshold)| of vectors [N, 3]."""
    return _Length.apply(torch.relu(local - threshold))


def metric_excess(local: Tensor, context: LossContext, threshold: float) -> Tensor:
    """[N] |relu(k local - threshold)| of vectors [N, 3], threshold in metres."""
    scales = triangle_frames(context.mesh.vertices, context.mesh.faces).scales.index_select(0, context.binding)
    return local_excess(scales[:, None] * local, context, threshold)


class _Length(torch.autograd.Function):
    """Euclidean length [N] of vectors [N, 3], without slope at 0; backward costs a fifth of PyTorch's own."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(vectors, dim=-1)
        ctx.save_for_backward(vectors, length)
        return length

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        vectors, length = ctx.saved_tensors
        return vectors * (grads[0] / length.clamp(min=1e-20))[:, None]


def visible_mean(values: Tensor, visible: Tensor) -> Tensor:
    """Mean of values [N] where visible [N]; 0 if nothing is visible (a mean of nothing would be NaN). No host sync."""
    return torch.where(visible, values, 0).sum() / visible.sum().clamp(min=1)
