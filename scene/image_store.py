"""Every picture is decoded once, before training, into one block of bytes: in memory, or mapped from a cache file."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from utils.errors import EnvironmentFault, InputError
from utils.io.atomic import atomic_file
from utils.io.images import RESAVE, blend, composite, read_image, replace_background, resize
from utils.io.video import VideoFrame, VideoReader

NATIVE = "diff_gaussian_rasterization.image"
AVAILABLE = "diff_gaussian_rasterization._device"
MAGIC = b"MIENIMG1"
DATA_OFFSET = 4096  # bytes: magic, SHA-256 of the recipe, total bytes, zeros
BACKGROUND_TOLERANCE = 3  # levels of 255
MIN_BACKGROUND_PIXELS = 16

Item = TypeVar("Item")
Result = TypeVar("Result")
PictureFile = Path | VideoFrame
Layers = tuple[np.ndarray, "np.ndarray | None"]  # a photograph [H, W, C] and its matte [H, W, 1], uint8


@dataclass(frozen=True)
class Picture:
    """A recipe for one stored picture. A mask that is the image itself means the alpha channel of that image."""

    image: PictureFile
    mask: PictureFile | None
    size: tuple[int, int]  # (width, height) that the files must have
    target: tuple[int, int]  # (width, height) to store
    background: int  # grey level, 0 or 255

    @property
    def pixels(self) -> int:
        return self.target[0] * self.target[1]

    @property
    def stored_bytes(self) -> int:
        """Three colour planes and, with a matte, one more."""
        return self.pixels * (4 if self.mask else 3)

    @property
    def videos(self) -> list[tuple[Path, bool]]:
        """The video files that it takes frames of, and whether as a matte."""
        files = ((self.image, False), (self.mask, True))
        return [(file.path, matte) for file, matte in files if isinstance(file, VideoFrame)]

    @property
    def frames(self) -> list[int]:
        """Which frames of these."""
        return [file.index for file in (self.image, self.mask) if isinstance(file, VideoFrame)]


def prepare(picture: Picture, layers: Layers | None = None) -> np.ndarray:
    """Decode, composite and resize: uint8 [3 or 4, H, W] planes (RGB and the matte, if there is one).

    RGBA is laid over the background. RGB with a matte is brought onto the background from whatever lies behind the
    matte (see `exported_background`). RGB without a matte is kept: nothing is known about its background.

    Args:
        layers: photograph and matte, if they are decoded already.
    Raises:
        InputError: a file is damaged, has another size or another number of channels.
    """
    if layers is None:
        layers = next(read_videos([picture], [0]))[1] if picture.videos else read_layers(picture, {})
    image, matte = layers
    if image.shape[2] == 1:
        raise InputError(str(picture.image), "", "found 1 channel in a photograph, expected 3 or 4", RESAVE)
    if matte is not None and matte.shape[2] == 3 and bool((matte == matte[..., :1]).all()):
        matte = matte[..., :1]  # grey, stored in three channels
    if matte is not None and matte.shape[2] != 1:
        problem = f"found {matte.shape[2]} channels in a matte, expected 1"
        raise InputError(str(picture.mask), "", problem, "Re-save it as 8-bit grey PNG.")
    if image.shape[2] == 4:
        image = composite(image, picture.background)
    elif matte is not None:
        image = on_background(image, matte, picture.background)
    planes = image if matte is None else np.concatenate([image, matte], axis=2)
    return np.ascontiguousarray(resize(planes, *picture.target).transpose(2, 0, 1))


def read_layers(picture: Picture, readers: Mapping[tuple[Path, bool], VideoReader]) -> Layers:
    """Photograph and matte of a picture; `readers` has one for each of its videos."""
    image = read_layer(picture.image, False, picture.size, readers)
    if picture.mask is None:
        return image, None
    if picture.mask != picture.image:
        return image, read_layer(picture.mask, True, picture.size, readers)
    if image.shape[2] != 4:
        problem = f"found {image.shape[2]} channels, expected 4: its matte is its alpha channel"
        raise InputError(str(picture.image), "", problem, "Re-save it as 8-bit RGBA PNG.")
    return image, image[..., 3:]


def read_layer(
    file: PictureFile, matte: bool, size: tuple[int, int], readers: Mapping[tuple[Path, bool], VideoReader]
) -> np.ndarray:
    """A picture file, or the frame of a video, of the expected size (width, height)."""
    if isinstance(file, Path):
        return read_image(file, size)
    layer = readers[file.path, matte].read(file.index)
    if layer.shape[1::-1] != size:
        problem = f"found {layer.shape[1]}x{layer.shape[0]} pixels, expected {size[0]}x{size[1]} (w x h of the dataset)"
        raise InputError(file.path, f"frame {file.index}", problem)
    return layer


def read_videos(pictures: Sequence[Picture], chosen: Iterable[int]) -> Iterator[tuple[int, Layers]]:
    """(position, layers) of the chosen pictures, all with frames of videos: every video once, from front to back.

    Only the videos of one picture are open at a time, and each holds one frame.
    """
    ordered = sorted(chosen, key=lambda index: (pictures[index].videos, pictures[index].frames))
    for videos, group in groupby(ordered, key=lambda index: pictures[index].videos):
        with ExitStack() as stack:
            readers = {key: stack.enter_context(VideoReader(*key)) for key in videos}
            for index in group:
                yield index, read_layers(pictures[index], readers)


def on_background(image: np.ndarray, matte: np.ndarray, background: int) -> np.ndarray:
    """Bring a uint8 RGB picture [H, W, 3] with matte [H, W, 1] onto a grey level."""
    exported = exported_background(image, matte)
    if exported is None:
        return blend(image, matte, background)
    return image if exported == background else replace_background(image, matte, exported, background)


def exported_background(image: np.ndarray, matte: np.ndarray) -> int | None:
    """The grey level (0 or 255) that a picture was composited over, or None if it still shows the room.

    It is read where the matte is zero: the level that 98 % of those pixels have. Where (almost) no such pixel exists,
    it is 255, as VHAP exports.
    """
    behind = image[matte[..., 0] == 0]
    if len(behind) < MIN_BACKGROUND_PIXELS:
        return 255
    for level in (255, 0):
        near = np.abs(behind.astype(np.int16) - level).max(axis=1) <= BACKGROUND_TOLERANCE
        if near.mean() >= 0.98:
            return level
    return None


class ImageStore:
    """uint8 planes of all pictures, in one block.

    Pictures may differ in size; each lies at its own offset. Reading one as float32 costs a fraction of a millisecond.
    """

    def __init__(self, block: np.ndarray, pictures: Sequence[Picture]) -> None:
        self.as_float, _ = choose_conversion()
        self.block = block
        self.pictures = tuple(pictures)
        self.offsets = _offsets(pictures)

    def __len__(self) -> int:
        return len(self.pictures)

    def planes(self, index: int) -> np.ndarray:
        """uint8 [3 or 4, H, W], a view into the block: RGB and the matte."""
        width, height = self.pictures[index].target
        start, end = self.offsets[index], self.offsets[index + 1]
        return self.block[start:end].reshape(-1, height, width)

    def address(self, index: int) -> int:
        """Where the planes of a picture lie in memory."""
        return self.block.ctypes.data + self.offsets[index]

    def image(self, index: int) -> Tensor:
        """float32 [3, H, W] in [0, 1]: the stored level / 255."""
        return self.as_float(self.planes(index)[:3])

    def mask(self, index: int) -> Tensor | None:
        """float32 [1, H, W] in [0, 1], or None without a matte."""
        return self.as_float(self.planes(index)[3:]) if self.pictures[index].mask else None


def choose_conversion(device: torch.device | str = "cpu") -> tuple[Callable[[np.ndarray | Tensor], Tensor], str]:
    """uint8 array, or tensor on a device -> float32 tensor there, level / 255: native code where it is installed, the
    same bits without it; and a line for the log."""
    try:
        to_float, why = importlib.import_module(NATIVE).to_float, importlib.import_module(AVAILABLE).usable(device)
        if why is None:
            return to_float, "pictures: native kernel"
    except (ImportError, OSError) as error:
        why = str(error)
    return _to_float, f"pictures: PyTorch (the native kernel can't be used: {why})"


def _to_float(planes: np.ndarray | Tensor) -> Tensor:
    if isinstance(planes, Tensor):
        return planes.float().div_(255.0)
    return torch.from_numpy(planes.astype(np.float32)).div_(255.0)


def _offsets(pictures: Sequence[Picture]) -> list[int]:
    return [0, *np.cumsum([picture.stored_bytes for picture in pictures], dtype=np.int64).tolist()]


def open_store(pictures: Sequence[Picture], cache: Path, memory_bytes: int) -> ImageStore:
    """Decode all pictures (with a progress bar), or map the cache file that an earlier run left.

    Args:
        pictures: what to store, in order.
        cache: folder for the memory-mapped file; untouched if the pictures fit into `memory_bytes`.
        memory_bytes: budget above which the store is a file.
    Raises:
        InputError: a picture is not what it must be; no cache file is left behind.
        EnvironmentFault: the cache can't be written.
    """
    offsets = _offsets(pictures)
    total = offsets[-1]
    if total <= memory_bytes:
        block = np.empty(total, np.uint8)
        for index, planes in _decoded(pictures):
            block[offsets[index] : offsets[index + 1]] = planes.reshape(-1)
        return ImageStore(block, pictures)
    header = _cache_header(pictures, total)
    path = cache / f"images-{header[8:16].hex()}.cache"
    if not _is_complete(path, header, total):
        with leaving_no_folders(cache), atomic_file(path) as file:
            file.write(header)
            for index, planes in _decoded(pictures):
                file.seek(DATA_OFFSET + offsets[index])
                file.write(planes.tobytes())
    try:
        return ImageStore(np.memmap(path, np.uint8, mode="r", offset=DATA_OFFSET, shape=(total,)), pictures)
    except OSError as error:
        raise EnvironmentFault(f"{path}: can't be mapped into memory: {error.strerror or error}") from error


@contextmanager
def leaving_no_folders(folder: Path) -> Iterator[None]:
    """Remove the empty folders that the block made down to `folder` if it fails: a refused dataset leaves no trace."""
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        yield
    except BaseException:
        for parent in made:
            with suppress(OSError):  # not made after all, or no longer empty
                parent.rmdir()
        raise


def _cache_header(pictures: Sequence[Picture], total: int) -> bytes:
    """Identifies the bytes that follow: it depends on every file's name, size and date and on how it is prepared."""
    recipe = [
        [_identity(p.image), _identity(p.mask) if p.mask else None, p.size, p.target, p.background] for p in pictures
    ]
    digest = hashlib.sha256(json.dumps(recipe).encode()).digest()
    return (MAGIC + digest + total.to_bytes(8, "little")).ljust(DATA_OFFSET, b"\0")


