"""What is compared: metrics in sections, their statistics over seeds, the differences against the baseline."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from scripts.compare.runs import BUDGET, Experiment, budget_of
from utils.errors import InputError

DASH, DAGGER = "—", "†"  # no number; not of all runs
REGIONS = ("eyes", "mouth", "nose", "forehead", "cheeks", "hair")
PARAMETERS = ("rotation", "translation", "expr", "neck_pose", "jaw_pose", "eyes_pose")


@dataclass(frozen=True)
class Metric:
    """A column: a number of metrics.json."""

    name: str
    title: str
    unit: str = ""
    digits: int = 2
    better: str = ""  # "up", "down", or empty: neither
    always: bool = False  # a column even where no run has it

    def show(self, value: float, signed: bool = False) -> str:
        """The number as text, rounded; what rounds to zero has no sign."""
        rounded = round(value, self.digits) or 0.0
        return f"{rounded:{'+' if signed and rounded else ''},.{self.digits}f}".replace("-", "−")


@dataclass(frozen=True)
class Section:
    """A table: experiments as rows, metrics as columns."""

    key: str
    title: str
    split: str  # empty: of the whole run
    metrics: Sequence[Metric]


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (n - 1) over n seeds; no deviation of one."""

    mean: float
    deviation: float | None
    n: int


@dataclass(frozen=True)
class Cell:
    """A number of one experiment."""

    spread: Spread | None
    reason: str = ""  # why there is none, or why not every run counts
    difference: Spread | None = None  # to the baseline, seed by seed
    best: bool = False
    by_seed: dict[int, float] = field(default_factory=dict)

    @property
    def partial(self) -> bool:
        """A mean that some of the experiment's runs lack."""
        return self.spread is not None and bool(self.reason)


@dataclass(frozen=True)
class Table:
    """A section with its numbers."""

    section: Section
    metrics: Sequence[Metric]  # those that are columns
    rows: Sequence[tuple[Experiment, Sequence[Cell]]]
    missing: Sequence[tuple[str, str]]  # titles of metrics that no run has, and why
    tracked: Sequence[float | None] = ()  # what the tracker said, before training: one number per column


def quality(split: str, title: str) -> Section:
    return Section(f"quality_{split}", title, split, (
        Metric("psnr", "PSNR", "dB", 2, "up", True), Metric("psnr_foreground", "PSNR in the matte", "dB", 2, "up"),
        Metric("ssim", "SSIM", "", 4, "up", True), Metric("lpips_vgg", "LPIPS (VGG)", "", 4, "down", True),
        Metric("lpips_alex", "LPIPS (Alex)", "", 4, "down")))  # fmt: skip


def steadiness(split: str, title: str) -> Section:
    return Section(f"steadiness_{split}", title, split, (
        Metric("flow_error", "Flow error", "px", 3, "down", True),
        Metric("psnr_frame_variance", "PSNR variance", "dB²", 3, "down", True),
        Metric("temporal_stability", "Stability", "", 4, "up")))  # fmt: skip


def by_region(kind: str, title: str, split: str, unit: str, digits: int, better: str) -> Section:
    metrics = tuple(Metric(f"{kind}_{region}", region.capitalize(), unit, digits, better) for region in REGIONS)
    return Section(f"{kind}_regions{'_' + split if split else ''}", title, split, metrics)


def of_motion(kind: str, title: str, better: str) -> Section:
    units = {"translation": "mm", "expr": "×10⁻³"}
    return Section(kind, title, "", tuple(
        Metric(f"{kind}_{name}", title_of(name), units.get(name, "mrad"), 3, better)
        for name in PARAMETERS))  # fmt: skip


def against_tracker() -> Section:
    title = "Motion: change of that error against the tracker's"
    return Section("rmse_change", title, "", tuple(
        Metric(f"rmse_{name}_change_percent", title_of(name), "%", 1, "down") for name in PARAMETERS))  # fmt: skip


def title_of(parameter: str) -> str:
    return {"expr": "Expression"}.get(parameter, parameter.removesuffix("_pose").capitalize())


