"""Time the engine on a GPU, beside gsplat and beside what is aimed at.

    python scripts/benchmark_gpu.py                           everything, on the first GPU; files in docs/benchmarks
    python scripts/benchmark_gpu.py --sections render step    some of it
    python scripts/benchmark_gpu.py --device emulated --smoke     does it run? On the CPU, tiny; nothing is written

Scenes: 50,000, 100,000 and 200,000 Gaussians on a head-sized shell that a FLAME-like rig moves, 802 x 550. Sections:
render, forward_backward, step, fps, training (3,000 steps of the built-in subject, and of the statue where it is), long
(20,000 steps, from which a full run is extrapolated), gsplat. The files are written after every section. Needs
PyTorch, NumPy and the native package; what else is missing is named and left out. docs/gpu.md says how to read it.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch

from arguments.flags import OneLineParser
from scripts.gpu_benchmark import ours, rivals, training
from scripts.gpu_benchmark.clock import Clock
from scripts.gpu_benchmark.ours import Measured
from scripts.gpu_benchmark.record import Record, Row, machine_facts
from scripts.gpu_benchmark.rivals import Absent
from scripts.gpu_benchmark.scenes import Scene, Size, make_scene
from scripts.gpu_benchmark.targets import CARD, FULL_RUN, FULL_RUN_MINUTES, GAUSSIANS
from utils.engine.device import Device, choose_device
from utils.errors import EnvironmentFault, InputError, run_main

BATCH = 8
SMOKE = Size(400, 48, 32, frequency=4)


@dataclass
class Bench:
    """The benchmark as it goes on.

    Args:
        limit: seconds of a section; training and the long run have `long_limit`.
    """

    device: Device
    sizes: Sequence[Size]
    record: Record
    limit: float
    long_limit: float
    steps: int
    smoke: bool
    scenes: dict[Size, Scene] = field(default_factory=dict)
    section: str = ""
    ends: float = 0.0

    def begin(self, section: str) -> None:
        long = section in ("training", "long")
        self.section, self.ends = section, time.monotonic() + (self.long_limit if long else self.limit)

    def left(self) -> float:
        return self.ends - time.monotonic()

    def scene(self, size: Size) -> Scene:
        if size not in self.scenes:
            self.scenes[size] = make_scene(size, self.device)
        return self.scenes[size]

    def clock(self, parts: int) -> Clock:
        """For a measurement that is one of so many still to come."""
        share = max(0.2, self.left() / max(1, parts))
        return Clock(self.device, share, 2, 1, False) if self.smoke else Clock(self.device, share)

    def note(self, size: Size, who: str, found: Sequence[Measured]) -> None:
        for one in found:
            if one.times is None:
                self.record.remark(f"{size.name}: {one.what}: not measured: {one.note}")
                continue
            t = one.times
            self.record.add(Row(self.section, size.name, size.gaussians, one.what, who, t.median, "ms", t.low, t.high,
                                t.calls, one.note))  # fmt: skip

    def each(self, who: str, parts: Sequence[Callable[[Scene, Clock], list[Measured]]]) -> None:
        """Measure every part of every scene, as far as the section's time reaches."""
        todo = [(size, part) for size in self.sizes for part in parts]
        for number, (size, part) in enumerate(todo):
            if self.left() <= 0:
                self.record.remark(f"{self.section}: out of time, {len(todo) - number} of {len(todo)} parts left out")
                return
            self.note(size, who, part(self.scene(size), self.clock(3 * (len(todo) - number))))


def render(bench: Bench) -> None:
    bench.each("ours", [ours.pictures])


def forward_backward(bench: Bench) -> None:
    bench.each("ours", [ours.pictures_and_gradients])


def step(bench: Bench) -> None:
    def single(scene: Scene, clock: Clock) -> list[Measured]:
        return ours.training_steps(scene, clock, 1, captured=True)

    def batch(scene: Scene, clock: Clock) -> list[Measured]:
        found = ours.training_steps(scene, clock, BATCH, captured=True)
        note_memory(bench, scene)
        return found

    def by_autograd(scene: Scene, clock: Clock) -> list[Measured]:
        return ours.training_steps(scene, clock, 1, captured=False)

    bench.each("ours", [single, batch, by_autograd])


