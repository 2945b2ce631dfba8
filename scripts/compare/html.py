"""The comparison as one HTML file that needs nothing but itself."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scripts.compare import charts, pictures
from scripts.compare.charts import Chart, colours_of, count_charts, curve_charts
from scripts.compare.checks import changes_of, dataset_name
from scripts.compare.claims import Claim, Verdict, notes_on
from scripts.compare.pictures import Film, Strip
from scripts.compare.runs import Experiment
from scripts.compare.tables import DAGGER, DASH, Cell, Metric, Table, notes_of, tracked_texts
from scripts.compare.text import ARROWS, cell_text
from utils.errors import EnvironmentFault

TEMPLATE = Path(__file__).parent / "report.html.j2"


@dataclass(frozen=True)
class Comparison:
    """All that a report shows."""

    experiments: Sequence[Experiment]
    baseline: Experiment
    tables: Sequence[Table]
    judged: Sequence[Experiment]
    claims: Sequence[tuple[Claim, Sequence[Verdict]]]
    warnings: Sequence[str]
    absent: Mapping[str, str]  # experiments that could not be run -> why


@dataclass(frozen=True)
class Pictures:
    """The pictures of a report."""

    strips: Sequence[Strip]
    film: Film


def facts_line(comparison: Comparison) -> str:
    """What was compared, in one line."""
    run = comparison.baseline.runs[0]
    seeds = sorted({seed for one in comparison.experiments for seed in one.seeds})
    listed = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
    jobs = run.work.get("jobs")
    beside = f"; {jobs} trainings side by side, rendering alone" if jobs else ""
    return (f"{dataset_name(run)}, {run.options['iterations']:,} iterations, {listed}, "
            f"{run.options.get('device')}, {run.options.get('rasterizer')} rasteriser{beside}")  # fmt: skip


def table_rows(table: Table, colours: Mapping[str, str]) -> list[dict[str, Any]]:
    """Rows of a table with everything as text."""
    rows = []
    for experiment, cells in table.rows:
        shown = []
        for metric, cell in zip(table.metrics, cells, strict=True):
            text, change = cell_text(cell, metric)
            mean, _, spread = text.partition(" ±")
            seeds = ", ".join(f"seed {seed}: {metric.show(value)}" for seed, value in cell.by_seed.items())
            tip = "; ".join(filter(None, (seeds, cell.reason)))
            if cell.difference and cell.difference.deviation is not None:
                tip += f"; difference ± {metric.show(cell.difference.deviation)} over {cell.difference.n} seeds"
            shown.append({"mean": mean, "spread": spread, "change": change.strip("()"), "best": cell.best, "tip": tip,
                          "better": judged(cell, metric) if change.strip("()+−0.,") else "",
                          "part": cell.partial})  # fmt: skip
        rows.append({"name": experiment.name, "n": len(experiment.runs), "cells": shown,
                     "colour": colours[experiment.name]})  # fmt: skip
    return rows


def judged(cell: Cell, metric: Metric) -> str:
    """Whether a difference to the baseline is good or bad; empty if it is no larger than it varies over seeds."""
    change = cell.difference
    if change is None or not metric.better or abs(change.mean) <= (change.deviation or 0.0):
        return ""
    return "good" if (change.mean > 0) == (metric.better == "up") else "bad"


def spread_widths(table: Table) -> list[int]:
    """Characters that the widest deviation of each column takes, so that the means stand below one another."""
    shown = [
        [cell_text(cell, metric)[0].partition(" ±")[2] for cell in column]
        for metric, column in zip(table.metrics, zip(*(cells for _, cells in table.rows), strict=True), strict=True)
    ]
    marked = [
        any(column) for column in zip(*([cell.partial for cell in cells] for _, cells in table.rows), strict=True)
    ]
    return [max(map(len, column)) + 2 + mark if any(column) or mark else 0
            for column, mark in zip(shown, marked, strict=True)]  # fmt: skip


def render_html(comparison: Comparison, shown: Pictures) -> str:
    """The report.

    Raises:
        EnvironmentFault: the package jinja2 is missing.
    """
    try:
        jinja2 = importlib.import_module("jinja2")
    except ImportError as error:
        raise EnvironmentFault("the package `jinja2` is missing; run `pip install jinja2`") from error
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True,
                                     undefined=jinja2.StrictUndefined)  # fmt: skip
    colours = colours_of(comparison.experiments, comparison.baseline)
    legend = {one.family: colours[one.name] for one in comparison.experiments}
    tables = [{"title": table.section.title, "key": table.section.key, "metrics": table.metrics,
               "rows": table_rows(table, colours), "widths": spread_widths(table), "tracked": tracked_texts(table),
               "notes": notes_of(table)}
              for table in comparison.tables]  # fmt: skip
    changes = {one.name: changes_of(one, comparison.baseline) for one in comparison.experiments}
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        facts=facts_line(comparison), comparison=comparison, tables=tables, changes=changes, legend=legend,
        curves=chart_rows(curve_charts(comparison.experiments, comparison.baseline)),
        counts=chart_rows(count_charts(comparison.experiments, comparison.baseline)),
        strips=shown.strips, film=shown.film, claim_notes=notes_on(comparison.claims), arrows=ARROWS, dash=DASH,
        dagger=DAGGER, colours=colours, size=charts,
        scale={"bar": pictures.scale_bar(), "full": pictures.ERROR_FULL},
    ) + "\n"  # fmt: skip


def chart_rows(found: Sequence[Chart]) -> list[dict[str, Any]]:
    return [asdict(chart) for chart in found]
