"""Compare trained and measured runs: `python scripts/compare_results.py OUTPUTS...`, after `metrics.py`.

OUTPUTS are run folders, or folders that hold some. Runs whose folders have one name but for the seed (`adaptive_seed0`,
`adaptive_seed1`) and whose options are equal but for the seed are one experiment; NAME_budgetN is NAME at another
number of Gaussians. Prints tables (mean and sample deviation over seeds, difference to the baseline, best in bold) and
writes

    comparison.csv    every number in full precision, the judged claims too
    comparison.tex    the tables for LaTeX (booktabs)
    comparison.html   one file without links: tables, curves, quality against count, pictures, video

beside the runs, or where -o says.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from arguments.flags import OneLineParser
from scripts.compare.checks import warnings_of
from scripts.compare.claims import judge_all
from scripts.compare.html import Comparison, Pictures, render_html
from scripts.compare.pictures import Film, film, strips
from scripts.compare.runs import BASELINE, find_runs, group, named, not_run, read_run
from scripts.compare.tables import build_tables, choose_baseline
from scripts.compare.text import csv_text, latex_text, terminal_claims, terminal_table
from utils.errors import InputError, one_line, run_main
from utils.io.atomic import atomic_file

STEM = "comparison"


def parse_arguments(argv: list[str]) -> Any:
    parser = OneLineParser(prog="scripts/compare_results.py", description=__doc__, allow_abbrev=False,
                           formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("outputs", nargs="+", type=Path, metavar="OUTPUTS")
    parser.add_argument("--baseline", default="", help="compare with this experiment [baseline, else the first]")
    parser.add_argument("-o", "--output", type=Path, help=f"folder for {STEM}.csv, .tex, .html [that of the runs]")
    parser.add_argument("--frames", type=int, default=2, help="pictures shown of each of val and test; 0: none [2]")
    parser.add_argument("--video_mb", type=float, default=6.0, help="largest video; 0: none [6]")
    parser.add_argument("--debug", action="store_true", help="print a traceback with every error")
    options = parser.parse_args(argv)
    for name in ("frames", "video_mb"):
        if getattr(options, name) < 0:
            raise InputError("command line", f"--{name}", f"found {getattr(options, name)}, expected at least 0")
    return options


def compare(outputs: Sequence[Path], wanted: str) -> Comparison:
    """Read and compare runs.

    Raises:
        InputError: a folder that is no run, damaged files, a seed twice, no such baseline.
    """
    experiments = group([read_run(folder) for folder in find_runs(outputs)])
    names = [one.name for one in experiments if not one.budgeted] or [one.name for one in experiments]
    baseline = choose_baseline(experiments, wanted or (BASELINE if BASELINE in names else names[0]))
    warnings = warnings_of(experiments)
    if baseline.name != BASELINE:
        warnings.insert(0, f"Differences are to {baseline.name}.")
    judged, claims = judge_all(experiments, baseline)
    tables = build_tables(experiments, baseline)
    return Comparison(experiments, baseline, tables, judged, claims, warnings, not_run(outputs))


def pictures_of(comparison: Comparison, frames: int, most_bytes: int) -> Pictures:
    """Strips and video of the experiments, without those at other budgets."""
    shown = [one for one in comparison.experiments if not one.budgeted]
    found = strips(shown, comparison.baseline, {"test": frames, "val": frames}) if frames else []
    none = Film("", (), "left out: --video_mb 0")
    return Pictures(found, film(shown, comparison.baseline, most_bytes) if most_bytes else none)


def show(comparison: Comparison, ansi: bool) -> str:
    """The comparison for a terminal."""
    lines = [f"warning: {text}" for text in comparison.warnings]
    lines += [one_line(f"{name}: {reason}") for name, reason in comparison.absent.items()]
    lines += [line for table in comparison.tables for line in terminal_table(table, ansi)]
    if comparison.judged:
        lines += terminal_claims(comparison.judged, comparison.claims)
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    options = parse_arguments(argv)
    comparison = compare(options.outputs, options.baseline)
    first = named(options.outputs[0])
    output = options.output or (first.parent if (first / "options.json").is_file() else first)
    texts = {
        "csv": csv_text(comparison.tables, comparison.judged, comparison.claims),
        "tex": latex_text(comparison.tables),
    }
    texts["html"] = render_html(comparison, pictures_of(comparison, options.frames, int(options.video_mb * 1e6)))
    for ending, text in texts.items():
        with atomic_file(output / f"{STEM}.{ending}", "w") as file:
            file.write(text)
    print(show(comparison, sys.stdout.isatty()))
    print(", ".join(one_line(str(output / f"{STEM}.{ending}")) for ending in texts))


if __name__ == "__main__":
    sys.exit(run_main(main))
