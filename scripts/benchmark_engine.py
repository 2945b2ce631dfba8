"""How fast the CPU engine is, beside its goals, what the hardware allows, and what others do.

    python scripts/benchmark_engine.py                                    four head shells
    python scripts/benchmark_engine.py --large                            and 50k to 200k splats at 550 x 802
    python scripts/benchmark_engine.py --avatar RUN -s DATASET            and a trained avatar
    python scripts/benchmark_engine.py --scenes 10k/256 50k/512 --threads 1 --rivals none --gate

Times are the best of many repeats, as called from Python. `bound` counts the vector instructions and the memory traffic
that a stage needs, at rates measured on this machine in the same run; `goal` holds for a Zen 5 with AVX-512. What the
columns mean in full: docs/benchmarks/README.md.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads stall beside a busy neighbour

import argparse
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from arguments.flags import OneLineParser
from arguments.overrides import add_overrides
from scripts.engine_benchmark import goals, report
from scripts.engine_benchmark.bounds import Facts
from scripts.engine_benchmark.gsplat_reference import Absent
from scripts.engine_benchmark.machine import REFERENCE, Machine, describe, fastest, held_back, measure
from scripts.engine_benchmark.rivals import RIVALS
from scripts.engine_benchmark.scenes import LARGE_SHELLS, SCENES, SHELLS, Scene, avatar_scene, facts_of, shell_scene
from scripts.engine_benchmark.stages import STAGES, best_times
from utils.errors import InputError, run_main
from utils.io.atomic import write_json

RIVAL_REPEATS = 3
FEW_PIXELS = 256 * 256  # up to here the rivals take a second, above they take many
AVATAR_FLAGS = ("source_path", "flame_model", "flame_masks", "cache_dir")


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = OneLineParser(
        prog="scripts/benchmark_engine.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--scenes", nargs="*", metavar="NAME",
                        help=f"of {', '.join(SCENES)}; without a name: none of them [the first four]")  # fmt: skip
    parser.add_argument("--large", action="store_true", help="the scenes of 550 x 802, too")
    parser.add_argument("--avatar", type=Path, metavar="RUN", help="a trained avatar, too")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), metavar="NAME",
                        help=f"of {', '.join(STAGES)} [all]")  # fmt: skip
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="[1 2]")
    parser.add_argument("--repeat", type=int, default=30, help="[30]")
    parser.add_argument("--isa", choices=goals.INSTRUCTION_SETS, help="default: the best that this CPU has")
    parser.add_argument("--rivals", choices=("none", "small", "all"), default="small",
                        help="time others, too: where pictures are small, or everywhere [small]")  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--gate", action="store_true", help="exit code 1 if one thread is slower than allowed")
    parser.add_argument("--debug", action="store_true", help="print a traceback with every error")
    add_overrides(parser, AVATAR_FLAGS)
    options = parser.parse_args(argv)
    check_arguments(options)
    return options


def check_arguments(options: argparse.Namespace) -> None:
    """InputError for what can't be measured."""
    if unknown := [name for name in options.scenes or () if name not in SCENES]:
        raise InputError("command line", "--scenes", f"found {unknown[0]!r}, expected some of {', '.join(SCENES)}")
    for name, values, most in (("threads", options.threads, 256), ("repeat", [options.repeat], 100_000)):
        if wrong := [value for value in values if not 1 <= value <= most]:
            raise InputError("command line", f"--{name}", f"found {wrong[0]}, expected 1 to {most}")
    if not options.avatar and (idle := [name for name in AVATAR_FLAGS if hasattr(options, name)]):
        raise InputError("command line", f"--{idle[0]}", "is about an avatar, and none is given", "Give --avatar RUN.")
    if options.gate and (1 not in options.threads or "raster" not in options.stages):
        raise InputError("command line", "--gate", "looks at sums of one thread", "Give --threads 1 --stages raster.")


def scenes_of(options: argparse.Namespace) -> Iterator[Scene]:
    """The scenes asked for, one at a time."""
    shells = SHELLS if options.scenes is None else [SCENES[name] for name in options.scenes]
    for shell in dict.fromkeys([*shells, *(LARGE_SHELLS if options.large else ())]):
        yield shell_scene(shell)
    if options.avatar:
        overrides = {name: getattr(options, name) for name in AVATAR_FLAGS if hasattr(options, name)}
        yield avatar_scene(options.avatar, overrides)


def time_scene(scene: Scene, options: argparse.Namespace) -> dict[tuple[str, int], float]:
    """Seconds by (row, threads)."""
    seconds: dict[tuple[str, int], float] = {}
    few = scene.camera.width * scene.camera.height <= FEW_PIXELS
    compared = options.rivals == "all" or (options.rivals == "small" and few)
    for threads in options.threads:
        say(f"{scene.name}, {threads} thread{'s' if threads > 1 else ''}")
        runs = [run for name in options.stages if (run := STAGES[name](scene, threads)) is not None]
        times = best_times(runs, options.repeat)
        if compared:
            times.update(time_rivals(scene, threads, options))
        seconds.update({(row, threads): spent for row, spent in times.items()})
    return seconds


def time_rivals(scene: Scene, threads: int, options: argparse.Namespace) -> dict[str, float]:
    """Seconds by row; those that are not installed are named and left out."""
    runs = []
    torch.set_num_threads(threads)
    for name, (stage, build) in RIVALS.items():
        if stage not in options.stages:
            continue
        try:
            runs.append(build(scene, threads))
        except Absent as reason:
            say(f"{name}: skipped: {reason}")
    times = best_times([run for run in runs if run], min(options.repeat, RIVAL_REPEATS), warm_up=1)
    torch.set_num_threads(1)
    return times


def say(line: str) -> None:
    """What goes on, beside the results."""
    print(line, file=sys.stderr, flush=True)


def make_rows(
    seconds: Mapping[str, dict[tuple[str, int], float]], facts: Mapping[str, Facts], machine: Machine
) -> list[report.Row]:
    return [
        report.make_row(scene, stage, threads, spent, report.bound(stage, facts[scene], machine, threads))
        for scene, times in seconds.items()
        for (stage, threads), spent in times.items()
    ]


def main(argv: list[str]) -> int:
    options = parse_arguments(argv)
    from diff_gaussian_rasterization._library import isa_name, select_isa

    if options.isa:
        try:
            select_isa(options.isa)
        except ValueError as error:
            raise InputError("command line", "--isa", str(error)) from error
    torch.set_num_threads(1)  # the native kernels have their own threads
    machines = [measure(options.threads)]
    seconds: dict[str, dict[tuple[str, int], float]] = {}
    facts: dict[str, Facts] = {}
    for scene in scenes_of(options):
        facts[scene.name] = facts_of(scene)
        seconds[scene.name] = time_scene(scene, options)
        machines.append(measure(options.threads))
    machine = fastest(machines)
    rows = make_rows(seconds, facts, machine)
    if warning := held_back(machine):
        say(f"warning: {warning}")
    print(f"best of {options.repeat}, milliseconds\nthis machine: {describe(machine)}")
    print(f"goals and the last column: {describe(REFERENCE)}\n")
    lines = [report.cells(row, facts[row.scene], goals.goal(row.scene, row.stage, row.threads)) for row in rows]
    print("\n".join(report.markdown(lines) if options.markdown else report.table(lines)))
    if options.json:
        write_json(options.json, [row.to_json() for row in rows])
    passed, verdicts = goals.gate(rows, isa_name()) if options.gate else (True, [])
    for verdict in verdicts:
        print(verdict)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(run_main(main))
