"""What metrics.py found, as text for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.engine.motion_metrics import PARAMETERS
from utils.engine.region_metrics import REGIONS
from utils.errors import one_line

REGIONAL = {f"{metric}_{region}" for metric in ("psnr", "ssim") for region in REGIONS}


def table(run: Path, metrics: Mapping[str, Any]) -> str:
    """The means of each split in a line, then a table by region and one by FLAME parameter."""
    lines = [f"{one_line(str(run))} (iteration {metrics['iteration']})"]
    for split, summary in metrics["splits"].items():
        shown = [f"{name} {value:.4f}" for name, value in summary.items()
                 if isinstance(value, float) and name not in REGIONAL]  # fmt: skip
        lines.append(f"  {split}: {', '.join(shown)}")
    return "\n".join([*lines, *region_table(metrics), *motion_table(metrics)])


def region_table(metrics: Mapping[str, Any]) -> list[str]:
    """Gaussians, how densely they lie, and quality in each split, by region; nothing if no region is known."""
    head = ["region", "Gaussians", "per cm2"]
    rows = [[region, count(metrics.get(f"gaussians_{region}")), number(metrics.get(f"density_{region}"), 1)]
            for region in REGIONS]  # fmt: skip
    for split, summary in metrics["splits"].items():
        head += [f"{split} PSNR", "SSIM"]
        for region, row in zip(REGIONS, rows, strict=True):
            row += [number(summary.get(f"psnr_{region}"), 2), number(summary.get(f"ssim_{region}"), 4)]
    return aligned(head, rows) if any(cell != "-" for row in rows for cell in row[1:]) else []


def motion_table(metrics: Mapping[str, Any]) -> list[str]:
    """Jitter of the motion and, with a truth, its error, by parameter and beside the tracker's; only what is known."""
    kinds = {"jitter": "jitter_{}", "tracked": "jitter_{}_tracked"}
    with_truth = any(metrics.get(f"rmse_{name}") is not None for name in PARAMETERS)
    if with_truth:
        kinds |= {"RMSE": "rmse_{}", "tracked ": "rmse_{}_tracked", "change %": "rmse_{}_change_percent"}
    rows = [[name, *(small(metrics.get(key.format(name)), kind) for kind, key in kinds.items())] for name in PARAMETERS]
    return aligned(["parameter", *kinds], rows) if any(cell != "-" for row in rows for cell in row[1:]) else []


def aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns, the first to the left, the others to the right, indented."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = []
    for first, *others in (head, *rows):
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  " + "  ".join([first.ljust(widths[0]), *cells]))
    return lines


def count(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def small(value: float | None, kind: str) -> str:
    if value is None:
        return "-"
    return f"{value:+.1f}" if kind == "change %" else f"{value:.3g}"
