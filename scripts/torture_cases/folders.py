"""R1: run folders that are in use, were left by a dead process, can't be written, or are no folders."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from scripts.torture_cases.case import Box, Case, Command, Refused, Works

HOLD = """
import fcntl, os, sys, time
file = open(sys.argv[1], "a+")
fcntl.flock(file, fcntl.LOCK_EX)
os.pwrite(file.fileno(), f"process {os.getpid()} on {os.uname().nodename}".encode(), 0)
print("held", flush=True)
time.sleep(60)
"""
TAKEN_OVER = Works(lambda box, errors: owned(box), "the lock of a process that is gone does not count")


def holder(lock: Path) -> subprocess.Popen[bytes]:
    """A process that holds the lock as a training run does."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdout=subprocess.PIPE)
    if process.stdout is None or process.stdout.readline() != b"held\n":
        raise RuntimeError("the process that should hold the lock did not start")
    return process


def owned(box: Box) -> str:
    """The lock names this process, or the one that has ended."""
    text = (box.out / ".lock").read_text()
    return "" if text.startswith("process ") and "elsewhere" not in text else f"the lock says {text!r}"


def in_use(box: Box, make: Callable[[Box], Command], folder: Path) -> Command:
    process = holder(folder / ".lock")

    def release() -> None:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()

    box.held.append(release)
    return make(box)


def dead(box: Box) -> Command:
    """A run that was killed: its lock file is still there."""
    process = holder(box.out / ".lock")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()
    return box.train()


def left(text: str) -> Callable[[Box], Command]:
    """A lock file that nobody holds."""

    def prepare(box: Box) -> Command:
        box.out.mkdir()
        (box.out / ".lock").write_text(text)
        return box.train()

    return prepare


def same_process(box: Box) -> Command:
    box.out.mkdir()
    descriptor = os.open(box.out / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    os.write(descriptor, b"process 7 on this machine")
    box.held.append(lambda: os.close(descriptor))
    return box.train()


def odd_lock(make: Callable[[Path], object]) -> Callable[[Box], Command]:
    def prepare(box: Box) -> Command:
        box.out.mkdir()
        make(box.out / ".lock")
        return box.train()

    return prepare


def cases(seed: int) -> Iterator[Case]:
    """All cases of the row."""
    busy = Refused((r"process \d+ on ",), (3,))
    yield Case("R1", "another process trains here", lambda box: in_use(box, Box.train, box.out), busy)
    yield Case(
        "R1",
        "another process trains, --overwrite",
        lambda box: in_use(box, lambda b: b.train("--overwrite", out=b.run), box.run),
        busy,
        trained=True,
    )
    yield Case(
        "R1", "another process trains, --resume", lambda box: in_use(box, Box.resume, box.run), busy, trained=True
    )
    yield Case("R1", "this process trains here already", same_process, Refused(("process 7",), (3,)))
    yield Case("R1", "the lock of a killed process", dead, TAKEN_OVER)
    yield Case("R1", "the lock of another machine", left("process 1 on elsewhere"), TAKEN_OVER)
    yield Case("R1", "an empty lock", left(""), TAKEN_OVER)
    yield Case("R1", "a lock of junk", left("\0\xff" * 500), TAKEN_OVER)
    yield Case("R1", "the lock is a folder", odd_lock(Path.mkdir), Refused((r"out",), (3,)))
    yield Case("R1", "the lock links to a file elsewhere", linked_lock, Refused(("out",), (3,)))
    yield Case(
        "R1",
        "the folder can't be written",
        lambda box: box.train(out=Path("/proc/self/mien")),
        Refused(("/proc/self/mien",), (3,)),
    )
    yield Case(
        "R1",
        "the folder can't be made",
        lambda box: box.train(out=Path("/dev/null/run")),
        Refused(("/dev/null/run",), (2, 3)),
    )
    yield Case("R1", "a file where the folder should be", file_there, Refused(("out", "file|no folder")))
    yield Case("R1", "a file where a parent should be", file_above, Refused(("out",), (2, 3)))
    yield Case("R1", "a link to nothing where the folder should be", link_there, Refused(("out",), (2, 3)))
    yield Case(
        "R1",
        "the folder already holds a run",
        lambda box: box.train(out=box.run),
        Refused(("already holds a run",)),
        trained=True,
    )


def linked_lock(box: Box) -> Command:
    """Opening the lock must not empty a file that it links to."""
    (box.root / "precious").write_text("of somebody else")
    box.out.mkdir()
    (box.out / ".lock").symlink_to(box.root / "precious")
    return box.train()


def file_there(box: Box) -> Command:
    box.out.write_text("notes")
    return box.train()


def file_above(box: Box) -> Command:
    box.out.write_text("notes")
    return box.train(out=box.out / "run")


def link_there(box: Box) -> Command:
    box.out.symlink_to(box.root / "nowhere" / "deep")
    return box.train()
