"""The comparison as text: a table for the terminal, CSV, LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from scripts.compare.claims import Claim, Verdict, notes_on
from scripts.compare.runs import Experiment
from scripts.compare.tables import DAGGER, DASH, Cell, Metric, Spread, Table, notes_of, tracked_texts

BOLD, PLAIN = "\033[1m", "\033[0m"
CSV_HEADER = ("section", "experiment", "metric", "unit", "better", "n", "mean", "sample_deviation", "best",
              "difference", "difference_deviation", "seeds", "values", "reason")  # fmt: skip
LATEX_SPECIAL = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{",
                 "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "²": r"\textsuperscript{2}",
                 "<": r"\textless{}", ">": r"\textgreater{}", "−": r"$-$", "±": r"$\pm$", "×": r"$\times$",
                 "⁻": r"\textsuperscript{-}", "³": r"\textsuperscript{3}", DASH: "---", DAGGER: r"\dag{}"}  # fmt: skip
TRACKER = "tracker"
ARROWS = {"up": "↑", "down": "↓", "": ""}


def heading(metric: Metric) -> str:
    unit = f", {metric.unit}" if metric.unit else ""
    return f"{metric.title}{unit} {ARROWS[metric.better]}".strip()


def cell_text(cell: Cell, metric: Metric) -> tuple[str, str]:
    """`mean ± deviation`, and the difference to the baseline in brackets; empty where there is none."""
    if cell.spread is None:
        return DASH, ""
    text = metric.show(cell.spread.mean)
    if cell.spread.deviation is not None:
        text += f" ±{metric.show(cell.spread.deviation)}"
    return text, "" if cell.difference is None else f"({metric.show(cell.difference.mean, signed=True)})"


def grid(rows: Sequence[Sequence[tuple[str, bool]]], ansi: bool) -> list[str]:
    """Text in columns, the first to the left and the others to the right; what is flagged is bold if `ansi`."""
    widths = [max(len(row[column][0]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        parts = []
        for column, ((text, bold), width) in enumerate(zip(row, widths, strict=True)):
            padded = text.ljust(width) if column == 0 else text.rjust(width)
            parts.append(f"{BOLD}{padded}{PLAIN}" if bold and ansi else padded)
        lines.append("  ".join(parts).rstrip())
    return lines


def terminal_table(table: Table, ansi: bool) -> list[str]:
    """One section: mean ± deviation, difference to the baseline, best in bold (a star where there is no bold)."""
    head = [("", False), ("n", False), *((heading(metric), False) for metric in table.metrics)]
    rows = [head]
    for experiment, cells in table.rows:
        row = [(experiment.name, False), (str(len(experiment.runs)), False)]
        for metric, cell in zip(table.metrics, cells, strict=True):
            marks = (DAGGER if cell.partial else "") + ("*" if cell.best and not ansi else "")
            row.append((" ".join(filter(None, cell_text(cell, metric))) + marks, cell.best))
        rows.append(row)
    if table.tracked:
        rows.append([(TRACKER, False), ("", False), *((text, False) for text in tracked_texts(table))])
    notes = [f"  {note}" for note in notes_of(table)]
    return [f"{BOLD}{table.section.title}{PLAIN}" if ansi else table.section.title, *grid(rows, ansi), *notes, ""]


def terminal_claims(experiments: Sequence[Experiment], rows: Sequence[tuple[Claim, Sequence[Verdict]]]) -> list[str]:
    """Claims against measurements."""
    head = ["", "claimed", *(experiment.name for experiment in experiments)]
    lines = [[(text, False) for text in head]]
    for claim, verdicts in rows:
        said = [claim.title, claim.text, *(f"{v.measured} {v.verdict}" for v in verdicts)]
        lines.append([(text, False) for text in said])
    notes = [f"  {note}" for note in notes_on(rows)]
    return ["Claimed for all additions together, measured against the baseline", *grid(lines, False), *notes, ""]


def csv_text(
    tables: Sequence[Table], judged: Sequence[Experiment] = (), claims: Sequence[tuple[Claim, Sequence[Verdict]]] = ()
) -> str:
    """One row per section, experiment and metric, the tracker's numbers and the claims included; full precision."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for table in tables:
        for experiment, cells in table.rows:
            for metric, cell in zip(table.metrics, cells, strict=True):
                writer.writerow((
                    table.section.key, experiment.name, metric.name, metric.unit, metric.better,
                    cell.spread.n if cell.spread else 0, *numbers_of(cell.spread), "yes" if cell.best else "",
                    *numbers_of(cell.difference), " ".join(map(str, cell.by_seed)),
                    " ".join(map(repr, cell.by_seed.values())), cell.reason,
                ))  # fmt: skip
        for metric, value in zip(table.metrics, table.tracked, strict=False):
            if value is not None:
                writer.writerow((table.section.key, TRACKER, metric.name, metric.unit, metric.better, "", repr(value),
                                 *[""] * 7))  # fmt: skip
    for claim, verdicts in claims:
        for experiment, verdict in zip(judged, verdicts, strict=True):
            change, better = verdict.change, "down" if claim.at_most else "up"
            reason = "; ".join(filter(None, (f"claimed {claim.text}: {verdict.verdict}", verdict.reason)))
            writer.writerow(("claims", experiment.name, claim.name, claim.unit, better, change.n if change else 0,
                             "", "", "", *numbers_of(change), "", "", reason))  # fmt: skip
    return file.getvalue()


