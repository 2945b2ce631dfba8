"""Who poses FLAME: a native kernel on the CPU, PyTorch elsewhere."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from flame_model.model import FlameModel, Identity
from utils.errors import NumericalFault
from utils.maths.table_rows import take_row

NATIVE = "diff_gaussian_rasterization.flame"

# Tables [T, ...] of `FlameModel.posed`'s parameters, the row that counts, threads (None: one per CPU) -> vertices
# [V, 3]. The tables' gradients hold that row alone (`utils.maths.table_rows`).
Pose = Callable[[Mapping[str, Tensor], int, int | None], Tensor]


def choose_posing(model: FlameModel, identity: Identity) -> tuple[Pose, str]:
    """The native kernel for float32 on the CPU, plain PyTorch elsewhere; and a line for the log that says which.

    The native kernel takes the identity as a constant, without gradients to shape and static offset.
    """
    in_torch = pose_in_torch(model, identity)
    if model.template.device.type != "cpu" or model.template.dtype != torch.float32:
        return in_torch, "flame: PyTorch"
    try:
        return pose_natively(model, identity), "flame: native kernel"
    except (ImportError, OSError) as error:
        return in_torch, f"flame: PyTorch (the native kernel can't be used: {error})"


def pose_natively(model: FlameModel, identity: Identity) -> Pose:
    """By the native kernel; NumericalFault for a parameter that isn't finite.

    Raises:
        ImportError, OSError: there is no native package.
    """
    native = importlib.import_module(NATIVE)
    poser = native.Poser(
        rest=identity.planar.detach(),
        joints=identity.joints.detach(),
        basis=model.basis,
        joint_basis=model.joint_basis,
        joint_regressor=model.joint_regressor,
        weights=model.weights,
        parents=model.parents,
        correctives=model.n_correctives,
    )

    def pose(tables: Mapping[str, Tensor], row: int, threads: int | None) -> Tensor:
        try:
            return poser.pose(**tables, row=row, threads=threads)
        except native.NonFiniteError as error:
            raise NumericalFault(f"flame: timestep {row}: {error}. A step before this one diverged") from error

    return pose


def pose_in_torch(model: FlameModel, identity: Identity) -> Pose:
    """The same on any device, in any float type."""

    def pose(tables: Mapping[str, Tensor], row: int, threads: int | None) -> Tensor:
        return model.posed(identity, **dict(zip(tables, take_row(row, *tables.values()), strict=True)))

    return pose
