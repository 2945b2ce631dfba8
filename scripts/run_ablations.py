"""The ablations on one subject: train every experiment with every seed, render, measure, compare.

    scripts/run_ablations.sh SUBJECT [SEEDS] [flags] [-- TRAIN_FLAGS...]
    scripts/run_ablations.sh demo
    scripts/run_ablations.sh DATA 3 --jobs 2 --truth truth.npz -- --flame_model flame2023.pkl --flame_masks masks.pkl

SUBJECT is a dataset folder, `demo` for the built-in subject (made if it isn't there), or a folder that
scripts/make_demo_subject.py made. An experiment is a preset (`arguments/presets`). OUTPUT receives

    EXPERIMENT_seedN/       the run folder, rendered and measured
    EXPERIMENT_seedN.log    what train.py, render.py and metrics.py said
    ablations.json          how each ended
    comparison.{csv,tex,html}

The same command again goes on where it was stopped: train.py continues every run from its newest checkpoint (a finished
one in seconds) and refuses a folder of other options; what is rendered and measured is not done again.
Trainings run --jobs at a time; rendering and measuring come after them, one at a time, so that FPS is not
disturbed. An experiment whose pretrained weights are missing is reported as not run, and one that has other additions
runs without the perceptual part as well, as NAME_without_perceptual.
Exit code: 0, or that of the first experiment that failed; the others go on.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from arguments.flags import OneLineParser
from scripts import compare_results
from scripts.ablations.plan import EXPERIMENTS, OURS, Job, Plan, all_jobs, lacks_weights
from scripts.ablations.programs import Ended, Programs
from scripts.compare.runs import ABLATIONS, FINISHED, NOT_RUN, WORK, object_in
from utils.engine.run import RUN_FACTS
from utils.errors import InputError, run_main
from utils.io.atomic import write_json
from utils.io.json_files import read_json

FAILED = "failed"
DEMO, MARK = ROOT / "output/demo_subject", "capture/transforms_train.json"


@dataclass(frozen=True)
class Outcome:
    """How an experiment with a seed ended."""

    name: str
    experiment: str
    seed: int
    status: str
    code: int = 0
    reason: str = ""


def parse_arguments(argv: list[str]) -> tuple[Any, tuple[str, ...]]:
    """The script's own options, and the flags for train.py that follow `--`.

    Raises:
        InputError: a bad value, or a flag after `--` that the script sets itself.
    """
    split = argv.index("--") if "--" in argv else len(argv)
    parser = OneLineParser(prog="scripts/run_ablations.sh", description=__doc__, allow_abbrev=False,
                           formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("subject", metavar="SUBJECT")
    parser.add_argument("seeds", metavar="SEEDS", nargs="?", type=int, default=3, help="how many: 0, 1, 2, ... [3]")
    parser.add_argument("--experiments", nargs="+", default=list(EXPERIMENTS), metavar="PRESET",
                        help=f"names or .yaml files [{' '.join(EXPERIMENTS)}]")  # fmt: skip
    parser.add_argument("--budgets", nargs="+", type=int, default=[], metavar="N",
                        help="baseline and adaptive again with at most N Gaussians: PSNR against count")  # fmt: skip
    parser.add_argument("--iterations", type=int, default=3000, help="of every training [3000]")
    parser.add_argument("--output", type=Path, help="folder [output/ablations/SUBJECT]")
    parser.add_argument("--jobs", type=int, default=1, help="trainings side by side [1]")
    parser.add_argument("--threads", type=int, default=1, help="of each program [1]")
    parser.add_argument("--truth", default="", metavar="NPZ", help="true motion, for metrics.py; the demo has its own")
    parser.add_argument("--measure_again", action="store_true", help="render and measure what already is")
    parser.add_argument("--debug", action="store_true", help="print a traceback with every error")
    options, extra = parser.parse_args(argv[:split]), tuple(argv[split + 1 :])
    for name in ("seeds", "iterations", "jobs", "threads"):
        if getattr(options, name) < 1:
            found = f"found {getattr(options, name)}, expected at least 1"
            raise InputError("command line", name if name == "seeds" else f"--{name}", found)
    for budget in options.budgets:
        if budget < 1:
            raise InputError("command line", "--budgets", f"found {budget}, expected at least 1")
    for flag in extra:
        if flag.split("=")[0] in OURS:
            raise InputError("command line", f"-- {flag}", "is set by the script itself", "Leave it out.")
    if options.truth and not Path(options.truth).is_file():
        raise InputError("--truth", options.truth, "no such file")
    return options, extra


def data_of(subject: str, programs: Programs) -> tuple[tuple[str, ...], str]:
    """Flags of train.py that name the subject, and its file of true motion, if it is the built-in one.

    Raises:
        InputError: no such folder, or the built-in subject can't be made.
    """
    folder = DEMO if subject == "demo" else Path(subject).absolute()
    if subject == "demo" and not (folder / MARK).is_file():
        print("making the built-in subject", flush=True)
        log = folder.with_name(f"{folder.name}.log")
        ended = programs.run(log, "scripts/make_demo_subject.py", "--output", str(folder))
        if ended.code:
            raise InputError(log, "", f"the built-in subject could not be made: {ended.error}")
    if not folder.is_dir():
        raise InputError(folder, "", "is no folder", "Give a dataset folder, or `demo`.")
    if not (folder / MARK).is_file():
        return ("-s", str(folder)), ""
    model, truth = folder / "model", folder / "truth.npz"
    flags = ("-s", str(folder / "capture"), "--flame_model", str(model / "demo_head.pkl"),
             "--flame_masks", str(model / "demo_masks.pkl"))  # fmt: skip
    return flags, str(truth) if truth.is_file() else ""


def train(job: Job, plan: Plan, programs: Programs, side_by_side: int) -> list[Outcome]:
    """Train one run, or go on with it; where its pretrained weights are missing, what replaces it as well."""
    began, before = time.monotonic(), trained_to(plan.folder(job))
    resume = ["--resume"] if (plan.folder(job) / "options.json").is_file() else []
    ended = programs.run(plan.log(job), "train.py", *plan.training(job), *resume)
    name, seed, substitute = job.experiment.name, job.seed, job.experiment.without_weights
    if ended.code == 0:
        if before == plan.iterations:
            say(f"{job.name}: was trained already")
        else:
            note(plan.folder(job), jobs=max(side_by_side, work_of(plan.folder(job)).get("jobs", 0) if before else 0))
            say(f"{job.name}: trained, {time.monotonic() - began:.0f} s")
        return [Outcome(job.name, name, seed, FINISHED)]
    if not lacks_weights(ended.code, ended.error):
        return [failure(job, "train.py", ended)]
    say(f"{job.name}: not run: {ended.error}")
    missing = Outcome(job.name, name, seed, NOT_RUN, ended.code, ended.error)
    if substitute is None:
        return [missing]
    say(f"{job.name}: instead {substitute.name}: the same with {' '.join(substitute.flags)}")
    return [missing, *train(Job(substitute, seed), plan, programs, side_by_side)]


def measure(job: Job, plan: Plan, programs: Programs, again: bool) -> Outcome:
    """Render and measure a trained run, unless the same commands already did."""
    began, folder = time.monotonic(), plan.folder(job)
    stages = {"render.py": plan.rendering(job), "metrics.py": plan.measuring(job)}
    outputs = [folder / "render.json", folder / "metrics.json"]
    done, work = work_of(folder), again
    whole = all(object_in(path).get("iteration") == plan.iterations for path in outputs)
    for number, (script, words) in enumerate(stages.items()):
        if whole and not work and done.get(script) == words:
            continue
        work = True  # what follows depends on it
        for stale in outputs[number:]:
            stale.unlink(missing_ok=True)
        ended = programs.run(plan.log(job), script, *words)
        if ended.code:
            return failure(job, script, ended)
    if work:
        note(folder, **stages)
        say(f"{job.name}: rendered and measured, {time.monotonic() - began:.0f} s")
    return Outcome(job.name, job.experiment.name, job.seed, FINISHED)


def trained_to(folder: Path) -> int:
    """The iteration that a run has reached; 0 if there is none."""
    reached = object_in(folder / RUN_FACTS).get("iteration", 0)
    return reached if isinstance(reached, int) else 0


def work_of(folder: Path) -> dict[str, Any]:
    """What this script did to a run before."""
    return object_in(folder / WORK)


def note(folder: Path, **work: Any) -> None:
    """Remember what was done to a run: the commands, and how many trainings ran side by side."""
    write_json(folder / WORK, {**work_of(folder), **work})


def failure(job: Job, script: str, ended: Ended) -> Outcome:
    say(f"{job.name}: {script} failed with exit code {ended.code}: {ended.error}")
    return Outcome(job.name, job.experiment.name, job.seed, FAILED, ended.code, f"{script}: {ended.error}")


def recorded(output: Path) -> list[dict[str, Any]]:
    """How the runs of earlier calls ended.

    Raises:
        InputError: the file is broken.
    """
    known = read_json(output / ABLATIONS) if (output / ABLATIONS).is_file() else []
    if not isinstance(known, list) or not all(isinstance(row, dict) for row in known):
        raise InputError(output / ABLATIONS, "", "is no list of objects", "Remove it: this script writes it anew.")
    return known


def record(output: Path, outcomes: Sequence[Outcome]) -> None:
    """Write how every run ended, beside what earlier calls wrote about others."""
    ours = {outcome.name for outcome in outcomes}
    kept = [row for row in recorded(output) if row.get("name") not in ours]
    write_json(output / ABLATIONS, sorted([*kept, *map(asdict, outcomes)], key=lambda row: str(row["name"])))


def say(line: str) -> None:
    print(line, flush=True)


def run_all(plan: Plan, programs: Programs, side_by_side: int, again: bool) -> list[Outcome]:
    """Train all, then render and measure what could be trained; how each ended."""
    work = partial(train, plan=plan, programs=programs, side_by_side=side_by_side)
    trained = [outcome for several in programs.do_all(work, plan.jobs, side_by_side) for outcome in several]
    every = [*plan.jobs, *(Job(job.experiment.without_weights, job.seed) for job in plan.jobs
                           if job.experiment.without_weights)]  # fmt: skip
    jobs = {job.name: job for job in every}
    finished = [jobs[outcome.name] for outcome in trained if outcome.status == FINISHED]
    measured = programs.do_all(partial(measure, plan=plan, programs=programs, again=again), finished, 1)
    by_name = {outcome.name: outcome for outcome in measured}
    return [by_name.get(outcome.name, outcome) for outcome in trained]


def main(argv: list[str]) -> int:
    options, extra = parse_arguments(argv)
    programs = Programs()
    jobs = all_jobs(options.experiments, options.seeds, options.budgets)
    data, truth = data_of(options.subject, programs)
    output = options.output or ROOT / "output/ablations" / (Path(options.subject).absolute().name)
    truth = str(Path(options.truth).absolute()) if options.truth else truth
    plan = Plan(data, output.absolute(), options.iterations, options.threads, truth, extra, jobs)
    recorded(plan.output)  # broken: before hours of training, not after
    say(f"{len(jobs)} trainings of {options.iterations} iterations, {options.jobs} at a time, in {plan.output}")
    outcomes = run_all(plan, programs, options.jobs, options.measure_again)
    record(plan.output, outcomes)
    if any(outcome.status == FINISHED for outcome in outcomes):
        compare_results.main([str(plan.output)])
    for outcome in outcomes:
        if outcome.status != FINISHED:
            print(f"{outcome.name}: {outcome.status}: {outcome.reason}", file=sys.stderr)
    failed = [outcome for outcome in outcomes if outcome.status == FAILED]
    if failed:
        listed = ", ".join(outcome.name for outcome in failed)
        print(f"error: {len(failed)} of {len(outcomes)} failed: {listed}; logs in {plan.output}", file=sys.stderr)
    return failed[0].code if failed else 0


if __name__ == "__main__":
    sys.exit(run_main(main))
