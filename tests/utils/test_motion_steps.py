"""What the optimiser does with a rig's motion: rows that were seen, rows of a batch, all of them (`--flame_update`)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from scene.flame_gaussian_model import FlameGaussianModel
from tests.scene import avatars
from utils.engine.optimiser import Optimiser, OptimiserOptions
from utils.maths.table_rows import take_row

NAMES = ("rotation", "neck_pose", "jaw_pose", "eyes_pose", "translation", "expr")


def optimiser(avatar: FlameGaussianModel, update: str) -> Optimiser:
    options = OptimiserOptions(flame_update=update, flame_expr_lr=0.01, flame_trans_lr=0.01, flame_pose_lr=0.01)
    made = Optimiser(options, avatar, 1.0, True, 1)
    made.schedule(1)
    return made


def loss(avatar: FlameGaussianModel, timestep: int) -> Tensor:
    vertices = avatar.rig(timestep).vertices
    weights = torch.randn(vertices.shape, generator=torch.Generator().manual_seed(timestep))
    return (vertices * weights).sum()


STEPS = ((0, 0), (2, 0), (2, 2), (0, 2), (0, 0))  # two views a step; timesteps 1 and 3 are never seen


@pytest.mark.parametrize("update", ["rows", "dense"])
def test_steps_are_those_of_torchs_adam(tmp_path: Path, update: str) -> None:
    """dense: one Adam for the table; rows: one for each row, which steps when the row has a gradient."""
    avatar = avatars.avatar(tmp_path)
    ours = optimiser(avatar, update)
    tables = {name: avatar.rig.parameters[name] for name in NAMES}
    theirs = {name: [row.detach().clone().requires_grad_() for row in table] for name, table in tables.items()}
    adams = [torch.optim.Adam([rows[t] for rows in theirs.values()], lr=0.01, eps=1e-15) for t in range(4)]
    for timesteps in STEPS:
        for timestep in timesteps:
            (loss(avatar, timestep) / 2).backward()
        gradients = {name: table.grad.to_dense() for name, table in tables.items() if table.grad is not None}
        for t, adam in enumerate(adams):
            for name, rows in theirs.items():
                rows[t].grad = gradients[name][t].clone()
            if update == "dense" or t in timesteps:
                adam.step()
        ours.step(None)
        assert all(table.grad is None for table in tables.values())
    for name, table in tables.items():
        torch.testing.assert_close(table.detach(), torch.stack(theirs[name]).detach(), rtol=1e-5, atol=1e-6)
        if update == "rows":
            assert ours.row_steps[name].tolist() == [4, 0, 3, 0]


def test_a_loss_over_neighbouring_timesteps_moves_them_too(tmp_path: Path) -> None:
    avatar = avatars.avatar(tmp_path)
    ours = optimiser(avatar, "rows")
    expr = avatar.rig.parameters["expr"]
    before = expr.detach().clone()
    now, after = take_row(1, expr)[0], take_row(2, expr)[0]
    (loss(avatar, 1) + (after - now).square().sum()).backward()
    ours.step(None)
    assert ours.row_steps["expr"].tolist() == [0, 1, 1, 0] and ours.row_steps["rotation"].tolist() == [0, 1, 0, 0]
    assert ((expr.detach() != before).any(1)).tolist() == [False, True, True, False]
    (loss(avatar, 3) + expr.diff(dim=0).square().sum()).backward()  # of the whole table: a dense gradient
    ours.step(None)
    assert ours.row_steps["expr"].tolist() == [1, 2, 2, 1] and ours.row_steps["rotation"].tolist() == [0, 1, 0, 1]


def test_a_state_goes_on_where_it_was_saved(tmp_path: Path) -> None:
    first, second = avatars.avatar(tmp_path), avatars.avatar(tmp_path)
    one, two = optimiser(first, "rows"), optimiser(second, "rows")
    for timestep in (0, 1, 0):
        loss(first, timestep).backward()
        one.step(None)
    saved = {name: value.clone() for name, value in (first.rig.state_dict() | one.state_dict()).items()}
    assert (
        saved["optimiser.expr.steps"].tolist() == [2, 1, 0, 0] and saved["optimiser.expr.steps"].dtype == torch.float32
    )
    second.rig.load_state_dict(saved)
    two.load_state_dict(saved)
    for avatar, steps in ((first, one), (second, two)):
        loss(avatar, 0).backward()
        steps.step(None)
    for name in NAMES:
        assert torch.equal(first.rig.parameters[name], second.rig.parameters[name])
