"""Rendered frames of a run on disk, in the layout that users of Gaussian splatting know.

    RUN/TAKE/ours_N/KIND/00000.png, renders.mp4, gt.mp4, renders_mesh.mp4

TAKE is a split (train, val or test), the folder name of a reenactment's driver, `motion_FILE` or `orbit`, followed by
`_CAMERA` if only one camera was rendered; N is the iteration; the number of a frame is its place in the take, in the
order of the dataset's JSON. KIND:

    renders       8-bit RGB over the background
    gt            the photographs, 8-bit RGB
    masks         their mattes, 8-bit grey, where the dataset has them
    renders_mesh  the posed mesh, half transparent over the photograph, 8-bit RGB
    alpha         opacity, 8-bit grey: 255 is opaque
    depth         distance along the camera's axis, 16-bit grey: millimetres (thousandths of the unit of an unbound
                  scene), 0 where opacity is at most 0.5, 65535 for that much or more
    regions       which region of the face the posed mesh shows, 8-bit: 0 none, k the k-th name under `regions` in
                  frames.json

Beside them lies frames.json: which camera and timestep each picture is of. Folders that were rendered before there was
one, or without regions, are read all the same.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np

from utils.errors import EnvironmentFault, InputError
from utils.io.images import encode_png, read_image
from utils.io.take_record import TakeRecord, write_take_record
from utils.io.video import VideoWriter

RENDERS, TRUTHS, MASKS = "renders", "gt", "masks"
MESHES, ALPHA, DEPTH, REGION_MAPS = "renders_mesh", "alpha", "depth", "regions"
VIDEOS = (RENDERS, TRUTHS, MESHES)
FPS = 25
SPLIT_NAME = re.compile(r"(train|val|test)(_.+)?")
RENDER_AGAIN = "Render again: python render.py -m RUN."


@dataclass(frozen=True)
class Pair:
    """The files of one rendered frame."""

    name: str
    render: Path
    truth: Path
    mask: Path | None
    regions: Path | None = None

    def read_regions(self, size: tuple[int, int], count: int) -> np.ndarray | None:
        """The region map, uint8 [H, W] up to `count`, of a picture of that width and height; None without one.

        Raises:
            InputError: a damaged file, another size, or labels that have no name.
        """
        if self.regions is None:
            return None
        labels = _read(self.regions, 1, size)[..., 0]
        if labels.max() > count:
            raise InputError(self.regions, "", f"found label {labels.max()}, expected up to {count}", RENDER_AGAIN)
        return labels

    def read(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Render and truth, uint8 [H, W, 3], and the matte, uint8 [H, W, 1].

        Raises:
            InputError: a damaged file, another format than 8-bit RGB (grey for the matte), or different sizes.
        """
        render = _read(self.render, 3, None)
        size = (render.shape[1], render.shape[0])
        return render, _read(self.truth, 3, size), None if self.mask is None else _read(self.mask, 1, size)


def rendered_iterations(run: Path) -> dict[int, dict[str, Path]]:
    """What has been rendered: iteration -> split -> its folder `ours_N`, iterations ascending."""
    found: dict[int, dict[str, Path]] = {}
    for folder in sorted(run.glob("*/ours_*")):
        if SPLIT_NAME.fullmatch(folder.parent.name) and re.fullmatch(r"ours_\d+", folder.name) and folder.is_dir():
            found.setdefault(int(folder.name[5:]), {})[folder.parent.name] = folder
    return dict(sorted(found.items()))


def choose_iteration(run: Path, iteration: int = -1) -> tuple[int, dict[str, Path]]:
    """The newest rendered iteration, or the one asked for, and its split folders.

    Raises:
        InputError: the run or the iteration isn't there.
    """
    if not os.path.isdir(run):
        raise InputError(run, "", "is no folder, expected a run")
    found = rendered_iterations(run)
    if not found:
        raise InputError(run, "", "holds no rendered frames", f"Render first: python render.py -m {run}.")
    chosen = max(found) if iteration == -1 else iteration
    if chosen not in found:
        listed = ", ".join(map(str, found))
        raise InputError(run, "--iteration", f"found rendered iterations {listed}, expected {iteration}", RENDER_AGAIN)
    return chosen, found[chosen]


def list_pairs(folder: Path) -> list[Pair]:
    """The frames of a folder `ours_N`, by name.

    Raises:
        InputError: no frames, or one that only `renders` or only `gt` has; names it. A matte or a region map without
            a frame likewise, and a frame that alone has no region map.
    """
    renders, truths, masks, maps = (_names(folder / kind) for kind in (RENDERS, TRUTHS, MASKS, REGION_MAPS))
    if not renders and not truths:
        raise InputError(folder, "", f"found no frames in {RENDERS}/ and {TRUTHS}/", RENDER_AGAIN)
    for missing, where, other in (
        (renders - truths, TRUTHS, RENDERS),
        (truths - renders, RENDERS, TRUTHS),
        (masks - renders, RENDERS, MASKS),
        (maps - renders, RENDERS, REGION_MAPS),
        (renders - maps if maps else set(), REGION_MAPS, RENDERS),
    ):
        if missing:
            raise InputError(folder / where, min(missing), f"is missing, but {other}/ has it", RENDER_AGAIN)
    return [
        Pair(name, folder / RENDERS / name, folder / TRUTHS / name, folder / MASKS / name if name in masks else None,
             folder / REGION_MAPS / name if name in maps else None)
        for name in sorted(renders)
    ]  # fmt: skip


