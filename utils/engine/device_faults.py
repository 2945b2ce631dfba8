"""A GPU that refuses becomes one line: what ran out, with how many Gaussians, and which checkpoint to go on from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from utils.engine.checkpoint import newest_good
from utils.engine.device import Device, first_line
from utils.engine.run import CHECKPOINTS
from utils.errors import EnvironmentFault, InputError, device_refused, out_of_memory

ASKED = re.compile(r"Tried to allocate ([0-9.]+ [A-Za-z]+)|allocating ([0-9]+) bytes")
SMALLER = "a smaller --gaussian_budget, --batch_size or pictures (-r)"


@dataclass
class Work:
    """What is being done when the device refuses."""

    device: Device
    folder: Path | None = None  # of the run that is trained
    avatar: Sized | None = None  # as soon as there is one


@contextmanager
def naming_device_faults(device: Device, folder: Path | None = None, avatar: Sized | None = None) -> Iterator[Work]:
    """Turn a lack of memory, and refusals of a GPU, into an EnvironmentFault.

    Args:
        folder: the run that is trained; None: nothing is trained.
    """
    work = Work(device, folder, avatar)
    try:
        yield work
    except (RuntimeError, MemoryError) as error:
        if out_of_memory(error):
            raise EnvironmentFault(memory_line(work, error)) from error
        if device_refused(error):
            raise EnvironmentFault(f"{device.name}: {first_line(error)}. {left_behind(work)}".rstrip()) from error
        raise


def memory_line(work: Work, error: BaseException) -> str:
    """What ran out, and what to do."""
    facts = []
    if found := ASKED.search(str(error)):
        facts.append(f"asked for {found[1] or readable(int(found[2]))}")
    if work.device.kind != "cpu" and (free := free_bytes(work.device)) is not None:
        facts.append(f"{readable(free)} are free")
    if work.avatar is not None:
        facts.append(f"{len(work.avatar)} Gaussians")
    where = f"{work.device.name}: out of memory" + (f" ({', '.join(facts)})" if facts else "")
    if work.folder is None:
        return f"{where}. Give another --device, or smaller pictures"
    there = "--data_device cpu or another --device" if work.device.accelerated else "fewer other programs"
    how = f"with {there} go on with --resume; with {SMALLER} in a new folder, with --start_checkpoint"
    kept = left_behind(work)
    return f"{where}. {kept} {how[0].upper()}{how[1:]}" if newest(work) else f"{where}. {kept} Start with {SMALLER}"


def left_behind(work: Work) -> str:
    """A sentence about the last checkpoint; empty if nothing is trained."""
    if work.folder is None:
        return ""
    last = newest(work)
    return f"The last checkpoint is whole: {last}." if last else "There is no checkpoint yet."


def newest(work: Work) -> Path | None:
    """The newest checkpoint that verifies."""
    try:
        return newest_good(work.folder / CHECKPOINTS)[0] if work.folder else None
    except InputError:
        return None


def free_bytes(device: Device) -> int | None:
    """Free memory, or None where a broken device won't say."""
    try:
        return device.free_bytes()
    except RuntimeError:
        return None


def readable(size: int) -> str:
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{size / 2**10:.1f} KiB"
