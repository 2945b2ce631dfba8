"""Clone, split, prune, opacity reset: rows, values and binding, against the rules written out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from scene.densification.gradient import GradientOptions, GradientStrategy, derived
from scene.flame_gaussian_model import FlameGaussianModel
from tests.scene.avatars import avatar
from utils.contracts import Camera, Drawn, Frame, Mesh, Rendered
from utils.engine.optimiser import Optimiser, OptimiserOptions

EXTENT = 0.5


def strategy(model: FlameGaussianModel, **changes: object) -> GradientStrategy:
    options = GradientOptions(**{"densify_from_iter": 0, "densify_until_iter": 100, "densification_interval": 10,
                                 "densify_grad_threshold": 0.5, **changes})  # type: ignore[arg-type]  # fmt: skip
    made = GradientStrategy(options, 100, EXTENT, 0, white=True)
    made.start(model)
    return made


def optimiser(model: FlameGaussianModel) -> Optimiser:
    """An optimiser whose moments are all ones, so that rows that should start at zero show."""
    made = Optimiser(OptimiserOptions(), model, EXTENT, train_motion=True)
    made.moments = {name: (torch.ones_like(a), torch.ones_like(b)) for name, (a, b) in made.moments.items()}
    return made


def rendered(gradient: torch.Tensor, radii: torch.Tensor) -> Drawn:
    """A view of a step of which only the screen gradients and radii matter."""
    offsets = torch.zeros(len(radii), 2, requires_grad=True)
    offsets.grad = gradient
    empty = torch.zeros(1, 1, 1)
    image = Rendered(empty.expand(3, 1, 1), empty, empty, radii.to(torch.int32), offsets)
    camera = Camera(torch.eye(4), torch.eye(3), 1, 1)
    frame = Frame(camera, torch.zeros(3, 1, 1), None, torch.zeros(3), 0, "0", "0")
    return Drawn(frame, Mesh(torch.zeros(3, 3), torch.zeros(1, 3, dtype=torch.int64)), image)


def world_scale(model: FlameGaussianModel) -> torch.Tensor:
    return model.world_scales(model.rig.rest_mesh()).detach().amax(1)


def test_statistics_are_means_over_the_views_that_drew_a_gaussian(tmp_path: Path) -> None:
    model = avatar(tmp_path)
    made = strategy(model)
    n = len(model)
    first, second = torch.zeros(n, 2), torch.zeros(n, 2)
    first[0], second[0], first[1] = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 1.0]), torch.tensor([6.0, 8.0])
    seen = torch.ones(n)
    seen[1] = 0
    made.observe(1, model, [rendered(first, 7 * seen)])
    made.observe(2, model, [rendered(second, 5 * seen)])
    assert made.statistics["gradient"][:2].tolist() == [6.0, 0.0]
    assert made.statistics["seen"][:2].tolist() == [2.0, 0.0]
    assert made.statistics["radius"][:2].tolist() == [7.0, 0.0]


def test_clones_and_splits(tmp_path: Path) -> None:
    model = avatar(tmp_path)
    boundary = float(world_scale(model).median())
    made, adam = strategy(model, percent_dense=boundary / EXTENT), optimiser(model)
    before = {name: column.detach().clone() for name, column in model.columns.items()}
    faces, world = model.binding.clone(), model.world_scales(model.rig.rest_mesh()).detach()
    wanted = torch.arange(len(model)) % 3 == 0
    made.statistics["gradient"], made.statistics["seen"] = wanted * 2.0, torch.ones(len(model))
    splits, clones = wanted & (world_scale(model) > boundary), wanted & (world_scale(model) <= boundary)
    assert splits.any() and clones.any()
    made.round(10, model, adam)
    kept, n_clones, n_splits = int((~splits).sum()), int(clones.sum()), int(splits.sum())
    assert len(model) == kept + n_clones + 2 * n_splits
    assert torch.equal(model.binding, torch.cat([faces[~splits], faces[clones], faces[splits], faces[splits]]))
    for name, column in model.columns.items():
        assert torch.equal(column[:kept], before[name][~splits])
        assert torch.equal(column[kept : kept + n_clones], before[name][clones])
        children = column[kept + n_clones :].detach().view(2, n_splits, *column.shape[1:])
        parents = before[name][splits]
        if name == "scales":
            torch.testing.assert_close(children.exp(), (parents.exp() / 1.6).expand_as(children))
        elif name == "means":
            offset = (children - parents).norm(dim=-1)
            assert bool((offset > 0).all()) and bool((offset < 6 * world[splits].norm(dim=-1)).all())
            assert not torch.equal(children[0], children[1])
        else:
            assert torch.equal(children, parents.expand_as(children))
        first, second = adam.moments[name]
        assert bool((first[:kept] == 1).all()) and not first[kept:].any() and not second[kept:].any()


def test_the_same_split_for_the_same_seed_and_step_only(tmp_path: Path) -> None:
    model = avatar(tmp_path)
    every = torch.ones(len(model), dtype=torch.bool)
    world = model.world_scales(model.rig.rest_mesh()).detach()
    first, again, later = (strategy(model).children(step, model, every, world)[0]["means"] for step in (10, 10, 20))
    assert torch.equal(first, again) and not torch.equal(first, later)


def test_budget_keeps_the_largest_gradients(tmp_path: Path) -> None:
    model = avatar(tmp_path)
    made = strategy(model, gaussian_budget=len(model) + 3, percent_dense=1e9)
    made.statistics["gradient"] = torch.arange(len(model), dtype=torch.float32) + 1
    made.statistics["seen"] = torch.ones(len(model))
    faces = model.binding.clone()
    made.round(10, model, optimiser(model))
    assert model.binding[-3:].tolist() == faces[-3:].tolist() and len(model) == len(faces) + 3


def test_faint_ones_go_but_no_face_is_emptied(tmp_path: Path) -> None:
    model = avatar(tmp_path)
    made, adam = strategy(model), optimiser(model)
    made.statistics["gradient"], made.statistics["seen"] = torch.ones(len(model)), torch.ones(len(model))
    made.options.percent_dense = 1e9
    made.round(10, model, adam)  # two on every face now
    with torch.no_grad():
        model.columns["opacities"][0] = -20.0  # one of two on its face
        both = (model.binding == model.binding[5]).nonzero()[:, 0]
        model.columns["opacities"][both] = -20.0  # all on their face
    count, face = len(model), int(model.binding[0])
    made.prune(10, model, adam)
    assert len(model) == count - 1 and int((model.binding == face).sum()) == 1 and made.pruned == 1


def test_opacity_reset(tmp_path: Path) -> None:
    model = avatar(tmp_path)
    made, adam = strategy(model), optimiser(model)
    made.reset_opacity(model, adam)
    assert float(model.opacity.detach().max()) <= 0.01 + 1e-7
    assert not adam.moments["opacities"][0].any() and adam.moments["means"][0].any()
    assert model.columns["opacities"].is_leaf and model.columns["opacities"].requires_grad


@pytest.mark.parametrize("step, rounds", [(0, 0), (5, 0), (10, 1), (90, 1), (100, 0)])
def test_rounds_are_due_inside_the_window_only(tmp_path: Path, step: int, rounds: int) -> None:
    model = avatar(tmp_path)
    made = strategy(model)
    made.statistics["gradient"], made.statistics["seen"] = torch.ones(len(model)), torch.ones(len(model))
    before = len(model)
    made.refine(step, model, optimiser(model))
    assert (len(model) > before) == bool(rounds)


def test_derived_iterations() -> None:
    assert derived(-1, 3000, 0.1) == 300 and derived(0, 3000, 0.1) == 0 and derived(7, 3000, 0.1) == 7
