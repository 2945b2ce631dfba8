"""Steadiness of consecutive pictures of one camera under the mesh's exact flow (`utils/flow_consistency.py`).

    flow               mean over pixels seen in both frames of |e - warp(e')|, e = picture - photograph
    feature_stability  the same for the local contrast of the pictures, mean over three scales

Only every `--flow_interval`-th step, with as many times the weight; the frame before (the frame after, where there is
none) is drawn anew, so that nothing has to be remembered between steps, and with gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from utils.contracts import Subject
from utils.errors import InputError
from utils.flow_consistency import OpticalFlowConsistency, TemporalFeatureStability, mesh_flow
from utils.losses.context import LossContext


@dataclass
class FlowOptions:
    """Weights of the steadiness of consecutive pictures."""

    lambda_flow: float = field(
        default=0.0, metadata={"help": "weight of the change of the picture's error along the mesh's flow; 0: off"}
    )
    lambda_feature_stability: float = field(
        default=0.0, metadata={"help": "weight of the change of its local contrast's error; 0: off"}
    )
    flow_interval: int = field(default=10, metadata={"help": "both only at every n-th step, with n times the weight"})

    def __post_init__(self) -> None:
        for name in ("lambda_flow", "lambda_feature_stability"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"--{name}", "", f"is {value}, expected a finite number of at least 0")
        if self.flow_interval < 1:
            raise InputError("--flow_interval", "", f"is {self.flow_interval}, expected at least 1")


def build(
    options: FlowOptions, threads: int | None = None, subject: Subject | None = None
) -> Callable[[LossContext], dict[str, Tensor]]:
    """The terms whose weight is not 0, at the steps when they are due and where a neighbouring frame is there.

    Raises:
        InputError: they are wanted, but no two training frames follow each other on a mesh.
    """
    weight = weights(options)
    if any(weight.values()) and subject is not None and subject.sequence is not None:
        refuse_single_frames(weight, subject.sequence)
    parts = {
        "flow": OpticalFlowConsistency(),
        "feature_stability": TemporalFeatureStability(),
    }

    def loss(context: LossContext) -> dict[str, Tensor]:
        if not any(weight.values()) or context.step % options.flow_interval or not context.bound:
            return {}
        neighbour = context.look(-1, True) or context.look(+1, True)
        if neighbour is None:
            return {}
        frame, image = context.frame, context.rendered.image
        flow = mesh_flow(context.mesh, frame.camera, neighbour.mesh, neighbour.frame.camera, threads).to(image.device)
        return {
            name: options.flow_interval * weight[name] * part(image, frame.image, neighbour, flow)
            for name, part in parts.items()
            if weight[name]
        }

    return loss


def weights(options: FlowOptions) -> dict[str, float]:
    """Mean over the steps; a due step has the weight of all that were not."""
    return {"flow": options.lambda_flow, "feature_stability": options.lambda_feature_stability}


def refuse_single_frames(weights: Mapping[str, float], sequence: Tensor) -> None:
    """Raise InputError if no two consecutive timesteps of a `Subject.sequence` are of one recording."""
    if not bool(((sequence[1:] == sequence[:-1]) & (sequence[1:] >= 0)).any()):
        flags = "/".join(f"--lambda_{name}" for name, weight in weights.items() if weight)
        raise InputError(flags, "", "found no two consecutive training timesteps of a bound avatar, expected some",
                         "Leave it out, or train with --bind_to_mesh on a sequence.")  # fmt: skip


def describe(options: FlowOptions) -> str:
    """When it is computed; empty if it is off."""
    if not (options.lambda_flow or options.lambda_feature_stability):
        return ""
    return f"flow, feature_stability: against the frame before, every {options.flow_interval} steps"
