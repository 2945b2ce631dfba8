"""H.264 video through PyAV, frame by frame, in a file that appears whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import numpy as np

from utils.errors import EnvironmentFault, InputError
from utils.io.atomic import atomic_file

CRF = "18"  # visually lossless for libx264
BT709 = 1  # the number of this colour space, transfer and set of primaries in ITU-T H.273


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


def _pyav() -> ModuleType:
    try:
        import av
    except ImportError as error:
        raise EnvironmentFault("videos need PyAV, which is not installed; run `pip install av`") from error
    return av
