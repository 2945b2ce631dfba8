"""Videos are decoded again and compared with what went in."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest

from utils.errors import EnvironmentFault, InputError
from utils.io import atomic, video
from utils.io.video import VideoWriter, fit

av = pytest.importorskip("av", reason="PyAV is not installed")


def picture(step: int, height: int = 96, width: int = 128) -> np.ndarray:
    """A smooth coloured ramp that moves, which survives chroma subsampling."""
    y, x = np.mgrid[0:height, 0:width]
    ramps = [x / width, y / height, 0.5 + 0.5 * np.sin((x + 4 * step) / width * 6)]
    return (np.stack(ramps, axis=2) * 255).round().astype(np.uint8)


def decoded(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [
            frame.reformat(format="rgb24", src_colorspace="ITU709").to_ndarray(format="rgb24")
            for frame in container.decode(video=0)
        ]


def test_frames_come_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a; 'test' $x.mp4"
    with VideoWriter(path, 25) as writer:
        for step in range(8):
            writer.write(picture(step))
    frames = decoded(path)
    assert len(frames) == writer.frames == 8
    for step, frame in enumerate(frames):
        assert np.abs(frame.astype(float) - picture(step)).mean() < 3  # of 255; with BT.601 in one place: 7.5
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 25)
        assert stream.codec_context.colorspace == 1  # BT.709 in ITU-T H.273
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_odd_sizes_grow_and_other_sizes_fit(tmp_path: Path) -> None:
    path = tmp_path / "odd.mp4"
    with VideoWriter(path, 25) as writer:
        for height, width in ((47, 63), (60, 40), (1, 1)):
            writer.write(picture(0, height, width))
    assert [frame.shape for frame in decoded(path)] == [(48, 64, 3)] * 3


def test_fit_repeats_the_edge() -> None:
    frame = picture(0, 5, 7)
    grown = fit(frame, 6, 8)
    assert np.array_equal(grown[:5, :7], frame)
    assert np.array_equal(grown[5], grown[4]) and np.array_equal(grown[:, 7], grown[:, 6])
    assert np.array_equal(fit(frame, 4, 6), frame[:4, :6])


def test_an_error_in_the_block_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "old.mp4"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), VideoWriter(path, 25) as writer:
        writer.write(picture(0))
        raise ZeroDivisionError
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "frame", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)]
)
def test_wrong_frames_are_refused(frame: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="frame 0: found"), VideoWriter(tmp_path / "bad.mp4") as writer:
        writer.write(frame)
    assert list(tmp_path.iterdir()) == []


def test_no_frames_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no frames"), VideoWriter(tmp_path / "empty.mp4"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line_with_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        """A file on a disk with room for 64 bytes."""

        def __init__(self, file: IO[Any]) -> None:
            self.file, self.room = file, 64

        def write(self, data: bytes) -> int:
            self.room -= len(data)
            if self.room < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(data)

        def seek(self, *where: int) -> int:
            return self.file.seek(*where)

        def tell(self) -> int:
            return self.file.tell()

    @contextmanager
    def on_full_disk(path: Path) -> Iterator[Full]:
        with atomic.atomic_file(path) as file:
            yield Full(file)

    monkeypatch.setattr(video, "atomic_file", on_full_disk)
    path = tmp_path / "full.mp4"
    with pytest.raises(EnvironmentFault, match=f"{path}: .*[Nn]o space") as error, VideoWriter(path) as writer:
        for step in range(60):
            writer.write(picture(step))
    assert "\n" not in str(error.value) and list(tmp_path.iterdir()) == []


def test_missing_pyav_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(EnvironmentFault, match="pip install av"), VideoWriter(tmp_path / "a.mp4"):
        pass


def test_an_encoder_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "CRF", "not a number")
    with (
        pytest.raises(EnvironmentFault, match="a.mp4: frame 0: the video can't be written"),
        VideoWriter(tmp_path / "a.mp4") as writer,
    ):
        writer.write(picture(0))
    assert list(tmp_path.iterdir()) == []
