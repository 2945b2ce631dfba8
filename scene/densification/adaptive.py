"""Clone, split and prune where it pays: by regions of the face, by the picture's error, within a budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from scene.densification.gradient import GradientOptions, GradientStrategy
from scene.gaussian_model import GaussianModel
from scene.rigs import Rig
from scene.rows import Moments
from utils.adaptive_densification import (
    AdaptiveDensificationStrategy,
    SpatiallyAdaptiveDensification,
    additions,
)
from utils.contracts import Drawn, Mesh
from utils.errors import InputError
from utils.maths.triangle_frames import triangle_areas
from utils.maths.visible_faces import visible_faces

SOURCES = ("both", "masks", "error", "ranges")
FEATURES = ("eyes", "mouth", "nose")
# What a public attempt took for right eye, left eye, nose, mouth: vertices of the left eyeball, the neck and elsewhere.
WRONG_RANGES = ((3930, 3996), (3997, 4066), (3325, 3449), (2812, 3024))
LOOK_EVERY = 4  # steps between looks at the error: a look costs as much as drawing the mesh
SAVING = 0.84  # of the Gaussians that uniform thresholds would lead to, if no budget is given
OPAQUE = 1e-3  # least transparency in a division


@dataclass
class AdaptiveOptions(GradientOptions):
    """Where a budget of Gaussians goes. With --gaussian_budget it is spent whole, without it is derived."""

    use_adaptive_densification: bool = field(default=False, metadata={"help": "the same as --densification adaptive"})
    adaptive_densify_ratio: float = field(default=2.0, metadata={"help": "weight of eyes, mouth, nose; 1: of all else"})
    region_source: str = field(default="both", metadata={"help": "weights by masks, by image error, by both, or by "
                                                                 "ranges (wrong ones, to compare)"})  # fmt: skip


class AdaptiveStrategy(GradientStrategy):
    """The gradient strategy's clones, splits and rounds; who is cloned, split or pruned is the policy's to say.

    Statistics beside those of the gradient: influence [N], the sum over views of |opacity * d loss / d opacity|.
    """

    options: AdaptiveOptions
    policy: AdaptiveDensificationStrategy

    def __init__(self, options: AdaptiveOptions, iterations: int, extent: float, seed: int, white: bool) -> None:
        super().__init__(options, iterations, extent, seed, white)
        self.final = min(self.last - 1, iterations)  # last step at which there can be a round
        self.uniform = 0  # Gaussians that uniform thresholds would have led to by now
        self.note += f"; adaptive densification: weights from {options.region_source}"

    def start(self, avatar: GaussianModel) -> None:
        """Begin with empty statistics, before the first step and after each round.

        Raises:
            InputError: the regions asked for are not known on this mesh.
        """
        if not self.statistics:
            self.policy, self.uniform = build_policy(self.options, avatar.rig), len(avatar)
            self.looks = self.policy.looks
        super().start(avatar)
        self.statistics["influence"] = torch.zeros_like(self.statistics["gradient"])
        self.policy.start()

    def observe(self, step: int, avatar: GaussianModel, drawn: Sequence[Drawn]) -> None:
        """Add a step's gradients, and now and then the error of its last picture; call after backward."""
        super().observe(step, avatar, drawn)
        logits = avatar.columns["opacities"]
        if step >= self.last or logits.grad is None:
            return
        transparency = (1.0 - logits.detach().sigmoid()).clamp_min(OPAQUE)  # d opacity / d logit = opacity * this
        self.statistics["influence"] += torch.nan_to_num(logits.grad).abs() / transparency
        if self.policy.looks and step % LOOK_EVERY == 0:
            view = drawn[-1]
            faces, _ = visible_faces(view.mesh, view.frame.camera, avatar.rig.threads)
            error = (view.rendered.image.detach().clamp(0.0, 1.0) - view.frame.image).square().mean(dim=0)
            self.policy.observe(faces.to(error.device), error)

    def round(self, step: int, avatar: GaussianModel, optimiser: Moments) -> None:
        """Remove, and then add what the budget allows; new rows have no statistics to be judged by."""
        self.policy.update()
        wanted = int((self.mean_gradient() >= self.options.densify_grad_threshold).sum())
        self.uniform += wanted
        left = self.final // self.interval - step // self.interval
        target = self.options.gaussian_budget or int(SAVING * (self.uniform + wanted * left))
        self.prune(step, avatar, optimiser)
        count = additions(len(avatar), target, left + 1)
        self.grow(step, avatar, optimiser, self.policy.choose(self.mean_gradient(), avatar.binding, count))

    def expendable(self, avatar: GaussianModel) -> Tensor:
        """[N] bool: faint or without influence, for the weight of their face."""
        return self.policy.prune(
            avatar.opacity, self.statistics["influence"], avatar.binding, self.options.prune_opacity
        )

    def state_dict(self) -> dict[str, Tensor]:
        """The gradient strategy's, the count of what uniform thresholds wanted, and the policy's."""
        return {**super().state_dict(), "adaptive.uniform": torch.tensor(self.uniform), **self.policy.state_dict()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        super().load_state_dict(state)
        self.uniform = int(state["adaptive.uniform"])
        self.policy.load_state_dict(state)


def build_policy(options: AdaptiveOptions, rig: Rig) -> AdaptiveDensificationStrategy:
    """Weights for the faces of a rig.

    Raises:
        InputError: --region_source needs regions that the rig doesn't know.
    """
    mesh = rig.rest_mesh()
    areas = triangle_areas(mesh.vertices, mesh.faces)
    emphasis = torch.ones_like(areas)
    if options.region_source != "error":
        emphasis[features(options.region_source, rig.regions, mesh)] = options.adaptive_densify_ratio
    if options.region_source in ("both", "error"):
        return SpatiallyAdaptiveDensification(emphasis, areas)
    return AdaptiveDensificationStrategy(emphasis, areas)


def features(source: str, regions: Mapping[str, Tensor], mesh: Mesh) -> Tensor:
    """[F] bool: faces of eyes, mouth and nose by the masks, or in the wrong ranges of vertices."""
    if source == "ranges":
        n_vertices = mesh.vertices.shape[0]
        if n_vertices <= max(last for _, last in WRONG_RANGES):
            raise InputError("--region_source", "ranges", f"the mesh has {n_vertices} vertices, expected FLAME's 5023",
                             "Give --region_source error.")  # fmt: skip
        ranges = [((mesh.faces >= first) & (mesh.faces <= last)).all(dim=1) for first, last in WRONG_RANGES]
        return torch.stack(ranges).any(dim=0)
    missing = [name for name in FEATURES if name not in regions]
    if missing:
        raise InputError("--region_source", source, f"nobody says where {', '.join(missing)} are on this mesh",
                         "On a FLAME mesh give --flame_masks FILE; --region_source error needs none.")  # fmt: skip
    return torch.stack([regions[name] for name in FEATURES]).any(dim=0)
