"""Line charts as numbers for an SVG: coordinates, ticks, tooltips. The template draws them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from scripts.compare.runs import Curve, Experiment
from scripts.compare.tables import spread_of

WIDTH, HEIGHT = 400, 250
LEFT, RIGHT, TOP, BOTTOM = 54, 14, 12, 34  # margins around the plot
INK = "#3d4451"  # of the baseline
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#7b3fa0", "#8c6d31")  # after Okabe, Ito
MOST_SHOWN = 400  # points of a line
LOG_RATIO = 30.0  # a loss that falls further than this is drawn on a logarithmic axis


@dataclass(frozen=True)
class Tick:
    """A mark of an axis: where it is and what it says."""

    at: float
    text: str


@dataclass(frozen=True)
class Line:
    """A polyline, `x,y x,y ...`."""

    points: str
    colour: str
    strong: bool  # the mean over seeds; else one seed
    tip: str


@dataclass(frozen=True)
class Dot:
    """A point with a tooltip."""

    x: float
    y: float
    colour: str
    tip: str
    strong: bool = True


@dataclass(frozen=True)
class Chart:
    """Everything an SVG of `WIDTH` x `HEIGHT` needs."""

    title: str
    x_title: str
    y_title: str
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    lines: Sequence[Line] = ()
    dots: Sequence[Dot] = ()
    note: str = ""


@dataclass(frozen=True)
class Axis:
    """Values -> pixels, linear or logarithmic."""

    low: float
    high: float
    begin: float
    end: float
    log: bool = False

    def place(self, value: float) -> float:
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return round(self.begin + share * (self.end - self.begin), 1)

    def ticks(self) -> list[Tick]:
        values = decades(self.low, self.high) if self.log else round_values(self.low, self.high)
        return [Tick(self.place(value), short(value)) for value in values]


@dataclass
class Series:
    """One experiment in a chart."""

    name: str
    colour: str
    seeds: dict[int, list[tuple[float, float]]] = field(default_factory=dict)

    def mean(self) -> list[tuple[float, float]]:
        """The mean over seeds at every x that all of them have."""
        tables = [dict(points) for points in self.seeds.values()]
        shared = set.intersection(*(set(table) for table in tables)) if tables else set()
        return [(x, sum(table[x] for table in tables) / len(tables)) for x in sorted(shared)]


def round_values(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers in [low, high], at most `most` of them."""
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def decades(low: float, high: float) -> list[float]:
    """Powers of ten in [low, high], or 1, 2 and 5 times them where these are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5)):
        found = [k * 10.0**p for p in powers for k in factors if low * 0.999 <= k * 10.0**p <= high * 1.001]
        if len(found) >= 3:
            break
    return found


def short(value: float) -> str:
    """A tick's number: 12k, 0.05, 2.5e-6."""
    if value and (abs(value) < 1e-3 or abs(value) >= 1e7):
        mantissa, exponent = f"{value:.3e}".split("e")
        text = f"{float(mantissa):g}e{int(exponent)}"
    else:
        text = f"{value / 1000:.6g}k" if abs(value) >= 10_000 else f"{value:.6g}"
    return text.replace("-", "−")


def colours_of(experiments: Sequence[Experiment], baseline: Experiment) -> dict[str, str]:
    """A colour per family of experiments; the baseline's is dark grey."""
    families = list(dict.fromkeys(one.family for one in experiments if one.family != baseline.family))
    colour = {family: COLOURS[place % len(COLOURS)] for place, family in enumerate(families)}
    return {one.name: colour.get(one.family, INK) for one in experiments}


def range_of(values: Sequence[float], margin: float = 0.05) -> tuple[float, float]:
    low, high = min(values), max(values)
    pad = margin * (high - low) or max(1e-9, 0.05 * abs(high))
    return low - pad, high + pad


