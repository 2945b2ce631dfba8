"""A dataset in memory: views, the frames made of them, and the order in which training visits them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scene.device_pictures import DevicePictures, Host, Pictures, choose_pictures
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


@dataclass(frozen=True)
class FrameTables:
    """What a captured step reads of its frames by row: row i belongs to the i-th frame of a split."""

    world_to_camera: Tensor  # [n, 4, 4]
    intrinsics: Tensor  # [n, 3, 3] pixels
    backgrounds: Tensor  # [n, 3]
    timesteps: Tensor  # [n] int64
    sizes: tuple[tuple[int, int], ...]  # (width, height) of each
    planes: tuple[tuple[float, float], ...]  # (near, far) of each, metres


class Split(Sequence[Frame]):
    """Frames of one split: `split[i]` makes a Frame from the image store."""

    def __init__(
        self,
        views: Sequence[View],
        slots: Sequence[int],
        store: Pictures,
        background: Tensor,
        note: str = "",
    ) -> None:
        self.views = tuple(views)
        self.note = note  # for the log: who makes pictures of bytes, and where they lie
        self._slots = tuple(slots)  # positions in the store
        self._store = store
        self._background = background

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, index: int) -> Frame:  # type: ignore[override]
        """The frame: image float32 [3, H, W] in [0, 1] (level / 255), mask [1, H, W] or None."""
        view, slot = self.views[index], self._slots[index]
        return Frame(
            camera=view.camera,
            image=self._store.image(slot),
            mask=self._store.mask(slot),
            background=self._background,
            timestep=view.timestep,
            camera_id=view.camera_id,
            name=view.name,
        )

    def on(self, device: Host, keep: str = "auto", views: int = 1) -> Split:
        """The same frames on a device: cameras, and pictures as `scene.device_pictures.choose_pictures` says.

        Args:
            keep: `--data_device`. views: pictures of a step.

        Raises:
            EnvironmentFault: the pictures must be kept on the device and don't fit.
        """
        store, note = choose_pictures(self._store, self._slots, device, keep, views)
        if device.torch.type == "cpu":
            return Split(self.views, self._slots, store, self._background, note)
        tables = self._stacked(device.torch)  # in one copy: thousands of small ones take seconds
        cameras = [replace(view.camera, world_to_camera=pose, intrinsics=matrix)
                   for view, pose, matrix in zip(self.views, *tables, strict=True)]  # fmt: skip
        moved = [replace(view, camera=camera) for view, camera in zip(self.views, cameras, strict=True)]
        return Split(moved, self._slots, store, self._background.to(device.torch), note)

    def _stacked(self, device: torch.device) -> tuple[Tensor, Tensor]:
        cameras = self.cameras
        poses = torch.stack([camera.world_to_camera for camera in cameras])
        return poses.to(device), torch.stack([camera.intrinsics for camera in cameras]).to(device)

    @property
    def tables(self) -> FrameTables:
        """Cameras, backgrounds and timesteps as tables on the device of the frames."""
        device, count = self._background.device, len(self)
        return FrameTables(
            *self._stacked(device),
            backgrounds=self._background.expand(count, 3).contiguous(),
            timesteps=torch.tensor([view.timestep for view in self.views], device=device),
            sizes=tuple((view.camera.width, view.camera.height) for view in self.views),
            planes=tuple((view.camera.near, view.camera.far) for view in self.views),
        )

    @property
    def block(self) -> Tensor:
        """uint8 [bytes] on the device, in which the pictures of staged frames lie; it never moves."""
        return self._on_device().block

    def stage(self, rows: Sequence[int]) -> list[int]:
        """Where in `block` the planes (R, G, B, then the matte if there is one) of these frames begin, for work put on
        the current stream from now until the next call."""
        return self._on_device().stage([self._slots[row] for row in rows])

    def ahead(self, rows: Sequence[int]) -> None:
        """Say which frames will be wanted next: their pictures are copied while the device computes."""
        if isinstance(self._store, DevicePictures):
            self._store.ahead([self._slots[row] for row in rows])

    def _on_device(self) -> DevicePictures:
        if not isinstance(self._store, DevicePictures):
            raise LookupError("these frames are on no device")
        return self._store

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
