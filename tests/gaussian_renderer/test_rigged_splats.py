"""Renderers take an avatar on its mesh: drawn as it is by the one that can, carried into the world for every other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gaussian_renderer import PipelineOptions, Renderer, build_renderer, describe
from gaussian_renderer.backends.native import unusable_on
from scene.flame_gaussian_model import FlameGaussianModel
from tests.gaussian_renderer.scenes import background, camera, weighted_sum
from tests.scene.avatars import avatar
from utils.contracts import Mesh, Rendered, RiggedSplats, Splats
from utils.errors import EnvironmentFault, InputError, NumericalFault

BEHIND = background(torch.float32)
VIEW = camera(64, 48, torch.float32)
FLIPPED = 2e-3  # share of pixels at which an alpha may fall on the other side of 1/255, or two splats change order
IN_TORCH = [PipelineOptions(True, False), PipelineOptions(False, True), PipelineOptions(True, True)]


def native(pipeline: PipelineOptions | None = None, threads: int = 2) -> Renderer:
    try:
        return build_renderer("native", threads, pipeline)
    except EnvironmentFault as fault:
        pytest.skip(str(fault))


@pytest.fixture
def head(tmp_path: Path) -> FlameGaussianModel:
    return avatar(tmp_path)


def never() -> Splats:
    raise AssertionError("carried into the world")


def trained(head: FlameGaussianModel, draw: Callable[[Mesh], Rendered]) -> tuple[Rendered, dict[str, Tensor]]:
    """The picture, and the gradients of a fixed random function of it to everything that training changes."""
    for parameter in head.parameters.values():
        parameter.requires_grad_().grad = None
    picture = draw(head.rig(1))
    weighted_sum(picture).backward()
    found = {name: p.grad.to_dense().clone() for name, p in head.parameters.items() if p.grad is not None}
    assert picture.screen_offsets.grad is not None
    return picture, found | {"screen_offsets": picture.screen_offsets.grad}


def assert_alike(a: Rendered, b: Rendered) -> None:
    for part in ("image", "alpha", "depth"):
        error = (getattr(a, part) - getattr(b, part)).abs().amax(0)
        assert float((error > 5e-6).float().mean()) <= FLIPPED, part
    assert int((a.visible != b.visible).sum()) <= 1 and int((a.radii - b.radii).abs().max()) <= 1


@pytest.mark.parametrize("name", ["native", "reference"])
def test_on_the_mesh_and_in_the_world_it_is_the_same_picture(head: FlameGaussianModel, name: str) -> None:
    """Native in one pass, and both ways of the reference."""
    render, reference = native(), build_renderer(name)
    ours, found = trained(head, lambda mesh: render(replace(head.on(mesh), world=never), VIEW, BEHIND))
    world, wanted = trained(head, lambda mesh: reference(head.place_on(mesh), VIEW, BEHIND))
    assert_alike(ours, world)
    assert found.keys() == wanted.keys() and {"expr", "translation", "jaw_pose", "means", "shN"} <= found.keys()
    for key, gradient in wanted.items():
        rows = (found[key] - gradient).abs().reshape(len(gradient), -1).amax(-1) / gradient.abs().max()
        if key in head.rig.parameters:
            assert float(rows.max()) < 1e-3, key
        else:  # a flipped pixel touches the splats over it; all others agree to rounding
            assert float((rows > 5e-5).float().mean()) <= 0.01, key


def test_a_renderer_without_meshes_gets_the_world(head: FlameGaussianModel) -> None:
    reference, mesh = build_renderer("reference"), head.rig(2)
    a, b = reference(head.on(mesh), VIEW, BEHIND), reference(head.place_on(mesh), VIEW, BEHIND)
    for part in ("image", "alpha", "depth", "radii"):
        assert torch.equal(getattr(a, part), getattr(b, part)), part


@pytest.mark.parametrize("pipeline", IN_TORCH, ids=["colours", "covariances", "both"])
def test_steps_in_pytorch_need_the_world(head: FlameGaussianModel, pipeline: PipelineOptions) -> None:
    assert pipeline.in_torch and not PipelineOptions().in_torch
    render, mesh, called = native(pipeline), head.rig(0), []
    rigged = head.on(mesh)

    def world() -> Splats:
        called.append(1)
        return head.place_on(mesh)

    a, b = render(replace(rigged, world=world), VIEW, BEHIND), render(head.place_on(mesh), VIEW, BEHIND)
    assert called == [1] and torch.equal(a.image, b.image) and torch.equal(a.radii, b.radii)
    assert_alike(a, native()(replace(rigged, world=never), VIEW, BEHIND))


@pytest.mark.parametrize("name", ["native", "reference"])
@pytest.mark.parametrize("pipeline", [None, PipelineOptions(), *IN_TORCH])
def test_the_log_says_the_way_that_is_taken(
    head: FlameGaussianModel, name: str, pipeline: PipelineOptions | None
) -> None:
    if name == "native":
        native()
    mesh, called = head.rig(0), []
    rigged = replace(head.on(mesh), world=lambda: called.append(1) or head.place_on(mesh))
    build_renderer(name, 1, pipeline)(rigged, VIEW, BEHIND)
    said = describe(name, "cpu", pipeline)
    assert said.endswith("placed in the world first" if called else "in one pass")
    on_gpu = name == "native" and not called and unusable_on("cuda") is None
    assert describe(name, "cuda", pipeline).endswith("in one pass" if on_gpu else "placed in the world first")
    assert describe(name, "meta", pipeline).endswith("placed in the world first")


def test_options_that_change_nothing_keep_the_short_way(head: FlameGaussianModel) -> None:
    mesh = head.rig(0)
    plain, same = native(), native(PipelineOptions())
    a, b = (render(replace(head.on(mesh), world=never), VIEW, BEHIND) for render in (plain, same))
    assert torch.equal(a.image, b.image)


@pytest.mark.parametrize("threads", [1, 3])
def test_depth_is_left_out_where_nobody_wants_it(head: FlameGaussianModel, threads: int) -> None:
    render, mesh = native(threads=threads), head.rig(0)
    full, flat = render(head.on(mesh), VIEW, BEHIND), render(head.on(mesh), VIEW, BEHIND, with_depth=False)
    assert full.depth is not None and flat.depth is None
    assert torch.equal(full.image, flat.image) and torch.equal(full.alpha, flat.alpha)
    assert build_renderer("reference")(head.on(mesh), VIEW, BEHIND, with_depth=False).image.shape == full.image.shape


def test_meshes_that_take_turns_do_not_mix(head: FlameGaussianModel, tmp_path: Path) -> None:
    """What is kept of the last mesh's triangles belongs to that mesh."""
    render, mesh = native(), head.rig(0)
    turned = Mesh(mesh.vertices, mesh.faces.roll(1, dims=1).contiguous())
    longer = Mesh(torch.cat([mesh.vertices, torch.ones(2, 3)]), mesh.faces)  # the same triangles, more vertices
    pictures = [render(head.on(each), VIEW, BEHIND).image for each in (mesh, turned, mesh, longer, mesh)]
    assert not torch.equal(pictures[0], pictures[1])
    assert all(torch.equal(pictures[0], pictures[i]) for i in (2, 3, 4))
    assert torch.equal(head.place_on(longer).means, head.place_on(mesh).means)


