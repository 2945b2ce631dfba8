"""STRATEGIES: when and where Gaussians are added and removed.

A strategy has `start(avatar)`, `observe(step, avatar, drawn)`, `refine(step, avatar, optimiser)`, `state_dict` and
`load_state_dict`; it decides by masks, `scene/rows.py` edits the rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from scene.densification.adaptive import SOURCES, AdaptiveOptions, AdaptiveStrategy
from scene.densification.gradient import GradientStrategy
from scene.gaussian_model import GaussianModel
from scene.rows import Moments
from utils.contracts import Drawn

__all__ = ["SOURCES", "STRATEGIES", "DensificationOptions", "Strategy", "build_strategy"]


@dataclass
class DensificationOptions(AdaptiveOptions):
    """Which strategy adds and removes Gaussians, and how."""

    densification: str = field(default="gradient", metadata={"help": "strategy: gradient, adaptive or none"})

    @property
    def strategy(self) -> str:
        """The name in `STRATEGIES`."""
        return "adaptive" if self.use_adaptive_densification else self.densification

    @property
    def needs_regions(self) -> bool:
        """Whether what comes out depends on --flame_masks."""
        return self.strategy == "adaptive" and self.region_source in ("both", "masks")


class Strategy(Protocol):
    """What training needs of a densification strategy."""

    pruned: int  # Gaussians removed so far
    note: str  # a line for the log
    looks: bool  # whether `observe` wants pictures
    statistics: dict[str, Tensor]  # [N] sums since the last round: gradient, seen, radius and perhaps influence

    def start(self, avatar: GaussianModel) -> None: ...
    def observes(self, step: int) -> bool: ...  # whether a step is added to the statistics
    def observe(self, step: int, avatar: GaussianModel, drawn: Sequence[Drawn]) -> None: ...
    def edits(self, step: int) -> bool: ...  # whether `refine` reads or changes anything after a step
    def refine(self, step: int, avatar: GaussianModel, optimiser: Moments) -> None: ...
    def state_dict(self) -> dict[str, Tensor]: ...
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


class NoDensification:
    """The rows stay as they are: one Gaussian per face, or whatever was loaded."""

    pruned, note, looks = 0, "densification: none", False

    def __init__(self, *_: object) -> None:
        self.statistics: dict[str, Tensor] = {}

    def observes(self, step: int) -> bool:
        return False

    def edits(self, step: int) -> bool:
        return False

    def start(self, avatar: GaussianModel) -> None: ...
    def observe(self, step: int, avatar: GaussianModel, drawn: Sequence[Drawn]) -> None: ...
    def refine(self, step: int, avatar: GaussianModel, optimiser: Moments) -> None: ...
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...

    def state_dict(self) -> dict[str, Tensor]:
        return {}


STRATEGIES = {
    "gradient": GradientStrategy,
    "adaptive": AdaptiveStrategy,
    "none": NoDensification,
}


def build_strategy(
    options: DensificationOptions, iterations: int, extent: float, seed: int, white: bool, avatar: GaussianModel
) -> Strategy:
    """The strategy that the options name, started on an avatar.

    Args:
        extent: scene extent, metres. white: whether the background is.

    Raises:
        InputError: the strategy asks for what the avatar's rig doesn't have.
    """
    strategy = STRATEGIES[options.strategy](options, iterations, extent, seed, white)
    strategy.start(avatar)
    return strategy
