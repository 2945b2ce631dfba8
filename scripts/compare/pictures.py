"""Pictures of the comparison: truth, renders and errors of the same frames, and a video of them side by side."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from scripts.compare.runs import Experiment, Run
from utils.engine.metrics import image_tensor, psnr
from utils.errors import InputError
from utils.io.images import resize
from utils.io.rendered import Pair, list_pairs
from utils.io.take_record import FRAMES, read_take_record
from utils.io.video import VideoWriter

TILE = 240  # pixels, width of a picture
JPEG_QUALITY = 88
ERROR_FULL = 0.2  # mean absolute error over the channels, of 1, that has the last colour
FPS = 12
PANELS = (240, 180, 120)  # widths that are tried until the video is small enough
MOST_FRAMES = 300


@dataclass(frozen=True)
class Tile:
    """One experiment's picture of a frame, or why there is none."""

    name: str
    render: str = ""  # data URI
    error: str = ""
    psnr: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Strip:
    """One frame: its photograph and every experiment's picture."""

    title: str
    truth: str
    tiles: Sequence[Tile]


@dataclass(frozen=True)
class Film:
    """A video, one column per entry of `columns`; or why there is none."""

    data: str
    columns: Sequence[str]
    note: str


def folder_of(run: Run, split: str) -> Path:
    return run.folder / split / f"ours_{run.metrics.get('iteration', run.facts.get('iteration'))}"


def frames_of(run: Run, split: str) -> dict[str, Pair]:
    """The rendered frames of a split by file name, of the iteration that was measured; empty if there are none."""
    folder = folder_of(run, split)
    return {pair.name: pair for pair in list_pairs(folder)} if folder.is_dir() else {}


