"""What metrical-tracker writes for each picture, `checkpoint/00000.frame`, and how that becomes cameras and a Motion.

Two dataset formats are made of these files: `metrical_tracker` and `flash_avatar`. The head stays where FLAME's
template is and the camera moves. Jaw and eyes are 6-D rotations: the first two rows of the matrix, as in PyTorch3D's
`rotation_6d_to_matrix` (zjumsj/FaceViewer issue 1, Zielon/metrical-tracker issue 43). The eyes come in the order of
FLAME's joints, left, then right.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flame_model.torch_file import read_torch_file
from scene.cameras import Intrinsics, matrix_fault, pinhole_fault, rigid_fault
from scene.datasets.capture import Capture, FilePlace, FrameRecord, train_count
from scene.datasets.frame_records import MAX_SIDE
from scene.datasets.picture_size import fit, read_picture_header, resizing_notes
from utils.contracts import Motion
from utils.errors import InputError
from utils.maths.rotations import matrix_to_axis_angle

EDITION = "FLAME 2020"
MAX_BYTES = 256 << 20  # of a file; the tracker's have less than one megabyte
CHECKPOINT, FRAME = "checkpoint", ".frame"
MAX_DIRECTIONS = 1000  # expressions or identity directions
IDENTITY_TOLERANCE = 1e-3  # of a coefficient, whose unit is a standard deviation
ZEROS = {"rotation": 3, "neck_pose": 3, "translation": 3}  # what the camera does instead


@dataclass(frozen=True)
class TrackedFrame:
    """One checked `.frame` file."""

    path: Path
    world_to_camera: np.ndarray  # [4, 4] float64, OpenCV axes, metres
    matrix: np.ndarray  # [3, 3] float64 pinhole in pixels
    image_size: list[float]  # the two sides in pixels, in either order
    jaw_pose: np.ndarray  # [3] axis-angle
    eyes_pose: np.ndarray  # [6] axis-angle, left, right
    expr: np.ndarray  # [E]
    shape: np.ndarray  # [S]
    eyelids: np.ndarray  # [2], zeros if not tracked


def numbered(folder: Path, suffixes: Sequence[str]) -> dict[int, Path]:
    """The files of `folder` with one of `suffixes` (lower case), by the number that is their name, in its order.

    Raises:
        InputError: no such folder, no such file, a name that is no number, or two of one number.
    """
    if not folder.is_dir():
        raise InputError(folder, "", "is not a folder", "The dataset is incomplete.")
    files: dict[int, Path] = {}
    for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in suffixes):
        if not re.fullmatch(r"[0-9]{1,9}", path.stem):
            raise InputError(path, "", f"found the name {path.name!r}, expected a number like 00001{path.suffix}")
        other = files.setdefault(int(path.stem), path)
        if other != path:
            raise InputError(path, "", f"has the number of {other.name}", "Keep one of the two.")
    if not files:
        raise InputError(folder, "", f"holds no file named like 00001{suffixes[0]}", "The dataset is incomplete.")
    return dict(sorted(files.items()))


class Entries:
    """The numbers in a `.frame` file, by the names of its nested dicts."""

    def __init__(self, path: Path) -> None:
        self.path, self.content = path, read_torch_file(path, MAX_BYTES)

    def has(self, name: str) -> bool:
        value = self.content
        for part in name.split("."):
            if not isinstance(value, Mapping) or part not in value:
                return False
            value = value[part]
        return True

    def array(self, name: str, shape: tuple[int | None, ...]) -> np.ndarray:
        """Finite float64 of `shape` (None: any length up to 1000); an extra first axis of length 1 is dropped.

        Raises:
            InputError: missing, not numbers, of another shape or not finite; names the file and the entry.
        """
        if not self.has(name):
            raise InputError(self.path, name, "is missing, expected what metrical-tracker writes")
        value: Any = self.content
        for part in name.split("."):
            value = value[part]
        if isinstance(value, (list, tuple)) and all(type(item) in (int, float) for item in value):
            value = np.array(value)
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu":
            shown = f"{value.dtype} values" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
            raise InputError(self.path, name, f"found {shown}, expected an array of numbers")
        found = value[0] if value.ndim == len(shape) + 1 and len(value) == 1 else value
        fits = found.ndim == len(shape) and all(
            1 <= have <= MAX_DIRECTIONS if want is None else have == want
            for have, want in zip(found.shape, shape, strict=True)
        )
        if not fits:
            wanted = [1, *("any" if side is None else side for side in shape)]
            raise InputError(self.path, name, f"found shape {list(value.shape)}, expected {wanted}")
        found = np.ascontiguousarray(found, np.float64)
        if not np.isfinite(found).all() or np.abs(found).max() > 1e30:
            raise InputError(self.path, name, "found a value that is not finite")
        return found


def read_tracked_frame(path: Path) -> TrackedFrame:
    """Read and check one `.frame` file.

    Raises:
        InputError: names the file and the entry.
    """
    entries = Entries(path)
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = entries.array("opencv.R", (3, 3)), entries.array("opencv.t", (3,))
    if fault := rigid_fault(matrix):
        raise InputError(path, "opencv.R", fault)
    turns = {name: entries.array(f"flame.{name}", (count,)) for name, count in (("jaw", 6), ("eyes", 12))}
    poses = {name: axis_angle_of(values.reshape(-1, 6), path, f"flame.{name}") for name, values in turns.items()}
    eyelids = entries.array("flame.eyelids", (2,)) if entries.has("flame.eyelids") else np.zeros(2)
    return TrackedFrame(
        path,
        matrix,
        entries.array("opencv.K", (3, 3)),
        entries.array("img_size", (2,)).tolist(),
        poses["jaw"],
        poses["eyes"],
        entries.array("flame.exp", (None,)),
        entries.array("flame.shape", (None,)),
        eyelids,
    )


def axis_angle_of(rows: np.ndarray, path: Path, name: str) -> np.ndarray:
    """6-D rotations [n, 6] -> axis-angle [3 n].

    The six numbers are the first two rows of a matrix, made orthonormal by Gram-Schmidt (Zhou et al. 2019, "On the
    Continuity of Rotation Representations in Neural Networks", where they are columns).
    """
    first, second = rows[:, :3], rows[:, 3:]
    lengths = np.linalg.norm(first, axis=1, keepdims=True)
    if (lengths < 1e-6).any():
        raise InputError(path, name, "found a 6-D rotation whose first half is zero")
    x = first / lengths
    rest = second - (x * second).sum(1, keepdims=True) * x
    lengths = np.linalg.norm(rest, axis=1, keepdims=True)
    if (lengths < 1e-6).any():
        raise InputError(path, name, "found a 6-D rotation whose halves are parallel")
    y = rest / lengths
    matrices = np.stack([x, y, np.cross(x, y)], axis=1)
    return matrix_to_axis_angle(torch.from_numpy(matrices)).numpy().reshape(-1)


def motion_of(frames: Sequence[TrackedFrame]) -> Motion:
    """The motion of tracked frames, one timestep each; the identity is that of the first.

    Raises:
        InputError: the frames differ in the number of coefficients.
    """
    for frame in frames:
        for name, key in (("expr", "exp"), ("shape", "shape")):
            found, expected = len(getattr(frame, name)), len(getattr(frames[0], name))
            if found != expected:
                problem = f"found {found} values, expected {expected} as in {frames[0].path}"
                raise InputError(frame.path, f"flame.{key}", problem)
    rows = {name: np.stack([getattr(frame, name) for frame in frames]) for name in ("jaw_pose", "eyes_pose", "expr")}
    rows |= {name: np.zeros((len(frames), width)) for name, width in ZEROS.items()}
    return Motion(
        per_frame={name: torch.from_numpy(values.astype(np.float32)) for name, values in rows.items()},
        static={"shape": torch.from_numpy(frames[0].shape.astype(np.float32))},
    )


def records_of(
    frames: Sequence[TrackedFrame], images: Sequence[Path], masks: Sequence[Path | None]
) -> tuple[list[FrameRecord], tuple[str, ...]]:
    """Frame records, one timestep each, and what users should know about the size of the pictures.

    `img_size` is written as width and height by some and as height and width by others: the first picture says which
    side is which. It may be a uniformly resized copy.

    Raises:
        InputError: that picture has another aspect, or a pinhole is none.
    """
    header = read_picture_header(images[0])
    records, sizes = [], []
    for timestep, (frame, image, mask) in enumerate(zip(frames, images, masks, strict=True)):
        place = FilePlace(frame.path)
        tracked = intrinsics_of(frame, landscape=header.width > header.height)
        fitted = fit(tracked, header, images[0], place, "img_size")
        sizes.append((tracked, fitted))
        records.append(FrameRecord(place, timestep, 0, "0", fitted, frame.world_to_camera, image, mask))
    return records, resizing_notes(sizes)


def intrinsics_of(frame: TrackedFrame, landscape: bool) -> Intrinsics:
    """The pinhole of the picture as it was tracked."""
    sides = sorted(frame.image_size, reverse=landscape)
    if any(side != int(side) or not 1 <= side <= MAX_SIDE for side in sides):
        raise InputError(frame.path, "img_size", f"found {frame.image_size}, expected two whole numbers of pixels")
    width, height = int(sides[0]), int(sides[1])
    (fx, _, cx), (_, fy, cy), _ = frame.matrix.tolist()
    pinhole = Intrinsics(fx, fy, cx, cy, width, height)
    if fault := matrix_fault(frame.matrix) or pinhole_fault(pinhole):
        raise InputError(frame.path, "opencv.K", fault)
    return pinhole


def split_at_end(records: Sequence[FrameRecord], most: int) -> dict[str, list[FrameRecord]]:
    """Test: the last `most` frames, or the last 30 % where that would be over half of all. No validation frames."""
    count = len(records) - most if len(records) >= 2 * most else train_count(len(records))
    return {"train": list(records[:count]), "val": [], "test": list(records[count:])}


def capture_of(
    name: str,
    files: Sequence[Path],
    images: Sequence[Path],
    masks: Sequence[Path | None],
    test_frames: int,
    note: str,
) -> Capture:
    """Read `.frame` files, each with its picture and its matte, as a dataset of the format `name`.

    The last `test_frames` frames are test (see `split_at_end`).

    Raises:
        InputError: names the `.frame` file and the entry.
    """
    frames = [read_tracked_frame(path) for path in files]
    records, sizes = records_of(frames, images, masks)
    splits = split_at_end(records, test_frames)
    return Capture(
        format=name,
        records=splits,
        files=files,
        motion=motion_of(frames),
        edition=EDITION,
        notes=(f"test: the last {len(splits['test'])} of {len(frames)} frames", note, *sizes, *notes_of(frames)),
    )


def notes_of(frames: Sequence[TrackedFrame]) -> list[str]:
    """What a user should know about motion from these files."""
    notes = []
    moved = sum(bool(frame.eyelids.any()) for frame in frames)
    if moved:
        notes.append(f"eyelids: {moved} of {len(frames)} frames close them by two blendshapes of metrical-tracker "
                     "that FLAME files do not hold; they are not applied")  # fmt: skip
    change = max(float(np.abs(frame.shape - frames[0].shape).max()) for frame in frames)
    if change > IDENTITY_TOLERANCE:
        notes.append(f"identity: the frames' shapes differ by up to {change:.3g}; that of {frames[0].path.name} "
                     "is used for all")  # fmt: skip
    return notes
