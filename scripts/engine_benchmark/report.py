"""Rows of results, as a table, Markdown or JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from scripts.engine_benchmark.bounds import Facts, work_of
from scripts.engine_benchmark.machine import REFERENCE, Machine

HEADER = ("scene", "threads", "stage", "ms", "goal", "ms/goal", "bound", "ms/bound", "bound of Zen 5")

Goal = Callable[[str, str, int], float | None]


@dataclass(frozen=True)
class Row:
    """One time. `bound_ms` and `ratio` are those of the machine that it was measured on."""

    scene: str
    stage: str
    threads: int
    ms: float
    bound_ms: float | None  # None: the least work of this stage is not known
    ratio: float | None

    def to_json(self) -> dict[str, str | int | float | None]:
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(self).items()}


def bound(stage: str, facts: Facts, machine: Machine, threads: int) -> float | None:
    """Milliseconds that a stage needs at least; None if that is not known."""
    work = work_of(stage, facts)
    return 1e3 * sum(machine.seconds(part, threads) for part in work) if work else None


def make_row(scene: str, stage: str, threads: int, seconds: float, least: float | None) -> Row:
    ms = 1e3 * seconds
    return Row(scene, stage, threads, ms, least, None if least is None else ms / least)


def cells(row: Row, facts: Facts, goal: float | None) -> tuple[str, ...]:
    """A row as text, in the order of HEADER; empty where there is no number."""
    of_reference = bound(row.stage, facts, REFERENCE, row.threads)

    def text(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}"

    against = None if goal is None else row.ms / goal
    numbers = (row.ms, goal, against, row.bound_ms, row.ratio, of_reference)
    return (row.scene, str(row.threads), row.stage, *map(text, numbers))


def table(lines: Sequence[tuple[str, ...]]) -> list[str]:
    """Columns side by side; the three that are words stand left."""
    widths = [max(len(line[i]) for line in (HEADER, *lines)) for i in range(len(HEADER))]

    def joined(line: tuple[str, ...]) -> str:
        words = [word.ljust(width) for word, width in zip(line[:3], widths, strict=False)]
        numbers = [word.rjust(width) for word, width in zip(line[3:], widths[3:], strict=True)]
        return "  ".join(words + numbers).rstrip()

    return [joined(HEADER), *map(joined, lines)]


def markdown(lines: Sequence[tuple[str, ...]]) -> list[str]:
    """The same as a Markdown table."""
    rule = ("---",) * 3 + ("---:",) * (len(HEADER) - 3)
    return ["| " + " | ".join(line) + " |" for line in (HEADER, rule, *lines)]