SECTIONS = (
    quality("test", "Held-out moments (test)"),
    quality("val", "Held-out camera (val)"),
    Section("cost", "Size and cost", "", (
        Metric("gaussians", "Gaussians", "", 0, "down", True), Metric("fps", "Rendering", "FPS", 1, "up", True),
        Metric("train_seconds", "Training", "s", 1, "down", True),
        Metric("peak_memory_mb", "Peak memory", "MiB", 0, "down", True))),
    steadiness("test", "Steadiness, held-out moments (test)"),
    steadiness("val", "Steadiness, held-out camera (val)"),
    of_motion("rmse", "Motion: error to the truth, training moments", "down"),
    against_tracker(),
    of_motion("jitter", "Motion: jitter, training moments", ""),
    by_region("psnr", "PSNR by region (test)", "test", "dB", 2, "up"),
    by_region("psnr", "PSNR by region (val)", "val", "dB", 2, "up"),
    by_region("ssim", "SSIM by region (test)", "test", "", 4, "up"),
    by_region("ssim", "SSIM by region (val)", "val", "", 4, "up"),
    by_region("density", "Gaussians per cm² by region", "", "", 1, ""),
)  # fmt: skip
SCALED = {"mm": 1e3, "mrad": 1e3, "×10⁻³": 1e3}  # metres, radians, coefficients in metrics.json
BUDGETS = Section("budgets", "At equal numbers of Gaussians, against the baseline of that number", "", (
    Metric("gaussians", "Gaussians", "", 0), Metric("test/psnr", "PSNR test", "dB", 2, "up"),
    Metric("val/psnr", "PSNR val", "dB", 2, "up"), Metric("test/psnr_eyes", "Eyes test", "dB", 2, "up"),
    Metric("test/psnr_mouth", "Mouth test", "dB", 2, "up"), Metric("val/psnr_eyes", "Eyes val", "dB", 2, "up"),
    Metric("val/psnr_mouth", "Mouth val", "dB", 2, "up"), Metric("fps", "Rendering", "FPS", 1, "up")))  # fmt: skip


def spread_of(values: Sequence[float]) -> Spread | None:
    """None of no values."""
    if not values:
        return None
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def difference(own: dict[int, float], base: dict[int, float], relative: bool = False) -> Spread | None:
    """Spread over the seeds that both have of own - base or, relative, of own / base - 1 in percent."""
    shared = sorted(own.keys() & base.keys())
    if relative:
        return spread_of([100 * (own[seed] - base[seed]) / base[seed] for seed in shared if base[seed]])
    return spread_of([own[seed] - base[seed] for seed in shared])


def numbers(experiment: Experiment, section: Section, metric: Metric) -> dict[int, float]:
    """A metric by seed, in the unit of its column; `SPLIT/NAME` is of that split."""
    split, _, name = metric.name.rpartition("/")
    scale = SCALED.get(metric.unit, 1.0)
    return {seed: scale * value for seed, value in experiment.values(split or section.split, name).items()}


def why_missing(experiment: Experiment, section: Section, metric: Metric) -> str:
    split, _, name = metric.name.rpartition("/")
    run = next(run for run in experiment.runs if run.value(split or section.split, name) is None)
    return run.reason(split or section.split, name)


def build_table(
    section: Section, experiments: Sequence[Experiment], bases: Sequence[Experiment | None]
) -> Table | None:
    """A section's numbers for some experiments, each with the one it is compared with; None where there are none."""
    columns, missing = [], []
    known = {metric.name: [numbers(e, section, metric) for e in experiments] for metric in section.metrics}
    for metric in section.metrics:
        if any(known[metric.name]) or metric.always:
            columns.append(metric)
        elif experiments:
            missing.append((metric.title, why_missing(experiments[0], section, metric)))
    if not any(any(known[metric.name]) for metric in columns):
        return None
    cells: list[list[Cell]] = [[] for _ in experiments]
    for metric in columns:
        best = best_of(metric, known[metric.name], [group_of(experiment) for experiment in experiments])
        for row, (experiment, base) in enumerate(zip(experiments, bases, strict=True)):
            own, spread = known[metric.name][row], spread_of(list(known[metric.name][row].values()))
            compared = {} if base is None or base.name == experiment.name else numbers(base, section, metric)
            whole = len(own) == len(experiment.runs)
            reason = "" if whole else why_missing(experiment, section, metric)
            if own and reason:
                reason = f"{experiment.name}: {len(own)} of {len(experiment.runs)} runs: {reason}"
            cells[row].append(Cell(spread, reason, difference(own, compared), row in best, own))
    tracked = [tracked_by(experiments, section, metric) for metric in columns]
    rows = list(zip(experiments, cells, strict=True))
    return Table(section, columns, rows, missing, tracked if any(value is not None for value in tracked) else ())