@pytest.mark.parametrize(
    ("view", "behind", "message"),
    [
        (replace(VIEW, intrinsics=torch.eye(4)), BEHIND, "intrinsics: has shape"),
        (replace(VIEW, world_to_camera=torch.eye(4).double()), BEHIND, "world_to_camera: is torch.float64"),
        (VIEW, torch.zeros(4), "background: has shape"),
        (replace(VIEW, width=0), BEHIND, "camera: is 0 x 48 pixels"),
    ],
)
def test_what_does_not_fit_is_named(head: FlameGaussianModel, view: Any, behind: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        native()(head.on(head.rig(0)), view, behind)


@pytest.mark.parametrize("name", ["means", "quats", "scales", "opacities", "sh0", "shN"])
def test_a_column_that_is_not_finite_is_named_as_it_is_trained(head: FlameGaussianModel, name: str) -> None:
    rigged: RiggedSplats = head.on(head.rig(0))
    spoilt = getattr(rigged, name).detach().clone()
    spoilt[7] = float("nan")
    with pytest.raises(NumericalFault, match=f"renderer: {name}: row 7 is not finite"):
        native()(replace(rigged, **{name: spoilt}), VIEW, BEHIND)


def test_a_mesh_that_is_not_finite_is_named(head: FlameGaussianModel) -> None:
    mesh = head.rig(0)
    vertices = mesh.vertices.detach().clone()
    vertices[11, 2] = float("inf")
    with pytest.raises(NumericalFault, match="renderer: vertices: row 11 is not finite"):
        native()(head.on(Mesh(vertices, mesh.faces)), VIEW, BEHIND)


def test_harmonics_of_degree_0_alone_can_be_trained(head: FlameGaussianModel) -> None:
    """--sh_degree 0: the array of the other coefficients is empty."""
    head.columns["shN"] = head.columns["shN"].detach()[:, :0].clone().requires_grad_()
    head.sh_degree = 0
    picture, found = trained(head, lambda mesh: native()(replace(head.on(mesh), world=never), VIEW, BEHIND))
    assert_alike(picture, native()(head.place_on(head.rig(1)), VIEW, BEHIND))
    assert found["sh0"].any()
