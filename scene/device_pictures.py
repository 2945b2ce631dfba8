"""Decoded pictures for a GPU: all of their bytes there from the start, or a few at a time, copied ahead of use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from scene.image_store import choose_conversion
from utils.errors import EnvironmentFault

ALIGNMENT = 256  # bytes: kernels read planes in pieces of 16
RESERVE = 4 << 30  # bytes of a GPU that pictures leave for Gaussians and what drawing them takes; at most half of it
SPARE = 4  # pictures beside those of this step and the next one: losses look at neighbours


class Pictures(Protocol):
    """Decoded pictures by slot."""

    def planes(self, index: int, /) -> np.ndarray: ...
    def image(self, index: int, /) -> Tensor: ...
    def mask(self, index: int, /) -> Tensor | None: ...
    def address(self, index: int, /) -> int: ...


class Host(Protocol):
    """A device, as `utils.engine.device.Device`."""

    @property
    def name(self) -> str: ...
    @property
    def torch(self) -> torch.device: ...
    @property
    def accelerated(self) -> bool: ...
    def free_bytes(self) -> int | None: ...


class DevicePictures:
    """Pictures of which some or all lie in `block` on a device: uint8 planes R, G, B and the matte, if there is one.

    `block` is never moved: a captured step may keep its address.
    """

    block: Tensor  # uint8 [bytes]

    def __init__(self, store: Pictures, slots: Sequence[int], device: torch.device) -> None:
        self.source, self.device = store, device
        self.shapes = {slot: store.planes(slot).shape for slot in sorted(set(slots))}
        self.as_float, self.how = choose_conversion(device)

    def planes(self, index: int) -> np.ndarray:
        """uint8 [3 or 4, H, W] in memory."""
        return self.source.planes(index)

    def image(self, index: int) -> Tensor:
        """float32 [3, H, W] in [0, 1] on the device."""
        return self._use(index, slice(0, 3))

    def mask(self, index: int) -> Tensor | None:
        """float32 [1, H, W] in [0, 1] on the device, or None without a matte."""
        return self._use(index, slice(3, 4)) if self.shapes[index][0] > 3 else None

    def address(self, index: int) -> int:
        """Where the planes of a picture lie on the device.

        Raises:
            LookupError: they are not there at the moment.
        """
        return self.block.data_ptr() + self.offset(index)

    def offset(self, index: int) -> int:
        """The same, counted from the start of `block`."""
        raise NotImplementedError

    def stage(self, slots: Sequence[int]) -> list[int]:
        """Offsets of pictures in `block`, for work put on the current stream from now until the next `stage`."""
        raise NotImplementedError

    def ahead(self, slots: Sequence[int]) -> None:
        """Say which pictures will be wanted next."""

    def _use(self, index: int, planes: slice) -> Tensor:
        shape, start = self.shapes[index], self.offset(index)
        return self.as_float(self.block[start : start + int(np.prod(shape))].view(shape)[planes])


class ResidentPictures(DevicePictures):
    """All bytes on the device."""

    def __init__(self, store: Pictures, slots: Sequence[int], device: torch.device) -> None:
        super().__init__(store, slots, device)
        sizes = [aligned(int(np.prod(shape))) for shape in self.shapes.values()]
        starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64).tolist()
        self.offsets = dict(zip(self.shapes, starts, strict=False))
        self.block = torch.empty(starts[-1], dtype=torch.uint8, device=device)
        for slot, start in self.offsets.items():
            planes = torch.from_numpy(np.array(store.planes(slot)).reshape(-1))
            self.block[start : start + len(planes)].copy_(planes)

    def offset(self, index: int) -> int:
        return self.offsets[index]

    def stage(self, slots: Sequence[int]) -> list[int]:
        return [self.offsets[slot] for slot in slots]


@dataclass
class Berth:
    """Room for one picture on the device, and what has to happen before it may be used for another."""

    offset: int
    slot: int | None = None
    copied: Any = None  # mark behind the copy that filled it
    used: Any = None  # mark behind the last work that reads it


class StreamedPictures(DevicePictures):
    """Room for some pictures on the device; `ahead` copies the next ones while the current step is computed.

    Args:
        views: pictures that are staged together at most.
    """

    def __init__(self, store: Pictures, slots: Sequence[int], device: torch.device, views: int = 1) -> None:
        super().__init__(store, slots, device)
        self.stride = aligned(max(int(np.prod(shape)) for shape in self.shapes.values()))
        self.berths = [Berth(self.stride * place) for place in range(2 * views + SPARE)]  # least recently used first
        self.views, self.held = views, set[int]()
        self.lane = CudaLane(device) if device.type == "cuda" else HostLane()
        size = self.stride * len(self.berths)
        self.block = torch.empty(size, dtype=torch.uint8, device=device)
        self.staging = torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
        for berth in self.berths:  # the allocator may give memory that queued work has yet to read
            berth.used = self.lane.mark()

    def offset(self, index: int) -> int:
        for berth in self.berths:
            if berth.slot == index:
                return berth.offset
        raise LookupError(f"picture {index} is not on the device")

    def stage(self, slots: Sequence[int]) -> list[int]:
        if len(set(slots)) > self.views:
            raise ValueError(f"{len(set(slots))} pictures wanted at once, room was made for {self.views}")
        mark = self.lane.mark()  # what was staged before has been read by the work that is queued by now
        for berth in self.berths:
            if berth.slot in self.held:
                berth.used = mark
        self.held = set(slots)
        for slot in slots:
            self.lane.wait(self._fetch(slot).copied)
        return [self.offset(slot) for slot in slots]

    def ahead(self, slots: Sequence[int]) -> None:
        for slot in slots:
            self._fetch(slot)

    def _use(self, index: int, planes: slice) -> Tensor:
        berth = self._fetch(index)
        self.lane.wait(berth.copied)
        values = super()._use(index, planes)
        berth.used = self.lane.mark()
        return values

    def _fetch(self, slot: int) -> Berth:
        """The berth of a picture, which is being copied there if it isn't yet."""
        for berth in self.berths:
            if berth.slot == slot:
                break
        else:
            berth = next(berth for berth in self.berths if berth.slot not in self.held)
            self._fill(berth, slot)
        self.berths.remove(berth)
        self.berths.append(berth)
        return berth

    def _fill(self, berth: Berth, slot: int) -> None:
        self.lane.finish(berth.copied)  # the staging bytes may still be on their way
        planes = np.asarray(self.source.planes(slot)).reshape(-1)
        part = slice(berth.offset, berth.offset + len(planes))
        self.staging[part].numpy()[:] = planes
        berth.copied = self.lane.copy(self.block[part], self.staging[part], berth.used)
        berth.slot, berth.used = slot, None


