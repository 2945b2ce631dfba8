"""Does the posed mesh lie on the pictures? If not: under which other reading of the cameras would it?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from scene.cameras import Intrinsics, make_camera, rigid_fault
from scene.datasets import Capture, DataOptions
from scene.datasets.capture import FrameRecord, make_picture
from scene.image_store import BACKGROUND_TOLERANCE, Picture, prepare
from scene.rigs import Rig
from utils.contracts import Mesh
from utils.engine.inspection_pictures import Look
from utils.engine.inspection_readings import Convention, Reading, readings
from utils.engine.inspection_report import Section, counted, percent
from utils.maths.visible_faces import visible_faces

NEAR, FAR = 0.01, 1e9  # metres
SMALL, LARGE = 0.05, 3.0  # plausible extent of a head, in sides of the picture
INSIDE = 0.1  # share of the vertices that must lie in the picture
SOME = 0.05  # share of frames that may miss before it is worth a warning
SIDE = 256  # pixels: silhouettes are compared at this size
SAMPLES, FEW = 12, 4  # frames that a reading is scored on; on few of them first
CANDIDATES = 6
CLEARLY = 0.1  # overlap that another reading must gain
MIN_CY_RANGE, CY_SLACK = 2.0, 5  # pixels: by which cameras must differ, and more shift than they need
SIMPLER = 0.01  # overlap that one more change in a reading must bring
AGREE = 0.8  # share of frames that must get better
POOR = 0.5  # overlap
LEAST, MOST = 0.001, 0.98  # share of the picture that a silhouette may have
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
    if not (np.abs(points) < FAR).all():
        return "outside"
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


def drawn(vertices: np.ndarray, faces: np.ndarray, world_to_camera: np.ndarray, k: Intrinsics) -> np.ndarray:
    """Where a mesh is in the picture, [H, W] bool."""
    mesh = Mesh(torch.from_numpy(vertices), torch.from_numpy(faces))
    return (visible_faces(mesh, make_camera(world_to_camera, k))[0] >= 0).numpy()


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two bool pictures; 0 if both are empty."""
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 0.0


def silhouette_of(picture: Picture, background: str) -> np.ndarray | None:
    """Where the person is, [h, w] bool: the matte, or else what differs from the background.

    None if the picture does not tell, or if it says that the person is everywhere or nowhere.
    """
    planes = prepare(picture)
    if len(planes) == 4:
        return telling(planes[3] > 127)
    level = {"white": 255, "black": 0, "transparent": picture.background}.get(background)
    if level is None:
        return None
    return telling(np.abs(planes[:3].astype(np.int16) - level).max(axis=0) > 2 * BACKGROUND_TOLERANCE)


def telling(silhouette: np.ndarray) -> np.ndarray | None:
    return silhouette if LEAST < silhouette.mean() < MOST else None


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
    if place in ("behind", "outside") or (reading.changes and place != "fine"):
        return 0.0
    return overlap(drawn(vertices, faces, matrix, k), sample.silhouette)


def scores(samples: Sequence[Sample], reading: Reading, convention: Convention, faces: np.ndarray) -> np.ndarray:
    return np.array([score(sample, reading, convention, faces) for sample in samples])


