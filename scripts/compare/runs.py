"""Run folders as they are compared: options, metrics and curves of each, grouped into experiments."""

from __future__ import annotations

import csv
import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from utils.engine.log import CSV_FIELDS
from utils.engine.options import flags_from_options, options_from_flags
from utils.engine.run import FREE, OPTIONS, RUN_FACTS
from utils.errors import InputError, one_line
from utils.io.json_files import JsonObject, is_number, read_bytes, read_json

ABLATIONS, WORK = "ablations.json", "ablation.json"  # of run_ablations.py: how runs ended; how one was measured
FINISHED, NOT_RUN = "finished", "not run"
BASELINE, BUDGET = "baseline", "_budget"  # an experiment NAME_budgetN is NAME with another number of Gaussians
ORDER = ("baseline", "perceptual", "adaptive", "temporal", "all", "all_without_perceptual", "recommended",
         "high_quality", "fast")  # fmt: skip
MOST_BYTES = 1 << 28
MOST_STEPS = 10**9
Curve = Sequence[tuple[int, float]]  # (step, value), steps ascending


@dataclass(frozen=True)
class Run:
    """One trained and measured run."""

    folder: Path
    options: Mapping[str, Any]  # flag -> value, of this version's flags at least
    facts: Mapping[str, Any]  # run.json
    metrics: Mapping[str, Any]  # metrics.json
    curves: Mapping[tuple[str, str], Curve]  # (split, name)
    work: Mapping[str, Any]  # ablation.json, if run_ablations.py made the run

    @property
    def seed(self) -> int:
        return self.options["seed"]

    @property
    def name(self) -> str:
        return one_line(self.folder.name)

    @cached_property
    def label(self) -> str:
        """The name of the folder without its seed; of a folder that is named by the seed alone, its parent's."""
        path = self.folder.absolute()
        seed = rf"(^|[_-])(seed[_-]?)?{self.seed}$"
        return one_line(re.sub(seed, "", path.name) or path.parent.name)

    @cached_property
    def kept(self) -> tuple[tuple[str, str], ...]:
        """What runs of one experiment have in common: options that decide what is computed, and the input files."""
        inputs = self.facts.get("inputs")
        files = inputs.items() if isinstance(inputs, dict) else ()
        chosen = {name: repr(value) for name, value in self.options.items() if name not in FREE and name != "seed"}
        return tuple(sorted({**chosen, **{f"files of {name}": str(value) for name, value in files}}.items()))

    def scope(self, split: str) -> Mapping[str, Any]:
        """The metrics of a split, or those of the whole run for an empty name."""
        splits = self.metrics.get("splits")
        found = (splits.get(split) if isinstance(splits, dict) else None) if split else self.metrics
        return found if isinstance(found, dict) else {}

    def value(self, split: str, name: str) -> float | None:
        """A metric; None if it is missing or null."""
        value: Any = self.scope(split).get(name)
        return float(value) if is_number(value) else None

    def reason(self, split: str, name: str) -> str:
        """Why a metric has no value."""
        if not self.metrics:
            return f"{self.name} has no metrics.json: python metrics.py -m {one_line(shlex.quote(str(self.folder)))}"
        scope = self.scope(split)
        if not scope:
            return f"{self.name} has no rendered split `{split}`"
        return one_line(str(scope.get(f"{name}_reason") or f"metrics.json of {self.name} doesn't hold it"))


@dataclass(frozen=True)
class Experiment:
    """Runs that differ in nothing but their seeds, by seed."""

    name: str
    runs: Sequence[Run]

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.seed for run in self.runs)

    @property
    def family(self) -> str:
        """The experiment that this one is with another number of Gaussians, else itself."""
        return self.name.partition(BUDGET)[0] or self.name

    @property
    def budgeted(self) -> bool:
        return self.family != self.name

    def values(self, split: str, name: str) -> dict[int, float]:
        """A metric by seed, where it is known."""
        known = ((run.seed, run.value(split, name)) for run in self.runs)
        return {seed: value for seed, value in known if value is not None}


def find_runs(outputs: Sequence[Path]) -> list[Path]:
    """Run folders: those given, and those inside a given folder that is no run itself.

    Raises:
        InputError: a path that is neither; names it.
    """
    found: dict[Path, Path] = {}  # by where they really lie: given twice counts once
    for path in map(named, outputs):
        if not path.is_dir():
            raise InputError(path, "", "is no folder, expected a run or a folder of runs")
        inside = [path] if (path / OPTIONS).is_file() else sorted(p.parent for p in path.glob(f"*/{OPTIONS}"))
        if not inside:
            raise InputError(path, "", f"holds no run: there is no {OPTIONS} in it or in a folder inside")
        for folder in inside:
            found.setdefault(folder.resolve(), folder)
    return sorted(found.values())


