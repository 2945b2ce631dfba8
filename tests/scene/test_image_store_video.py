"""Pictures that are frames of videos: what was encoded is what is stored, each video decoded once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scene.image_store import Picture, open_store, prepare
from tests.scene.make_capture import png
from utils.errors import InputError
from utils.io import video
from utils.io.video import VideoFrame, VideoReader, VideoWriter, read_video_header

av = pytest.importorskip("av", reason="PyAV is not installed")

WIDTH, HEIGHT, FRAMES = 64, 48, 30
COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (120, 130, 90), (200, 50, 100)]
BT709, BT601 = (0.2126, 0.0722), (0.299, 0.114)  # shares of red and blue in luma


def picture(step: int) -> np.ndarray:
    """A smooth ramp in which every step looks different."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([2 * x + step, 3 * y + 2 * step, 255 - 8 * step + 0 * x], -1).clip(0, 255).astype(np.uint8)


def matte(step: int) -> np.ndarray:
    """A block that grows, on a zero border: [H, W, 3] grey."""
    alpha = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    alpha[8:40, 8 : 24 + step] = 255
    return alpha


def write(path: Path, frames: Sequence[np.ndarray]) -> Path:
    with VideoWriter(path, 25) as writer:
        for frame in frames:
            writer.write(frame)
    return path


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write(tmp_path / "clip.mp4", [picture(step) for step in range(FRAMES)])


@pytest.fixture
def clip_and_matte(clip: Path, tmp_path: Path) -> list[Picture]:
    """Every frame with its matte, in an order that jumps."""
    alpha = write(tmp_path / "alpha.mp4", [matte(step) for step in range(FRAMES)])
    order = [*range(1, FRAMES, 2), *range(0, FRAMES, 2)]
    return [of(VideoFrame(clip, k), VideoFrame(alpha, k)) for k in order]


def of(image: Path | VideoFrame, mask: Path | VideoFrame | None = None, background: int = 255) -> Picture:
    return Picture(image, mask, (WIDTH, HEIGHT), (WIDTH, HEIGHT), background)


def encode(path: Path, planes: np.ndarray, matrix: int, full: bool) -> Path:
    """Frames of one colour each, given as YUV levels [T, 3], tagged by their numbers in ITU-T H.273."""
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "0", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        context = stream.codec_context
        context.colorspace, context.color_range = matrix, 2 if full else 1
        for y, u, v in planes:
            levels = np.full((48, 32), 0, np.uint8)
            levels[:32] = y
            levels[32:40], levels[40:] = u, v
            container.mux(stream.encode(av.VideoFrame.from_ndarray(levels, format="yuv420p")))
        container.mux(stream.encode(None))
    return path


def yuv(colour: Sequence[int], shares: tuple[float, float], full: bool) -> list[int]:
    """ITU-R BT.601 and BT.709: Y = kr R + kg G + kb B, U and V the scaled differences B - Y and R - Y."""
    red, green, blue = (level / 255 for level in colour)
    kr, kb = shares
    luma = kr * red + (1 - kr - kb) * green + kb * blue
    differences = ((blue - luma) / (2 - 2 * kb), (red - luma) / (2 - 2 * kr))
    if full:
        return [round(255 * luma), *(round(128 + 255 * d) for d in differences)]
    return [round(16 + 219 * luma), *(round(128 + 224 * d) for d in differences)]


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(("matrix", "shares"), [(1, BT709), (2, BT601), (5, BT601), (6, BT601)])
def test_colours_follow_the_tags_of_the_file(
    tmp_path: Path, matrix: int, shares: tuple[float, float], full: bool
) -> None:
    levels = np.clip([yuv(colour, shares, full) for colour in COLOURS], 0, 255)
    path = encode(tmp_path / "tagged.mp4", levels, matrix, full)
    with VideoReader(path) as reader, VideoReader(path, grey=True) as grey:
        for k, colour in enumerate(COLOURS):
            frame = reader.read(k)
            assert frame.shape == (32, 32, 3) and frame.dtype == np.uint8
            np.testing.assert_allclose(frame[16, 16], colour, atol=3)  # YUV of 8 bits holds no more
            luma = (levels[k, 0] - 16) * 255 / 219 if not full else levels[k, 0]
            np.testing.assert_allclose(grey.read(k)[16, 16], [luma], atol=1)