def tracked_by(experiments: Sequence[Experiment], section: Section, metric: Metric) -> float | None:
    """The same number of the tracker's motion, if it is equal (as shown) for all runs: they have one dataset."""
    before = replace(metric, name=f"{metric.name}_tracked")
    values = [value for e in experiments for value in numbers(e, section, before).values()]
    return values[0] if len(set(map(metric.show, values))) == 1 else None


def tracked_texts(table: Table) -> list[str]:
    """The tracker's numbers as text, one per column; nothing if there are none."""
    return [DASH if value is None else metric.show(value)
            for metric, value in zip(table.metrics, table.tracked, strict=False)]  # fmt: skip


def notes_of(table: Table) -> list[str]:
    """Footnotes: a line for each reason why numbers are missing, with the columns that it is about."""
    titles: dict[tuple[str, str], list[str]] = {}
    cells = [(metric.title, cell.reason, DAGGER if cell.partial else DASH)
             for _, row in table.rows for metric, cell in zip(table.metrics, row, strict=True)]  # fmt: skip
    for title, reason, mark in [*((title, reason, DASH) for title, reason in table.missing), *cells]:
        if reason and title not in titles.setdefault((reason, mark), []):
            titles[reason, mark].append(title)
    return [f"{', '.join(columns)}: {mark}: {reason}" for (reason, mark), columns in titles.items()]


def group_of(experiment: Experiment) -> str:
    """Only experiments of one group compete: those of one budget, or all that have none."""
    return experiment.name.partition(BUDGET)[2]


def best_of(metric: Metric, known: Sequence[dict[int, float]], groups: Sequence[str]) -> set[int]:
    """The rows with the best mean of their group as it is shown, where there is something to choose between."""
    best: set[int] = set()
    for group in set(groups):
        means = {row: statistics.fmean(values.values()) for row, values in enumerate(known)
                 if values and groups[row] == group}  # fmt: skip
        if not metric.better or len(means) < 2:
            continue
        top = metric.show((max if metric.better == "up" else min)(means.values()))
        rows = {row for row, mean in means.items() if metric.show(mean) == top}
        best |= rows if len(rows) < len(means) else set()
    return best


def build_tables(experiments: Sequence[Experiment], baseline: Experiment) -> list[Table]:
    """All sections that have numbers; experiments at other budgets have a table of their own."""
    plain = [experiment for experiment in experiments if not experiment.budgeted]
    tables = [build_table(section, plain, [baseline] * len(plain)) for section in SECTIONS]
    limited = sorted((one for one in experiments if one.budgeted), key=lambda one: budget_of(one.name))
    at = {group_of(one): one for one in limited if one.family == baseline.name}
    bases = [at.get(group_of(one)) for one in limited]
    tables.append(build_table(BUDGETS, limited, bases))
    return [table for table in tables if table is not None]


def choose_baseline(experiments: Sequence[Experiment], wanted: str) -> Experiment:
    """The experiment that the others are compared with.

    Raises:
        InputError: no experiment of that name.
    """
    plain = [experiment for experiment in experiments if not experiment.budgeted] or list(experiments)
    found = [experiment for experiment in plain if experiment.name == wanted]
    if not found:
        names = ", ".join(experiment.name for experiment in plain)
        raise InputError("command line", "--baseline", f"found {wanted}, expected one of {names}")
    return found[0]
