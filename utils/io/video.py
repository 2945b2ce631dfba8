"""MP4 video through PyAV: written to a file that appears whole or not at all, read frame by frame from the front."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from utils.errors import EnvironmentFault, InputError
from utils.io.atomic import atomic_file
from utils.io.images import MAX_PIXELS
from utils.io.pyav import load_pyav as _pyav

CRF = "18"  # visually lossless for libx264
BT709 = 1  # the number of this colour space, transfer and set of primaries in ITU-T H.273
# Shares of red and blue in luma, by the number of the matrix in H.273. A file without one (2) counts as BT.601, as in
# FFmpeg and OpenCV.
BT601_SHARES, BT709_SHARES = (0.299, 0.114), (0.2126, 0.0722)
SHARES = {1: BT709_SHARES, 2: BT601_SHARES, 5: BT601_SHARES, 6: BT601_SHARES}
FULL_RANGE = 2  # its number in FFmpeg; 0 (unknown) and 1 are limited: black is 16, white is 235
PLANAR = ("yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p")  # 8 bits
STRETCHED = np.clip(np.rint((np.arange(256) - 16) * (255 / 219)), 0, 255).astype(
    np.uint8
)  # luma: limited range to full
RECODE = "Copy or encode the file again."


class VideoWriter:
    """Write 8-bit RGB frames as `.mp4` (libx264, yuv420p, BT.709), for use in a `with` block.

    The first frame decides the size; odd sides grow by one row or column that repeats the edge, because 4:2:0 chroma
    needs even ones. Later frames of another size are cropped or grown likewise at the right and the bottom. If the
    block raises, what was at `path` before stays as it was.

    Args:
        fps: frames per second, a whole number.
    Raises:
        InputError: a frame is no uint8 [H, W, 3] array, or none came.
        EnvironmentFault: PyAV or its encoder is missing, or the file can't be written; names the path.
    """

    def __init__(self, path: Path, fps: int = 25) -> None:
        self.path, self.fps, self.frames = path, fps, 0
        self._session = self._opened()
        self._container: Any = None
        self._stream: Any = None

    def __enter__(self) -> VideoWriter:
        self._session.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return self._session.__exit__(kind, error, trace)

    def write(self, frame: np.ndarray) -> None:
        """Append a frame, uint8 [H, W, 3] RGB."""
        if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8 or 0 in frame.shape:
            problem = f"found {frame.dtype} {list(frame.shape)}, expected uint8 [H, W, 3]"
            raise InputError(self.path, f"frame {self.frames}", problem)
        if self._stream is None:
            self._stream = self._new_stream(*frame.shape[:2])
        fitted = fit(frame, self._stream.height, self._stream.width)
        picture = _pyav().VideoFrame.from_ndarray(fitted, format="rgb24")
        self._container.mux(self._stream.encode(picture.reformat(format="yuv420p", dst_colorspace="ITU709")))
        self.frames += 1

    @contextmanager
    def _opened(self) -> Iterator[None]:
        av = _pyav()
        with atomic_file(self.path) as file:
            try:
                self._container = av.open(file, "w", format="mp4")
                yield
                if self._stream is None:
                    raise InputError(self.path, "", "no frames came, expected one or more")
                self._container.mux(self._stream.encode(None))
                self._container.close()
            except av.FFmpegError as error:
                reason = getattr(error, "strerror", None) or error
                raise EnvironmentFault(
                    f"{self.path}: frame {self.frames}: the video can't be written: {reason}"
                ) from error
            finally:
                with suppress(av.FFmpegError, OSError):  # after an error it fails again, and only the first one counts
                    if self._container is not None:
                        self._container.close()

    def _new_stream(self, height: int, width: int) -> Any:
        try:
            stream = self._container.add_stream("libx264", rate=self.fps, options={"crf": CRF})
        except ValueError as error:  # which PyAV's UnknownCodecError is
            advice = "install PyAV's own wheel: `pip install --force-reinstall av`"
            raise EnvironmentFault(f"{self.path}: PyAV has no libx264 encoder; {advice}") from error
        stream.height, stream.width, stream.pix_fmt = height + height % 2, width + width % 2, "yuv420p"
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = BT709
        return stream


def fit(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """Crop, or grow by repeating the edge, at the bottom and the right: [h, w, 3] -> [height, width, 3]."""
    cut = frame[:height, :width]
    grown = np.pad(cut, ((0, height - cut.shape[0]), (0, width - cut.shape[1]), (0, 0)), mode="edge")
    return np.ascontiguousarray(grown)


@dataclass(frozen=True)
class VideoFrame:
    """A picture inside a video file: frame `index`, counted from 0 in the order of showing."""

    path: Path
    index: int
    name: str = field(default="", compare=False)  # of its video, where file names repeat

    @property
    def stem(self) -> str:
        """A name for this picture, as a picture file of its own would have."""
        return f"{self.name or self.path.stem}_{self.index:05d}"

    def stat(self) -> os.stat_result:
        """Of the video file."""
        return self.path.stat()

    def __str__(self) -> str:
        return f"{self.path}: frame {self.index}"


@dataclass(frozen=True)
class VideoHeader:
    """What a video file says about itself."""

    width: int
    height: int
    frames: int  # 0: it does not say


def read_video_header(path: Path) -> VideoHeader:
    """Read the size and the number of frames without decoding; raises InputError as `VideoReader` does."""
    with _opened_stream(path) as (_, stream):
        return VideoHeader(stream.codec_context.width, stream.codec_context.height, stream.frames)


class VideoReader:
    """8-bit frames of an MP4 file, for use in a `with` block.

    It decodes from front to back and holds one frame: reading in ascending order decodes every frame once; going back
    starts over. YUV becomes RGB by the matrix that the file names (BT.601 if none) and its range (limited if none). The
    conversion is ours, because PyAV's versions differ in what they make of these tags.

    Args:
        grey: frames are the luma alone, in full range.
    Raises:
        InputError: no MP4 video, over 100 megapixels, rotated, of another pixel format or colour matrix, damaged, or it
            ends before the wanted frame; names the file and the frame.
        EnvironmentFault: PyAV is missing.
    """

    def __init__(self, path: Path, grey: bool = False) -> None:
        self.path, self.grey = path, grey
        self._restart()

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._frames.close()

    def _restart(self) -> None:
        self._frames, self._next, self._current = self._decoded(), 0, None

    def read(self, index: int) -> np.ndarray:
        """Frame `index`: uint8 [H, W, 3] RGB, or [H, W, 1] if grey."""
        if index < self._next - 1:
            self._frames.close()
            self._restart()
        while self._next <= index:
            try:
                self._current = next(self._frames, None)
            except (_pyav().FFmpegError, OSError) as error:
                problem = f"can't be decoded: {getattr(error, 'strerror', None) or error}"
                raise InputError(self.path, f"frame {self._next}", problem, RECODE) from error
            if self._current is None:
                raise InputError(self.path, f"frame {index}", f"the video ends after {self._next} frames", RECODE)
            self._next += 1
        return self._converted(self._current, index)

    def _decoded(self) -> Generator[Any, None, None]:
        with _opened_stream(self.path) as (container, stream):
            stream.thread_type = "AUTO"
            for frame in container.decode(stream):
                if frame.is_corrupt:  # it was patched up with pieces of its neighbours
                    raise InputError(self.path, f"frame {self._next}", "is damaged", RECODE)
                yield frame

    def _converted(self, frame: Any, index: int) -> np.ndarray:
        shares, name = SHARES.get(int(frame.colorspace)), frame.format.name
        full = int(frame.color_range) == FULL_RANGE or name.startswith("yuvj")
        fault = ""
        if name not in PLANAR:
            fault = f"pixel format {name}, expected one of {', '.join(PLANAR)}"
        elif shares is None:
            fault = f"colour matrix {int(frame.colorspace)}, expected BT.601 or BT.709"
        elif getattr(frame, "rotation", 0):  # which PyAV tells from version 13 on
            fault = f"a rotation by {frame.rotation} degrees, expected none"
        if fault or shares is None:
            raise InputError(self.path, f"frame {index}", f"found {fault}", "Encode the file again (H.264, yuv420p).")
        luma, *chroma = (plane_of(plane) for plane in frame.planes)
        if self.grey:
            return (luma if full else STRETCHED[luma])[..., None]
        import cv2

        height, width = luma.shape
        grown = [upsample(plane, height, width) for plane in chroma]
        return cv2.transform(cv2.merge([luma, *grown]), rgb_from_yuv(shares, full))


@lru_cache(maxsize=8)
def rgb_from_yuv(shares: tuple[float, float], full: bool) -> np.ndarray:
    """[3, 4] that takes (Y, U, V, 1) of 8 bits to RGB of 8 bits (ITU-R BT.601 and BT.709, section 3 of both)."""
    red, blue = shares
    green = 1 - red - blue
    u, v = 2 - 2 * blue, 2 - 2 * red
    mix = np.array([[1, 0, v], [1, -u * blue / green, -v * red / green], [1, u, 0]])
    scale, offset = ([1, 1, 1], [0, 128, 128]) if full else ([255 / 219, 255 / 224, 255 / 224], [16, 128, 128])
    mix = mix * scale
    return np.concatenate([mix, -(mix @ offset)[:, None]], axis=1)


def plane_of(plane: Any) -> np.ndarray:
    """A copy of an 8-bit plane, [height, width]."""
    return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: plane.height, : plane.width].copy()


def upsample(plane: np.ndarray, height: int, width: int) -> np.ndarray:
    """A chroma plane at the size of the luma: linear between samples, each in the middle of its pixels."""
    import cv2

    across, down = (2 if full > some else 1 for full, some in ((width, plane.shape[1]), (height, plane.shape[0])))
    grown = cv2.resize(plane, (plane.shape[1] * across, plane.shape[0] * down), interpolation=cv2.INTER_LINEAR)
    return grown[:height, :width]


@contextmanager
def _opened_stream(path: Path) -> Iterator[tuple[Any, Any]]:
    """The container and its first video stream, checked. The demuxer is given: others may follow links to elsewhere."""
    av = _pyav()
    try:
        file = open(path, "rb")
    except (OSError, ValueError) as error:
        raise InputError(path, "", f"can't be read: {getattr(error, 'strerror', None) or error}") from error
    with file:
        try:
            container = av.open(file, "r", format="mp4")
        except (av.FFmpegError, OSError) as error:  # OSError: of seeking, in a file that is cut
            raise InputError(path, "", "is not an intact MP4 video", RECODE) from error
        with container:
            if not container.streams.video:
                raise InputError(path, "", "has no video stream, expected an intact MP4 video", RECODE)
            stream = container.streams.video[0]
            width, height = stream.codec_context.width, stream.codec_context.height
            if not 0 < width * height <= MAX_PIXELS:
                raise InputError(path, "", f"found {width}x{height} pixels, expected 1 to {MAX_PIXELS} pixels")
            yield container, stream