def note_memory(bench: Bench, scene: Scene) -> None:
    """What is in use on the GPU after steps of a batch: nothing of ours is given back between steps."""
    if bench.device.kind != "cuda":
        return
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(bench.device.torch)
    used = total - free
    holds = "a 24 GB card holds it" if used < CARD else "more than a 24 GB card has"
    note = f"other programs and earlier scenes included, photographs of a capture (1.3 MB each) not; {holds}"
    what, size = f"GPU memory in use, batch of {BATCH}", scene.size
    bench.record.add(Row(bench.section, size.name, size.gaussians, what, "", round(used / 2**20), "MiB", note=note))


def gsplat(bench: Bench) -> None:
    if bench.device.kind != "cuda":
        raise Absent("gsplat needs a GPU")
    module = rivals.load_gsplat()
    parts = [
        lambda scene, clock: rivals.pictures(module, scene, clock),
        lambda scene, clock: rivals.pictures_and_gradients(module, scene, clock),
        lambda scene, clock: rivals.training_steps(module, scene, clock, 1),
        lambda scene, clock: rivals.training_steps(module, scene, clock, BATCH),
    ]
    bench.each("gsplat", parts)


def fps(bench: Bench) -> None:
    bench.each("ours", [ours.frames_per_second])
    for row in [row for row in bench.record.rows if row.section == "fps"]:
        row.note = f"{1e3 / row.value:.0f} FPS" + (f", {row.note}" if row.note else "")


def train_subjects(bench: Bench) -> None:
    """The built-in subject and, where it is, the statue: time, and PSNR beside the CPU's."""
    import tempfile

    if bench.device.kind != "cuda":
        raise Absent("a training needs a GPU")
    reference, faults = training.cpu_reference(), []
    with tempfile.TemporaryDirectory() as folder:
        for name, flags in (("built-in subject", lambda: training.demo_flags(Path(folder), bench.left())),
                            ("statue", training.statue_flags)):  # fmt: skip
            try:
                trained = training.train(flags(), bench.device.name, bench.left(), 20 if bench.smoke else 0)
            except Absent as reason:
                bench.record.remark(f"not measured: {reason}")
            except EnvironmentFault as fault:  # the other subject may do
                faults.append(f"{name}: {fault}")
            else:
                note_training(bench, name, trained, reference[name])
    if faults:
        raise EnvironmentFault("; ".join(faults))


def note_training(bench: Bench, name: str, trained: training.Trained, cpu: dict[str, float]) -> None:
    def add(what: str, value: float, unit: str, note: str = "") -> None:
        bench.record.add(Row("training", name, trained.gaussians, what, "", value, unit, note=note))

    how = f"{trained.step}; {trained.gaussians} Gaussians at the end"
    whole = trained.iterations == cpu["iterations"]
    add(f"{trained.iterations} steps, evaluations included", round(trained.seconds, 2), "s",
        how + (f"; two CPU cores: {cpu['seconds']} s" if whole else ""))  # fmt: skip
    add("the whole program", round(trained.wall, 2), "s")
    for split, psnr in trained.psnr.items():
        add(f"PSNR on {split}", psnr, "dB", f"on the CPU {cpu[split]} dB" if whole else "")


def long(bench: Bench) -> None:
    """Many real steps, and what a full run would take at that speed."""
    size = next((size for size in bench.sizes if size.gaussians == GAUSSIANS), bench.sizes[0])
    scene = make_scene(size, bench.device)  # its Gaussians move
    count, seconds, how = training.many_steps(scene, Clock(bench.device, bench.left()), bench.steps)

    def add(what: str, value: float, unit: str, note: str, target: str = "") -> None:
        bench.record.add(
            Row("long", size.name, size.gaussians, what, "", round(value, 2), unit, note=note, target=target)
        )

    add(f"{count} steps with the default rates", seconds, "s", how)
    if bench.device.kind != "cuda":
        return
    minutes = training.full_run_minutes(count, seconds)
    target = f"{'met' if minutes < FULL_RUN_MINUTES else 'missed'}: < {FULL_RUN_MINUTES:g} min"
    note = f"extrapolated from these {count} steps, without evaluations and densification"
    add(f"{FULL_RUN} steps", minutes, "min", note, target if size.gaussians == GAUSSIANS else "")