def test_frames_are_numbered_from_zero_in_any_order(clip: Path) -> None:
    assert (read_video_header(clip).width, read_video_header(clip).height) == (WIDTH, HEIGHT)
    assert read_video_header(clip).frames == FRAMES
    with VideoReader(clip) as reader:
        for step in [0, 1, 5, 5, 29, 3, 4]:
            frame = reader.read(step).astype(int)
            errors = [np.abs(frame - picture(other)).mean() for other in range(FRAMES)]
            assert int(np.argmin(errors)) == step and errors[step] < 2


@pytest.mark.parametrize("budget", [0, 1 << 30])
def test_the_store_holds_every_frame_at_its_place(clip_and_matte: list[Picture], tmp_path: Path, budget: int) -> None:
    still = tmp_path / "still.png"
    still.write_bytes(png(picture(7)))
    pictures = [of(still), *clip_and_matte, of(still)]
    store = open_store(pictures, tmp_path / "cache", budget)
    assert isinstance(store.block, np.memmap) == (budget == 0)
    for slot, recipe in enumerate(pictures):
        step = 7 if isinstance(recipe.image, Path) else recipe.image.index
        image = store.planes(slot)[:3].transpose(1, 2, 0).astype(int)
        if isinstance(recipe.image, Path):
            np.testing.assert_array_equal(image, picture(7))
            continue
        inside, alpha = np.s_[12:36, 12 : 20 + step], matte(step)[..., 0]
        assert np.abs(image[inside] - picture(step)[inside]).mean() < 2.5
        assert (image[:6] == 255).mean() > 0.95 and image[:6].min() > 250  # white where the matte is zero
        assert np.abs(store.planes(slot)[3].astype(int) - alpha).mean() < 2
    again = open_store(pictures, tmp_path / "cache", budget)
    np.testing.assert_array_equal(again.block, store.block)


def test_memory_and_cache_agree_and_the_cache_is_used_again(clip_and_matte: list[Picture], tmp_path: Path) -> None:
    in_memory = open_store(clip_and_matte, tmp_path / "cache", 1 << 30)
    on_disk = open_store(clip_and_matte, tmp_path / "cache", 0)
    np.testing.assert_array_equal(in_memory.block, on_disk.block)
    (file,) = (tmp_path / "cache").iterdir()
    stamp = file.stat().st_mtime_ns
    open_store(clip_and_matte, tmp_path / "cache", 0)
    assert file.stat().st_mtime_ns == stamp
    open_store(clip_and_matte[::-1], tmp_path / "cache", 0)
    assert len(list((tmp_path / "cache").iterdir())) == 2  # other frames at the same places: another cache


