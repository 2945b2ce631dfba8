"""What a processor can do at most: instructions and bytes a second."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

MB = 1 << 20
SIZES = (1 * MB, 8 * MB, 64 * MB, 256 * MB)  # of the memory walked over: in and out of the caches
LEAST_SCALING = 0.8  # of perfect, for arithmetic alone

Rates = Mapping[int, Mapping[int, float]]  # threads -> bytes of memory in use -> bytes a second


@dataclass(frozen=True)
class Work:
    """What a stage cannot do without."""

    instructions: float = 0.0  # vector instructions of 16 lanes
    read: float = 0.0  # bytes
    written: float = 0.0  # bytes; to write a cache line is to read it and to write it back
    footprint: float = 0.0  # bytes that are met before the same one is met again: says which cache it comes from


@dataclass(frozen=True)
class Machine:
    """All rates are those of all threads together."""

    name: str
    instructions: Mapping[int, float]  # threads -> vector instructions of 16 lanes a second
    read: Rates
    update: Rates  # bytes a second that are read and written back; each counts once

    def seconds(self, work: Work, threads: int) -> float:
        """The least time that the work takes: instructions and memory, one after the other."""
        used = max((known for known in self.instructions if known <= threads), default=min(self.instructions))
        size = min(SIZES, key=lambda size: abs(math.log(size / max(work.footprint, 1.0))))
        memory = work.read / self.read[used][size] + work.written / self.update[used][size]
        return work.instructions / self.instructions[used] + memory


def _reference() -> Machine:
    """The two-core Zen 5 of the goals: its measured peaks for two threads; half of that for one."""
    read = dict(zip(SIZES, (298e9, 197e9, 74e9, 53e9), strict=True))
    by_threads = {threads: {size: rate * threads / 2 for size, rate in read.items()} for threads in (1, 2)}
    update = {threads: {size: rate / 2 for size, rate in rates.items()} for threads, rates in by_threads.items()}
    return Machine("Zen 5, 4 GHz, AVX-512", {1: 12.25e9, 2: 24.5e9}, by_threads, update)


REFERENCE = _reference()


def measure(thread_counts: Sequence[int], seconds: float = 0.015) -> Machine:
    """The rates of this machine at this moment, with the instruction set in use."""
    from diff_gaussian_rasterization import isa_name
    from diff_gaussian_rasterization.calibrate import calibrate

    rates = {threads: calibrate(SIZES, threads, seconds) for threads in sorted(set(thread_counts))}
    return Machine(
        f"{processor()}, {isa_name()}",
        {threads: found.instructions for threads, found in rates.items()},
        {threads: dict(zip(SIZES, found.reads, strict=True)) for threads, found in rates.items()},
        {threads: dict(zip(SIZES, found.updates, strict=True)) for threads, found in rates.items()},
    )


def fastest(machines: Sequence[Machine]) -> Machine:
    """What the machine can do without its neighbours, from measurements at several moments.

    The best of all; and what a thread reaches alone, or in more memory, it can do with help, or in less memory, too.
    """
    counts = sorted(machines[0].instructions)

    def best(of: list[Rates], threads: int, size: int) -> float:
        return max(rates[t][s] for rates in of for t in counts if t <= threads for s in SIZES if s >= size)

    read, update = [machine.read for machine in machines], [machine.update for machine in machines]
    return Machine(
        machines[0].name,
        {t: max(machine.instructions[u] for machine in machines for u in counts if u <= t) for t in counts},
        {t: {size: best([*read, *update], t, size) for size in SIZES} for t in counts},
        {t: {size: best(update, t, size) for size in SIZES} for t in counts},
    )


def held_back(machine: Machine) -> str:
    """A warning if several threads never had as many cores to themselves; empty if they had."""
    alone = machine.instructions.get(1)
    for threads, rate in machine.instructions.items():
        if alone and rate < LEAST_SCALING * threads * alone:
            found = f"{threads} threads never got more than {rate / alone:.1f} times what one has"
            return f"{found}: other jobs hold the cores; times of several threads, and their bounds, say little"
    return ""


def processor() -> str:
    """What the system calls its processor, and how many of its cores this process may use."""
    names = [line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{names[0] if names else 'unknown processor'} ({cores} cores)"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []


def describe(machine: Machine) -> str:
    """Its rates, in one line."""
    parts = []
    for threads, rate in machine.instructions.items():
        reads = "/".join(f"{machine.read[threads][size] / 1e9:.0f}" for size in SIZES)
        updates = "/".join(f"{machine.update[threads][size] / 1e9:.0f}" for size in SIZES)
        parts.append(f"{threads} thread{'s' if threads > 1 else ''}: {rate / 1e9:.1f} G instructions/s, "
                     f"{reads} GB/s read, {updates} GB/s updated")  # fmt: skip
    return f"{machine.name}; {'; '.join(parts)} (in {'/'.join(str(size // MB) for size in SIZES)} MB)"