class SplitWriter:
    """Writes the frames of one take, PNGs in threads and the videos, for use in a `with` block.

    The folder takes its name when the block ends well, and replaces an earlier one; otherwise nothing changes.

    Args:
        folder: .../ours_N.
    Raises:
        EnvironmentFault: the disk refuses, or a video can't be encoded; names the file, and the frame of a video.
    """

    def __init__(self, folder: Path, threads: int = 2) -> None:
        self.folder, self.threads, self.frames = folder, threads, 0
        self._session = self._opened()
        self._videos: dict[str, VideoWriter] = {}

    def __enter__(self) -> SplitWriter:
        self._session.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return self._session.__exit__(kind, error, trace)

    def write(
        self,
        render: np.ndarray,
        truth: np.ndarray | None = None,
        mask: np.ndarray | None = None,
        others: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Append a frame.

        Args:
            render, truth: uint8 [H, W, 3].
            mask: uint8 [H, W].
            others: further pictures by kind: uint8 [H, W] or [H, W, 3], or uint16 [H, W].
        """
        pictures = {RENDERS: render, TRUTHS: truth, MASKS: mask, **(others or {})}
        name = f"{self.frames:05d}.png"
        for kind, image in pictures.items():
            if image is not None:
                self._writer.write(self._temporary / kind / name, image)
        for kind in VIDEOS:
            if (image := pictures.get(kind)) is not None:
                self._video(kind).write(image)
        self.frames += 1

    def describe(self, record: TakeRecord) -> None:
        """Write frames.json."""
        write_take_record(self._temporary, record)

    def _video(self, kind: str) -> VideoWriter:
        if kind not in self._videos:
            self._videos[kind] = self._stack.enter_context(VideoWriter(self._temporary / f"{kind}.mp4", FPS))
        return self._videos[kind]

    @contextmanager
    def _opened(self) -> Iterator[None]:
        with atomic_folder(self.folder) as temporary, ExitStack() as self._stack:
            self._temporary, self._writer = temporary, self._stack.enter_context(PngThreads(self.threads))
            yield


class PngThreads:
    """Encodes and writes PNGs beside the work that makes them. An error surfaces at the next frame or at the end."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads)
        self._pending: deque[Future[None]] = deque()
        self._limit = 4 * threads  # pictures waiting in memory

    def __enter__(self) -> PngThreads:
        return self

    def write(self, path: Path, image: np.ndarray) -> None:
        self._pending.append(self._pool.submit(_write_png, path, image))
        while len(self._pending) > self._limit:
            self._pending.popleft().result()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            while self._pending and error is None:
                self._pending.popleft().result()
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that takes `folder`'s place when the block ends well, and vanishes otherwise.

    Its files aren't fsynced: after a power cut rendered frames are rendered again.

    Raises:
        EnvironmentFault: the disk is full, read-only or the folder can't be written; names the path.
    """
    token = secrets.token_hex(4)
    temporary, old = (folder.with_name(f".{folder.name}.{what}-{token}") for what in ("tmp", "old"))
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if folder.exists():
            os.replace(folder, old)
        os.replace(temporary, folder)
    except OSError as error:
        raise EnvironmentFault(f"{folder}: can't be written: {error.strerror or error}") from error
    finally:
        if old.exists() and not folder.exists():
            os.replace(old, folder)
        for leftover in (temporary, old):
            shutil.rmtree(leftover, ignore_errors=True)


def encode_png_16(image: np.ndarray) -> bytes:
    """PNG bytes of uint16 [H, W]."""
    if image.dtype != np.uint16 or image.ndim != 2:
        raise ValueError(f"found {image.dtype} {image.shape}, expected uint16 [H, W]")
    done, data = cv2.imencode(".png", image)
    if not done:
        raise ValueError(f"OpenCV could not encode a picture of shape {image.shape}")
    return data.tobytes()


def _write_png(path: Path, image: np.ndarray) -> None:
    try:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode_png(image) if image.dtype == np.uint8 else encode_png_16(image))
    except OSError as error:
        raise EnvironmentFault(f"{path}: can't be written: {error.strerror or error}") from error


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.png") if not path.name.startswith(".")}


def _read(path: Path, channels: int, size: tuple[int, int] | None) -> np.ndarray:
    image = read_image(path, size)
    if image.shape[2] != channels:
        raise InputError(path, "", f"found {image.shape[2]} channels, expected {channels}", RENDER_AGAIN)
    return image