def _identity(file: PictureFile) -> list[str | int]:
    frame = isinstance(file, VideoFrame)
    path = file.path if frame else file
    try:
        status = path.stat()
    except OSError as error:
        raise InputError(path, "", f"can't be read: {error.strerror or error}") from error
    return [str(path), status.st_size, status.st_mtime_ns, *([file.index] if frame else [])]


def _is_complete(path: Path, header: bytes, total: int) -> bool:
    """Whether the cache file is the one for this header; a stale or cut one is written anew."""
    try:
        with open(path, "rb") as file:
            return file.read(DATA_OFFSET) == header and os.fstat(file.fileno()).st_size == DATA_OFFSET + total
    except OSError:
        return False


def _decoded(pictures: Sequence[Picture]) -> Iterator[tuple[int, np.ndarray]]:
    """(position, prepared planes): stills in order, then frames of videos in the order of the videos.

    Stills are decoded by threads, videos ahead of the threads that prepare their frames. There is a progress bar on a
    terminal and a closing line elsewhere.
    """
    from tqdm import tqdm

    interactive, start = sys.stderr.isatty(), time.perf_counter()
    moving = [index for index, picture in enumerate(pictures) if picture.videos]
    stills = ((index, None) for index, picture in enumerate(pictures) if not picture.videos)

    def work(job: tuple[int, Layers | None]) -> tuple[int, np.ndarray]:
        return job[0], prepare(pictures[job[0]], job[1])

    results = parallel_map(work, chain(stills, read_videos(pictures, moving)))
    yield from tqdm(results, "decoding", len(pictures), unit="picture", disable=not interactive, leave=False)
    if not interactive:
        print(f"decoded {len(pictures)} pictures in {time.perf_counter() - start:.1f} s", file=sys.stderr)


def parallel_map(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`map` with threads: results in order, the first error in order, only a few results held at a time."""
    threads = min(8, os.cpu_count() or 1)
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                if len(waiting) >= 4 * threads:
                    yield waiting.popleft().result()
                waiting.append(pool.submit(function, item))
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
