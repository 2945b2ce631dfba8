"""STRATEGIES: when and where Gaussians are added and removed.

A strategy has `start(avatar)`, `observe(step, rendered)`, `refine(step, avatar, optimiser)`, `state_dict` and
`load_state_dict`; it decides by masks, `scene/rows.py` edits the rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from scene.densification.gradient import GradientOptions, GradientStrategy
from scene.gaussian_model import GaussianModel
from scene.rows import Moments
from utils.contracts import Rendered


@dataclass
class DensificationOptions(GradientOptions):
    """Which strategy adds and removes Gaussians, and how."""

    densification: str = field(default="gradient", metadata={"help": "strategy: gradient or none"})


class Strategy(Protocol):
    """What training needs of a densification strategy."""

    pruned: int  # Gaussians removed so far
    note: str  # a line for the log

    def start(self, avatar: GaussianModel) -> None: ...
    def observe(self, step: int, rendered: Rendered, views: int = 1) -> None: ...
    def refine(self, step: int, avatar: GaussianModel, optimiser: Moments) -> None: ...
    def state_dict(self) -> dict[str, Tensor]: ...
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


class NoDensification:
    """The rows stay as they are: one Gaussian per face, or whatever was loaded."""

    pruned, note = 0, "densification: none"

    def __init__(self, *_: object) -> None: ...
    def start(self, avatar: GaussianModel) -> None: ...
    def observe(self, step: int, rendered: Rendered, views: int = 1) -> None: ...
    def refine(self, step: int, avatar: GaussianModel, optimiser: Moments) -> None: ...
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...

    def state_dict(self) -> dict[str, Tensor]:
        return {}


STRATEGIES = {
    "gradient": GradientStrategy,
    "none": NoDensification,
}
