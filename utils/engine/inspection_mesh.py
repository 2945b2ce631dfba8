"""Does the posed mesh lie on the pictures? If not: under which other reading of the cameras would it?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from diff_gaussian_rasterization.mesh import COORDINATE_LIMIT, rasterize_mesh

from scene.cameras import Intrinsics, rigid_fault
from scene.datasets import Capture, DataOptions
from scene.datasets.capture import FrameRecord, make_picture
from scene.image_store import BACKGROUND_TOLERANCE, Picture, prepare
from scene.rigs import Rig
from utils.engine.inspection_pictures import Look
from utils.engine.inspection_readings import Convention, Reading, readings
from utils.engine.inspection_report import Section, counted, percent

NEAR = 0.01  # metres
SMALL, LARGE = 0.05, 3.0  # plausible extent of a head, in sides of the picture
INSIDE = 0.1  # share of the vertices that must lie in the picture
SOME = 0.05  # share of frames that may miss before it is worth a warning
SIDE = 256  # pixels: silhouettes are compared at this size
SAMPLES, FEW = 12, 4  # frames that a reading is scored on; on few of them first
CANDIDATES = 6
CLEARLY = 0.1  # overlap that another reading must gain
CLEARLY_CY = 0.02  # the same for cy, which shifts the mesh by little but in every frame
SIMPLER = 0.01  # overlap that one more change in a reading must bring
AGREE = 0.8  # share of frames that must get better
POOR = 0.5  # overlap
PLACES = {"behind": "is behind the camera", "outside": "projects outside the image",
          "small": "is smaller than plausible", "large": "is larger than plausible"}  # fmt: skip


@dataclass
class Poser:
    """Posed vertices [V, 3] (float64, metres) by timestep; the last one is remembered."""

    rig: Rig
    translations: np.ndarray | None  # [T, 3] metres
    last: tuple[int, np.ndarray] | None = field(default=None, repr=False)

    def __call__(self, timestep: int) -> np.ndarray:
        if self.last is None or self.last[0] != timestep:
            with torch.no_grad():
                self.last = timestep, self.rig(timestep).vertices.double().numpy()
        return self.last[1]


@dataclass(frozen=True)
class Sample:
    """A frame on which readings are tried."""

    world_to_camera: np.ndarray  # as read
    intrinsics: Intrinsics  # of the silhouette
    vertices: np.ndarray
    translation: np.ndarray | None
    silhouette: np.ndarray | None  # [h, w] bool: the person; None: the picture does not tell


def camera_points(vertices: np.ndarray, world_to_camera: np.ndarray) -> np.ndarray:
    return vertices @ world_to_camera[:3, :3].T + world_to_camera[:3, 3]


def pixels(points: np.ndarray, k: Intrinsics) -> np.ndarray:
    """Camera points [..., 3] in front of the camera -> pixels [..., 2]."""
    return points[..., :2] / points[..., 2:] * [k.fx, k.fy] + [k.cx, k.cy]


def place_of(vertices: np.ndarray, world_to_camera: np.ndarray, k: Intrinsics) -> str:
    """Where a mesh is: a key of PLACES, or `fine`."""
    points = camera_points(vertices, world_to_camera)
    front = points[:, 2] > NEAR
    if front.mean() < 0.5:
        return "behind"
    seen = pixels(points[front], k)
    extent = float(((seen.max(axis=0) - seen.min(axis=0)) / [k.width, k.height]).max())
    if extent > LARGE:
        return "large"
    if ((seen >= 0) & (seen <= [k.width, k.height])).all(axis=1).mean() < INSIDE:
        return "outside"
    return "small" if extent < SMALL else "fine"


def drawn(
    vertices: np.ndarray, faces: np.ndarray, world_to_camera: np.ndarray, k: Intrinsics
) -> tuple[np.ndarray, np.ndarray]:
    """Face [H, W] int32 seen at each pixel (-1: none) and barycentrics [H, W, 3]; far outside, nothing is drawn."""
    points = camera_points(vertices, world_to_camera)
    front = points[:, 2] > NEAR
    screen = np.zeros(points.shape, np.float32)
    screen[front, :2], screen[front, 2] = pixels(points[front], k), points[front, 2]
    screen[(np.abs(screen[:, :2]) > COORDINATE_LIMIT).any(axis=1)] = 0.0
    face, weights, _ = rasterize_mesh(screen, faces, k.width, k.height, NEAR)
    return face, weights


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two bool pictures; 0 if both are empty."""
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 0.0


