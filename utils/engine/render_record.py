"""What render.py leaves beside its pictures, so that metrics.py needs nothing but the run folder."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from scene.gaussian_model import GaussianModel
from scene.rigs import Rig
from utils.engine.build import LoadedRun, saved_options
from utils.engine.motion_metrics import PARAMETERS, TrackedMotion, write_tracked
from utils.engine.neighbours import subject_of
from utils.engine.region_metrics import REGIONS, face_labels, lacks_rasteriser, region_detail
from utils.engine.shots import Take
from utils.io.take_record import FrameRecord, TakeRecord


def labels_of(rig: Rig) -> Tensor | None:
    """The region of each face, uint8 [F]; None where regions aren't known or the mesh can't be drawn."""
    return None if lacks_rasteriser() else face_labels(rig.regions)


def why_no_regions(rig: Rig) -> str:
    """What is to be done about it; empty if they are known, or there is no face model that could have any."""
    if not rig.fingerprint:
        return ""
    if not rig.regions:
        return "the run's --flame_masks were not given, or aren't there any more: give them again"
    reason = lacks_rasteriser()
    return f"the mesh can't be drawn: {reason} (`make setup` builds the rasteriser)" if reason else ""


def record_of(take: Take, regions: bool) -> TakeRecord:
    """frames.json of a take of photographs. regions: whether there are region maps."""
    frames = (
        FrameRecord(f"{index:05d}.png", shot.name, shot.camera_id, shot.timestep, shot.sequence)
        for index, shot in enumerate(take.shots)
    )
    background = take.shots[0].background
    return TakeRecord(tuple(frames), REGIONS if regions else (), tuple(background.tolist()))


def detail_of(avatar: GaussianModel) -> dict[str, float]:
    """How many Gaussians the regions of the face have (`region_detail`); nothing where regions aren't known."""
    labels = face_labels(avatar.rig.regions)
    return {} if labels is None else region_detail(avatar.rig.rest_mesh(), avatar.binding, labels)


def leave_motion(run: LoadedRun) -> None:
    """Write the dataset's motion and the timesteps that training saw: RUN/tracked_motion.npz. An earlier file stays
    if a flag chose other frames than training had, or if there is no FLAME motion to tell of."""
    motion, rig, folder = run.dataset.motion, run.avatar.rig, Path(run.options.run.model_path)
    if motion is None or "expr" not in motion.per_frame or not rig.bound or rig.timesteps != motion.timesteps:
        return
    trained, data = saved_options(folder).data, run.options.data
    if (data.eval, data.select_camera_id) != (trained.eval, trained.select_camera_id):
        return
    sequence = subject_of(run.dataset, rig, trained=False).sequence
    if sequence is not None:
        values = {name: motion.per_frame[name].cpu().numpy() for name in PARAMETERS}
        write_tracked(folder, TrackedMotion(values, sequence.numpy()))