def test_every_video_is_decoded_once(
    clip_and_matte: list[Picture], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    plain = video._opened_stream

    def counted(path: Path) -> Any:
        opened.append(path.name)
        return plain(path)

    monkeypatch.setattr(video, "_opened_stream", counted)
    open_store(clip_and_matte, tmp_path / "cache", 1 << 30)
    assert sorted(opened) == ["alpha.mp4", "clip.mp4"]


def test_one_picture_alone(clip: Path) -> None:
    planes = prepare(of(VideoFrame(clip, 11)))
    assert planes.shape == (3, HEIGHT, WIDTH)
    assert np.abs(planes.transpose(1, 2, 0).astype(int) - picture(11)).mean() < 2


def test_a_still_matte_for_a_frame(clip: Path, tmp_path: Path) -> None:
    mask = tmp_path / "mask.png"
    mask.write_bytes(png(np.full((HEIGHT, WIDTH, 1), 255, np.uint8)))
    assert prepare(of(VideoFrame(clip, 3), mask))[3].min() == 255


def test_a_mask_that_is_the_image_is_its_alpha(tmp_path: Path) -> None:
    path = tmp_path / "rgba.png"
    alpha = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH, 1) % 256
    path.write_bytes(png(np.concatenate([picture(0), alpha], axis=2).astype(np.uint8)))
    planes = prepare(of(path, path, background=0))
    np.testing.assert_array_equal(planes[3:], alpha.transpose(2, 0, 1))
    np.testing.assert_allclose(planes[:3], (picture(0) * (alpha / 255)).transpose(2, 0, 1), atol=0.51)
    path.write_bytes(png(picture(0)))
    with pytest.raises(InputError, match="rgba.png: found 3 channels, expected 4: its matte is its alpha"):
        prepare(of(path, path))


def damaged(data: bytes, share: float, count: int) -> bytes:
    """Other bytes at some share of the coded frames."""
    start = data.index(b"mdat") + int(share * (len(data) - data.index(b"mdat")))
    return data[:start] + bytes(255 - byte for byte in data[start : start + count]) + data[start + count :]


def test_frames_that_were_patched_up_are_refused(clip: Path) -> None:
    """FFmpeg fills what it can't decode with pieces of neighbouring frames, and only says so."""
    data, messages = clip.read_bytes(), []
    for share in np.linspace(0.1, 0.9, 17):
        clip.write_bytes(damaged(data, float(share), 3))
        try:
            with VideoReader(clip) as reader:
                reader.read(FRAMES - 1)
        except InputError as error:
            messages.append(str(error))
    assert any("is damaged" in message for message in messages)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda data: b"", "clip.mp4: is not an intact MP4"),
        (lambda data: data[: len(data) // 2], "clip.mp4: is not an intact MP4"),
        (lambda data: b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1/x.mp4\n", "clip.mp4: is not an intact MP4"),
        (lambda data: png(picture(0)), "clip.mp4: is not an intact MP4"),
        (lambda data: damaged(data, 0.3, 400), r"clip.mp4: frame \d+: (is damaged|can't be decoded)"),
    ],
)
def test_damaged_videos_are_refused(clip: Path, tmp_path: Path, harm: Any, message: str) -> None:
    clip.write_bytes(harm(clip.read_bytes()))
    pictures = [of(VideoFrame(clip, k)) for k in range(FRAMES)]
    for budget in (0, 1 << 30):
        with pytest.raises(InputError, match=message):
            open_store(pictures, tmp_path / "cache", budget)
        assert not (tmp_path / "cache").exists()


def test_a_short_video_names_the_frame(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"clip.mp4: frame {FRAMES}: the video ends after {FRAMES} frames"):
        open_store([of(VideoFrame(clip, k)) for k in range(FRAMES + 1)], tmp_path / "cache", 1 << 30)


def test_another_size_names_the_frame(clip: Path, tmp_path: Path) -> None:
    recipe = Picture(VideoFrame(clip, 2), None, (WIDTH, HEIGHT + 2), (WIDTH, HEIGHT), 255)
    with pytest.raises(InputError, match="clip.mp4: frame 2: found 64x48 pixels, expected 64x50"):
        open_store([recipe], tmp_path / "cache", 1 << 30)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match="none.mp4: can't be read: No such file"),
        VideoReader(tmp_path / "none.mp4") as r,
    ):
        r.read(0)


def test_other_colour_matrices_are_refused(tmp_path: Path) -> None:
    path = encode(tmp_path / "wide.mp4", np.array([[100, 128, 128]]), 9, False)  # BT.2020
    with pytest.raises(InputError, match="wide.mp4: frame 0: found colour matrix 9"), VideoReader(path) as reader:
        reader.read(0)
