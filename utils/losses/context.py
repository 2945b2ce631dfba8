"""What a loss may look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NoReturn, Protocol

from torch import Tensor

from utils.contracts import Frame, Mesh, Neighbour, Rendered


class Look(Protocol):
    """Timesteps away (-1, +1) -> the neighbour, drawn when asked for; None if there is none."""

    def __call__(self, timesteps: int, gradients: bool = False, /) -> Neighbour | None: ...


def nobody(timesteps: int, gradients: bool = False) -> None:
    """There is no neighbour."""


def undrawn() -> NoReturn:
    """Nobody said how to draw this picture a second time."""
    raise LookupError("LossContext.appearance is not set")


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
    motion: Mapping[str, Tensor] = field(default_factory=dict)  # [T, ...] the rig's parameters
    look: Look = nobody
    iterations: int = 0  # of the whole run
    appearance: Callable[[], Tensor] = undrawn  # the picture anew, with gradients to colours and opacities only