def best_reading(samples: Sequence[Sample], convention: Convention, faces: np.ndarray) -> tuple[Reading, np.ndarray]:
    """The reading that explains the samples best, simple ones first, and its score on each; the own one if in doubt."""

    def merit(reading: Reading, values: np.ndarray) -> float:
        return float(values.mean()) - SIMPLER * reading.changes

    few = samples[:: -(-len(samples) // FEW)]
    moved = any(s.translation is not None and np.abs(s.translation).max() > 0 for s in samples)
    tried = [(reading, scores(few, reading, convention, faces)) for reading in readings(moved)]
    tried = sorted(tried, key=lambda pair: -merit(*pair))[:CANDIDATES]
    judged = [(reading, scores(samples, reading, convention, faces)) for reading, _ in tried]
    own = (Reading(), scores(samples, Reading(), convention, faces))
    best = max([own, *judged], key=lambda pair: merit(*pair))
    best = best if clearly_better(own[1], best[1]) else own
    if samples[0].silhouette is None:
        return best
    turned = replace(best[0], other_cy=True)
    other = scores(samples, turned, convention, faces)
    follows = follows_cy(samples, best[0], convention, faces)
    wrong = clearly_better(best[1], other) if follows is None else follows
    return (turned, other) if wrong else best


def clearly_better(own: np.ndarray, other: np.ndarray) -> bool:
    """Whether scores beat others in nearly every frame and by enough."""
    gain = other - own
    return bool(gain.mean() >= CLEARLY and (gain > 0).mean() >= AGREE)


def follows_cy(samples: Sequence[Sample], reading: Reading, convention: Convention, faces: np.ndarray) -> bool | None:
    """Whether the mesh is off vertically by just what counting cy from the other side would change.

    Overlap alone can't tell: hair and shoulders favour one direction by some pixels, but in all cameras alike. So the
    shift that suits each frame best is fitted by the change that the other reading would make, and a constant: the
    factor is 0 if cy is read rightly and 1 if not. None: it takes cameras whose principal points differ.
    """
    changes = np.array([sample.intrinsics.height - 2 * sample.intrinsics.cy for sample in samples])
    if np.ptp(changes) < MIN_CY_RANGE:
        return None
    reach = int(np.ceil(np.abs(changes).max() * 1.5)) + CY_SLACK
    suits = [best_shift(sample, reading, convention, faces, reach) for sample in samples]
    wanted, centred = np.array(suits, float) - np.mean(suits), changes - changes.mean()
    factor = float((wanted * centred).sum() / np.square(centred).sum())
    left = float(np.square(wanted - factor * centred).sum())
    return 0.5 < factor < 2.0 and left < 0.5 * float(np.square(wanted).sum())


def best_shift(sample: Sample, reading: Reading, convention: Convention, faces: np.ndarray, reach: int) -> int:
    """The vertical shift in [-reach, reach] pixels with which the mesh overlaps the silhouette most."""
    matrix = reading.world_to_camera(sample.world_to_camera, convention)
    person = sample.silhouette
    if matrix is None or person is None:
        return 0
    k, height = reading.intrinsics(sample.intrinsics), sample.intrinsics.height
    tall = replace(k, cy=k.cy + reach, height=height + 2 * reach)
    mesh = drawn(reading.vertices(sample.vertices, sample.translation), faces, matrix, tall)
    shifts = range(-reach, reach + 1)
    return max(shifts, key=lambda s: (overlap(mesh[reach - s : reach - s + height], person), -abs(s)))


def mesh_section(
    capture: Capture, records: Sequence[FrameRecord], looks: dict[Picture, Look], rig: Rig, options: DataOptions
) -> Section:
    """Where the mesh is in all frames, how well it covers the person in some, and what would cover it better."""
    section = Section("Camera and mesh")
    moved = capture.motion.per_frame.get("translation") if capture.motion else None
    pose = Poser(rig, None if moved is None else moved.double().numpy())
    found = [(place_as_read(record, pose), record) for record in sorted(records, key=lambda r: r.timestep)]
    places = Counter(place for place, _ in found)
    shares = {name: places[name] / len(records) for name in PLACES}
    refused = places["refused"]
    section.row("place", f"the mesh lies in the picture in {percent(places['fine'] / len(records))} of "
                         f"{counted(len(records), 'frame')}")  # fmt: skip
    section.lines += [f"{'':<12}it {PLACES[name]} in {percent(share)}" for name, share in shares.items() if share]
    if refused:
        section.lines.append(f"{'':<12}the matrix of {counted(refused, 'frame')} is refused, see the faults")
    section.values.update(frames=len(records), fine=places["fine"] / len(records), refused=refused, **shares)
    problem = missed(found, places)
    samples = make_samples(records, looks, pose, options)
    if samples:
        judge(section, samples, Convention.of(capture.format), rig.faces.numpy(), problem)
    elif problem:
        section.warnings.append(problem)
    return section


def place_as_read(record: FrameRecord, pose: Poser) -> str:
    """A key of PLACES, `fine`, or `refused`: the matrix is no rigid motion."""
    if rigid_fault(record.world_to_camera):
        return "refused"
    return place_of(pose(record.timestep), record.world_to_camera, record.intrinsics)


def missed(found: Sequence[tuple[str, FrameRecord]], places: Counter[str]) -> str:
    """What is wrong with the place of the mesh, in words; empty if it is fine in (nearly) all frames."""
    if places["refused"] > SOME * len(found):
        return f"the camera matrices of {percent(places['refused'] / len(found))} of the frames are no rigid motions"
    worst = max(PLACES, key=lambda name: places[name])
    if places[worst] <= SOME * len(found):
        return ""
    first = next(record.image.stem for place, record in found if place == worst)
    named = f" (the first: {first})" if places[worst] < len(found) else ""
    return f"the mesh {PLACES[worst]} in {percent(places[worst] / len(found))} of the frames{named}"


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
    if reading.changes:
        section.values["better_reading"] = {"words": reading.words(convention), "score": float(other.mean())}
        better = f"{reading.words(convention)} {what} ({found})"
        if reading == Reading(other_cy=True):
            problem = problem or "the mesh is shifted up or down by what cy is off the centre, camera by camera"
        problem = problem or f"the mesh lies beside the person (overlap {own.mean():.2f})"
        section.warnings.append(f"{problem}; {better}")
    elif problem and (own >= POOR).mean() > 0.5:
        section.warnings.append(f"{problem}; elsewhere it lies on the picture: tracking lost there?")
    elif problem or (told and own.mean() < POOR):
        problem = problem or f"mesh and matte overlap by {own.mean():.2f} only"
        section.warnings.append(f"{problem}; no tested reading of the cameras (axes, inverse, transpose, unit, cy) "
                                "puts it on the picture")  # fmt: skip
