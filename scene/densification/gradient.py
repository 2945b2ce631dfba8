"""Clone, split, prune and opacity reset driven by screen-space gradients (3DGS section 5, GaussianAvatars 3.3)."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from scene.gaussian_model import GaussianModel
from scene.rows import Moments, edit_rows, keep_one_per_face
from utils.contracts import Drawn
from utils.maths.random import generator
from utils.maths.rotations import quaternion_to_matrix

NATIVE, AVAILABLE = "diff_gaussian_rasterization.statistics", "diff_gaussian_rasterization._device"
AddView = Callable[[Tensor, Tensor, float, Tensor, Tensor, Tensor], None]
SPLIT_INTO = 2
SPLIT_SHRINK = 0.8 * SPLIT_INTO  # 3DGS: children are 1.6 times smaller
MAX_SCREEN_RADIUS = 20  # pixels
MAX_WORLD_SCALE = 0.1  # of the scene extent


@dataclass
class GradientOptions:
    """When Gaussians are added and removed. A negative iteration is derived from --iterations."""

    densify_from_iter: int = field(default=-1, metadata={"help": "first iteration (exclusive); -1: 10 % of all"})
    densify_until_iter: int = field(default=-1, metadata={"help": "last iteration; -1: 60 % of all"})
    densification_interval: int = field(default=-1, metadata={"help": "iterations between rounds; -1: 3 % of all"})
    densify_grad_threshold: float = field(default=3e-4, metadata={"help": "mean screen gradient (NDC) that adds"})
    percent_dense: float = field(default=0.01, metadata={"help": "clone below, split above this share of the extent"})
    opacity_reset_interval: int = field(default=-1, metadata={"help": "iterations between opacity resets; -1: never"})
    prune_opacity: float = field(default=0.005, metadata={"help": "Gaussians fainter than this go"})
    gaussian_budget: int = field(default=0, metadata={"help": "stop adding at this many Gaussians; 0: no limit"})


class GradientStrategy:
    """Running statistics per Gaussian, and the rounds in which rows change.

    Statistics: gradient [N] sum of screen-gradient norms (NDC units), seen [N] views that drew it, radius [N] largest
    screen radius in pixels.
    """

    def __init__(self, options: GradientOptions, iterations: int, extent: float, seed: int, white: bool) -> None:
        self.options, self.extent, self.seed, self.white = options, extent, seed, white
        self.looks = False  # whether `observe` wants pictures
        self.first = derived(options.densify_from_iter, iterations, 0.10)
        self.last = derived(options.densify_until_iter, iterations, 0.60)
        self.interval = max(1, derived(options.densification_interval, iterations, 0.03))
        self.statistics: dict[str, Tensor] = {}
        self.pruned = 0
        self.native, self.note = native_statistics()

    def start(self, avatar: GaussianModel) -> None:
        """Begin with empty statistics, before the first step and after each round."""
        zero = torch.zeros(len(avatar), device=avatar.binding.device)
        self.statistics = {name: zero.clone() for name in ("gradient", "seen", "radius")}

    def observes(self, step: int) -> bool:
        """Whether this step's views are added to the statistics."""
        return step < self.last

    def observe(self, step: int, avatar: GaussianModel, drawn: Sequence[Drawn]) -> None:
        """Add the screen gradients of a step's views; call after backward. The loss was the mean over the views."""
        if not self.observes(step):
            return
        gradient, seen, radius = (self.statistics[name] for name in ("gradient", "seen", "radius"))
        add = self.native if self.native is not None and why_not_on(gradient.device) is None else add_view
        for rendered in (view.rendered for view in drawn):
            if rendered.screen_offsets.grad is not None:
                add(rendered.screen_offsets.grad, rendered.radii, float(len(drawn)), gradient, seen, radius)

    def refine(self, step: int, avatar: GaussianModel, optimiser: Moments) -> None:
        """Add and remove Gaussians when a round is due; call after the optimiser's step."""
        if self.round_due(step):
            self.round(step, avatar, optimiser)
            self.start(avatar)
        if self.reset_due(step):
            self.reset_opacity(avatar, optimiser)

    def round_due(self, step: int) -> bool:
        return self.first < step < self.last and step % self.interval == 0

    def reset_due(self, step: int) -> bool:
        every = self.options.opacity_reset_interval
        return step < self.last and every > 0 and (step % every == 0 or (self.white and step == self.first))

    def edits(self, step: int) -> bool:
        """Whether `refine` reads or changes anything after this step."""
        return self.round_due(step) or self.reset_due(step)

    def round(self, step: int, avatar: GaussianModel, optimiser: Moments) -> None:
        """Add and then remove Gaussians."""
        mean = self.mean_gradient()
        wanted = (mean >= self.options.densify_grad_threshold) & self.within_budget(mean)
        self.grow(step, avatar, optimiser, wanted)
        self.prune(step, avatar, optimiser)

    def mean_gradient(self) -> Tensor:
        """[N]: screen gradient, mean over the views that drew a Gaussian, NDC units."""
        return self.statistics["gradient"] / self.statistics["seen"].clamp_min(1.0)

    def grow(self, step: int, avatar: GaussianModel, optimiser: Moments, wanted: Tensor) -> None:
        """Clone the small and split the large of the `wanted` [N] bool."""
        with torch.no_grad():
            world = avatar.world_scales(avatar.rig.rest_mesh())
            large = world.max(dim=-1).values > self.options.percent_dense * self.extent
            clones, splits = wanted & ~large, wanted & large
            parts = [{name: column.detach()[clones] for name, column in avatar.columns.items()}]
            parts += self.children(step, avatar, splits, world)
            append = {name: torch.cat([part[name] for part in parts]) for name in avatar.columns}
            faces = torch.cat([avatar.binding[clones], avatar.binding[splits].repeat(SPLIT_INTO)])
        edit_rows(avatar, optimiser, self.statistics, keep=~splits, append=append, append_binding=faces)

    def within_budget(self, mean: Tensor) -> Tensor:
        """[N] bool: the rows with the largest gradients that still fit under --gaussian_budget."""
        limit = self.options.gaussian_budget
        if not limit:
            return torch.ones_like(mean, dtype=torch.bool)
        room = max(0, limit - mean.shape[0])
        allowed = torch.zeros_like(mean, dtype=torch.bool)
        allowed[torch.argsort(mean, descending=True, stable=True)[:room]] = True
        return allowed

    def children(self, step: int, avatar: GaussianModel, splits: Tensor, world: Tensor) -> list[Mapping[str, Tensor]]:
        """Two smaller Gaussians for each split one, at random places inside it.

        The offset is drawn with the *world* standard deviation and added in *local* units, as the original does on
        purpose since 2024-04-12: children stay close to their parent, and the position gradient moves them apart.
        """
        columns = {name: column.detach()[splits] for name, column in avatar.columns.items()}
        count = columns["means"].shape[0]
        rotations = quaternion_to_matrix(torch.nn.functional.normalize(columns["quats"], dim=-1))
        made: list[Mapping[str, Tensor]] = []
        for child in range(SPLIT_INTO):
            noise = generator(self.seed, f"split child {child}", step).standard_normal((count, 3), dtype="float32")
            offset = torch.from_numpy(noise).to(world) * world[splits]
            means = columns["means"] + (rotations @ offset[:, :, None])[:, :, 0]
            scales = columns["scales"] - torch.tensor(SPLIT_SHRINK).log().item()
            made.append({**columns, "means": means, "scales": scales})
        return made

    def prune(self, step: int, avatar: GaussianModel, optimiser: Moments) -> None:
        """Remove the expendable, and once opacities have been reset also those that are too large."""
        with torch.no_grad():
            prune = self.expendable(avatar)
            if 0 < self.options.opacity_reset_interval < step:
                large = avatar.world_scales(avatar.rig.rest_mesh()).max(dim=-1).values > MAX_WORLD_SCALE * self.extent
                prune |= large | (self.statistics["radius"] > MAX_SCREEN_RADIUS)
            prune = keep_one_per_face(prune, avatar.binding, avatar.rig.faces.shape[0])
        self.pruned += int(prune.sum())
        edit_rows(avatar, optimiser, self.statistics, keep=~prune)

    def expendable(self, avatar: GaussianModel) -> Tensor:
        """[N] bool: fainter than --prune_opacity."""
        return avatar.opacity < self.options.prune_opacity

    def reset_opacity(self, avatar: GaussianModel, optimiser: Moments) -> None:
        """Lower every opacity to at most 0.01 and forget its moments (3DGS section 5.2)."""
        ceiling = torch.logit(torch.tensor(0.01)).item()
        lowered = avatar.columns["opacities"].detach().clamp_max(ceiling).requires_grad_()
        avatar.columns["opacities"] = lowered
        optimiser.replace("opacities", lowered)

    def state_dict(self) -> dict[str, Tensor]:
        state = {f"densification.{name}": values for name, values in self.statistics.items()}
        return {**state, "densification.pruned": torch.tensor(self.pruned)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.statistics = {n: state[f"densification.{n}"].to(old.device) for n, old in self.statistics.items()}
        self.pruned = int(state["densification.pruned"])


def native_statistics() -> tuple[AddView | None, str]:
    """`add_view` in native code, or None; and a line for the log."""
    try:
        native = importlib.import_module(NATIVE).add_view
    except (ImportError, OSError) as error:
        return None, f"screen gradients: PyTorch (the native kernel can't be used: {error})"
    where = "" if why_not_on("cuda") is None else " on the CPU, PyTorch on a GPU"
    return native, f"screen gradients: native kernel{where}"


def why_not_on(device: torch.device | str) -> str | None:
    """Why the native kernel, which is installed, can't work on a device; None if it can."""
    return importlib.import_module(AVAILABLE).usable(device)


def add_view(
    screen_gradients: Tensor, radii: Tensor, factor: float, gradient: Tensor, seen: Tensor, radius: Tensor
) -> None:
    """Add one view to the statistics, in place: factor times the length of the screen gradients [N, 2], in view or not
    by radii [N], and the largest of the radii."""
    visible = radii > 0
    gradient += torch.where(visible, factor * screen_gradients.norm(dim=-1), 0.0)
    seen += visible
    torch.maximum(radius, radii.to(radius), out=radius)


def derived(value: int, iterations: int, share: float) -> int:
    """An iteration number as given, or this share of the run if it is negative."""
    return value if value >= 0 else round(share * iterations)
