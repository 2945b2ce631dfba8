"""Gaussians on a mesh that no pixel shows get zeros, whatever they hold and whoever shares their registers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from diff_gaussian_rasterization import rasterize, rasterize_rigged
from diff_gaussian_rasterization.rig import FaceRig
from torch import Tensor

from tests.engine.rigged_scenes import (
    COLUMNS,
    NAMES,
    Scene,
    draw,
    gradients,
    make_scene,
    output_weights,
    reference,
    relative,
)
from utils.maths.triangle_frames import triangle_frames

SIDE = 64
SEEN = (16, 15, 12, 11, 8, 4, 1, 0)  # of the 16 in a row: neighbours go together from 3/4 of a register on
KINDS = (
    "behind", "at the camera", "in its plane", "beside", "beyond", "transparent", "hidden", "huge behind",
    "huge before", "bright", "far away", "no quaternion", "long quaternion",
)  # fmt: skip


# Two faces that every kind shares: one about the camera's centre, exactly, and one a metre before it.
VERTICES = torch.tensor([[1.0, 0, 0], [-1, 1, 0], [0, -1, 0], [-0.2, -0.2, 1], [0.3, -0.1, 1.0625], [0.0, 0.3, 0.9375]])
FACES = torch.tensor([[0, 1, 2], [3, 4, 5]])


def columns_of(kinds: Sequence[str], seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """Local columns [N] by kind, and the binding: `seen` ones lie apart on the left, hidden ones on the right."""
    r, n, frames = np.random.default_rng(seed), len(kinds), triangle_frames(VERTICES.double(), FACES)
    columns = {
        "means": np.zeros((n, 3)), "quats": r.normal(size=(n, 4)), "scales_log": np.full((n, 3), -4.5),
        "opacity_logit": r.normal(size=n), "sh0": 0.5 * r.normal(size=(n, 1, 3)),
        "shN": 0.1 * r.normal(size=(n, 15, 3)),
    }  # fmt: skip
    columns["scales_log"] += 0.3 * r.normal(size=(n, 3))
    places = iter([(x, y) for x in np.linspace(-0.45, 0.05, 11) for y in np.linspace(-0.45, 0.45, 19)])
    where = {"behind": (0, 0, -1), "beside": (50, 0, 1), "beyond": (0, 0, 500), "hidden": (0.3, 0, 1),
             "wall": (0.3, 0, 0.8), "huge behind": (0, 0, -2), "bright": (0, 0, -1), "no quaternion": (0, 0, -1),
             "long quaternion": (0, 0, -1)}  # fmt: skip
    binding = np.ones(n, np.int64)
    for i, kind in enumerate(kinds):
        x, y = next(places) if kind == "seen" else (-0.2, 0.0)
        world = torch.tensor(where.get(kind, (x, y, 1.0)), dtype=torch.float64)
        local = frames.rotations[1].T @ (world - frames.centres[1]) / frames.scales[1]
        columns["means"][i] = local.numpy()
        if kind in ("at the camera", "in its plane"):
            binding[i] = 0
            columns["means"][i] = (
                (0, 0, 0) if kind == "at the camera" else (0.3, 0, 0.2)
            )  # the second axis is the normal
        if kind == "wall":
            columns["scales_log"][i], columns["opacity_logit"][i] = -0.5, 20.0
        if kind.startswith("huge"):
            columns["scales_log"][i] = 80.0 if kind == "huge behind" else 60.0
        columns["opacity_logit"][i] = -200.0 if kind == "transparent" else columns["opacity_logit"][i]
        columns["sh0"][i] = 3e38 if kind == "bright" else columns["sh0"][i]
        columns["means"][i] = 1e30 if kind == "far away" else columns["means"][i]
        columns["quats"][i] *= {"no quaternion": 0.0, "long quaternion": 1e30}.get(kind, 1.0)
    return {name: torch.tensor(value, dtype=torch.float32) for name, value in columns.items()}, torch.tensor(binding)


def kinds_of(seed: int) -> list[str]:
    """Walls, then sixteens with less and less to see, then some that fill no register."""
    kinds, unseen = ["wall"] * 16, iter(KINDS * 20)
    for seen in SEEN:
        row = ["seen"] * seen + [next(unseen) for _ in range(16 - seen)]
        kinds += [row[i] for i in np.random.default_rng(seed).permutation(16)] if seed else row
    return [*kinds, "seen", "behind", "at the camera"]


def camera(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    k = torch.tensor([[60.0, 0, SIDE / 2], [0, 60, SIDE / 2], [0, 0, 1]], dtype=dtype)
    return {
        "world_to_camera": torch.eye(4, dtype=dtype),
        "intrinsics": k,
        "background": torch.full((3,), 0.3, dtype=dtype),
    }


Door = Callable[[dict[str, Tensor], Tensor], tuple[dict[str, Tensor], tuple[Tensor, ...]]]


def on_mesh(columns: dict[str, Tensor], binding: Tensor) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
    values = {"vertices": VERTICES, **columns, **camera(), "screen_offsets": torch.zeros(len(binding), 2)}
    leaves: dict[str, Any] = {name: value.clone().requires_grad_() for name, value in values.items()}
    out = rasterize_rigged(FaceRig(FACES, 6), binding, **leaves, sh_degree=3, width=SIDE, height=SIDE, threads=2)
    return leaves, out  # pyright: ignore[reportReturnType]


def in_world(columns: dict[str, Tensor], binding: Tensor) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
    """The same through the other door, where splats are what is trained."""
    means, quats, scales, opacities = (columns[name] for name in COLUMNS[:4])
    placed = FaceRig(FACES, 6).place(VERTICES, binding, means, quats, scales, opacities)
    values = dict(zip(("means", "quats", "scales", "opacities"), placed[:4], strict=True))
    values |= {"sh": torch.cat([columns["sh0"], columns["shN"]], 1), **camera()}
    values["screen_offsets"] = torch.zeros(len(binding), 2)
    leaves: dict[str, Any] = {name: value.clone().requires_grad_() for name, value in values.items()}
    return leaves, rasterize(**leaves, sh_degree=3, width=SIDE, height=SIDE, threads=2)


@pytest.mark.parametrize("door", [on_mesh, in_world])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_what_nobody_sees_gets_exactly_zero_and_adds_nothing(isa: str, door: Door, seed: int) -> None:
    kinds = kinds_of(seed)
    unseen = torch.tensor([kind in KINDS for kind in kinds])
    columns, binding = columns_of(kinds, seed)
    leaves, out = door(columns, binding)
    weights = output_weights(Scene({}, FACES, binding, SIDE, SIDE))
    found = gradients(leaves, out[:3], weights)
    assert all(bool(picture.isfinite().all()) for picture in out[:3])
    rows = [name for name, leaf in leaves.items() if len(leaf) == len(kinds)]
    assert len(rows) == len(leaves) - (4 if door is on_mesh else 3)
    for name, gradient in found.items():
        assert bool(gradient.isfinite().all()), name
        if name in rows:
            flat = gradient.reshape(len(kinds), -1)
            wrong = [kinds[i] for i in torch.nonzero(flat.any(1) & unseen)[:, 0].tolist()]
            assert not wrong, (name, wrong)
            assert flat[torch.tensor([kind == "seen" for kind in kinds])].any(1).all(), name
    kept, kept_out = door({name: column[~unseen] for name, column in columns.items()}, binding[~unseen])
    assert all(torch.equal(a, b) for a, b in zip(out[:3], kept_out[:3], strict=True))
    for name, gradient in gradients(kept, kept_out[:3], weights).items():
        ours = found[name][~unseen] if name in rows else found[name]
        assert relative(ours, gradient) < 1e-6, name


def test_where_nothing_is_seen_only_the_background_has_a_gradient(isa: str) -> None:
    columns, binding = columns_of([*KINDS[:6]] * 5, 3)
    leaves, out = on_mesh(columns, binding)
    found = gradients(leaves, out[:3], output_weights(Scene({}, FACES, binding, SIDE, SIDE)))
    assert torch.equal(out[0], camera()["background"][:, None, None].expand(3, SIDE, SIDE)) and not out[1].any()
    assert found["background"].all() and not any(found[name].any() for name in NAMES if name != "background")


def test_faces_nobody_sees_leave_their_vertices_alone() -> None:
    columns, binding = columns_of(["seen"] * 20 + ["at the camera", "in its plane"] * 20, 4)
    leaves, out = on_mesh(columns, binding)
    found = gradients(leaves, out[:3], output_weights(Scene({}, FACES, binding, SIDE, SIDE)))["vertices"]
    assert not found[:3].any() and found[3:].any(1).all()


@pytest.mark.parametrize(
    "triangle",
    [
        [[0.0, 0.0, 0.0]] * 3,
        [[0.0, 0.0, 0.0], [0.0625, 0.0, 0.0], [0.125, 0.0, 0.0]],
        [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0625, 0.0]],
    ],
    ids=["a point", "a line", "a side of no length"],
)
def test_triangles_without_area_are_drawn_as_in_float64(isa: str, triangle: list[list[float]]) -> None:
    """Finite, and no turn from what has no direction."""
    base = make_scene(0)
    at, count = torch.tensor([0.01, 0.02, 0.15]).double(), len(base.binding)
    first = len(base.parameters["vertices"])
    vertices = torch.cat([base.parameters["vertices"], (torch.tensor(triangle).double() + at).float().double()])
    faces = torch.cat([base.faces, first + torch.arange(3)[None]])
    binding = torch.where(torch.arange(count) % 5 == 0, len(base.faces), base.binding)
    scene = Scene({**base.parameters, "vertices": vertices}, faces, binding, base.width, base.height)
    exact, found = scene.leaves(torch.float64), scene.leaves(torch.float32)
    wanted, outputs = reference(exact, scene), draw(found, scene)
    weights = output_weights(scene, wanted.clear)
    for out, picture in zip(outputs, wanted.pictures, strict=False):
        assert float(((out.double() - picture).abs() * wanted.clear).detach().max()) < 1e-5
    ours, theirs = gradients(found, outputs[:3], weights), gradients(exact, wanted.pictures, weights)
    for name in NAMES:
        assert bool(ours[name].isfinite().all()), name
        assert relative(ours[name], theirs[name]) < 1e-4, name