def numbers_of(spread: Spread | None) -> tuple[str, str]:
    """Mean and deviation in full; empty where there is none."""
    known = (None, None) if spread is None else (spread.mean, spread.deviation)
    return "" if known[0] is None else repr(known[0]), "" if known[1] is None else repr(known[1])


def escape_latex(text: str) -> str:
    return "".join(LATEX_SPECIAL.get(character, character) for character in text)


def latex_text(tables: Sequence[Table]) -> str:
    """All sections as `table` environments."""
    return "\n".join([r"% needs \usepackage{booktabs}", *(latex_table(table) for table in tables)])


def latex_table(table: Table) -> str:
    arrows = {"up": r" $\uparrow$", "down": r" $\downarrow$", "": ""}
    heads = [escape_latex(m.title + (f" ({m.unit})" if m.unit else "")) + arrows[m.better] for m in table.metrics]
    lines = [r"\begin{table}", r"\centering", r"\small", rf"\caption{{{escape_latex(caption_of(table))}}}",
             rf"\label{{tab:{table.section.key.replace('_', '-')}}}",
             rf"\begin{{tabular}}{{l{'r' * len(heads)}}}", r"\toprule", " & ".join(["", *heads]) + r" \\",
             r"\midrule"]  # fmt: skip
    for experiment, cells in table.rows:
        row = [latex_cell(cell, metric) for metric, cell in zip(table.metrics, cells, strict=True)]
        lines.append(" & ".join([escape_latex(experiment.name), *row]) + r" \\")
    if table.tracked:
        lines += [r"\midrule", " & ".join([TRACKER, *map(escape_latex, tracked_texts(table))]) + r" \\"]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def caption_of(table: Table) -> str:
    """What the numbers are: over how many seeds, and what the marks say."""
    most = max(len(experiment.runs) for experiment, _ in table.rows)
    over = f"mean and sample standard deviation over {most} seeds" if most > 1 else "one seed"
    part = f"; {DAGGER}: not of all seeds" if any(cell.partial for _, cells in table.rows for cell in cells) else ""
    return f"{table.section.title}: {over}; best in bold{part}."


def latex_cell(cell: Cell, metric: Metric) -> str:
    if cell.spread is None:
        return "---"
    mean = escape_latex(metric.show(cell.spread.mean))
    mean = (rf"\textbf{{{mean}}}" if cell.best else mean) + (r"\dag{}" if cell.partial else "")
    if cell.spread.deviation is None:
        return mean
    return rf"{mean} {{\scriptsize $\pm$ {escape_latex(metric.show(cell.spread.deviation))}}}"