def named(path: Path) -> Path:
    """The same folder under a path that ends with its name: `.` and `..` have none."""
    return path.resolve() if path.name in ("", "..") else path


def read_run(folder: Path) -> Run:
    """Read what is known about a run.

    Raises:
        InputError: a damaged file; names file and field.
    """
    options = JsonObject.of(folder / OPTIONS, "", read_json(folder / OPTIONS))
    options.integer("seed", 0, 2**63)
    options.integer("iterations", 1, MOST_STEPS)
    files = {name: object_in(folder / name) for name in (RUN_FACTS, "metrics.json", WORK)}
    defaults = flags_from_options(options_from_flags({}, "defaults"))
    # a run that was made before a flag existed did what its default does
    return Run(folder, {**defaults, **options.value}, files[RUN_FACTS], files["metrics.json"],
               read_curves(folder / "log.csv"), files[WORK])  # fmt: skip


def object_in(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if there is no such file."""
    if not path.is_file():
        return {}
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(path, "", "found something else than a JSON object")
    return content


def read_curves(path: Path) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """The curves in a log.csv; a last row that a power cut left half written is dropped.

    Raises:
        InputError: another row that is none; names the line.
    """
    if not path.is_file():
        return {}
    rows = list(csv.reader(read_bytes(path, MOST_BYTES).decode("utf-8", "replace").replace("\0", "").splitlines()))
    curves: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for number, row in enumerate(rows[1:], start=2):
        try:
            step, split, name, value = row
            point = int(step), float(value)
        except ValueError as error:
            if number == len(rows):
                break
            expected = f"found {','.join(row)!r}, expected {','.join(CSV_FIELDS)}"
            raise InputError(path, f"line {number}", expected) from error
        if math.isfinite(point[1]):
            curves.setdefault((split, name), []).append(point)
    return curves


def group(runs: Sequence[Run]) -> list[Experiment]:
    """Group runs into experiments: one label, options that differ in nothing but the seed, and the same input files.

    Where one label stands for different options, each group's name says how it differs.

    Raises:
        InputError: a seed twice in one experiment.
    """
    labels: dict[str, dict[Any, list[Run]]] = {}
    for run in runs:
        labels.setdefault(run.label, {}).setdefault(run.kept, []).append(run)
    experiments = []
    for label, groups in labels.items():
        for kept, members in groups.items():
            members = sorted(members, key=lambda run: run.seed)
            for first, second in zip(members, members[1:], strict=False):
                if first.seed == second.seed:
                    raise InputError(second.folder, "seed", f"found {second.seed}, as in {first.folder}",
                                     "Compare runs of different seeds, or name their folders differently.")  # fmt: skip
            own = [item for item in kept if any(item not in other for other in groups)]
            name = one_line(f"{label} ({', '.join(told(own, members[0]))})") if own else label
            experiments.append(Experiment(name, members))
    return sorted(experiments, key=lambda experiment: rank(experiment.name))


def told(items: Sequence[tuple[str, str]], run: Run) -> Iterator[str]:
    """Options in words; of files, where they lay."""
    for name, value in items:
        flag = name.removeprefix("files of ")
        yield (
            f"{flag} {Path(str(run.options.get(flag, ''))).name}" if flag != name else f"{name} {value.strip(chr(39))}"
        )


def rank(name: str) -> tuple[int, str, int]:
    """The experiments of the ablations come in their order, others after them by name, budgets by size."""
    family = name.partition(BUDGET)[0]
    return ORDER.index(family) if family in ORDER else len(ORDER), family, budget_of(name)


def budget_of(name: str) -> int:
    """N of NAME_budgetN; 0 without one."""
    budget = name.partition(BUDGET)[2]
    return int(budget) if budget.isdigit() else 0


def not_run(outputs: Sequence[Path]) -> dict[str, str]:
    """Experiments that run_ablations.py could not run -> why."""
    found = {}
    for path in sorted({path for output in outputs for path in (output / ABLATIONS, output.parent / ABLATIONS)}):
        rows = read_json(path) if path.is_file() else []
        for row in rows if isinstance(rows, list) else []:
            if isinstance(row, dict) and row.get("status") not in (FINISHED, None):
                found[str(row.get("experiment"))] = f"{row['status']}: {row.get('reason')}"
    return found
