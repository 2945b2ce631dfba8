"""Pictures and cameras of frames on a device: everything there, or a few pictures at a time. Streams are played by a
fake that delays every copy until somebody waits for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from scene import device_pictures
from scene.device_pictures import ResidentPictures, StreamedPictures, choose_pictures
from scene.frames import Split, View
from scene.image_store import ImageStore, Picture
from utils.contracts import Camera
from utils.errors import EnvironmentFault

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Pretended:
    """A GPU with so much memory, whose tensors lie on the CPU."""

    free: int | None
    name: str = "cuda:0"
    torch: torch.device = CPU
    accelerated: bool = True

    def free_bytes(self) -> int | None:
        return self.free


def make_store(count: int) -> ImageStore:
    """Pictures of 3 x 5 pixels, every second one with a matte; no two alike."""
    pictures = [Picture(Path(f"{i}"), Path("m") if i % 2 else None, (3, 5), (3, 5), 255) for i in range(count)]
    size = sum(picture.stored_bytes for picture in pictures)
    return ImageStore(np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8), pictures)


def same(pictures: object, store: ImageStore, slot: int) -> bool:
    mask, expected = pictures.mask(slot), store.mask(slot)  # type: ignore[attr-defined]
    alike = mask is None if expected is None else torch.equal(mask, expected)
    return alike and torch.equal(pictures.image(slot), store.image(slot))  # type: ignore[attr-defined]


def test_resident_pictures_are_the_stores() -> None:
    store = make_store(6)
    copy = ResidentPictures(store, [5, 1, 2, 1], CPU)
    assert all(same(copy, store, slot) for slot in (1, 2, 5))
    offsets = copy.stage([5, 1])
    assert all(offset % device_pictures.ALIGNMENT == 0 for offset in offsets)
    for slot, offset in zip((5, 1), offsets, strict=True):
        assert np.array_equal(copy.block[offset : offset + 60].numpy(), store.planes(slot).reshape(-1))
        assert copy.address(slot) == copy.block.data_ptr() + offset
    with pytest.raises(KeyError):
        copy.image(0)


def test_streamed_pictures_are_the_stores_in_any_order() -> None:
    store = make_store(20)
    copy = StreamedPictures(store, range(20), CPU, views=2)
    address = copy.block.data_ptr()
    assert len(copy.block) == (2 * 2 + device_pictures.SPARE) * device_pictures.ALIGNMENT
    order = np.random.default_rng(1).integers(0, 20, 200)
    assert all(same(copy, store, int(slot)) for slot in order)
    assert copy.block.data_ptr() == address
    with pytest.raises(ValueError, match="3 pictures wanted at once, room was made for 2"):
        copy.stage([1, 2, 3])
    with pytest.raises(LookupError):
        copy.address(next(slot for slot in range(20) if slot not in {berth.slot for berth in copy.berths}))


class LateLane:
    """A queue of work and a queue of copies. A copy is made when the work waits for it, and fails where it would have
    overwritten bytes that queued work reads."""

    def __init__(self) -> None:
        self.queued: list[Callable[[], None]] = []
        self.done = 0
        self.waiting: list[tuple[torch.Tensor, torch.Tensor, int]] = []

    def mark(self) -> int:
        return len(self.queued)

    def copy(self, to: torch.Tensor, pinned: torch.Tensor, after: int | None) -> int:
        self.waiting.append((to, pinned, after or 0))
        return -len(self.waiting)

    def wait(self, mark: int) -> None:
        to, pinned, after = self.waiting[-mark - 1]
        while self.done < after:  # what read the old bytes comes first
            self.queued[self.done]()
            self.done += 1
        to.copy_(pinned)

    def finish(self, mark: int | None) -> None:
        if mark is not None:
            self.wait(mark)


def test_bytes_stay_until_the_work_that_reads_them_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps stage two frames each and look ahead; their work is run as late as the marks allow."""
    lane, store, seen = LateLane(), make_store(30), []
    monkeypatch.setattr(device_pictures, "HostLane", lambda: lane)
    copy = StreamedPictures(store, range(30), CPU, views=2)
    random = np.random.default_rng(2)
    steps = [[int(a), int(b)] for a, b in random.integers(0, 30, (60, 2))]

    def work(step: int, offsets: list[int]) -> Callable[[], None]:
        sizes = [store.planes(slot).size for slot in steps[step]]
        return lambda: seen.append(
            (step, [copy.block[at : at + size].clone() for at, size in zip(offsets, sizes, strict=True)])
        )

    for step, slots in enumerate(steps):
        lane.queued.append(work(step, copy.stage(slots)))
        if step + 1 < len(steps):
            copy.ahead(steps[step + 1])
    for left in lane.queued[lane.done :]:
        left()
    assert [step for step, _ in seen] == list(range(60))
    for step, bytes_read in seen:
        for slot, found in zip(steps[step], bytes_read, strict=True):
            assert np.array_equal(found.numpy(), store.planes(slot).reshape(-1)), (step, slot)


