"""What the ablations are: experiments, seeds and the commands that they are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arguments import read_preset
from scripts.compare.runs import BASELINE, BUDGET
from utils.engine.options import flags_from_options, options_from_flags
from utils.errors import InputError
from utils.perceptual_networks import BACKBONES

EXPERIMENTS = ("baseline", "perceptual", "adaptive", "temporal", "all")
BUDGETED = ("baseline", "adaptive")  # run again with every --budgets
PERCEPTUAL = ("use_vgg_loss", "use_lpips_loss")  # switches of what needs pretrained weights
PERCEPTUAL_WEIGHT = "lambda_perceptual"
OURS = ("-m", "--model_path", "--seed", "--config", "--iterations", "--resume", "--overwrite", "--threads", "-s",
        "--source_path")  # fmt: skip
MEASURED_TOO = ("--lpips_vgg16_weights", "--lpips_alex_weights")  # flags of training that metrics.py takes as well


@dataclass(frozen=True)
class Experiment:
    """A preset and flags beside it."""

    name: str
    config: str
    held: tuple[str, ...] = ()  # flags that may be given anew after `--`
    flags: tuple[str, ...] = ()  # flags that may not
    without_weights: Experiment | None = None  # replaces it where pretrained weights are missing


@dataclass(frozen=True)
class Job:
    """One training: an experiment with a seed."""

    experiment: Experiment
    seed: int

    @property
    def name(self) -> str:
        return f"{self.experiment.name}_seed{self.seed}"


@dataclass(frozen=True)
class Plan:
    """All that a call of the script asks for."""

    data: tuple[str, ...]  # flags of train.py that name the subject
    output: Path
    iterations: int
    threads: int
    truth: str
    extra: tuple[str, ...] = ()
    jobs: Sequence[Job] = field(default_factory=list)

    def folder(self, job: Job) -> Path:
        return self.output / job.name

    def log(self, job: Job) -> Path:
        return self.output / f"{job.name}.log"

    def training(self, job: Job) -> list[str]:
        """Flags of train.py."""
        return [*self.data, "-m", str(self.folder(job)), "--config", job.experiment.config, "--seed", str(job.seed),
                "--iterations", str(self.iterations), "--threads", str(self.threads), "--bind_to_mesh", "--eval",
                "--white_background", *job.experiment.held, *self.extra, *job.experiment.flags]  # fmt: skip

    def rendering(self, job: Job) -> list[str]:
        """Flags of render.py."""
        return ["-m", str(self.folder(job)), "--skip_train", "--threads", str(self.threads), "--quiet"]

    def measuring(self, job: Job) -> list[str]:
        """Flags of metrics.py."""
        truth = ["--truth", self.truth] if self.truth else []
        weights = [word for i, flag in enumerate(self.extra) if flag in MEASURED_TOO for word in self.extra[i : i + 2]]
        return ["-m", str(self.folder(job)), "--threads", str(self.threads), "--quiet", *truth, *weights]


def experiment_of(config: str) -> Experiment:
    """The experiment that a preset, by name or by file, describes: the baseline and what the preset says."""
    name = Path(config).stem if config.endswith((".yaml", ".yml")) else config
    preset = read_preset(config)
    held = () if name == BASELINE else held_to_baseline(preset)
    additions = [flag for flag, value in preset.items() if str(flag).startswith("use_") and value is True]
    needing = [flag for flag in additions if flag in PERCEPTUAL]
    if not needing or len(needing) == len(additions):
        return Experiment(name, config, held)
    off = tuple(word for flag in needing for word in (f"--{flag}", "False"))
    off += (f"--{PERCEPTUAL_WEIGHT}", "0") if PERCEPTUAL_WEIGHT in preset else ()
    without = Experiment(f"{name}_without_perceptual", config, held, off)
    return Experiment(name, config, held, (), without)


def held_to_baseline(preset: Mapping[str, Any]) -> tuple[str, ...]:
    """Flags that keep an experiment at the baseline's values where today's defaults are others."""
    today = flags_from_options(options_from_flags({}, "defaults"))
    frozen = read_preset(BASELINE).items()
    return tuple(word for name, value in frozen if name not in preset and value != today[name] and name != "iterations"
                 for word in (f"--{name}", str(value)))  # fmt: skip


def all_jobs(configs: Sequence[str], seeds: int, budgets: Sequence[int]) -> list[Job]:
    """Every experiment with every seed, seed by seed, so that an early end leaves comparable runs."""
    experiments = [experiment_of(config) for config in configs]
    limited = [budgeted(experiment_of(name), budget) for budget in budgets for name in BUDGETED if name in configs]
    names = [experiment.name for experiment in experiments]
    for name in names:
        if names.count(name) > 1:
            raise InputError("command line", "--experiments", f"found {name} twice, expected once")
    return [Job(experiment, seed) for seed in range(seeds) for experiment in [*experiments, *limited]]


def budgeted(experiment: Experiment, budget: int) -> Experiment:
    """An experiment with at most `budget` Gaussians."""
    limit = ("--gaussian_budget", str(budget))
    return Experiment(f"{experiment.name}{BUDGET}{budget}", experiment.config, experiment.held, limit)


def lacks_weights(code: int, error: str) -> bool:
    """Did train.py refuse because pretrained weights are missing? Its line then names their file."""
    return code == InputError.exit_code and any(backbone.file in error for backbone in BACKBONES.values())
