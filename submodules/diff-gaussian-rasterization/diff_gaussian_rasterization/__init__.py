"""A differentiable rasteriser of 3D Gaussians for the CPU and for CUDA; the tensors' device decides.

`rasterize` is the full interface, `rasterize_rigged` the one for Gaussians on a mesh; `GaussianRasterizationSettings`
and `GaussianRasterizer` are the one that projects know under this name.
"""

from __future__ import annotations

from ._compatible import GaussianRasterizationSettings, GaussianRasterizer
from ._library import NonFiniteError, isa_name, thread_count
from ._rasterize import rasterize
from ._rigged import rasterize_rigged
from ._rules import RULES, Rules

__all__ = [
    "GaussianRasterizationSettings",
    "GaussianRasterizer",
    "NonFiniteError",
    "RULES",
    "Rules",
    "isa_name",
    "rasterize",
    "rasterize_rigged",
    "thread_count",
]
