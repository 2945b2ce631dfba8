"""Where Gaussians are added and removed, by weights per face: from anatomy, or from the error of the picture.

A Gaussian on a face of weight w is wanted from base / w on, and faint below base / w. Dividing thresholds alone would
only add Gaussians: so weights are one on average over the mesh's area, and a budget says how many are added.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

PRIOR = 4.0  # pixels of the mean error that every face is given: few pixels say little
LARGEST = 5.0  # weight of a bad face by its error, and one over that of a good one
EXPENDABLE = 0.003  # share of all influence on the picture that a round's pruned Gaussians may have had together
HASTE = 6.0  # a round adds this many times its even share of what is left: who comes early is trained for longer


class AdaptiveDensificationStrategy:
    """Weights that stay: `emphasis` [F] > 0 on faces of `areas` [F] (any unit), from regions of the face.

    That weights redistribute, and the rules below, are ours. What removing a Gaussian would change is estimated to
    first order, |opacity * d loss / d opacity|, as for the filters of a network (Molchanov et al., 2017).
    """

    looks = False  # whether `observe` wants pictures

    def __init__(self, emphasis: Tensor, areas: Tensor) -> None:
        self.areas = areas
        self.weights = normalised(emphasis.to(areas), areas)

    def get_adaptive_threshold(self, base: float, binding: Tensor) -> Tensor:
        """[N]: the threshold of each Gaussian, by its face [N] int64: base / weight."""
        return base / self.weights[binding]

    def choose(self, gradient: Tensor, binding: Tensor, count: int) -> Tensor:
        """[N] bool: whom to clone or split: the `count` Gaussians that are farthest over their threshold.

        Whatever the base, they are those of the largest weight * gradient; without any gradient nobody is chosen.

        Args:
            gradient: [N] mean screen gradient. binding: [N] int64.
        """
        score = torch.nan_to_num(gradient / self.get_adaptive_threshold(1.0, binding))
        chosen = torch.zeros_like(score, dtype=torch.bool)
        order = torch.argsort(score, descending=True, stable=True)[: max(0, count)]
        chosen[order] = score[order] > 0
        return chosen

    def prune(self, opacity: Tensor, influence: Tensor, binding: Tensor, faintest: float) -> Tensor:
        """[N] bool: whom nobody would miss: fainter than `faintest` / weight, or among those of the least
        weight * influence that have EXPENDABLE of all of it together.

        Args:
            opacity: [N] in (0, 1). influence: [N] >= 0, a sum over views of what the removal would change.
        """
        faint = opacity < self.get_adaptive_threshold(faintest, binding)
        worth = torch.nan_to_num(influence * self.weights[binding]).double()
        order = torch.argsort(worth, stable=True)
        total = worth[order].cpu().cumsum(0).to(worth.device)  # on a GPU it would add in no fixed order
        least = torch.zeros_like(faint)
        least[order] = (total <= EXPENDABLE * total[-1]) & (total[-1] > 0)  # without any, nothing is known of anybody
        return faint | least

    def start(self) -> None:
        """A round begins; these weights stay."""

    def observe(self, faces: Tensor, error: Tensor) -> None:
        """Nothing is learnt from the picture."""

    def update(self) -> None:
        """A round ends; these weights stay."""

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """There is nothing to take over."""


class SpatiallyAdaptiveDensification(AdaptiveDensificationStrategy):
    """Weights that follow the picture: the squared error where a face is seen, against the mean; times the emphasis."""

    looks = True

    def __init__(self, emphasis: Tensor, areas: Tensor) -> None:
        super().__init__(emphasis, areas)
        self.emphasis = self.weights
        self.start()

    def start(self) -> None:
        """Forget the errors seen so far."""
        self.error, self.pixels = torch.zeros_like(self.areas), torch.zeros_like(self.areas)

    def observe(self, faces: Tensor, error: Tensor) -> None:
        """Add a picture: the face [H, W] int that each pixel sees, -1: none; and the pixel's squared error [H, W]."""
        seen = faces >= 0
        which, found = faces[seen].long(), torch.nan_to_num(error[seen])
        self.error.index_add_(0, which, found)
        self.pixels.index_add_(0, which, torch.ones_like(found))

    def update(self) -> None:
        """Take the errors since the last `start` into the weights. A face that nobody saw counts as average."""
        mean = self.error.sum() / self.pixels.sum().clamp_min(1.0)
        if not bool(mean > 0):
            return
        relative = (self.error / mean + PRIOR) / (self.pixels + PRIOR)
        self.weights = normalised(self.emphasis * relative.clamp(1.0 / LARGEST, LARGEST), self.areas)

    def state_dict(self) -> dict[str, Tensor]:
        named = {"error": self.error, "pixels": self.pixels, "weights": self.weights}  # a round may see nothing new
        return {f"adaptive.{name}": values for name, values in named.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.error, self.pixels, self.weights = (
            state[f"adaptive.{name}"].to(self.areas.device).clone() for name in ("error", "pixels", "weights")
        )


def normalised(weights: Tensor, areas: Tensor) -> Tensor:
    """[F]: weights times a number, so that their mean over the area is one."""
    return weights * (areas.sum() / (weights * areas).sum())


def additions(count: int, target: int, rounds: int) -> int:
    """How many to add now to get from `count` to `target` in so many rounds, this one included: more at first."""
    room = max(0, target - count)
    return min(room, math.ceil(HASTE * room / max(1, rounds)))
