"""What a captured step works on: the run's tensors where they are, and its outputs."""

from __future__ import annotations

import torch
from diff_gaussian_rasterization.rig import FaceRig
from diff_gaussian_rasterization.training import TERMS, Cameras, Column, Limits, MotionTable, StepTables
from torch import Tensor

from flame_model.posing import NativePose
from scene.rigs import FlameRig, MeshesRig, Rig, StillRig
from utils.engine.adam import BETA1, BETA2, EPSILON
from utils.engine.step import Training


class Desk:
    """A run's tensors for the native step. Those that rows of Gaussians don't change are made once."""

    def __init__(self, training: Training) -> None:
        self.training = training
        rig, device = training.avatar.rig, training.avatar.binding.device
        camera, views = training.frames.cameras[0], training.options.optimiser.batch_size
        self.mesh = FaceRig(rig.faces, rig.rest_mesh().vertices.shape[0])
        tables = training.frames.tables
        rows = tables.timesteps if rig.bound else torch.zeros_like(tables.timesteps)  # a still mesh has one row
        self.cameras = Cameras(tables.world_to_camera, tables.intrinsics, tables.backgrounds, rows, camera.width,
                               camera.height, camera.near, camera.far)  # fmt: skip
        self.image = torch.zeros(views, 3, camera.height, camera.width, device=device)
        self.terms = torch.zeros(views, len(TERMS), device=device)
        self.gradients: dict[str, Tensor] = {}  # of the last step, by the names of `avatar.parameters`

    def sums(self, step: int) -> dict[str, Tensor]:
        """The statistics that this step adds to; empty: none."""
        strategy = self.training.strategy
        return strategy.statistics if strategy.observes(step) else {}

    def worked_on(self, step: int) -> list[Tensor]:
        """The tensors that a step reads and changes: the captured one is of these and no others."""
        avatar, optimiser = self.training.avatar, self.training.optimiser
        moments = (*optimiser.moments.values(), *optimiser.motion_moments.values())
        return [*avatar.columns.values(), avatar.binding, *avatar.rig.parameters.values(),
                *(moment for pair in moments for moment in pair), *optimiser.row_steps.values(),
                *self.sums(step).values()]  # fmt: skip

    def tables(self, step: int, capacity: int) -> StepTables:
        """All of it, for the native step."""
        training, rig, sums = self.training, self.training.avatar.rig, self.sums(step)
        flame = rig if isinstance(rig, FlameRig) else None
        columns, motion = self.columns(), {} if flame is None else self.motion(flame)
        self.gradients = {name: table.gradient for name, table in {**columns, **motion}.items()
                          if table.gradient is not None}  # fmt: skip
        return StepTables(
            columns=columns,
            sh_degree=training.avatar.sh_degree,
            mesh=self.mesh,
            binding=training.avatar.binding,
            poser=flame.pose.poser if flame is not None and isinstance(flame.pose, NativePose) else None,
            motion=motion,
            meshes=recorded(rig),
            cameras=self.cameras,
            store=training.frames.block,
            statistics=(sums["gradient"], sums["seen"], sums["radius"]) if sums else None,
            influence=sums.get("influence"),
            image=self.image,
            terms=self.terms,
            limits=self.limits(),
            lambda_dssim=training.options.losses["photometric"].lambda_dssim,
            betas=(BETA1, BETA2),
            eps=EPSILON,
            pair_capacity=capacity,
        )

    def columns(self) -> dict[str, Column]:
        moments = self.training.optimiser.moments
        columns = {name: column.detach() for name, column in self.training.avatar.columns.items()}
        return {name: Column(values, torch.zeros_like(values), *moments[name]) for name, values in columns.items()}

    def motion(self, rig: FlameRig) -> dict[str, MotionTable]:
        """FLAME's parameters by timestep, with what updates them where they are trained."""
        optimiser, views = self.training.optimiser, len(self.image)
        by_rows = optimiser.options.flame_update == "rows"
        values = {name: table.detach() for name, table in rig.parameters.items()}
        if rig.offsets is not None:
            values["dynamic_offset"] = rig.offsets.detach()
        motion = {name: MotionTable(table) for name, table in values.items()}
        for name, rate in optimiser.motion_rates.items():
            table = values[name]
            steps, dense = (optimiser.row_steps[name], None) if by_rows else (None, torch.zeros_like(table))
            gradient = table.new_zeros(views, *table.shape[1:])
            motion[name] = MotionTable(table, gradient, *optimiser.motion_moments[name], steps, dense, rate)
        return motion

    def limits(self) -> Limits:
        """Of Gaussians on their triangles; an unbound scene has none."""
        chosen = self.training.options.losses["binding"]
        if not self.training.avatar.rig.bound:
            return Limits()
        return Limits(chosen.threshold_xyz, chosen.threshold_scale, chosen.lambda_xyz, chosen.lambda_scale)


def recorded(rig: Rig) -> Tensor | None:
    """[M, V, 3] the meshes of a rig that is not posed."""
    if isinstance(rig, StillRig):
        return rig.vertices[None].contiguous()
    return rig.vertices.contiguous() if isinstance(rig, MeshesRig) else None
