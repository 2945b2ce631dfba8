"""The NeRSemble benchmark's monocular FLAME avatar task: videos of a head, their mattes and FLAME tracking.

`-s` is a participant's folder (`calibration/` and `sequences/NAME/`) or one of its sequences. Layout, serials and the
placing of the head follow the toolkit (`pip install nersemble_benchmark`, Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from scene.cameras import Intrinsics, matrix_fault, pinhole_fault, rigid_fault
from scene.datasets.capture import SPLITS, Capture, FilePlace, FrameRecord, train_count
from scene.datasets.options import DataOptions
from utils.contracts import Motion
from utils.errors import InputError
from utils.io.json_files import JsonObject, read_json
from utils.io.npz import Array, read_npz
from utils.io.video import VideoFrame, VideoHeader, read_video_header

CALIBRATION = "calibration/camera_params.json"
TRACKING = "tracking/flame2023_tracking_v2.npz"  # the toolkit wants no other version used
EDITION = "FLAME 2023"
TEST_CAMERAS = ("222200046", "220700191", "222200039")
TEST_SEQUENCES = ("FREE", "EMO-1-shout+laugh", "SEN-09-frown_events_bad", "SEN-10-port_strong_smokey")
MATRIX_TOLERANCE = 1e-3  # of rotation_matrices against the Euler angles
# T timesteps, E expressions, S identity directions. Radians; FLAME poses are axis-angle, the head's rotation is not.
SCHEMA = {
    "shape": Array(("S",), leading=True),
    "expression": Array(("T", "E")),
    "rotation": Array(("T", 3)),
    "rotation_matrices": Array(("T", 3, 3), required=False),
    "translation": Array(("T", 3)),
    "jaw": Array(("T", 3)),
    "neck": Array(("T", 3)),
    "eyes": Array(("T", 6)),
    "frames": Array(("T",), required=False),
    "scale": Array((1,), leading=True),
}
LIMITS = {"T": 1_000_000, "E": 1000, "S": 1000}


@dataclass(frozen=True)
class Calibrated:
    """A camera of the calibration file."""

    index: int  # its place there
    world_to_camera: np.ndarray  # [4, 4] float64, OpenCV axes
    intrinsics: np.ndarray  # [3, 3] float64, pixels of the video
    place: JsonObject  # of the intrinsics


@dataclass(frozen=True)
class Recording:
    """A sequence: its tracking, and the videos of its cameras by serial."""

    folder: Path
    tracking: dict[str, np.ndarray]
    videos: dict[str, Path]

    @property
    def timesteps(self) -> int:
        return len(self.tracking["rotation"])


def recognise(folder: Path) -> str | None:
    """Why `folder` is no participant or sequence of the benchmark, or None if it is one."""
    if find_calibration(folder) is None:
        return f"no {CALIBRATION}"
    return None if find_sequences(folder) else f"no {TRACKING} in it or in sequences/*"


def find_calibration(folder: Path) -> Path | None:
    """The calibration of a participant's folder, or of the participant that a sequence belongs to."""
    candidates = (folder / CALIBRATION, folder.resolve().parent.parent / CALIBRATION)
    return next((path for path in candidates if path.is_file()), None)


def find_sequences(folder: Path) -> list[Path]:
    """The sequences with tracking: the folder itself, or those of a participant by name."""
    if (folder / TRACKING).is_file():
        return [folder]
    return sorted(path for path in folder.glob("sequences/*") if (path / TRACKING).is_file())


def read(folder: Path, options: DataOptions) -> Capture:
    """Read a participant or a sequence.

    The tracker turns and scales the posed head about the origin of its model, v_world = s R v + t, which FLAME's own
    rotation (about a joint) can't say. So the motion here is that of a head that stays, and the cameras move instead:
    with w2c = [Rc | tc], a camera [Rc R | (Rc t + tc) / s] sees the same pixels.

    Sequences without pictures are the hidden test sequences; they are left out.
    """
    calibration = find_calibration(folder)
    if calibration is None:
        raise InputError(folder / CALIBRATION, "", "does not exist")
    cameras = read_calibration(calibration)
    found = [read_sequence(path, cameras, calibration) for path in find_sequences(folder)]
    sequences = [sequence for sequence in found if sequence.videos]
    if not sequences:
        raise InputError(folder, "images", "no sequence here has videos", "Download the images, or name a sequence.")
    check_shapes(sequences)
    starts = np.cumsum([0, *(sequence.timesteps for sequence in sequences)]).tolist()
    frames = [
        (sequence, serial, record)
        for sequence, start in zip(sequences, starts[:-1], strict=True)
        for serial in sequence.videos
        for record in make_records(sequence, serial, cameras[serial], start)
    ]
    records, how = split_frames(frames)
    hidden = [sequence.folder.name for sequence in found if not sequence.videos]
    return Capture(
        format="nersemble",
        records=records,
        files=(calibration, *(sequence.folder / TRACKING for sequence in sequences)),
        motion=join([motion_of(sequence.tracking) for sequence in sequences]),
        edition=EDITION,
        sequence_starts=tuple(starts[:-1]),
        notes=(*how, *([f"sequences without pictures, left out: {', '.join(hidden)}"] if hidden else [])),
    )


