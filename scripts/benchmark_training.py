"""How long a training takes from a cold start: the whole program, and until an evaluation shows a wanted quality.

    python scripts/benchmark_training.py [--psnr 31] [--split val] [--repeat 3] [--json FILE] -- TRAIN_FLAGS...

Runs `python train.py TRAIN_FLAGS...` as a user would and notes when its lines appear; seconds count from the start of
the process, the imports included. The flags must name an output folder (-m); it is written anew by every repeat.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from arguments.flags import OneLineParser
from utils.errors import EnvironmentFault, InputError, run_main
from utils.io.atomic import write_json

LINE = re.compile(r"step (\d+) \([^)]*\), (\w+): psnr ([0-9.]+)")


def evaluations(text: str) -> list[tuple[int, str, float]]:
    """(step, split, PSNR) of the evaluations that a line of the training log reports."""
    return [(int(step), split, float(psnr)) for step, split, psnr in LINE.findall(text)]


def train(flags: list[str], split: str, wanted: float) -> dict[str, float | int | None]:
    """One training; when `split` first reached `wanted` dB (None: never), and what the last evaluation said.

    Raises:
        EnvironmentFault: the training failed; its last line is in the message.
    """
    began = time.perf_counter()
    found: dict[str, float | int | None] = {"seconds_to_psnr": None, "step": None, "psnr": None}
    last = ""
    command = [sys.executable, "-u", str(ROOT / "train.py"), *flags, "--overwrite"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout or ():
            now, last = time.perf_counter() - began, line.strip() or last
            for step, name, psnr in evaluations(line):
                if name != split:
                    continue
                if psnr >= wanted and found["seconds_to_psnr"] is None:
                    found |= {"seconds_to_psnr": round(now, 2), "step": step}
                found["psnr"] = psnr
    if process.returncode != 0:
        raise EnvironmentFault(f"train.py ended with {process.returncode}: {last}")
    return found | {"seconds": round(time.perf_counter() - began, 2)}


def main(argv: list[str]) -> None:
    parser = OneLineParser(
        prog="scripts/benchmark_training.py", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--psnr", type=float, default=31.0, help="the quality to wait for, dB")
    parser.add_argument("--split", default="val", help="of the evaluations that count")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("flags", nargs="+", metavar="TRAIN_FLAGS", help="after --")
    options = parser.parse_args(argv)
    if options.repeat < 1:
        raise InputError("command line", "--repeat", f"found {options.repeat}, expected at least 1")
    if not any(flag.startswith(("-m", "--model_path")) for flag in options.flags):
        raise InputError("command line", "TRAIN_FLAGS", "name no output folder", "Give -m FOLDER after --.")
    runs = []
    for _ in range(options.repeat):
        runs.append(train(options.flags, options.split, options.psnr))
        reached = runs[-1]["seconds_to_psnr"]
        when = "never reached" if reached is None else f"{reached} s (step {runs[-1]['step']})"
        print(
            f"{options.split} {options.psnr} dB: {when}; whole run {runs[-1]['seconds']} s, {runs[-1]['psnr']} dB",
            flush=True,
        )
    if options.json:
        write_json(options.json, runs)


if __name__ == "__main__":
    sys.exit(run_main(main))
