"""What an inspection says: sections of lines, warnings, faults, and the verdict."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from utils.engine.inspection_faults import Faults

LINES_PER_KIND = 50  # of faults that are printed


@dataclass
class Section:
    """A part of the report; `values` are the same for programs."""

    title: str
    lines: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def row(self, label: str, text: str) -> None:
        """Add a line with its label in a column of its own."""
        self.lines.append(f"{label:<12}{text}")


@dataclass
class Report:
    """All that was found about a dataset."""

    source: str
    format: str = ""  # empty: none recognised it
    sections: list[Section] = field(default_factory=list)
    faults: Faults = field(default_factory=Faults)

    @property
    def warnings(self) -> list[str]:
        return [warning for section in self.sections for warning in section.warnings]

    @property
    def verdict(self) -> str:
        if len(self.faults):
            return f"will not train: {counted(len(self.faults), 'fault')}"
        return f"will train, {counted(len(self.warnings), 'warning')}" if self.warnings else "will train"

    def text(self) -> str:
        """For people; the verdict is the last line."""
        lines = [f"{self.source}: {self.format or 'no known format'}"]
        for section in self.sections:
            lines += ["", section.title, *(f"  {line}" for line in section.lines)] if section.lines else []
        if self.warnings:
            lines += ["", f"{counted(len(self.warnings), 'warning')}", *(f"  {line}" for line in self.warnings)]
        for kind, found in self.faults.lines.items():
            shown = list(found)[:LINES_PER_KIND]
            lines += ["", f"{counted(len(found), 'fault')}: {kind}", *(f"  {line}" for line in shown)]
            lines += [f"  ... and {len(found) - len(shown)} more"] if len(shown) < len(found) else []
        return "\n".join([*lines, "", self.verdict])

    def values(self) -> dict[str, Any]:
        """For programs: every line and the numbers behind them."""
        return {
            "source": self.source,
            "format": self.format,
            "verdict": self.verdict,
            "faults": [{"kind": kind, "line": line} for kind, lines in self.faults.lines.items() for line in lines],
            "warnings": self.warnings,
            **{section.title.lower().replace(" ", "_"): section.values for section in self.sections},
        }


def counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def listed(items: list[str], most: int = 12) -> str:
    """Items with commas between them, the rest as a number."""
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")
