"""Will a dataset train, and train well? Everything that can be said about it before training, gathered.

Nothing is written here. The parts: `inspection_faults` (what training refuses, to the last line),
`inspection_pictures`, `inspection_motion`, `inspection_mesh` (does the posed mesh lie on the pictures) and
`inspection_sheet` (the picture).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import atan, degrees
from pathlib import Path
from typing import Any

import numpy as np

from flame_model import default_model_path
from flame_model.flame_assets import FLAME
from scene.datasets import DATASETS, DataOptions, Format
from scene.datasets.capture import SPLITS, Capture, FrameRecord, fingerprint_of, select_records
from scene.rigs import RIGS, Rig, RigOptions
from utils.engine.build import STATIC_EXTENT, saved_options
from utils.engine.checkpoint import read_object
from utils.engine.inspection_faults import Survey, read_capture
from utils.engine.inspection_mesh import mesh_section
from utils.engine.inspection_motion import motion_section
from utils.engine.inspection_pictures import look_at_all, pictures_section, unique_pictures
from utils.engine.inspection_report import Report, Section, counted, listed
from utils.engine.inspection_sheet import sheet
from utils.engine.run import RUN_FACTS
from utils.errors import InputError
from utils.io.json_files import JsonObject

OFF_CENTRE = 0.2  # of the picture's side: principal points beyond are rare
ANGLE_TOLERANCE = 0.01  # relative, of focal lengths


@dataclass
class InspectionOptions:
    """What to inspect, as the flags of training name it."""

    data: DataOptions
    rig: RigOptions
    run: str = ""  # a run folder to compare with
    quiet: bool = False


@dataclass
class Inspection:
    """The report and, if any picture can be decoded, the sheet (uint8 [H, W, 3])."""

    report: Report
    picture: np.ndarray | None = field(default=None, repr=False)


def inspect(options: InspectionOptions) -> Inspection:
    """Inspect the dataset at `options.data.source_path`.

    Raises:
        InputError: there is no such folder or run; faults of the dataset are in the report instead.
    """
    trained = read_object(Path(options.run) / RUN_FACTS).get("inputs", {}) if options.run else {}
    if options.run and not options.rig.flame_model:
        options.rig.flame_model = saved_options(Path(options.run)).rig.flame_model
    folder = Path(os.path.expanduser(options.data.source_path))
    if not options.data.source_path or not os.path.isdir(folder):
        raise InputError(options.data.source_path or "--source_path", "", "is not a folder", "Give it: -s FOLDER.")
    report = Report(str(folder))
    name = recognised(folder, report)
    if not name:
        return Inspection(report)
    report.format, format_ = name, DATASETS[name]
    survey = read_capture(name, format_, folder, options.data, report.faults)
    if survey is None:
        return Inspection(report)
    records, loose = chosen_records(survey, folder, options.data, report)
    everything, tracked = [record for split in SPLITS for record in records[split]], format_.rig != "still"
    report.sections += [
        capture_section(survey, records),
        splits_section(records, options.data, tracked),
        camera_section(everything, tracked),
    ]
    pictures = report.faults.attempt("options", unique_pictures, [*everything, *loose], options.data)
    if pictures is None:
        return Inspection(report)
    looks = look_at_all(pictures, report.faults, options.quiet)
    report.sections.append(pictures_section([*everything, *loose], looks, pictures, options.data, tracked))
    report.sections.append(motion_section(survey.capture, survey.labels))
    rig = add_model(report, survey.capture, format_, options, trained, folder)
    if rig is not None and rig.bound and everything:
        section = mesh_section(survey.capture, everything, looks, rig, options.data)
        report.sections.append(section)
        if section.values["behind"] + section.values["outside"] == 1.0:
            report.faults.add(
                "mesh", InputError(folder, "", "the mesh is in none of the pictures", "See the warnings.")
            )
    bound = rig if rig is not None and rig.bound else None
    return Inspection(report, sheet(everything or loose, looks, bound if everything else None, options.data))


def recognised(folder: Path, report: Report) -> str:
    """The name of the format; without one, what every format looked for becomes part of the report."""
    section = Section("What each format looked for")
    for name, format_ in DATASETS.items():
        reason = format_.recognise(folder)
        if reason is None:
            return name
        section.lines.append(f"{name:<18}{reason}")
        section.values[name] = reason
    report.sections.append(section)
    report.faults.add("dataset", InputError(folder, "", "is no dataset of a known format", "Check --source_path."))
    return ""


def chosen_records(
    survey: Survey, folder: Path, options: DataOptions, report: Report
) -> tuple[Mapping[str, Sequence[FrameRecord]], Sequence[FrameRecord]]:
    """The frames that training would use, and the loose ones; an option that leaves it none is a fault."""
    nothing = {split: [] for split in SPLITS}
    selections = []
    for records in (survey.capture.records, {**nothing, "train": survey.loose}):
        try:
            chosen = replace(survey.capture, records=records)
            selections.append(select_records(chosen, folder, options) if any(records.values()) else nothing)
        except InputError as error:
            selections.append(nothing)
            if not len(report.faults):  # else it may be a frame with a fault that is missed
                report.faults.add("options", error)
    found, loose = selections
    if options.eval and not found["train"] and not len(report.faults):
        advice = "Choose another --select_camera_id, or leave out --eval."
        report.faults.add("options", InputError(options.source_path, "", "has no training frames", advice))
    return found, loose["train"]


def capture_section(survey: Survey, records: Mapping[str, Sequence[FrameRecord]]) -> Section:
    """Frames, cameras, timesteps, sequences, and what the motion holds."""
    capture, section = survey.capture, Section("Dataset")
    counts = {split: len(records[split]) for split in SPLITS}
    section.row("frames", ", ".join(f"{count} {split}" for split, count in counts.items()))
    cameras = sorted({record.camera_id for members in records.values() for record in members})
    section.row("cameras", f"{len(cameras)}: {listed(cameras)}")
    starts, labels = list(capture.sequence_starts), survey.labels
    section.row("timesteps", f"{len(labels)} in {counted(len(starts), 'sequence')}")
    if len(starts) > 1:
        ends = [*starts[1:], len(labels)]
        ranges = [f"{labels[a]}-{labels[b - 1]}" for a, b in zip(starts, ends, strict=True)]
        section.row("sequences", listed(ranges, 20))
    section.values.update(frames=counts, cameras=cameras, timesteps=len(labels),
                          sequence_starts=[labels[start] for start in starts])  # fmt: skip
    if capture.motion is not None:
        shapes = {name: list(values.shape) for name, values in (*capture.motion.per_frame.items(),
                                                                *capture.motion.static.items())}  # fmt: skip
        section.row("motion", described(shapes))
        section.values["motion"] = shapes
    if capture.edition:
        section.row("edition", f"{capture.edition} (as the dataset says)")
    for note in capture.notes:
        section.row("note", note)
    section.values.update(edition=capture.edition, notes=list(capture.notes))
    if survey.loose:
        section.row("left out", f"{counted(len(survey.loose), 'frame')} with faults, of all but decoding")
    return section


def described(shapes: Mapping[str, Sequence[int]]) -> str:
    """What a motion holds, in words."""
    if "expr" not in shapes:
        return ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
    parts = [
        f"{shapes['expr'][1]} expressions, {shapes['shape'][0]} identity coefficients" if "shape" in shapes else ""
    ]
    for name in ("static_offset", "dynamic_offset"):
        words = name.replace("_", " ")
        parts.append(f"{words} of {shapes[name][-2]} vertices" if name in shapes else f"no {words}")
    return ", ".join(part for part in parts if part)


def splits_section(records: Mapping[str, Sequence[FrameRecord]], options: DataOptions, tracked: bool) -> Section:
    """How the frames are dealt out; only what is odd about it. `tracked`: it is of a head that moves."""
    section = Section("Splits")
    timesteps = {split: {record.timestep for record in records[split]} for split in SPLITS}
    if not options.eval:
        section.lines.append("without --eval all frames are trained on, and nothing is measured on held-out ones")
    elif held := timesteps["test"] - timesteps["train"] - timesteps["val"]:
        section.lines.append(f"{len(held)} of {len(timesteps['test'])} test timesteps are not in train: their motion "
                             "stays as it was tracked")  # fmt: skip
    unseen = timesteps["val"] - timesteps["train"]
    if not tracked:
        return section
    if not records["val"]:
        section.warnings.append("val is empty: nothing shows during training how well new views come out")
    elif unseen:
        section.lines.append(f"{len(unseen)} of {len(timesteps['val'])} val timesteps are not in train: val shares no "
                             "fine-tuned motion with train there")  # fmt: skip
    return section


def camera_section(records: Sequence[FrameRecord], tracked: bool) -> Section:
    """Pinholes, and what is odd about them."""
    section = Section("Cameras")
    if not records:
        return section
    pinholes = [record.intrinsics for record in records]
    angles = [degrees(2 * atan(k.width / (2 * k.fx))) for k in pinholes]
    section.row("field", f"{min(angles):.1f} to {max(angles):.1f} degrees wide")
    offsets = np.array([[k.cx / k.width - 0.5, k.cy / k.height - 0.5] for k in pinholes])
    section.row("centre", f"principal points up to {100 * np.abs(offsets).max():.1f} % of the side from the centre")
    centres = np.array([np.linalg.inv(r.world_to_camera)[:3, 3] for r in records])
    distances = np.linalg.norm(centres, axis=1)
    section.row("distance", f"{distances.min():.3g} to {distances.max():.3g} m from the origin")
    section.values.update(
        field_degrees=[min(angles), max(angles)], off_centre=float(np.abs(offsets).max()),
        distance=[float(distances.min()), float(distances.max())])  # fmt: skip
    far = (np.abs(offsets) > OFF_CENTRE).any(axis=1)
    if far.any():
        k = pinholes[int(far.argmax())]
        section.warnings.append(f"the principal point is far from the centre in {counted(int(far.sum()), 'frame')} "
                                f"(the first: {k.cx:.0f}, {k.cy:.0f} of {k.width}x{k.height})")  # fmt: skip
    section.warnings += angle_warnings(records)
    matrices = np.array([record.world_to_camera for record in records])  # rotations too: refused ones have no centre
    if tracked and len(records) > 1 and np.abs(matrices - matrices[0]).max() < STATIC_EXTENT:
        section.warnings.append("one static camera: keep --scene_extent head (the default), and as no view from the "
                                "side tells colour from reflection, compare --sh_degree 0")  # fmt: skip
    return section


def angle_warnings(records: Sequence[FrameRecord]) -> list[str]:
    """Frames whose `camera_angle_x` (or y) and focal length say different things; focal lengths are used."""
    wrong: dict[str, list[tuple[FrameRecord, float, float]]] = {}
    for record in records:
        place, k = record.place, record.intrinsics
        if not isinstance(place, JsonObject):
            continue
        for axis, side, focal in (("x", k.width, k.fx), ("y", k.height, k.fy)):
            if place.has(f"fl_{axis}") and place.has(f"camera_angle_{axis}"):
                implied = side / (2 * np.tan(place.number(f"camera_angle_{axis}") / 2))
                if abs(implied / focal - 1) > ANGLE_TOLERANCE:
                    wrong.setdefault(axis, []).append((record, implied, focal))
    return [f"camera_angle_{axis} contradicts fl_{axis} in {counted(len(found), 'frame')} (the first, "
            f"{found[0][0].image.stem}: {found[0][1]:.1f} px against {found[0][2]:.1f} px); fl_{axis} is used"
            for axis, found in wrong.items()]  # fmt: skip


def add_model(report: Report, capture: Capture, format_: Format, options: InspectionOptions, trained: Any,
              folder: Path) -> Rig | None:  # fmt: skip
    """Build the rig that the motion drives; says which model it is and whether it fits. None: it could not be built."""
    section = Section("Model")
    report.sections.append(section)
    if format_.rig == "still" or capture.motion is None or capture.motion.timesteps < 1:
        section.lines.append("nothing to pose: the dataset holds no tracked head")
        return None
    if format_.rig == "flame" and not options.rig.flame_model and not model_in_place():
        section.lines.append("left out: whether the mesh lies on the pictures. Give the FLAME model with "
                             "--flame_model, or put it into flame_model/assets/flame/")  # fmt: skip
        return None
    entry = RIGS[format_.rig]
    model = report.faults.attempt("model", entry.load, options.rig, "cpu")
    rig = None if model is None else report.faults.attempt("model", entry.build, options.rig, model, capture.motion,
                                                            folder)  # fmt: skip
    if rig is None:
        return None
    count = len(rig.rest_mesh().vertices)
    section.row("mesh", f"{count} vertices, {len(rig.faces)} faces")
    if rig.fingerprint:
        section.row("edition", f"{rig.edition}, fingerprint {rig.fingerprint[:12]}")
    section.values.update(vertices=count, faces=len(rig.faces), edition=rig.edition, fingerprint=rig.fingerprint)
    if capture.edition and rig.edition == FLAME:
        section.lines.append(f"{'':<12}the motion was tracked with {capture.edition}; a FLAME file does not say its "
                             "edition, so check that this is the one")  # fmt: skip
    elif capture.edition and rig.edition and capture.edition != rig.edition:
        section.warnings.append(f"the motion was tracked with {capture.edition!r}, the model is {rig.edition!r}: "
                                "expressions would come out wrong")  # fmt: skip
    found = {"flame_model": rig.fingerprint, "source_path": fingerprint_of(capture, folder) if capture.files else ""}
    compare_run(section, options.run, trained, found)
    return rig


def model_in_place() -> bool:
    """Whether there is a FLAME model in the usual place."""
    try:
        default_model_path()
    except InputError:
        return False
    return True


def compare_run(section: Section, run: str, trained: Any, found: Mapping[str, str]) -> None:
    """Say whether a run was made from these files."""
    for flag, what in (("flame_model", "model"), ("source_path", "dataset")) if run else ():
        before = trained.get(flag, "") if isinstance(trained, dict) else ""
        if not before or not found[flag]:
            section.row("run", f"{run} does not tell its {what}")
            continue
        match = before == found[flag]
        section.row("run", f"{what}: {'match' if match else 'mismatch'} with {run} ({before[:12]})")
        section.values[f"{what}_matches_run"] = match
        if not match:
            section.warnings.append(f"the {what} is not the one that {run} was trained with ({found[flag][:12]} here, "
                                    f"{before[:12]} there)")  # fmt: skip
