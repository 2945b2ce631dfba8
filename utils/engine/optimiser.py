"""Adam over the Gaussians' columns and the rig's motion, with the schedules of GaussianAvatars (section 4).

Moments are kept by name beside the parameters, so that row edits and checkpoints treat them like any other column.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from scene.gaussian_model import GaussianModel
from utils.engine.adam import Moments, Update, choose_adam


@dataclass
class OptimiserOptions:
    """Number of steps and learning rates."""

    batch_size: int = field(default=1, metadata={"help": "views per step; the loss is their mean"})
    iterations: int = field(default=30_000, metadata={"help": "training steps; derived schedules follow it"})
    position_lr_init: float = field(default=0.02, metadata={"help": "local positions, times the scene extent"})
    position_lr_final: float = field(default=0.0002, metadata={"help": "at position_lr_max_steps, log-linear"})
    position_lr_delay_mult: float = field(default=0.01, metadata={"help": "of the original; without effect there too"})
    position_lr_max_steps: int = field(default=-1, metadata={"help": "-1: --iterations"})
    feature_lr: float = field(default=0.005, metadata={"help": "colour; higher SH degrees get a 20th"})
    opacity_lr: float = field(default=0.05, metadata={"help": "opacity (logit)"})
    scaling_lr: float = field(default=0.017, metadata={"help": "local scale (log)"})
    rotation_lr: float = field(default=0.001, metadata={"help": "local rotation"})
    flame_expr_lr: float = field(default=5e-4, metadata={"help": "FLAME expression"})
    flame_trans_lr: float = field(default=1e-5, metadata={"help": "FLAME translation (metres)"})
    flame_pose_lr: float = field(default=1e-4, metadata={"help": "FLAME rotation, neck, jaw, eyes (radians)"})
    flame_offset_lr: float = field(default=1e-5, metadata={"help": "dynamic vertex offsets (metres), if trained"})
    flame_update: str = field(default="rows", metadata={"help": "rows: only timesteps seen; dense: all, as upstream"})
    scene_extent: str = field(default="head", metadata={"help": "length unit: head (mesh size) or cameras (upstream)"})
    sh_interval: int = field(default=-1, metadata={"help": "iterations a SH degree lasts; -1: 10 % of all"})


class Optimiser:
    """Adam with eps 1e-15 (GaussianAvatars, section 4), one learning rate per group.

    Args:
        extent: scene extent in metres; scales the position learning rate.
        train_motion: False leaves the rig's parameters alone. threads: of the native kernels.
    """

    def __init__(
        self,
        options: OptimiserOptions,
        avatar: GaussianModel,
        extent: float,
        train_motion: bool,
        threads: int | None = None,
    ) -> None:
        self.options, self.avatar, self.extent = options, avatar, extent
        self.adam = choose_adam(avatar.binding.device, threads)
        self.note = self.adam.note
        self.rates = {
            "sh0": options.feature_lr,
            "shN": options.feature_lr / 20.0,
            "opacities": options.opacity_lr,
            "scales": options.scaling_lr,
            "quats": options.rotation_lr,
        }
        self.motion_rates: dict[str, float] = {}
        if train_motion:
            rates = {"pose": options.flame_pose_lr, "trans": options.flame_trans_lr, "expr": options.flame_expr_lr,
                     "offset": options.flame_offset_lr}  # fmt: skip
            self.motion_rates = {name: rates[group] for name, group in avatar.rig.groups.items()}
        self.moments = {name: zero_moments(column) for name, column in avatar.columns.items()}
        self.motion_moments = {name: zero_moments(avatar.rig.parameters[name]) for name in self.motion_rates}
        self.row_steps = {
            name: avatar.rig.parameters[name].new_zeros(avatar.rig.timesteps) for name in self.motion_rates
        }
        self.count = 0

    def schedule(self, step: int) -> None:
        """Set the rates of this step and raise the SH degree when it is due."""
        options = self.options
        end = options.position_lr_max_steps if options.position_lr_max_steps > 0 else options.iterations
        share = min(1.0, step / end)
        start, final = options.position_lr_init * self.extent, options.position_lr_final * self.extent
        self.rates["means"] = start ** (1.0 - share) * final**share
        every = options.sh_interval if options.sh_interval > 0 else max(1, options.iterations // 10)
        self.avatar.sh_degree = min(step // every, self.avatar.max_sh_degree)

    def step(self, allowed: Tensor | None) -> None:
        """Update everything that has a gradient and clear the gradients.

        Args:
            allowed: 0-dim bool on the device; False leaves parameters and moments as they are (a non-finite loss).
        """
        self.count += 1
        self.update_columns(
            [
                Update(column, column.grad, self.moments[name], self.rates[name])
                for name, column in self.avatar.columns.items()
                if column.grad is not None
            ],
            allowed,
        )
        for name, values in self.avatar.rig.parameters.items():
            if name in self.motion_rates:
                steps = self.row_steps[name] if self.options.flame_update == "rows" else None
                self.update(values, self.motion_moments[name], self.motion_rates[name], steps, allowed)
            values.grad = None

    def update_columns(self, updates: Sequence[Update], allowed: Tensor | None) -> None:
        """Step the Gaussians, all columns at once, and clear their gradients."""
        self.adam.step(updates, self.count, allowed)
        for update in updates:
            update.parameter.grad = None

    def update(
        self, values: Tensor, moments: Moments, rate: float, rows: Tensor | None, allowed: Tensor | None
    ) -> None:
        """Step one parameter, if it has a gradient, and clear that."""
        gradient, values.grad = values.grad, None
        if gradient is None:
            return
        if rows is None:
            dense = gradient.to_dense() if gradient.is_sparse else gradient
            self.adam.step([Update(values, dense, moments, rate)], self.count, allowed)
        else:
            self.adam.rows(values, gradient, moments, rate, rows, allowed)

    def edit_rows(self, keep: Tensor, appended: int, columns: Mapping[str, Tensor]) -> None:
        """Follow a row edit: kept rows keep their moments, appended ones start at zero."""
        for name, pair in self.moments.items():
            self.moments[name] = tuple(  # type: ignore[assignment]
                torch.cat([m[keep], m.new_zeros((appended, *m.shape[1:]))]) if appended else m[keep] for m in pair
            )

    def replace(self, name: str, column: Tensor) -> None:
        """Forget the moments of a column whose values were replaced."""
        self.moments[name] = zero_moments(column)

    def state_dict(self) -> dict[str, Tensor]:
        state = {"optimiser.count": torch.tensor(self.count)}
        for table in (self.moments, self.motion_moments):
            for name, (first, second) in table.items():
                state[f"optimiser.{name}.exp_avg"], state[f"optimiser.{name}.exp_avg_sq"] = first, second
        return {**state, **{f"optimiser.{name}.steps": steps for name, steps in self.row_steps.items()}}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        if int(state["optimiser.count"]) < 0:
            raise ValueError(f"optimiser.count: found {int(state['optimiser.count'])}, expected at least 0")
        self.count = int(state["optimiser.count"])  # the tables are those of this run: a checkpoint may hold more
        for table in (self.moments, self.motion_moments):
            for name, (first, _) in table.items():
                pair = (state[f"optimiser.{name}.exp_avg"], state[f"optimiser.{name}.exp_avg_sq"])
                table[name] = (pair[0].to(first.device).clone(), pair[1].to(first.device).clone())
        self.row_steps = {name: state[f"optimiser.{name}.steps"].to(old.device) for name, old in self.row_steps.items()}


def zero_moments(parameter: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(parameter, requires_grad=False), torch.zeros_like(parameter, requires_grad=False)
