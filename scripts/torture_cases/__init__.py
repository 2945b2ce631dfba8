"""Corrupt inputs for `scripts/torture.py` and `tests/test_torture.py`, one module per group of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from scripts.torture_cases import (
    checkpoints,
    flame_pickles,
    folders,
    images,
    json_fields,
    meshes,
    npz_files,
    numbers,
    paths,
    ply_files,
    rendered,
    timesteps,
)
from scripts.torture_cases.case import Case


@dataclass(frozen=True)
class Row:
    """One kind of fault: how many cases there must be at least, and what makes them from a seed."""

    title: str
    least: int
    cases: Callable[[int], Iterator[Case]]


ROWS: dict[str, Row] = {
    "C1": Row("pictures", 120, images.cases),
    "C2": Row("JSON", 120, json_fields.cases),
    "C3": Row("npz archives", 60, npz_files.cases),
    "C4": Row("PLY files", 60, ply_files.cases),
    "C5": Row("checkpoints", 150, checkpoints.cases),
    "C6": Row("FLAME pickles", 60, flame_pickles.cases),
    "C7": Row("paths", 36, paths.cases),
    "N1": Row("numbers that are not finite", 80, numbers.values),
    "N2": Row("nothing to draw", 15, numbers.empty_pictures),
    "N3": Row("degenerate meshes, few views", 20, meshes.cases),
    "N4": Row("timesteps", 10, timesteps.cases),
    "R1": Row("run folders", 10, folders.cases),
    "R4": Row("rendered frames, videos", 12, rendered.cases),
}


def all_cases(seed: int = 0) -> list[Case]:
    """Every case of every row; names are unique, and the same seed makes the same list."""
    return [case for row in ROWS.values() for case in row.cases(seed)]


def sample(cases: list[Case], every: int) -> list[Case]:
    """Every `every`-th case of each row, at least four: generators list alike cases together."""
    by_row = {row: [case for case in cases if case.row == row] for row in ROWS}
    return [case for found in by_row.values() for case in found[:: max(1, min(every, len(found) // 4))]]