def read_calibration(path: Path) -> dict[str, Calibrated]:
    """Cameras by serial, in the order of the file."""
    content = JsonObject.of(path, "", read_json(path))
    poses, pinholes = content.object("world_2_cam"), content.object("intrinsics")
    cameras = {}
    for index, serial in enumerate(poses.value):
        pose = poses.matrix(serial, 4, 4)
        if fault := rigid_fault(pose):
            raise poses.error(serial, fault, "It must be a rigid world-to-camera matrix with OpenCV axes.")
        matrix = pinholes.matrix(serial, 3, 3)
        if fault := matrix_fault(matrix):
            raise pinholes.error(serial, fault)
        cameras[serial] = Calibrated(index, pose, matrix, pinholes)
    return cameras


def read_sequence(folder: Path, cameras: dict[str, Calibrated], calibration: Path) -> Recording:
    """The tracking of a sequence and its videos, which every camera of a video must be calibrated for."""
    videos = {path.stem.removeprefix("cam_"): path for path in sorted(folder.glob("images/cam_*.mp4"))}
    for serial, path in videos.items():
        if serial not in cameras:
            raise InputError(path, "", f"found camera {serial}, which {calibration} does not have")
    return Recording(folder, read_tracking(folder / TRACKING), videos)


def read_tracking(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a tracking file, float32; raises InputError naming array and frame."""
    tracking = read_npz(path, SCHEMA, LIMITS)
    scale = float(tracking["scale"][0])
    if not 1e-6 < scale < 1e6:
        raise InputError(path, "scale", f"found {scale:g}, expected a positive number")
    if "rotation_matrices" in tracking:
        difference = np.abs(tracking["rotation_matrices"] - euler_matrices(tracking["rotation"])).max((1, 2))
        if len(bad := np.flatnonzero(difference > MATRIX_TOLERANCE)):
            problem = f"differs by {difference[bad[0]]:.3g} from the Euler angles (XYZ, radians) in `rotation`"
            raise InputError(path, f"rotation_matrices[{bad[0]}]", problem, "Download the tracking again.")
    return tracking


def euler_matrices(angles: np.ndarray) -> np.ndarray:
    """Intrinsic XYZ Euler angles [T, 3] in radians -> Rx Ry Rz [T, 3, 3] float64."""
    sines, cosines = np.sin(angles, dtype=np.float64), np.cos(angles, dtype=np.float64)
    turns = []
    for axis in range(3):
        after, last = (axis + 1) % 3, (axis + 2) % 3
        turn = np.broadcast_to(np.eye(3), (len(angles), 3, 3)).copy()
        turn[:, after, after] = turn[:, last, last] = cosines[:, axis]
        turn[:, last, after], turn[:, after, last] = sines[:, axis], -sines[:, axis]
        turns.append(turn)
    return turns[0] @ turns[1] @ turns[2]


def check_shapes(sequences: Sequence[Recording]) -> None:
    """Refuse sequences that were tracked with different identities: an avatar has one."""
    first = sequences[0]
    for sequence in sequences[1:]:
        shape, expected = sequence.tracking["shape"], first.tracking["shape"]
        if shape.shape != expected.shape or not np.allclose(shape, expected, rtol=0, atol=1e-5):
            problem = f"differs from that of {first.folder / TRACKING}, expected one identity"
            raise InputError(sequence.folder / TRACKING, "shape", problem, "Read one sequence: -s .../sequences/NAME.")
        if sequence.tracking["expression"].shape[1] != first.tracking["expression"].shape[1]:
            problem = f"found another number of expressions than in {first.folder / TRACKING}"
            raise InputError(sequence.folder / TRACKING, "expression", problem)


def make_records(sequence: Recording, serial: str, camera: Calibrated, start: int) -> list[FrameRecord]:
    """A record per timestep of one video: frame k of the video belongs to row k of the tracking, as in the toolkit."""
    video, matte = sequence.videos[serial], sequence.folder / "alpha_maps" / f"cam_{serial}.mp4"
    header = read_video_header(video)
    check_header(video, header, sequence.timesteps, header)
    mask = matte if matte.parent.is_dir() else None
    if mask:
        check_header(mask, read_video_header(mask), sequence.timesteps, header)
    k = camera.intrinsics
    intrinsics = Intrinsics(k[0, 0], k[1, 1], k[0, 2], k[1, 2], header.width, header.height)
    if fault := pinhole_fault(intrinsics):
        raise camera.place.error(serial, fault)
    for axis, value, side in (("cx", k[0, 2], header.width), ("cy", k[1, 2], header.height)):
        if not 0 <= value <= side:
            problem = f"found {axis} = {value:g} px for the {header.width}x{header.height} pixels of {video}"
            raise camera.place.error(serial, problem, "The calibration must be that of the video's size.")
    return [
        FrameRecord(
            place=FilePlace(video, f"frame {row}"),
            timestep=start + row,
            camera_index=camera.index,
            camera_id=serial,
            intrinsics=intrinsics,
            world_to_camera=pose,
            image=VideoFrame(video, row, f"{sequence.folder.name}_{serial}"),
            mask=VideoFrame(mask, row) if mask else None,
        )
        for row, pose in enumerate(moving_cameras(sequence.tracking, camera.world_to_camera))
    ]


def check_header(path: Path, header: VideoHeader, timesteps: int, expected: VideoHeader) -> None:
    """Refuse a video that is shorter than its tracking or of another size than the photographs."""
    if 0 < header.frames < timesteps:
        problem = f"the video has {header.frames} frames, the tracking has {timesteps}"
        raise InputError(path, f"frame {header.frames}", problem, "Download both again: frame k belongs to row k.")
    if (header.width, header.height) != (expected.width, expected.height):
        found, wanted = f"{header.width}x{header.height}", f"{expected.width}x{expected.height}"
        raise InputError(path, "", f"found {found} pixels, expected {wanted} as in images/")


def moving_cameras(tracking: dict[str, np.ndarray], world_to_camera: np.ndarray) -> np.ndarray:
    """[T, 4, 4] world-to-camera matrices for a head that stays: [Rc R | (Rc t + tc) / s] (see `read`)."""
    rotations, translations = euler_matrices(tracking["rotation"]), tracking["translation"].astype(np.float64)
    moved = np.broadcast_to(np.eye(4), (len(rotations), 4, 4)).copy()
    moved[:, :3, :3] = world_to_camera[:3, :3] @ rotations
    moved[:, :3, 3] = translations @ world_to_camera[:3, :3].T + world_to_camera[:3, 3]
    moved[:, :3, 3] /= float(tracking["scale"][0])
    return moved


def split_frames(
    frames: Sequence[tuple[Recording, str, FrameRecord]],
) -> tuple[dict[str, list[FrameRecord]], tuple[str, ...]]:
    """Records by split, and notes on how they were dealt.

    Held out is what the benchmark holds out, its cameras and its sequences. Where a folder has none of them (the
    benchmark hides them) or nothing else, the last 30 % of the timesteps of each sequence are.
    """
    held_out = [serial in TEST_CAMERAS or sequence.folder.name in TEST_SEQUENCES for sequence, serial, _ in frames]
    notes = ("splits: test is the cameras and sequences that the benchmark holds out",)
    if not any(held_out) or all(held_out):
        ends: dict[Path, int] = {}
        for sequence, _, record in frames:
            ends.setdefault(sequence.folder, record.timestep + train_count(sequence.timesteps))
        held_out = [record.timestep >= ends[sequence.folder] for sequence, _, record in frames]
        notes = ("splits: without both sides of the benchmark's split, test is the last 30 % of every sequence",)
    records: dict[str, list[FrameRecord]] = {split: [] for split in SPLITS}
    for test, (_, _, record) in zip(held_out, frames, strict=True):
        records["test" if test else "train"].append(record)
    return records, notes


def motion_of(tracking: dict[str, np.ndarray]) -> Motion:
    """FLAME parameters of a head that neither turns nor moves as a whole (see `read`)."""
    still = np.zeros_like(tracking["rotation"])
    per_frame = {
        "rotation": still,
        "translation": still.copy(),
        "neck_pose": tracking["neck"],
        "jaw_pose": tracking["jaw"],
        "eyes_pose": tracking["eyes"],
        "expr": tracking["expression"],
    }
    return Motion(
        {name: torch.from_numpy(values) for name, values in per_frame.items()},
        {"shape": torch.from_numpy(tracking["shape"])},
    )


def join(motions: Sequence[Motion]) -> Motion:
    """Sequences one after the other; the identity is that of the first."""
    names = motions[0].per_frame
    return Motion(
        {name: torch.cat([motion.per_frame[name] for motion in motions]) for name in names}, motions[0].static
    )


def read_motion_npz(path: Path) -> Motion:
    """Expression, neck, jaw and eyes of a tracking file, to drive any avatar with.

    The head's own rotation, translation and scale are left out (zero): the tracker applies them about the origin of
    the posed model, FLAME about a joint whose place depends on shape and expression, so they don't carry over.

    Raises:
        InputError: names the file, the array and what is wrong with it.
    """
    return motion_of(read_tracking(path))


def recognise_motion(keys: frozenset[str]) -> str | None:
    """Why a file with these arrays is no tracking of the benchmark, or None if it is one."""
    missing = [name for name, array in SCHEMA.items() if array.required and name not in keys]
    return f"no {', '.join(missing)}" if missing else None