def thinned(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    every = max(1, math.ceil(len(points) / MOST_SHOWN))
    return [*points[:-1:every], points[-1]] if points else []


def line_chart(title: str, y_title: str, series: Sequence[Series], may_be_log: bool) -> Chart | None:
    """A curve per experiment over the iterations: thin lines are seeds, the strong one is their mean."""
    points = [point for one in series for curve in one.seeds.values() for point in curve]
    if len({x for x, _ in points}) < 2:
        return None
    values = [y for _, y in points]
    positive = [y for y in values if y > 0]
    log = may_be_log and len(positive) == len(values) and max(values) > LOG_RATIO * min(values)
    low, high = (min(values) / 1.1, max(values) * 1.1) if log else range_of(values)
    x_axis = Axis(0.0, max(x for x, _ in points), LEFT, WIDTH - RIGHT)
    y_axis = Axis(low, high, HEIGHT - BOTTOM, TOP, log)
    lines = []
    for one in series:
        if len(one.seeds) > 1:
            lines += [drawn(curve, x_axis, y_axis, one.colour, False, f"{one.name}, seed {seed}")
                      for seed, curve in one.seeds.items()]  # fmt: skip
        lines.append(drawn(one.mean(), x_axis, y_axis, one.colour, True, one.name))
    strong = [line for line in lines if line.strong]
    return Chart(title, "iteration", y_title, x_axis.ticks(), y_axis.ticks(),
                 [*(line for line in lines if not line.strong), *strong], note="log" if log else "")  # fmt: skip


def drawn(curve: Sequence[tuple[float, float]], x: Axis, y: Axis, colour: str, strong: bool, tip: str) -> Line:
    last = f": {curve[-1][1]:.6g} at {curve[-1][0]:.0f}" if curve else ""
    return Line(" ".join(f"{x.place(a)},{y.place(b)}" for a, b in thinned(curve)), colour, strong, tip + last)


def curve_charts(experiments: Sequence[Experiment], baseline: Experiment) -> list[Chart]:
    """Quality, size and every logged loss over the iterations."""
    shown = [one for one in experiments if not one.budgeted]
    colours = colours_of(experiments, baseline)
    logged = {key for one in shown for run in one.runs for key in run.curves}
    first = [("val", "psnr"), ("test", "psnr"), ("train", "gaussians"), ("train", "psnr")]
    losses = sorted(key for key in logged if key[0] == "train" and key[1] not in ("gaussians", "pruned", "psnr"))
    charts = []
    for split, name in [*(key for key in first if key in logged), *losses]:
        series = [Series(one.name, colours[one.name], {run.seed: as_points(run.curves[split, name]) for run in one.runs
                                                       if (split, name) in run.curves}) for one in shown]  # fmt: skip
        titles = {"gaussians": ("Gaussians", ""), "psnr": (f"PSNR, {split}", "dB")}
        title, unit = titles.get(name, (f"{name}, {split}", ""))
        charts.append(line_chart(title, unit, [one for one in series if one.seeds], (split, name) in losses))
    return [chart for chart in charts if chart is not None]


def as_points(curve: Curve) -> list[tuple[float, float]]:
    return [(float(step), value) for step, value in curve]


def count_charts(experiments: Sequence[Experiment], baseline: Experiment) -> list[Chart]:
    """Quality against the number of Gaussians: a dot per run, lines through the means of a family's budgets."""
    wanted = (("test", "psnr", "PSNR, test"), ("val", "psnr", "PSNR, val"), ("test", "psnr_eyes", "Eyes, test"),
              ("test", "psnr_mouth", "Mouth, test"), ("val", "psnr_eyes", "Eyes, val"),
              ("val", "psnr_mouth", "Mouth, val"))  # fmt: skip
    charts = [count_chart(title, split, name, experiments, baseline) for split, name, title in wanted]
    return [chart for chart in charts if chart is not None]


def count_chart(
    title: str, split: str, name: str, experiments: Sequence[Experiment], baseline: Experiment
) -> Chart | None:
    colours = colours_of(experiments, baseline)
    dots, means = [], {}
    for one in experiments:
        both = [(one.values("", "gaussians").get(seed), value, seed) for seed, value in one.values(split, name).items()]
        known = [(count, value, seed) for count, value, seed in both if count is not None]
        dots += [(count, value, one, f"{one.name}, seed {seed}: {value:.2f} dB with {count:,.0f} Gaussians")
                 for count, value, seed in known]  # fmt: skip
        centre = [spread_of([point[axis] for point in known]) for axis in (0, 1)]
        if centre[0] and centre[1]:
            means.setdefault(one.family, []).append((centre[0].mean, centre[1].mean, colours[one.name]))
    if not dots:
        return None
    x = Axis(*range_of([dot[0] for dot in dots], 0.08), LEFT, WIDTH - RIGHT)
    y = Axis(*range_of([dot[1] for dot in dots], 0.08), HEIGHT - BOTTOM, TOP)
    lines = [drawn([(a, b) for a, b, _ in sorted(points)], x, y, points[0][2], True, family)
             for family, points in means.items() if len(points) > 1]  # fmt: skip
    shown = [Dot(x.place(count), y.place(value), colours[one.name], tip) for count, value, one, tip in dots]
    return Chart(title, "Gaussians", "dB", x.ticks(), y.ticks(), lines, shown)
