"""Motion that a head can make: `utils.temporal_consistency.TemporalConsistencyLoss` as terms of training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from utils.contracts import Subject
from utils.errors import InputError
from utils.losses.context import LossContext
from utils.temporal_consistency import TemporalConsistencyLoss


@dataclass
class TemporalOptions:
    """Consistency of the motion over time."""

    use_temporal_consistency: bool = field(default=False, metadata={"help": "keep the motion plausible over time"})
    lambda_temporal: float = field(default=1e-4, metadata={"help": "weight of that, with --use_temporal_consistency"})

    def __post_init__(self) -> None:
        if not (math.isfinite(self.lambda_temporal) and self.lambda_temporal >= 0):
            problem = f"is {self.lambda_temporal}, expected a finite number of at least 0"
            raise InputError("--lambda_temporal", "", problem)


class TemporalTerms:
    """Terms `temporal` and, where vertex offsets are trained, `temporal_offset`. `start`: where the motion begins."""

    def __init__(self, weight: float, subject: Subject, sequence: Tensor) -> None:
        self.weight = weight
        self.consistency = TemporalConsistencyLoss(subject.tracked, sequence)
        self.start: Mapping[str, Tensor] = self.consistency.most_plausible()

    def __call__(self, context: LossContext) -> dict[str, Tensor]:
        timestep, offsets = context.frame.timestep, context.motion.get("dynamic_offset")
        smoothness = self.consistency.compute_flame_param_smoothness(context.motion, timestep)
        terms = {"temporal": self.weight * smoothness}
        if offsets is not None:
            smoothness = self.consistency.compute_dynamic_offset_smoothness(offsets, timestep)
            terms["temporal_offset"] = self.weight * smoothness
        return terms


def build(
    options: TemporalOptions, threads: int | None = None, subject: Subject | None = None
) -> Callable[[LossContext], dict[str, Tensor]]:
    """`TemporalTerms`; no terms without --use_temporal_consistency, or where nothing is known of the subject.

    Raises:
        InputError: they are wanted, but no motion is trained.
    """
    weight = options.lambda_temporal if options.use_temporal_consistency else 0.0
    if not weight or subject is None or subject.sequence is None:
        return lambda context: {}
    if not subject.tracked:
        raise InputError("--use_temporal_consistency", "", "found no motion that is trained, expected FLAME parameters",
                         "Leave it out (False where a preset asks for it), or bind to a FLAME sequence without "
                         "--not_finetune_flame_params.")  # fmt: skip
    return TemporalTerms(weight, subject, subject.sequence)


def weights(options: TemporalOptions) -> dict[str, float]:
    weight = options.lambda_temporal if options.use_temporal_consistency else 0.0
    return {"temporal": weight, "temporal_offset": weight}


def describe(options: TemporalOptions) -> str:
    """Where the motion begins; nothing to say if that is as tracked."""
    if not options.use_temporal_consistency:
        return ""
    if not options.lambda_temporal:
        return "temporal: off; --use_temporal_consistency with --lambda_temporal 0 has no effect"
    return "temporal: the motion begins as the most plausible one, given the tracked one's noise, and is held near it"
