"""Is the comparison fair? Differences between runs that the experiments are not about, in one line each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scripts.compare.runs import Experiment, Run
from utils.engine.run import FREE
from utils.errors import one_line

EQUAL = ("iterations", "resolution", "white_background", "select_camera_id", "device", "rasterizer", "threads",
         "batch_size")  # fmt: skip


def warnings_of(experiments: Sequence[Experiment]) -> list[str]:
    """What a reader must know before believing a comparison, worst first."""
    found = [
        differing("datasets", experiments, lambda run: input_of(run, "source_path")),
        differing("FLAME models", experiments, lambda run: input_of(run, "flame_model")),
        *(differing(f"--{flag}", experiments, lambda run, flag=flag: str(run.options.get(flag))) for flag in EQUAL),
        differing("numbers of trainings side by side", experiments, lambda run: str(run.work.get("jobs", "unknown"))),
    ]
    seeds = sorted({experiment.seeds for experiment in experiments})
    if len(seeds) > 1:
        listed = "; ".join(f"{e.name}: {', '.join(map(str, e.seeds))}" for e in experiments)
        found.append(f"The experiments have different seeds ({listed}); differences are over the seeds in common.")
    for experiment in experiments:
        found += [text for run in experiment.runs if (text := unfinished(run))]
    return [text for text in found if text]


def differing(what: str, experiments: Sequence[Experiment], key: Callable[[Run], str]) -> str:
    """A line that names the runs of every value, if there are several values."""
    by_value: dict[str, list[str]] = {}
    for experiment in experiments:
        for run in experiment.runs:
            names = by_value.setdefault(key(run), [])
            if experiment.name not in names:
                names.append(experiment.name)
    if len(by_value) < 2:
        return ""
    listed = "; ".join(f"{value}: {', '.join(names)}" for value, names in sorted(by_value.items()))
    return one_line(f"The runs have different {what} ({listed}).")


def input_of(run: Run, flag: str) -> str:
    """Which file or folder an input is: its name and the first digits of its fingerprint."""
    inputs = run.facts.get("inputs")
    fingerprint = str(inputs.get(flag, "")) if isinstance(inputs, dict) else ""
    return f"{dataset_name(run) if flag == 'source_path' else Path(str(run.options.get(flag, ''))).name} " \
           f"{fingerprint[:8] or 'unknown'}"  # fmt: skip


def dataset_name(run: Run) -> str:
    """The dataset's folder, with its parent where it is just called `capture`."""
    path = Path(str(run.options.get("source_path", "")))
    return f"{path.parent.name}/{path.name}" if path.name == "capture" else path.name


def unfinished(run: Run) -> str:
    """Why a run's numbers are not those of a finished training, if so."""
    wanted, reached = run.options["iterations"], run.facts.get("iteration")
    if reached != wanted:
        return f"{run.name} is not finished: iteration {reached or 0} of {wanted}."
    measured = run.metrics.get("iteration")
    if run.metrics and measured != reached:
        return f"{run.name} was measured at iteration {measured}, trained to {reached}."
    return ""


def changes_of(experiment: Experiment, baseline: Experiment) -> list[str]:
    """The flags by which an experiment differs from the baseline, as they would be typed."""
    own, base = experiment.runs[0].options, baseline.runs[0].options
    names = [name for name in own if name not in FREE and name != "seed" and own[name] != base.get(name)]
    return [f"--{name} {flag_value(own[name])}" for name in names]


def flag_value(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
