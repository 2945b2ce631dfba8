"""What a loss may look at."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from utils.contracts import Frame, Mesh, Rendered


@dataclass(frozen=True)
class LossContext:
    """One training step: a photograph, our picture of it, and the Gaussians in the frames of their triangles."""

    step: int
    frame: Frame
    rendered: Rendered
    local_means: Tensor  # [N, 3] triangle scales
    local_scales: Tensor  # [N, 3] triangle scales, activated
    mesh: Mesh  # as posed in this frame
    binding: Tensor  # [N] int64: the face of each Gaussian
    bound: bool = True  # False: free in the world, where limits in triangle scales mean nothing
    offsets: Tensor | None = None  # [T, V, 3] metres: dynamic vertex offsets, where the rig trains them