def silhouette_of(picture: Picture, background: str) -> np.ndarray | None:
    """Where the person is, [h, w] bool: the matte, or else what differs from the background."""
    planes = prepare(picture)
    if len(planes) == 4:
        return planes[3] > 127
    level = {"white": 255, "black": 0, "transparent": picture.background}.get(background)
    if level is None:
        return None
    return (np.abs(planes[:3].astype(np.int16) - level) > 2 * BACKGROUND_TOLERANCE).any(axis=0)


def spread_out(records: Sequence[FrameRecord], count: int) -> list[FrameRecord]:
    """Frames from the first to the last timestep, of as many cameras as possible."""
    by_timestep: dict[int, list[FrameRecord]] = {}
    for record in records:
        by_timestep.setdefault(record.timestep, []).append(record)
    timesteps = sorted(by_timestep)
    cameras = sorted({record.camera_id for record in records})
    chosen: dict[int, FrameRecord] = {}
    for i, at in enumerate(np.linspace(0, len(timesteps) - 1, count).round().astype(int)):
        members = [r for r in by_timestep[timesteps[at]] if id(r) not in chosen]
        wanted = round(i * len(cameras) / count)
        if members:
            best = min(members, key=lambda record: (cameras.index(record.camera_id) - wanted) % len(cameras))
            chosen[id(best)] = best
    return list(chosen.values())


def make_samples(records: Sequence[FrameRecord], looks: dict[Picture, Look], pose: Poser,
                 options: DataOptions) -> list[Sample]:  # fmt: skip
    """The frames on which readings are tried, with small silhouettes."""
    usable = [record for record in records if make_picture(record, options) in looks]
    samples = []
    for record in spread_out(usable, SAMPLES):
        picture = make_picture(record, options)
        scale = min(1.0, SIDE / max(picture.size))
        small = (max(1, round(picture.size[0] * scale)), max(1, round(picture.size[1] * scale)))
        silhouette = silhouette_of(replace(picture, target=small), looks[picture].background)
        translation = None if pose.translations is None else pose.translations[record.timestep]
        k = record.intrinsics.resized(*small)
        samples.append(Sample(record.world_to_camera, k, pose(record.timestep), translation, silhouette))
    return samples


def score(sample: Sample, reading: Reading, convention: Convention, faces: np.ndarray) -> float:
    """Overlap of mesh and silhouette; without a silhouette 1 if the mesh is at a plausible place, else 0."""
    matrix = reading.world_to_camera(sample.world_to_camera, convention)
    if matrix is None:
        return 0.0
    k, vertices = reading.intrinsics(sample.intrinsics), reading.vertices(sample.vertices, sample.translation)
    place = place_of(vertices, matrix, k)
    if sample.silhouette is None:
        return float(place == "fine")
    if place in ("behind", "outside"):
        return 0.0
    return overlap(drawn(vertices, faces, matrix, k)[0] >= 0, sample.silhouette)


