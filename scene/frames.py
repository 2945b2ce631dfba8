"""A dataset in memory: views, the frames made of them, and the order in which training visits them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from scene.image_store import PictureFile
from utils.contracts import Camera, Frame, Motion, Points
from utils.maths.random import generator


@dataclass(frozen=True)
class View:
    """What is known about a picture without decoding it."""

    camera: Camera  # for the picture as stored, after resizing
    timestep: int
    camera_index: int | None  # position of the camera in the calibration file
    camera_id: str  # its serial
    name: str  # stem of the picture file
    image: PictureFile
    mask: PictureFile | None
    flame_param: Path | None
    split: str  # train, val or test, as in the files


class Pictures(Protocol):
    """Decoded pictures by slot: `ImageStore`, or a copy of it on a GPU."""

    def planes(self, index: int, /) -> np.ndarray: ...
    def image(self, index: int, /) -> Tensor: ...
    def mask(self, index: int, /) -> Tensor | None: ...


class DevicePictures:
    """The bytes of some pictures on another device."""

    def __init__(self, store: Pictures, slots: set[int], device: torch.device | str) -> None:
        self._source = store
        self._planes = {slot: torch.from_numpy(store.planes(slot).copy()).to(device) for slot in sorted(slots)}

    def planes(self, index: int) -> np.ndarray:
        return self._source.planes(index)

    def image(self, index: int) -> Tensor:
        """float32 [3, H, W] in [0, 1] on the device."""
        return self._planes[index][:3].float().div_(255.0)

    def mask(self, index: int) -> Tensor | None:
        planes = self._planes[index]
        return planes[3:].float().div_(255.0) if len(planes) > 3 else None


class Split(Sequence[Frame]):
    """Frames of one split: `split[i]` makes a Frame from the image store."""

    def __init__(
        self,
        views: Sequence[View],
        slots: Sequence[int],
        store: Pictures,
        background: Tensor,
        device: torch.device | str = "cpu",
    ) -> None:
        self.views = tuple(views)
        self._slots = tuple(slots)  # positions in the store
        self._store = store
        self._background = background
        self._device = device

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, index: int) -> Frame:  # type: ignore[override]
        """The frame: image float32 [3, H, W] in [0, 1] (level / 255), mask [1, H, W] or None."""
        view, slot = self.views[index], self._slots[index]
        frame = Frame(
            camera=view.camera,
            image=self._store.image(slot),
            mask=self._store.mask(slot),
            background=self._background,
            timestep=view.timestep,
            camera_id=view.camera_id,
            name=view.name,
        )
        return frame if str(self._device) == "cpu" else frame.to(self._device)

    def to(self, device: torch.device | str, keep: str) -> Split:
        """The same frames, on `device`; the pictures are kept there as well unless `keep` is `cpu`."""
        on_cpu = keep == "cpu" or torch.device(device).type == "cpu"
        store = self._store if on_cpu else DevicePictures(self._store, set(self._slots), device)
        return Split(self.views, self._slots, store, self._background, device)

    def __iter__(self) -> Iterator[Frame]:
        return (self[i] for i in range(len(self)))

    @property
    def cameras(self) -> list[Camera]:
        return [view.camera for view in self.views]


@dataclass(frozen=True)
class Dataset:
    """Everything that a capture offers to training."""

    train: Split
    val: Split
    test: Split
    motion: Motion | None
    source: Path
    format: str
    fingerprint: str  # SHA-256 of the dataset's text and sizes; the same wherever the folder lies
    edition: str = ""  # of the face model that the motion is for; empty: unknown
    sequence_starts: tuple[int, ...] = (0,)  # first timestep of each recorded sequence (unions have several)
    points: Points | None = None  # where an unbound scene starts from
    notes: tuple[str, ...] = ()  # what a user should know about how this was read

    def splits(self) -> dict[str, Split]:
        return {"train": self.train, "val": self.val, "test": self.test}


def background_colour(white: bool) -> Tensor:
    """[3] in [0, 1]."""
    return torch.full((3,), 1.0 if white else 0.0)


@lru_cache(maxsize=8)
def order(seed: int, epoch: int, n: int) -> np.ndarray:
    """The permutation of range(n) in which `epoch` visits the frames; a pure function, so resuming needs no state."""
    if n < 1:
        raise ValueError("order of no frames")
    permutation = generator(seed, "frame order", epoch).permutation(n)
    permutation.flags.writeable = False
    return permutation


def index_at(seed: int, step: int, n: int) -> int:
    """Which of n frames step `step` (from 0) looks at: epoch by epoch, each frame once per epoch."""
    return int(order(seed, step // n, n)[step % n])
