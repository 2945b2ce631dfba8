"""R4: videos that can't be encoded, and rendered frames that are missing, too many or unreadable."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import av
import numpy as np

import render
from scripts.torture_cases.case import ITERATIONS, Box, Case, Command, Refused, Works, cut, flip
from utils.io import rendered as rendered_files
from utils.io import video
from utils.io.images import encode_png, read_image

SPLIT = f"test/ours_{ITERATIONS}"
Patch = Callable[[], Any]


def cases(seed: int) -> Iterator[Case]:
    """All cases of the row."""
    yield from videos()
    yield from frames()


def videos() -> Iterator[Case]:
    """PyAV is missing, lacks the encoder, or fails while opening, encoding or closing; the disk fills up."""

    def failing(name: str, patch: Patch, *words: str) -> Case:
        def prepare(box: Box) -> Command:
            def main(argv: list[str]) -> int | None:
                with patch():
                    return render.main(argv)

            return Command(main, box.render().argv)

        return Case("R4", name, prepare, Refused(words, (3,), writes=True, check=old_renders), trained=True)

    def raising(error: BaseException) -> Patch:
        """Frames fail from the second one on."""
        real, seen = av.VideoFrame.from_ndarray, [0]

        def from_ndarray(*arguments: Any, **options: Any) -> Any:
            seen[0] += 1
            if seen[0] % 4 == 3:
                raise error
            return real(*arguments, **options)

        return lambda: mock.patch.object(video, "_pyav", lambda: Stub(from_ndarray))

    def absent() -> Any:
        return mock.patch.dict("sys.modules", {"av": None})

    def no_encoder() -> Any:
        real = av.open

        def opened(*arguments: Any, **options: Any) -> Any:
            container = real(*arguments, **options)
            return NoEncoder(container)

        return mock.patch.object(av, "open", opened)

    def no_open(error: BaseException) -> Patch:
        return lambda: mock.patch.object(av, "open", mock.Mock(side_effect=error))

    where = (r"\.mp4",)
    yield failing("PyAV is not installed", absent, "PyAV", "pip install")
    yield failing("no H.264 encoder", no_encoder, *where, "libx264")
    yield failing("the encoder fails", raising(av.FFmpegError(errno.EINVAL, "Invalid argument")), *where, "frame 1")
    yield failing("the encoder has no memory", raising(av.MemoryError(errno.ENOMEM, "Cannot allocate memory")), *where)
    yield failing("the encoder finds no space", raising(av.OSError(errno.ENOSPC, "No space left on device")), *where)
    yield failing("the container can't be opened", no_open(av.FFmpegError(errno.EINVAL, "Invalid argument")), *where)
    yield failing("the video file can't be opened", no_open(PermissionError(errno.EACCES, "Permission denied")), *where)
    yield failing("the disk is full at a frame", full_disk, r"\.png", "No space left")
    yield Case(
        "R4",
        "a file where the split should be",
        lambda box: blocked(box),
        Refused((r"/test",), (3,), writes=True),
        trained=True,
    )


class Stub:
    """PyAV with another `VideoFrame.from_ndarray`."""

    def __init__(self, from_ndarray: Callable[..., Any]) -> None:
        self.VideoFrame = type("VideoFrame", (), {"from_ndarray": staticmethod(from_ndarray)})

    def __getattr__(self, name: str) -> Any:
        return getattr(av, name)


class NoEncoder:
    """A container of an FFmpeg that was built without libx264."""

    def __init__(self, container: Any) -> None:
        self.container = container

    def add_stream(self, name: str, **options: Any) -> Any:
        return self.container.add_stream("lib_of_nobody", **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.container, name)


def full_disk() -> Any:
    calls = [0]

    def encode(image: np.ndarray) -> bytes:
        calls[0] += 1
        if calls[0] > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return encode_png(image)

    return mock.patch.object(rendered_files, "encode_png", encode)


def old_renders(box: Box, errors: str) -> str:
    """The frames that were rendered before are still there, whole; what a failed rendering made is not."""
    intact = box.root.parent / "intact" / "run"
    for split in ("train", "val", "test"):
        names, old = ({path.relative_to(run) for path in (run / split).rglob("*")} for run in (box.run, intact))
        if names != old:
            return f"{split}: {', '.join(map(str, sorted(names ^ old)))} came or went"
        for path in (box.run / split).rglob("*.png"):
            read_image(path)
    return ""


def blocked(box: Box) -> Command:
    shutil.rmtree(box.run / "test")
    (box.run / "test").write_text("notes")
    return box.render("--skip_train", "--skip_val")


def frames() -> Iterator[Case]:
    """What metrics.py finds in a folder of rendered frames."""

    def case(name: str, spoil: Callable[[Path], object], *words: str) -> Case:
        def prepare(box: Box) -> Command:
            spoil(box.run / SPLIT)
            return box.metrics()

        return Case("R4", f"metrics: {name}", prepare, Refused(words), trained=True)

    picture = encode_png(np.zeros((20, 24, 3), np.uint8))
    for kind in ("renders", "gt"):
        frame = f"{kind}/00001.png"
        yield case(f"{frame} missing", lambda f, n=frame: (f / n).unlink(), r"00001\.png", kind)
        yield case(f"{kind} has one more", lambda f, k=kind: (f / k / "00009.png").write_bytes(picture), r"00009\.png")
        yield case(f"{frame} empty", lambda f, n=frame: (f / n).write_bytes(b""), frame)
        yield case(f"{frame} cut", lambda f, n=frame: cut(f / n, 200), frame, "byte")
        yield case(f"{frame} flipped", lambda f, n=frame: flip(f / n, 8 * 60), frame, "CRC")
        yield case(f"{frame} no picture", lambda f, n=frame: (f / n).write_bytes(b"hello"), frame)
        yield case(
            f"{frame} of another size",
            lambda f, n=frame: (f / n).write_bytes(encode_png(np.zeros((9, 9, 3), np.uint8))),
            r"00001\.png",
            "size",
        )
        yield case(
            f"{frame} grey", lambda f, n=frame: (f / n).write_bytes(encode_png(np.zeros((20, 24), np.uint8))), frame
        )
        yield case(f"{frame} a folder", lambda f, n=frame: ((f / n).unlink(), (f / n).mkdir()), frame)
    yield case("a matte without a frame", lambda f: (f / "masks/00009.png").write_bytes(picture), r"00009\.png")
    yield case("a matte in colour", lambda f: (f / "masks/00001.png").write_bytes(picture), "masks/00001.png")
    yield case("a matte cut", lambda f: cut(f / "masks/00001.png", 60), "masks/00001.png")
    yield case("no frames", lambda f: [path.unlink() for path in f.glob("*/*.png")], "no frames")
    yield Case("R4", "metrics: nothing rendered", unrendered, Refused(("no rendered frames",)), trained=True)
    yield Case(
        "R4", "metrics: another iteration", lambda box: box.metrics("--iteration=9"), Refused(("9",)), trained=True
    )
    yield Case(
        "R4", "metrics: mattes missing", no_mattes, Works(foreground_is_null, "null, with the reason"), trained=True
    )
    yield Case("R4", "metrics: the second of two runs is broken", two_runs, Refused((r"00001\.png",)), trained=True)


def unrendered(box: Box) -> Command:
    for split in ("train", "val", "test"):
        shutil.rmtree(box.run / split)
    return box.metrics()


def no_mattes(box: Box) -> Command:
    shutil.rmtree(box.run / SPLIT / "masks")
    return box.metrics()


def foreground_is_null(box: Box, errors: str) -> str:
    summary = json.loads((box.run / "metrics.json").read_text())["splits"]["test"]
    return "" if summary["psnr_foreground"] is None and "matte" in summary["psnr_foreground_reason"] else str(summary)


def two_runs(box: Box) -> Command:
    """Nothing is written for the good run either: every frame is looked for before the first is read."""
    shutil.copytree(box.run, box.root / "second")
    (box.root / "second" / SPLIT / "gt/00001.png").unlink()
    command = box.metrics()
    return Command(command.main, ["-m", str(box.run), str(box.root / "second"), "--quiet"], "metrics.py")