def best_reading(samples: Sequence[Sample], convention: Convention, faces: np.ndarray) -> tuple[Reading, np.ndarray]:
    """The reading that explains the samples best, simple ones first, and its score on each."""

    def scores(reading: Reading, chosen: Sequence[Sample]) -> np.ndarray:
        return np.array([score(sample, reading, convention, faces) for sample in chosen])

    def merit(reading: Reading, values: np.ndarray) -> float:
        return float(values.mean()) - SIMPLER * reading.changes

    few = samples[:: -(-len(samples) // FEW)]
    moved = any(s.translation is not None and np.abs(s.translation).max() > 0 for s in samples)
    tried = sorted(readings(moved), key=lambda reading: -merit(reading, scores(reading, few)))[:CANDIDATES]
    tried += [replace(reading, other_cy=True) for reading in tried] if samples[0].silhouette is not None else []
    judged = [(reading, scores(reading, samples)) for reading in dict.fromkeys([Reading(), *tried])]
    return max(judged, key=lambda pair: merit(*pair))


def clearly_better(reading: Reading, own: np.ndarray, other: np.ndarray) -> bool:
    """Whether another reading beats the format's own in nearly every frame and by enough."""
    gain = other - own
    enough = CLEARLY_CY if reading == Reading(other_cy=True) else CLEARLY
    return bool(reading.changes and gain.mean() >= enough and (gain > 0).mean() >= AGREE)


def mesh_section(
    capture: Capture, records: Sequence[FrameRecord], looks: dict[Picture, Look], rig: Rig, options: DataOptions
) -> Section:
    """Where the mesh is in all frames, how well it covers the person in some, and what would cover it better."""
    section = Section("Camera and mesh")
    moved = capture.motion.per_frame.get("translation") if capture.motion else None
    pose = Poser(rig, None if moved is None else moved.double().numpy())
    places = Counter(refused_or(place_of, record, pose) for record in sorted(records, key=lambda r: r.timestep))
    shares = {name: places[name] / len(records) for name in PLACES}
    refused = places["refused"]
    section.row("place", f"the mesh lies in the picture in {percent(places['fine'] / len(records))} of "
                         f"{counted(len(records), 'frame')}")  # fmt: skip
    section.lines += [f"{'':<12}it {PLACES[name]} in {percent(share)}" for name, share in shares.items() if share]
    if refused:
        section.lines.append(f"{'':<12}the matrix of {counted(refused, 'frame')} is refused, see the faults")
    section.values.update(frames=len(records), fine=places["fine"] / len(records), refused=refused, **shares)
    samples = make_samples(records, looks, pose, options)
    if samples:
        judge(section, samples, Convention.of(capture.format), rig.faces.numpy(), missed(shares, refused, len(records)))
    return section


def refused_or(
    function: Callable[[np.ndarray, np.ndarray, Intrinsics], str], record: FrameRecord, pose: Poser
) -> str:
    if rigid_fault(record.world_to_camera):
        return "refused"
    return function(pose(record.timestep), record.world_to_camera, record.intrinsics)


def missed(shares: dict[str, float], refused: int, count: int) -> str:
    """What is wrong with the place of the mesh, in words; empty if it is fine in (nearly) all frames."""
    if refused > SOME * count:
        return f"the camera matrices of {percent(refused / count)} of the frames are no rigid motions"
    worst = max(shares, key=lambda name: shares[name])
    return f"the mesh {PLACES[worst]} in {percent(shares[worst])} of the frames" if shares[worst] > SOME else ""


def judge(section: Section, samples: list[Sample], convention: Convention, faces: np.ndarray, problem: str) -> None:
    """Score the format's own reading and the others; add what follows from it to the section."""
    told = [sample for sample in samples if sample.silhouette is not None]
    samples = told or samples
    own = np.array([score(sample, Reading(), convention, faces) for sample in samples])
    reading, other = best_reading(samples, convention, faces)
    if told:
        section.row("overlap", f"mesh and matte overlap by {own.mean():.2f} on average ({own.min():.2f} to "
                               f"{own.max():.2f} in {counted(len(own), 'frame')}; hair and shoulders keep it below "
                               "1)")  # fmt: skip
        section.values["overlap"] = float(own.mean())
        found, what = f"overlap {other.mean():.2f} instead of {own.mean():.2f}", "it would lie on the picture"
    else:
        section.row("overlap", "not measured: there are no mattes and the background is not uniform")
        found, what = f"{percent(other.mean())} of the frames instead of {percent(own.mean())}", "it would be in view"
    if clearly_better(reading, own, other):
        section.values["better_reading"] = {"words": reading.words(convention), "score": float(other.mean())}
        better = f"{reading.words(convention)} {what} ({found})"
        problem = problem or f"the mesh lies beside the person (overlap {own.mean():.2f})"
        section.warnings.append(f"{problem}; {better}")
    elif problem or (told and own.mean() < POOR):
        problem = problem or f"mesh and matte overlap by {own.mean():.2f} only"
        section.warnings.append(f"{problem}; no tested reading of the cameras (axes, inverse, transpose, unit, cy) "
                                "puts it on the picture")  # fmt: skip


def overlap_of(record: FrameRecord, pose: Poser, faces: np.ndarray, silhouette: np.ndarray | None) -> float | None:
    """Overlap of the mesh as read with a silhouette of the full picture."""
    if silhouette is None:
        return None
    height, width = silhouette.shape
    k = record.intrinsics.resized(width, height)
    return overlap(drawn(pose(record.timestep), faces, record.world_to_camera, k)[0] >= 0, silhouette)


def all_of(records: Iterable[Sequence[FrameRecord]]) -> list[FrameRecord]:
    return [record for members in records for record in members]