class CudaLane:
    """Copies on a stream of their own, beside the work of the current one."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)

    def mark(self) -> Any:
        """A mark behind what the current stream holds."""
        return torch.cuda.current_stream(self.device).record_event()

    def copy(self, to: Tensor, pinned: Tensor, after: Any) -> Any:
        """Begin a copy that waits for a mark; returns a mark behind it."""
        with torch.cuda.stream(self.stream):
            if after is not None:
                self.stream.wait_event(after)
            to.copy_(pinned, non_blocking=True)
            return self.stream.record_event()

    def wait(self, mark: Any) -> None:
        """The current stream goes on behind the mark; the CPU doesn't wait."""
        torch.cuda.current_stream(self.device).wait_event(mark)

    def finish(self, mark: Any) -> None:
        """The CPU waits for the mark."""
        if mark is not None:
            mark.synchronize()


class HostLane:
    """The same where there are no streams: a copy is done when it returns."""

    def mark(self) -> Any:
        return None

    def copy(self, to: Tensor, pinned: Tensor, after: Any) -> Any:
        to.copy_(pinned)

    def wait(self, mark: Any) -> None:
        """All copies are done."""

    def finish(self, mark: Any) -> None:
        """All copies are done."""


def aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def choose_pictures(
    store: Pictures, slots: Sequence[int], device: Host, keep: str, views: int = 1
) -> tuple[Pictures, str]:
    """Pictures for a device, and a line for the log.

    Args:
        slots: those that are wanted. keep: `auto`, `cuda` or `cpu`, see `--data_device`. views: of a step.

    Raises:
        EnvironmentFault: `cuda`, and they don't fit.
    """
    if not device.accelerated:
        return store, choose_conversion(device.torch)[1]
    needed = sum(aligned(store.planes(slot).size) for slot in set(slots))
    free = device.free_bytes()
    reserve = 0 if free is None else min(RESERVE, free // 2)
    room = "" if free is None else f"{megabytes(free)} are free, of which {megabytes(reserve)} are kept for Gaussians"
    fits = free is None or needed <= free - reserve
    count = f"{len(set(slots))} pictures, {megabytes(needed)}"
    if keep == "cuda" and not fits:
        raise EnvironmentFault(f"--data_device cuda: {count} don't fit on {device.name}: {room}. Give --data_device "
                               "auto, or smaller pictures (--resolution)")  # fmt: skip
    if keep != "cpu" and fits:
        resident = ResidentPictures(store, slots, device.torch)
        return resident, f"{resident.how}; {count}, kept on {device.name}"
    streamed = StreamedPictures(store, slots, device.torch, views)
    why = "as --data_device cpu asks" if keep == "cpu" else room
    return streamed, f"{streamed.how}; {count}, copied to {device.name} as they are needed ({why})"


def megabytes(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
