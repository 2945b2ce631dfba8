"""The same camera a timestep earlier or later, for losses that compare consecutive pictures."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from gaussian_renderer import Renderer
from scene.frames import Dataset, Split
from scene.rigs import Rig
from utils.contracts import Frame, Mesh, Neighbour, RiggedSplats, Subject


class Avatar(Protocol):
    """What drawing needs of an avatar."""

    def rig(self, timestep: int) -> Mesh: ...
    def on(self, mesh: Mesh) -> RiggedSplats: ...


class Neighbours:
    """Training frames by camera and timestep, and how the avatar draws them at this moment."""

    def __init__(self, frames: Split, avatar: Avatar, render: Renderer, sequence: Tensor | None) -> None:
        self.frames, self.avatar, self.render = frames, avatar, render
        self.sequence = [] if sequence is None else sequence.tolist()
        self.index = {(view.camera_id, view.timestep): i for i, view in enumerate(frames.views)}

    def look(self, frame: Frame, timesteps: int, gradients: bool = False) -> Neighbour | None:
        """The frame of the same camera so many timesteps away, drawn with or without gradients; None if the recording
        ends before it, or training doesn't have it."""
        wanted = frame.timestep + timesteps
        index = self.index.get((frame.camera_id, wanted))
        if index is None or self.sequence[wanted] != self.sequence[frame.timestep]:
            return None
        other = self.frames[index]
        with torch.set_grad_enabled(gradients):
            mesh = self.avatar.rig(wanted)
            image = self.render(self.avatar.on(mesh), other.camera, other.background, with_depth=False).image
        return Neighbour(other, mesh, image)


def subject_of(data: Dataset, rig: Rig, trained: bool) -> Subject:
    """What losses and strategies may know before the first step. trained: whether training may change the motion."""
    sequence = torch.zeros(rig.timesteps, dtype=torch.int64)
    for start in data.sequence_starts[1:]:
        sequence[start:] += 1
    shown = torch.zeros(rig.timesteps, dtype=torch.bool)
    if rig.bound:
        shown[[view.timestep for view in data.train.views]] = True
    rows = {name: values for name, values in rig.parameters.items() if values.dim() == 2 and trained}
    tracked = {name: values.detach().clone() for name, values in rows.items()}  # vertex offsets may take gigabytes
    least = min(min(view.camera.width, view.camera.height) for view in data.train.views)
    return Subject(tracked, torch.where(shown, sequence, -1), rig.regions, least)
