"""Who poses FLAME: a native kernel, or PyTorch where there is none."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from flame_model.model import FlameModel, Identity
from utils.errors import NumericalFault
from utils.maths.table_rows import take_row

NATIVE, AVAILABLE = "diff_gaussian_rasterization.flame", "diff_gaussian_rasterization._device"

# Tables [T, ...] of `FlameModel.posed`'s parameters, the row that counts, threads (None: one per CPU) -> vertices
# [V, 3]. The tables' gradients hold that row alone (`utils.maths.table_rows`).
Pose = Callable[[Mapping[str, Tensor], int, int | None], Tensor]


def choose_posing(model: FlameModel, identity: Identity) -> tuple[Pose, str]:
    """The native kernel for float32, or plain PyTorch where there is none; and a line for the log that says which.

    The native kernel takes the identity as a constant, without gradients to shape and static offset.
    """
    in_torch = pose_in_torch(model, identity)
    if model.template.dtype != torch.float32:
        return in_torch, "flame: PyTorch"
    try:
        why = importlib.import_module(AVAILABLE).usable(model.template.device)
        if why is None:
            return NativePose(model, identity), "flame: native kernel"
    except (ImportError, OSError) as error:
        why = str(error)
    return in_torch, f"flame: PyTorch (the native kernel can't be used: {why})"


class NativePose:
    """By the native kernel; NumericalFault for a parameter that isn't finite, where looking at it costs nothing.

    Raises:
        ImportError, OSError: there is no native package.
    """

    def __init__(self, model: FlameModel, identity: Identity) -> None:
        self.native = importlib.import_module(NATIVE)
        self.poser = self.native.Poser(
            rest=identity.planar.detach(),
            joints=identity.joints.detach(),
            basis=model.basis,
            joint_basis=model.joint_basis,
            joint_regressor=model.joint_regressor,
            weights=model.weights,
            parents=model.parents,
            correctives=model.n_correctives,
        )

    def __call__(self, tables: Mapping[str, Tensor], row: int, threads: int | None) -> Tensor:
        try:
            return self.poser.pose(**tables, row=row, threads=threads)
        except self.native.NonFiniteError as error:
            raise NumericalFault(f"flame: timestep {row}: {error}. A step before this one diverged") from error


def pose_in_torch(model: FlameModel, identity: Identity) -> Pose:
    """The same on any device, in any float type."""

    def pose(tables: Mapping[str, Tensor], row: int, threads: int | None) -> Tensor:
        return model.posed(identity, **dict(zip(tables, take_row(row, *tables.values()), strict=True)))

    return pose
