"""Whole trainings with train.py, beside those of the CPU; and many steps one after another."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.gpu_benchmark.clock import Clock
from scripts.gpu_benchmark.ours import steps
from scripts.gpu_benchmark.record import ROOT
from scripts.gpu_benchmark.rivals import Absent
from scripts.gpu_benchmark.scenes import Scene
from scripts.gpu_benchmark.targets import FULL_RUN
from utils.errors import EnvironmentFault

REFERENCE = Path(__file__).with_name("cpu_reference.json")  # of the CPU: made with the same flags
LINE = re.compile(r"step (\d+) \(([0-9.]+) s\), (\w+): psnr ([0-9.]+)")
BLOCK = 500  # steps between looks at the clock


@dataclass(frozen=True)
class Trained:
    """What a training said of itself."""

    iterations: int
    seconds: float  # as run.json has them: evaluations included
    wall: float  # of the whole process
    gaussians: int
    psnr: dict[str, float]  # by split, of the last evaluation
    step: str  # the log's line on how steps are taken


def demo_flags(folder: Path, limit: float) -> list[str]:
    """The built-in subject, made in `folder` unless the checkout has one."""
    subject = ROOT / "output" / "demo_subject"
    if not (subject / "capture" / "transforms_test.json").is_file():
        subject = folder / "demo_subject"
        run([sys.executable, str(ROOT / "scripts" / "make_demo_subject.py"), "--output", str(subject)], limit)
    model = subject / "model"
    return ["-s", str(subject / "capture"), "--config", "demo", "--flame_model", str(model / "demo_head.pkl"),
            "--flame_masks", str(model / "demo_masks.pkl")]  # fmt: skip


def statue_flags() -> list[str]:
    """The statue beside the checkout.

    Raises:
        Absent: it isn't there.
    """
    data = ROOT.parent / "shared" / "data"
    if not (data / "statue").is_dir():
        raise Absent(f"the statue: {data / 'statue'} does not exist")
    flame = data / "flame_stand_in"
    return ["-s", str(data / "statue"), "--iterations", "3000", "--test_iterations", "3000",
            "--flame_model", str(flame / "flame2023.pkl"), "--flame_masks", str(flame / "FLAME_masks.pkl")]  # fmt: skip


def train(flags: list[str], device: str, limit: float, iterations: int = 0) -> Trained:
    """Train as a user would.

    Raises:
        EnvironmentFault: it failed, or took longer than `limit` seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "train.py"), *flags, "-m", f"{folder}/run", "--bind_to_mesh", "--eval",
                   "--white_background", "--seed", "0", "--device", device]  # fmt: skip
        began = time.perf_counter()
        log = run(command + (["--iterations", str(iterations)] if iterations else []), limit)
        wall = time.perf_counter() - began
        facts: dict[str, Any] = json.loads(Path(folder, "run", "run.json").read_text(encoding="utf-8"))
    psnr = {split: float(value) for _, _, split, value in LINE.findall(log)}
    how = next((line for line in log.splitlines() if line.startswith("step: ")), "")
    return Trained(facts["iteration"], facts["train_seconds"], wall, facts["gaussians"], psnr, how)


def run(command: list[str], limit: float) -> str:
    """What a program writes to stderr.

    Raises:
        EnvironmentFault: it failed or took too long; with its last line.
    """
    program = Path(command[1]).name
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True
    ) as process:
        try:
            _, said = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired as error:
            raise EnvironmentFault(f"{program} took longer than {limit:.0f} s") from error
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # its children too: they write into a folder that goes away
    if process.returncode != 0:
        last = (said.strip().splitlines() or ["without a word"])[-1]
        raise EnvironmentFault(f"{program} ended with {process.returncode}: {last}")
    return said


def cpu_reference() -> dict[str, Any]:
    """By subject: PSNR and seconds of the same training on a CPU."""
    return json.loads(REFERENCE.read_text(encoding="utf-8"))


def many_steps(scene: Scene, clock: Clock, wanted: int) -> tuple[int, float, str]:
    """Train for so many steps, or until the clock's limit: how many, their seconds, and how they are taken."""
    run = steps(scene, views=1, captured=True, moving=True)
    block = min(BLOCK, wanted)
    for _ in range(block):  # captures, and fills what grows
        run()
    began = clock.now(run.settle)
    done, now = 0, began
    while done < wanted and now - began < clock.limit:
        for _ in range(block):
            run()
        done, now = done + block, clock.now(run.settle)
    return done, now - began, run.how.removeprefix("step: ")


def full_run_minutes(count: int, seconds: float) -> float:
    """Minutes of a full run at this speed."""
    return seconds / count * FULL_RUN / 60