def error_map(render: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Mean absolute difference over the channels as colour: black 0, bright `ERROR_FULL` and more; uint8 [H, W, 3]."""
    mean = np.abs(render.astype(np.float32) - truth).mean(axis=2) / 255
    level = np.rint(np.clip(mean / ERROR_FULL, 0, 1) * 255).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(level, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)


def scale_bar() -> str:
    """The colours of `error_map` from 0 to `ERROR_FULL`, as a data URI."""
    ramp = np.tile(np.arange(256, dtype=np.uint8), (8, 1))
    return jpeg(cv2.cvtColor(cv2.applyColorMap(ramp, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB))


def jpeg(image: np.ndarray) -> str:
    """A data URI of uint8 [H, W, 3] RGB."""
    done, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not done:
        raise ValueError(f"OpenCV could not encode a picture of shape {image.shape}")
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()


def fitted(image: np.ndarray, width: int) -> np.ndarray:
    """Shrunk to `width` pixels if it is wider."""
    if image.shape[1] <= width:
        return image
    return resize(image, width, max(1, round(image.shape[0] * width / image.shape[1])))


def spread_over(names: list[str], count: int) -> list[str]:
    """`count` names, evenly spread, none of them at the ends."""
    places = sorted({int((place + 0.5) / count * len(names)) for place in range(count)}) if names else []
    return [names[place] for place in places]


def strips(experiments: Sequence[Experiment], baseline: Experiment, counts: Mapping[str, int]) -> list[Strip]:
    """Some frames of each split as every experiment draws them; the pictures are of its first seed."""
    found = []
    for split, count in counts.items():
        frames = {one.name: frames_of(one.runs[0], split) for one in experiments}
        records = record_of(baseline.runs[0], split)
        for name in spread_over(sorted(frames[baseline.name]), count):
            _, truth, _ = frames[baseline.name][name].read()
            tiles = [tile(one, frames[one.name].get(name), truth, name) for one in experiments]
            camera, timestep = records.get(name, ("", -1))
            where = f", camera {camera}, timestep {timestep}" if camera else ""
            found.append(Strip(f"{split} {Path(name).stem}{where}", jpeg(fitted(truth, TILE)), tiles))
    return found


def tile(experiment: Experiment, pair: Pair | None, truth: np.ndarray, name: str) -> Tile:
    if pair is None:
        return Tile(experiment.name, reason=f"{name} was not rendered")
    render, own, _ = pair.read()
    if own.shape != truth.shape or (own != truth).any():
        return Tile(experiment.name, reason="another photograph")
    quality = psnr(image_tensor(render), image_tensor(truth))
    return Tile(experiment.name, jpeg(fitted(render, TILE)), jpeg(fitted(error_map(render, truth), TILE)), quality)


def record_of(run: Run, split: str) -> dict[str, tuple[str, int]]:
    """Camera and timestep of every rendered picture, by file name; empty where render.py has left no record."""
    files = frames_of(run, split)
    record = read_take_record(folder_of(run, split), files) if files else None
    return {frame.file: (frame.camera_id, frame.timestep) for frame in record.frames} if record else {}


def one_camera(run: Run) -> list[tuple[str, str]]:
    """(split, file) of one camera in the order of time: the held-out camera's if there is one, else the first of those
    that see most held-out moments. Empty without records."""
    rows = [(camera, timestep, split, name) for split in ("val", "test")
            for name, (camera, timestep) in record_of(run, split).items()]  # fmt: skip
    if not rows:
        return []
    held_out = [row for row in rows if row[2] == "val"] or rows
    counts: dict[str, int] = {}
    for camera, *_ in held_out:
        counts[camera] = counts.get(camera, 0) + 1
    chosen = min(counts, key=lambda camera: (-counts[camera], camera))
    return [(split, name) for camera, _, split, name in sorted(rows, key=lambda row: row[1]) if camera == chosen]


def film(experiments: Sequence[Experiment], baseline: Experiment, most_bytes: int) -> Film:
    """Truth and every experiment side by side, errors below, along one camera."""
    run = baseline.runs[0]
    order = one_camera(run)[:MOST_FRAMES]
    if not order:
        return Film("", (), f"no {FRAMES} beside the rendered frames of {run.name}: "
                            "python render.py -m RUN --skip_train")  # fmt: skip
    columns = {one.name: along(one.runs[0], order) for one in experiments}
    truth = columns[baseline.name][0].read()[1]
    shown = {name: pairs for name, pairs in columns.items() if pairs and np.array_equal(pairs[0].read()[1], truth)}
    for panel in PANELS:
        data = encode(list(shown.values()), panel)
        if len(data) <= most_bytes:
            counts = [sum(split == wanted for split, _ in order) for wanted in ("val", "test")]
            note = (f"{len(order)} moments of one camera at {FPS} frames per second: {counts[0]} of val, {counts[1]} "
                    "held out (test). Below: error, on the scale above.")  # fmt: skip
            if left := [name for name in columns if name not in shown]:
                note += f" Without {', '.join(left)}: other frames."
            uri = "data:video/mp4;base64," + base64.b64encode(data).decode()
            return Film(uri, ["truth", *shown], note)
    return Film("", (), f"the video is larger than {most_bytes / 1e6:g} MB even at {PANELS[-1]} pixels a picture")


def along(run: Run, order: Sequence[tuple[str, str]]) -> list[Pair]:
    """The frames in `order`; none if one is missing."""
    frames = {split: frames_of(run, split) for split in ("val", "test")}
    if any(name not in frames[split] for split, name in order):
        return []
    return [frames[split][name] for split, name in order]


def encode(columns: Sequence[Sequence[Pair]], panel: int) -> bytes:
    """An MP4: the truth and the renders of every column side by side, errors below."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "comparison.mp4"
        with VideoWriter(path, FPS) as writer:
            for pairs in zip(*columns, strict=True):
                pictures = [pair.read()[:2] for pair in pairs]
                if len({truth.shape for _, truth in pictures}) > 1:
                    raise InputError(pairs[0].truth, "", f"found another size than in {pairs[-1].truth.parent}")
                above = [fitted(pictures[0][1], panel), *(fitted(render, panel) for render, _ in pictures)]
                errors = [fitted(error_map(render, truth), panel) for render, truth in pictures]
                below = [np.full_like(above[0], 255), *errors]
                writer.write(np.concatenate([np.concatenate(above, 1), np.concatenate(below, 1)], 0))
        return path.read_bytes()
