"""The gains that were predicted for the three additions together, beside what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scripts.compare.runs import Experiment
from scripts.compare.tables import DASH, Spread, difference

REACHED, NOT_REACHED, NOT_MEASURABLE = "reached", "not reached", "not measurable here"
WITHOUT_PERCEPTUAL = "_without_perceptual"


@dataclass(frozen=True)
class Claim:
    """A predicted change against the baseline."""

    title: str
    split: str
    name: str
    target: float
    at_most: bool  # the change must be this or lower, else this or higher
    relative: bool = True  # percent of the baseline

    @property
    def text(self) -> str:
        sign = "≤" if self.at_most else "≥"
        return f"{sign} {self.show(self.target, 0 if self.relative else 1)} {self.unit}"

    @property
    def unit(self) -> str:
        return "%" if self.relative else "dB"

    def show(self, value: float, digits: int, signed: bool = True) -> str:
        rounded = round(value, digits) or 0.0
        return f"{rounded:{'+' if signed and rounded else ''}.{digits}f}".replace("-", "−")

    def met(self, change: float) -> bool:
        return change <= self.target if self.at_most else change >= self.target


CLAIMS = (
    Claim("PSNR (test)", "test", "psnr", 1.1, False, relative=False),
    Claim("LPIPS (test, VGG)", "test", "lpips_vgg", -27, True),
    Claim("Gaussians", "", "gaussians", -19, True),
    Claim("Rendering, FPS", "", "fps", 13, False),
    Claim("Training time", "", "train_seconds", 11, True),
)


@dataclass(frozen=True)
class Verdict:
    """What one experiment says about a claim."""

    verdict: str
    measured: str
    reason: str = ""  # why it can't be measured
    change: Spread | None = None


def judge(claim: Claim, experiment: Experiment, baseline: Experiment) -> Verdict:
    """The measured change and whether it is as large as was claimed; the mean over seeds decides."""
    own, base = (one.values(claim.split, claim.name) for one in (experiment, baseline))
    change = difference(own, base, claim.relative)
    if change is None:
        return Verdict(NOT_MEASURABLE, DASH, why_not(claim, experiment, baseline))
    return Verdict(REACHED if claim.met(change.mean) else NOT_REACHED, measured_text(claim, change), "", change)


def why_not(claim: Claim, experiment: Experiment, baseline: Experiment) -> str:
    for one in (experiment, baseline):
        if not one.values(claim.split, claim.name):
            return one.runs[0].reason(claim.split, claim.name)
    shared = experiment.values(claim.split, claim.name).keys() & baseline.values(claim.split, claim.name).keys()
    return "the baseline's is zero" if shared else "no seed in common"


def measured_text(claim: Claim, change: Spread) -> str:
    digits = 1 if claim.relative else 2
    spread = "" if change.deviation is None else f" ± {claim.show(change.deviation, digits, signed=False)}"
    return f"{claim.show(change.mean, digits)}{spread} {claim.unit}"


def notes_on(rows: Sequence[tuple[Claim, Sequence[Verdict]]]) -> list[str]:
    """Footnotes: why claims can't be judged."""
    known = ((claim.title, verdict.reason) for claim, verdicts in rows for verdict in verdicts if verdict.reason)
    return [f"{title}: {DASH}: {reason}" for title, reason in dict.fromkeys(known)]


def judge_all(
    experiments: Sequence[Experiment], baseline: Experiment
) -> tuple[list[Experiment], list[tuple[Claim, list[Verdict]]]]:
    """The experiments that claims are judged on, those of all additions first, and a row of verdicts per claim."""
    others = [one for one in experiments if one.name != baseline.name and not one.budgeted]
    others.sort(key=lambda one: one.name.removesuffix(WITHOUT_PERCEPTUAL) != "all")
    return others, [(claim, [judge(claim, one, baseline) for one in others]) for claim in CLAIMS]
