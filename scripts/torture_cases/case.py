"""What a case is: a fault put into a fresh copy of a tiny capture or run, and what the programs must make of it."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import metrics
import render
import train
from tests.tiny import write_tiny
from utils.errors import run_main

Main = Callable[[list[str]], "int | None"]
ITERATIONS, FIRST_CHECKPOINT = 3, 1
SCHEDULE = ["--iterations", str(ITERATIONS), "--checkpoint_iterations", str(FIRST_CHECKPOINT), "--threads", "1"]
PROGRAMS: dict[str, Main] = {"train.py": train.main, "render.py": render.main, "metrics.py": metrics.main}


@dataclass(frozen=True)
class Command:
    """What is run: `main(argv)`; `script` if the same can be done by a process of its own."""

    main: Main
    argv: list[str]
    script: str = ""


class Box:
    """A folder of its own with fresh inputs: `data/` (capture, head.pkl, masks.pkl), and `run/` if it was asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.data, self.capture = root / "data", root / "data" / "capture"
        self.head, self.masks = self.data / "head.pkl", self.data / "masks.pkl"
        self.run, self.out = root / "run", root / "out"
        self.avatar = self.run / "point_cloud" / f"iteration_{ITERATIONS}"
        self.checkpoints = self.run / "checkpoints"
        self.held: list[Callable[[], object]] = []  # called when the case is over

    def newest(self, folder: Path | None = None) -> Path:
        """The checkpoint of the last iteration."""
        return (folder or self.run) / "checkpoints" / f"step_{ITERATIONS:07d}"

    def files(self) -> list[str]:
        """Flags that say where the inputs are; `--name=value`, so that a value may begin with a dash."""
        return [f"--source_path={self.capture}", f"--flame_model={self.head}"]

    def train(self, *more: str, out: Path | None = None) -> Command:
        flags = [
            *self.files(),
            f"--flame_masks={self.masks}",
            "--bind_to_mesh",
            "--eval",
            "--white_background",
            "--quiet",
            *SCHEDULE,
            f"--model_path={out or self.out}",
            *more,
        ]
        return Command(train.main, flags, "train.py")

    def resume(self, *more: str) -> Command:
        return self.train("--resume", *more, out=self.run)

    def render(self, *more: str) -> Command:
        flags = [*self.files(), f"--flame_masks={self.masks}", "--quiet", "--threads=1", f"--model_path={self.run}"]
        return Command(render.main, [*flags, *more], "render.py")

    def metrics(self, *more: str) -> Command:
        return Command(metrics.main, [f"--model_path={self.run}", "--quiet", *more], "metrics.py")


@dataclass(frozen=True)
class Refused:
    """One error line that matches every pattern of `words`, one of `codes`, and nothing written."""

    words: tuple[str, ...]
    codes: tuple[int, ...] = (2,)
    writes: bool = False  # a run that had begun may have written; `check` then looks at what
    check: Callable[[Box, str], str] | None = None  # what is wrong with the box and stderr afterwards; "" = nothing


@dataclass(frozen=True)
class Works:
    """Exit code 0, no error line, and `check` finds nothing wrong."""

    check: Callable[[Box, str], str] = lambda box, errors: ""
    why: str = ""  # where it is documented that this works
    decoder_may_complain: bool = False
    chatty: bool = False  # the program runs without --quiet


@dataclass(frozen=True)
class Either:
    """A fault that need not be detectable: refused, or the result is exactly the right one."""

    refused: Refused
    works: Works


Expected = Refused | Works | Either


@dataclass(frozen=True)
class Case:
    """A fault and what must come of it."""

    row: str
    name: str
    spoil: Callable[[Box], Command]
    expected: Expected
    trained: bool = False  # needs `run/`
    seconds: float = 5.0  # limit

    @property
    def id(self) -> str:
        return f"{self.row} {self.name}"


class Templates:
    """The intact inputs, made once, and copies of them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        self.intact = Box(folder / "intact")
        write_tiny(self.intact.data)
        self.made_run = False

    def box(self, trained: bool) -> Box:
        """A fresh copy."""
        self.count += 1
        root = self.folder / f"case{self.count}"
        shutil.copytree(self.intact.data, root / "data")
        if trained:
            self.make_run()
            shutil.copytree(self.intact.run, root / "run")
        return Box(root)

    def make_run(self) -> None:
        """Train and render the intact run, once."""
        if self.made_run:
            return
        command = self.intact.train(out=self.intact.run)
        for main, argv in ((command.main, command.argv), (render.main, self.intact.render().argv)):
            code = run_main(main, argv)
            if code:
                raise RuntimeError(f"the intact inputs end with exit code {code}; nothing can be tested")
        self.made_run = True


def state_digest(folder: Path) -> str:
    """SHA-256 of what training leaves in a run folder: the last avatar and the whole optimiser state."""
    digest = hashlib.sha256()
    for path in (
        f"point_cloud/iteration_{ITERATIONS}/point_cloud.ply",
        f"checkpoints/step_{ITERATIONS:07d}/state.safetensors",
    ):
        digest.update((folder / path).read_bytes())
    return digest.hexdigest()


def cut(path: Path, size: int) -> None:
    """Keep the first `size` bytes."""
    path.write_bytes(path.read_bytes()[:size])


def flip(path: Path, bit: int) -> None:
    """Turn one bit over."""
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(bytes(data))


def spread(size: int, count: int) -> list[int]:
    """`count` lengths from 0 to `size` - 1, evenly, the ends included, none twice."""
    return sorted({round(i * (size - 1) / max(count - 1, 1)) for i in range(count)})
