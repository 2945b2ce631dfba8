"""What a run tells: a progress bar on a terminal, a plain line now and then elsewhere, CSV always, TensorBoard."""

from __future__ import annotations

import csv
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from utils.io.atomic import atomic_file

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

CSV_FIELDS = ("step", "split", "name", "value")
PLAIN_EVERY = 15.0  # seconds between plain lines off a terminal
SMOOTHING = 0.9


class Log:
    """Sinks of a run. Scalars are named; nothing here knows which names there are.

    Args:
        folder: the run folder; `log.csv` and TensorBoard's event file go there.
        first: last finished step (rows after it are leftovers of a killed run and are dropped).
    """

    def __init__(self, folder: Path, first: int, total: int, quiet: bool) -> None:
        from tqdm import tqdm

        self.total, self.quiet = total, quiet
        self.terminal = sys.stderr.isatty() and not quiet
        self.bar = tqdm(total=total, initial=first, disable=not self.terminal, dynamic_ncols=True, unit="it")
        self.csv_path = folder / "log.csv"
        keep_rows(self.csv_path, first)
        self.csv = open(self.csv_path, "a", newline="", encoding="utf-8")
        self.writer = csv.writer(self.csv, lineterminator="\n")
        self.tensorboard = self.open_tensorboard(folder, first)
        self.averages: dict[str, float] = {}
        self.step = first
        self.started, self.spoke = (time.monotonic(), first), time.monotonic()

    def open_tensorboard(self, folder: Path, first: int) -> SummaryWriter | None:
        """TensorBoard's event file, or None where the package is missing, which is said: log.csv has the same."""
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError as error:
            self.say(f"tensorboard: no event file ({error})")
            return None
        return SummaryWriter(str(folder), purge_step=first + 1 if first else None)

    def scalars(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Record named numbers of a step."""
        for name, value in values.items():
            self.writer.writerow((step, split, name, repr(float(value))))
            if self.tensorboard is not None:
                self.tensorboard.add_scalar(f"{split}/{name}", value, step)
        self.csv.flush()

    def progress(self, step: int, values: Mapping[str, float], gaussians: int) -> None:
        """Move the bar; `values` are averaged over time for display only."""
        for name, value in values.items():
            if math.isfinite(value):
                before = self.averages.get(name, value)
                self.averages[name] = SMOOTHING * before + (1.0 - SMOOTHING) * value
        shown = {name: f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}" for name, value in self.averages.items()}
        shown["gaussians"] = str(gaussians)
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update(step - self.step)
        self.step = step
        now = time.monotonic()
        if not self.terminal and not self.quiet and now - self.spoke >= PLAIN_EVERY:
            self.spoke = now
            rate = (step - self.started[1]) / max(now - self.started[0], 1e-9)
            left = (self.total - step) / max(rate, 1e-9)
            terms = ", ".join(f"{name} {value}" for name, value in shown.items())
            self.say(f"step {step}/{self.total}, {rate:.1f} it/s, {left:.0f} s left, {terms}")

    def say(self, line: str) -> None:
        """One line for people, without tearing the bar."""
        if not self.quiet:
            self.bar.write(line, file=sys.stderr)

    def close(self) -> None:
        self.bar.close()
        self.csv.close()
        if self.tensorboard is not None:
            self.tensorboard.close()


def keep_rows(path: Path, last: int) -> None:
    """Keep the header and the rows up to step `last`; make the file if there is none.

    What a power cut left at its end (half a row, zeros) is dropped.
    """
    rows: list[list[str]] = []
    if path.is_file() and last:
        text = path.read_bytes().decode("utf-8", "replace").replace("\0", "")
        rows = [row for row in csv.reader(text.splitlines()) if len(row) == 4 and is_step(row[0], last)]
    with atomic_file(path, "w") as file:
        csv.writer(file, lineterminator="\n").writerows([list(CSV_FIELDS), *rows])


def is_step(text: str, last: int) -> bool:
    return text.isascii() and text.isdigit() and int(text) <= last
