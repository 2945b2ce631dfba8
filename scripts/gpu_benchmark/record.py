"""What was measured on which machine: a table on the terminal, and two files that are whole after every section."""

from __future__ import annotations

import platform
import re
import subprocess
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from scripts.gpu_benchmark.targets import verdict
from utils.engine.device import Device
from utils.io.atomic import atomic_file, write_json

ROOT = Path(__file__).resolve().parent.parent.parent
COMMAND_SECONDS = 10.0
HEADER = ("scene", "what", "ours, ms", "5 to 95 %", "gsplat, ms", "times faster", "target", "how")


@dataclass
class Row:
    """One figure. `who`: `ours`, `gsplat`, or empty for a fact that is no time."""

    section: str
    scene: str
    gaussians: int
    what: str
    who: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    calls: int = 0
    note: str = ""
    target: str = ""


@dataclass
class Record:
    """Everything that is known so far; `save` writes it."""

    facts: Mapping[str, Any]
    folder: Path | None  # None: nothing is written
    rows: list[Row] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)  # sections that were skipped or failed, and why
    stem: str = ""

    def add(self, row: Row) -> None:
        self.rows.append(row)

    def remark(self, line: str) -> None:
        self.remarks.append(line)

    def rival_of(self, row: Row) -> float | None:
        """gsplat's milliseconds for the same thing."""
        found = [r.value for r in self.rows if (r.who, r.scene, r.what) == ("gsplat", row.scene, row.what)]
        return found[0] if found else None

    def judge(self) -> None:
        """Put the targets beside the figures: gsplat's may have come after ours."""
        for row in self.rows:
            if row.who == "ours" and row.unit == "ms":
                row.target = verdict(row.what, row.gaussians, row.value, self.rival_of(row)) or row.target

    def save(self) -> list[Path]:
        """Write JSON and Markdown, each whole or not at all."""
        self.judge()
        if self.folder is None:
            return []
        self.stem = self.stem or free_stem(self.folder, str(self.facts["gpu"]))
        paths = [self.folder / f"{self.stem}.{kind}" for kind in ("json", "md")]
        body = {"facts": self.facts, "rows": [asdict(row) for row in self.rows], "remarks": self.remarks}
        write_json(paths[0], body)
        with atomic_file(paths[1], "w") as file:
            file.write("\n".join(self.markdown()) + "\n")
        return paths

    def cells(self) -> list[tuple[str, ...]]:
        """Times side by side, ours and gsplat's, in the order of HEADER."""
        lines = []
        for row in self.rows:
            if row.unit != "ms":
                continue
            if row.who == "gsplat" and any(
                (r.scene, r.what, r.who) == (row.scene, row.what, "ours") for r in self.rows
            ):
                continue
            rival = row.value if row.who == "gsplat" else self.rival_of(row)
            ours = row.value if row.who == "ours" else None
            spread = "" if row.low is None or row.high is None else f"{row.low:.3f} to {row.high:.3f}"
            faster = "" if ours is None or rival is None else f"{rival / ours:.2f}"
            lines.append((row.scene, row.what, number(ours), spread, number(rival), faster, row.target, row.note))
        return lines

    def markdown(self) -> list[str]:
        facts = [f"| {name} | {value} |" for name, value in self.facts.items()]
        others = [f"* {r.scene}: {r.what}: {r.value:g} {r.unit}{tail(r)}" for r in self.rows if r.unit != "ms"]
        table = ["| " + " | ".join(line) + " |" for line in (HEADER, ("---",) * len(HEADER), *self.cells())]
        title = f"# {self.facts['gpu']}, {self.facts['date']}"
        return [title, "", "| | |", "|---|---|", *facts, "", "Times are medians over blocks of calls.", "", *table, "",
                *others, "", *(f"* {line}" for line in self.remarks)]  # fmt: skip

    def text(self) -> str:
        """The same for a terminal."""
        cells = [HEADER, *self.cells()]
        widths = [max(len(line[i]) for line in cells) for i in range(len(HEADER))]
        table = ["  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip()
                 for line in cells]  # fmt: skip
        facts = [f"{name}: {value}" for name, value in self.facts.items()]
        others = [f"{r.scene}: {r.what}: {r.value:g} {r.unit}{tail(r)}" for r in self.rows if r.unit != "ms"]
        return "\n".join([*facts, "", *table, "", *others, *self.remarks])


def tail(row: Row) -> str:
    parts = [part for part in (row.note, row.target) if part]
    return f" ({'; '.join(parts)})" if parts else ""


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def machine_facts(device: Device) -> dict[str, Any]:
    """What figures depend on."""
    from diff_gaussian_rasterization import isa_name

    gpu = "emulated on the CPU: no figure says anything about a GPU"
    more: dict[str, Any] = {}
    if device.kind == "cuda":
        card = torch.cuda.get_device_properties(device.torch)
        gpu = card.name
        more = {"GPU memory": f"{card.total_memory / 2**30:.1f} GiB", "multiprocessors": card.multi_processor_count,
                "compute capability": f"{card.major}.{card.minor}", "driver": driver()}  # fmt: skip
    processor = f"{platform.processor() or platform.machine()}, {isa_name()}"
    return {"gpu": gpu, **more, "CUDA of PyTorch": torch.version.cuda, "PyTorch": torch.__version__,
            "Python": platform.python_version(), "commit": commit(), "CPU": processor,
            "date": time.strftime("%Y-%m-%d", time.gmtime())}  # fmt: skip


def driver() -> str:
    """The version of the NVIDIA driver."""
    said = output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return said.splitlines()[0].strip() if said else "unknown (nvidia-smi says nothing)"


def commit() -> str:
    """The commit of this checkout, and whether files differ from it."""
    found = output("git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD").strip()
    changed = output("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no").strip()
    return f"{found}{' with changes' if changed else ''}" if found else "unknown (no git, or no repository)"


def output(*command: str) -> str:
    """What a program prints; empty if it isn't there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def free_stem(folder: Path, gpu: str) -> str:
    """`gpu-<name>-<date>`, with a letter if a file of that name is there."""
    name = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    stem = f"gpu-{name}-{time.strftime('%Y-%m-%d', time.gmtime())}"
    taken = {path.stem for path in folder.glob(f"{stem}*")}
    return next(stem + tail for tail in ["", *map(chr, range(ord("b"), ord("z") + 1))] if stem + tail not in taken)
