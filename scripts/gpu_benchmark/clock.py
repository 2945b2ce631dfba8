"""Times on a device: what a caller sees, and what the kernels alone take."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from utils.engine.device import Device

WARM_UP, LEAST = 5, 3  # calls before the first that counts; blocks that must be measured whatever the limit
PROFILED = 20  # calls whose kernels are summed


Settle = Callable[[], object] | None  # what ends a block of calls beside waiting for the device


@dataclass(frozen=True)
class Times:
    """Milliseconds of a call: the median over blocks of calls, and their spread."""

    median: float
    low: float  # 5 % of the blocks are faster
    high: float  # 5 % are slower
    calls: int

    @staticmethod
    def of(seconds: list[float], calls: int) -> Times:
        low, median, high = (1e3 * float(np.percentile(seconds, q)) for q in (5, 50, 95))
        return Times(median, low, high, calls)


@dataclass(frozen=True)
class Clock:
    """A stopwatch for one device.

    Args:
        limit: seconds that one measurement may take. block: calls between two looks at the clock.
    """

    device: Device
    limit: float
    block: int = 20
    blocks: int = 30
    trace: bool = True  # False: leave out what `kernels` measures; tracing and compute-sanitizer exclude each other

    def wait(self) -> None:
        if self.device.kind == "cuda":
            torch.cuda.synchronize(self.device.torch)

    def wall(self, call: Callable[[], object], settle: Settle = None, block: int = 0) -> Times:
        """Calls one after another as a program makes them; the clock is read when the device is done with a block.

        Args:
            settle: what ends a block beside waiting for the device. block: 1 waits for every call by itself.
        """
        size, seconds = block or self.block, []
        for _ in range(WARM_UP):
            call()
        began = self.now(settle)
        gc.collect()
        collecting = gc.isenabled()
        gc.disable()
        try:
            last = began = self.now(settle)
            while len(seconds) < LEAST or (len(seconds) < self.blocks and last - began < self.limit):
                for _ in range(size):
                    call()
                now = self.now(settle)
                seconds.append((now - last) / size)
                last = now
        finally:
            if collecting:
                gc.enable()
        return Times.of(seconds, size * len(seconds))

    def now(self, settle: Settle) -> float:
        if settle is not None:
            settle()
        self.wait()
        return time.perf_counter()

    def kernels(self, call: Callable[[], object], settle: Settle = None) -> tuple[Times | None, str]:
        """What the kernels of a call take together, without the gaps between them; or None and why not.

        By the driver's tracing (CUPTI, through PyTorch's profiler), which sees the native library's kernels too. Where
        there is none: between two events around a block of calls, gaps included, which is said.
        """
        if self.device.kind != "cuda" or not self.trace:
            return None, "an emulated device has no kernel times" if self.trace else "not traced in a smoke run"
        for _ in range(WARM_UP):
            call()
        self.now(settle)
        try:
            each = [self.traced(call, settle) for _ in range(LEAST)]
        except (RuntimeError, AttributeError, ImportError) as error:
            return self.between_events(call, settle), f"between events, gaps included: no tracing here ({error})"
        if min(each) <= 0:
            return self.between_events(call, settle), "between events, gaps included: tracing saw no kernel"
        return Times.of(each, LEAST * PROFILED), "sum of kernel times"

    def traced(self, call: Callable[[], object], settle: Settle) -> float:
        """Seconds of all kernels, copies and fills of one call, mean over PROFILED."""
        from torch.autograd import DeviceType
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CUDA]) as trace:
            for _ in range(PROFILED):
                call()
            self.now(settle)
        there = [event for event in (trace.events() or []) if event.device_type == DeviceType.CUDA]
        kernels = [event for event in there if not getattr(event, "is_user_annotation", False)]
        return sum(event.time_range.elapsed_us() for event in kernels) * 1e-6 / PROFILED

    def between_events(self, call: Callable[[], object], settle: Settle) -> Times:
        seconds = []
        for _ in range(LEAST):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            for _ in range(self.block):
                call()
            end.record()
            self.now(settle)
            seconds.append(1e-3 * start.elapsed_time(end) / self.block)
        return Times.of(seconds, LEAST * self.block)
