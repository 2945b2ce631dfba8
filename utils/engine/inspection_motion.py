"""How the tracked parameters move: spread, largest step, jitter; where they jump; what only the test frames do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import degrees

import numpy as np

from scene.datasets import Capture
from scene.datasets.capture import FrameRecord
from utils.contracts import Motion
from utils.engine.inspection_report import Section, counted, listed

JUMP = 8.0  # times the median step
WHITE = 1.2  # rms of second over rms of first differences: 0 for smooth motion, sqrt(3) for noise
MOST_NAMED = 3
POSE_MARGIN, EXPRESSION_MARGIN = 0.1, 1.0  # radians, units of a coefficient: beyond the range seen in training
OFTEN = 0.2  # share of test timesteps
STILL = 1e-6  # metres


@dataclass(frozen=True)
class Unit:
    """How a parameter is shown, and from where on it is worth a warning."""

    name: str
    scale: float
    jump: float  # smallest step that counts as a jump, in this unit
    noise: float  # smallest jitter that counts, in this unit


ANGLE, LENGTH, NUMBER = Unit("deg", degrees(1.0), 8.0, 0.5), Unit("mm", 1000.0, 20.0, 1.0), Unit("", 1.0, 3.0, 0.3)
UNITS = {"rotation": ANGLE, "neck_pose": ANGLE, "jaw_pose": ANGLE, "eyes_pose": Unit("deg", degrees(1.0), 30.0, 3.0),
         "translation": LENGTH, "expr": NUMBER, "mesh": LENGTH, "camera": LENGTH}  # fmt: skip
FIXED = ("mesh", "camera")  # training does not refine them
POSES = ("rotation", "neck_pose", "jaw_pose")


@dataclass(frozen=True)
class Track:
    """Statistics of one parameter, in its unit; steps are lengths of differences of neighbouring timesteps."""

    spread: float  # rms distance from the mean
    largest: float
    at: int  # row after the largest step
    jitter: float  # rms of the noise that second differences show; 0 for smooth motion
    white: bool  # whether steps look like noise
    jumps: list[int]  # rows after a jump


def motion_section(capture: Capture, labels: Sequence[int]) -> Section:
    """A line for each parameter that moves. `labels`: the timesteps as the files number them."""
    section = Section("Motion")
    motion = capture.motion
    if motion is None or motion.timesteps < 2:
        return section
    together = neighbours(capture.sequence_starts, labels)
    values = tracks_of(capture, motion)
    section.lines.append(f"{'':<12}{'spread':>12}{'largest step':>16}{'jitter':>12}")
    for name, rows in values.items():
        track, unit = measure(rows, together, UNITS[name]), UNITS[name]
        section.values[name] = {"unit": unit.name, "spread": track.spread, "largest_step": track.largest,
                                "largest_step_at": labels[track.at], "jitter": track.jitter}  # fmt: skip
        if track.spread == 0:
            section.row(name, f"{'still':>12}")
            continue
        place = f"  (timestep {labels[track.at]})" if track.largest else ""
        shown = [amount(value, unit) for value in (track.spread, track.largest, track.jitter)]
        section.row(name, f"{shown[0]:>12}{shown[1]:>16}{shown[2]:>12}{place}")
        section.warnings += track_warnings(name, track, labels)
    section.warnings += unseen_warnings(values, capture.records, labels)
    return section


def tracks_of(capture: Capture, motion: Motion) -> dict[str, np.ndarray]:
    """Rows [T, n] by what they describe: the parameters, or the centre of recorded meshes; a camera that moves."""
    values = {name: v.double().numpy() for name, v in motion.per_frame.items() if name in UNITS}
    if "vertices" in motion.per_frame:
        values["mesh"] = motion.per_frame["vertices"].double().mean(dim=1).numpy()
    centres = {record.timestep: np.linalg.inv(record.world_to_camera)[:3, 3] for record in capture.everything}
    one = len({record.camera_id for record in capture.everything}) == 1 and len(centres) == motion.timesteps
    if one and np.ptp([centres[t] for t in sorted(centres)], axis=0).max() > STILL:
        values["camera"] = np.array([centres[t] for t in sorted(centres)])
    return values


def neighbours(starts: Sequence[int], labels: Sequence[int]) -> np.ndarray:
    """[T - 1] bool: whether rows t and t + 1 follow each other in one sequence."""
    together = np.diff(np.asarray(labels)) == 1
    together[[start - 1 for start in starts if start > 0]] = False
    return together


def measure(rows: np.ndarray, together: np.ndarray, unit: Unit) -> Track:
    """Statistics of rows [T, n]; `together` [T - 1] says which neighbours count."""
    rows = rows.reshape(len(rows), -1) * unit.scale
    spread = float(np.sqrt(np.square(rows - rows.mean(axis=0)).sum(axis=1).mean()))
    steps = np.diff(rows, axis=0)
    lengths = np.where(together, np.linalg.norm(steps, axis=1), 0.0)
    counted_steps = lengths[together]
    if not len(counted_steps):
        return Track(spread, 0.0, 0, 0.0, False, [])
    bends = np.diff(steps, axis=0)[together[1:] & together[:-1]]
    bend = float(np.sqrt(np.square(bends).sum(axis=1).mean())) if len(bends) else 0.0
    step = float(np.sqrt(np.square(counted_steps).mean()))
    jump = max(unit.jump, JUMP * float(np.median(counted_steps)))
    jumps = (np.flatnonzero(lengths > jump) + 1).tolist()
    noise = bend / np.sqrt(6.0)  # the second difference of noise with variance v has 6 v
    white = bool(step > 0 and bend > WHITE * step and noise > unit.noise)
    return Track(spread, float(lengths.max()), int(lengths.argmax()) + 1, noise, white, jumps)


def track_warnings(name: str, track: Track, labels: Sequence[int]) -> Iterator[str]:
    unit = UNITS[name]
    if track.jumps:
        where = listed([str(labels[row]) for row in track.jumps], MOST_NAMED)
        yield (f"{name} jumps at {counted(len(track.jumps), 'timestep')} ({where}), by up to "
               f"{amount(track.largest, unit)}: tracking lost there?")  # fmt: skip
    unrelated = name == "expr" and track.jitter > 0.5 * track.spread  # pictures of separate moments, not noise
    if track.white and not unrelated and not track.jumps:
        advice = "" if name in FIXED else ", or let training refine it (leave out --not_finetune_flame_params)"
        yield f"{name} jitters by about {amount(track.jitter, unit)}: smooth the tracking{advice}"


def amount(value: float, unit: Unit) -> str:
    return (f"{value:.2f} {unit.name}" if value < 1e5 else f"{value:.2g} {unit.name}").rstrip()


def unseen_warnings(
    values: Mapping[str, np.ndarray], records: Mapping[str, Sequence[FrameRecord]], labels: Sequence[int]
) -> Iterator[str]:
    """Test timesteps whose pose or expression lies outside of what training sees."""
    seen = sorted({record.timestep for split in ("train", "val") for record in records[split]})
    tested = sorted({record.timestep for record in records["test"]} - set(seen))
    if not seen or not tested:
        return
    margins = {**dict.fromkeys(POSES, POSE_MARGIN), "expr": EXPRESSION_MARGIN}
    for name, margin in margins.items():
        if name not in values:
            continue
        low, high = values[name][seen].min(axis=0) - margin, values[name][seen].max(axis=0) + margin
        outside = ((values[name][tested] < low) | (values[name][tested] > high)).any(axis=1)
        if outside.mean() > OFTEN:
            first = labels[tested[int(outside.argmax())]]
            yield (f"{name} of {int(outside.sum())} of {len(tested)} test timesteps (the first is {first}) lies "
                   "outside of what train and val show: test would measure extrapolation")  # fmt: skip