SECTIONS: dict[str, Callable[[Bench], None]] = {
    "render": render,
    "forward_backward": forward_backward,
    "step": step,
    "fps": fps,
    "training": train_subjects,
    "long": long,
    "gsplat": gsplat,  # last: where its kernels are not built yet, its import builds them, however long that takes
}


def parse(argv: list[str]) -> argparse.Namespace:
    parser = OneLineParser(
        prog="scripts/benchmark_gpu.py", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--device", default="cuda", help="cuda or cuda:i [cuda]")
    parser.add_argument("--sections", nargs="+", choices=tuple(SECTIONS), default=list(SECTIONS), help="[all]")
    parser.add_argument("--gaussians", nargs="+", type=int, default=[50_000, 100_000, 200_000])
    parser.add_argument("--steps", type=int, default=20_000, help="of the section long [20000]")
    parser.add_argument("--limit", type=float, default=45.0, help="seconds of a section [45]")
    parser.add_argument("--long_limit", type=float, default=120.0, help="seconds of training and long [120]")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "benchmarks", help="folder [docs/benchmarks]")
    parser.add_argument(
        "--note", action="append", default=[], help="a line for the table; may be given again and again"
    )
    parser.add_argument("--smoke", action="store_true", help="tiny scenes, few calls, nothing is written: does it run?")
    parser.add_argument("--debug", action="store_true", help="print a traceback with every error")
    options = parser.parse_args(argv)
    for name, least, most in (("steps", 1, 10**9), ("limit", 1, 86_400), ("long_limit", 1, 86_400)):
        if not least <= getattr(options, name) <= most:
            raise InputError("command line", f"--{name}", f"found {getattr(options, name)}, expected {least} to {most}")
    if not all(100 <= count <= 10**7 for count in options.gaussians):
        raise InputError("command line", "--gaussians", f"found {options.gaussians}, expected 100 to 10^7")
    return options


def main(argv: list[str]) -> None:
    options = parse(argv)
    device, line = choose_device(options.device)
    if not device.accelerated:
        raise InputError("command line", "--device", f"found {options.device!r}, expected a GPU",
                         "scripts/benchmark_engine.py measures the CPU.")  # fmt: skip
    if device.kind == "emulated" and not options.smoke:
        raise InputError("command line", "--device", "an emulated device measures nothing", "Add --smoke.")
    sizes = [SMOKE] if options.smoke else [Size(count) for count in options.gaussians]
    record = Record({**machine_facts(device), "smoke": True} if options.smoke else machine_facts(device),
                    None if options.smoke else options.output)  # fmt: skip
    print(line, file=sys.stderr)
    for note in options.note:
        record.remark(note)
    steps = min(options.steps, 20) if options.smoke else options.steps
    bench = Bench(device, sizes, record, options.limit, options.long_limit, steps, options.smoke)
    failed = [name for name in options.sections if not measured(bench, name)]
    print(record.text())
    if failed:
        raise EnvironmentFault(f"failed: {', '.join(failed)}; the last lines of the table say why")


def measured(bench: Bench, name: str) -> bool:
    """Measure a section and write what is known; False if it failed, which the record says."""
    bench.begin(name)
    began, fine = time.monotonic(), True
    try:
        SECTIONS[name](bench)
    except Absent as reason:
        bench.record.remark(f"{name}: not measured: {reason}")
    except Exception as error:  # noqa: BLE001 - whatever gsplat or a broken GPU throws, the other sections go on
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        bench.record.remark(f"{name}: failed: {type(error).__name__}: {text}")
        fine = False
    files = bench.record.save()
    where = f", {files[-1]}" if files else ""
    print(f"{name}: {time.monotonic() - began:.1f} s{where}", file=sys.stderr)
    return fine


if __name__ == "__main__":
    sys.exit(run_main(main))