def test_pictures_go_where_there_is_room() -> None:
    store, slots = make_store(8), list(range(8))
    size = 8 * device_pictures.ALIGNMENT
    kept, note = choose_pictures(store, slots, Pretended(2 * size), "auto")
    assert isinstance(kept, ResidentPictures) and "8 pictures, 0.0 MiB, kept on cuda:0" in note
    assert isinstance(choose_pictures(store, slots, Pretended(None), "auto")[0], ResidentPictures)
    moved, note = choose_pictures(store, slots, Pretended(2 * size - 2), "auto")  # half of it is kept for Gaussians
    assert isinstance(moved, StreamedPictures) and "as they are needed" in note and "kept for Gaussians" in note
    moved, note = choose_pictures(store, slots, Pretended(None), "cpu")
    assert isinstance(moved, StreamedPictures) and "as --data_device cpu asks" in note
    with pytest.raises(EnvironmentFault, match="--data_device cuda: 8 pictures, .* don't fit on cuda:0"):
        choose_pictures(store, slots, Pretended(size), "cuda")
    assert choose_pictures(store, slots, Pretended(size, accelerated=False), "cuda")[0] is store


def make_split(count: int) -> Split:
    store = make_store(count)
    views = []
    for i in range(count):
        pose, matrix = torch.eye(4) + 0.1 * i, torch.eye(3) + i
        views.append(View(Camera(pose, matrix, 3, 5), 7 * i, i, str(i), str(i), Path("a"), None, None, "train"))
    return Split(views, list(reversed(range(count))), store, torch.tensor([1.0, 0.5, 0.0]))


@pytest.mark.parametrize("keep", ["cuda", "cpu"])
def test_frames_on_a_device_are_the_same(keep: str) -> None:
    split = make_split(5)
    moved = split.on(Pretended(None), keep, views=2)
    for before, after in zip(split, moved, strict=True):
        assert torch.equal(before.image, after.image) and torch.equal(before.background, after.background)
        assert torch.equal(before.camera.world_to_camera, after.camera.world_to_camera)
        assert (before.name, before.timestep, before.mask is None) == (after.name, after.timestep, after.mask is None)
    moved.ahead([4])
    for row, offset in zip((4, 0), moved.stage([4, 0]), strict=True):
        planes = moved.block[offset : offset + 45].view(3, 5, 3).float() / 255
        assert torch.equal(planes, split[row].image)
    with pytest.raises(LookupError):
        split.stage([0])
    split.ahead([0])  # nothing to do


def test_tables_hold_the_frames_row_by_row() -> None:
    split = make_split(4)
    tables = split.tables
    for row, frame in enumerate(split):
        assert torch.equal(tables.world_to_camera[row], frame.camera.world_to_camera)
        assert torch.equal(tables.intrinsics[row], frame.camera.intrinsics)
        assert torch.equal(tables.backgrounds[row], frame.background)
        assert int(tables.timesteps[row]) == frame.timestep == 7 * row
        assert tables.sizes[row] == (3, 5) and tables.planes[row] == (frame.camera.near, frame.camera.far)
