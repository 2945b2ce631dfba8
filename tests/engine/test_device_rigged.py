"""Gaussians on a mesh, on the CUDA engine: placed and drawn as by the CPU engine and float64; what a device keeps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from diff_gaussian_rasterization import NonFiniteError, Rules, _calls, rasterize, rasterize_rigged
from diff_gaussian_rasterization._calls import Batch, Workspace
from diff_gaussian_rasterization.rig import FaceRig
from torch import Tensor

from gaussian_renderer import build_renderer, describe
from tests.engine.conftest import cpu_engine
from tests.engine.device_pictures import Draw, Drawn, assert_agree, drawn, refusal, relative, same_bits, weights_of
from tests.engine.rigged_scenes import COLUMNS, FAR, NAMES, NEAR, Scene, make_scene, reference
from tests.engine.rigged_scenes import gradients as float64_gradients
from utils.contracts import Camera, Mesh, RiggedSplats, Splats
from utils.errors import EnvironmentFault

RULES = {"ours": "ours", "dgr": "dgr", "gsplat15": "gsplat15", "antialias": Rules(antialias=True)}
SCENES = {"plain": make_scene(0), "opaque": make_scene(1, opaque=True), "large": make_scene(3, 700, width=70)}
SCENE = SCENES["plain"]
PICTURE = 2e-6  # largest error against float64 at a clear pixel, of order 1, as of the CPU engine
GRADIENT = {name: 1e-4 if name in ("world_to_camera", "intrinsics") else 2e-5 for name in NAMES}  # relative L2


def drawing(scene: Scene, degree: int = 3, rig: FaceRig | None = None, **options: Any) -> Draw:
    size = {"near": NEAR, "far": FAR, "width": scene.width, "height": scene.height}
    rig = rig or FaceRig(scene.faces, len(scene.parameters["vertices"]))

    def draw(p: dict[str, Tensor]) -> tuple[Tensor | None, ...]:
        binding = scene.binding.to(p["vertices"].device)
        return rasterize_rigged(rig, binding, **p, sh_degree=degree, **size, **options)  # type: ignore[arg-type]

    return draw


def on(device: torch.device, scene: Scene = SCENE, degree: int = 3, **options: Any) -> Drawn:
    return drawn(drawing(scene, degree, **options), scene.parameters, device)


# --- pictures


@pytest.mark.parametrize("rules", list(RULES))
@pytest.mark.parametrize("name", list(SCENES))
def test_agrees_with_the_cpu_engine(engine_device: torch.device, name: str, rules: str) -> None:
    scene = SCENES[name]
    draw = drawing(scene, rules=RULES[rules])
    assert_agree(drawn(draw, scene.parameters, engine_device), draw, scene.parameters)


@pytest.mark.parametrize(("degree", "with_depth"), [(0, True), (1, False), (2, True)])
def test_lower_degrees_agree_with_the_cpu_engine(engine_device: torch.device, degree: int, with_depth: bool) -> None:
    draw = drawing(SCENE, degree, with_depth=with_depth)
    assert_agree(drawn(draw, SCENE.parameters, engine_device), draw, SCENE.parameters)


@pytest.mark.parametrize(("name", "rules"), [("plain", "ours"), ("opaque", "dgr"), ("large", "antialias")])
def test_agrees_with_float64(engine_device: torch.device, name: str, rules: str) -> None:
    scene, exact = SCENES[name], SCENES[name].leaves(torch.float64)
    wanted = reference(exact, scene, 3, RULES[rules])
    ours = on(engine_device, scene, rules=RULES[rules])
    for out, picture in zip(ours.pictures, wanted.pictures, strict=True):
        assert float(((out.detach().cpu() - picture.detach()).abs() * wanted.clear).max()) < PICTURE
    assert (ours.radii > 0)[wanted.shown].all() and not (ours.radii > 0)[wanted.radius == 0].any()
    weights = [weight * wanted.clear for weight in weights_of(ours.pictures)]
    expected = float64_gradients(exact, wanted.pictures, [weight.double() for weight in weights])
    found = ours.gradients(weights)
    found["intrinsics"] = found["intrinsics"][[0, 1, 0, 1], [0, 1, 2, 2]]
    found["world_to_camera"] = found["world_to_camera"][:3]
    for key, gradient in expected.items():
        assert relative(found[key], gradient) < GRADIENT[key], key


def test_one_step_equals_two(engine_device: torch.device) -> None:
    """Placed in the world, then drawn: the same Gaussians, and the same way back to the vertices."""
    rig = FaceRig(SCENE.faces, len(SCENE.parameters["vertices"]))
    size = {"near": NEAR, "far": FAR, "width": SCENE.width, "height": SCENE.height}

    def two(p: dict[str, Tensor]) -> tuple[Tensor | None, ...]:
        means, quats, scales, opacities = (p[name] for name in COLUMNS[:4])
        placed = rig.place(p["vertices"], SCENE.binding.to(engine_device), means, quats, scales, opacities)
        rest = {name: p[name] for name in ("world_to_camera", "intrinsics", "background", "screen_offsets")}
        return rasterize(*placed, torch.cat([p["sh0"], p["shN"]], 1), sh_degree=3, **rest, **size)  # type: ignore[arg-type]

    one, other = on(engine_device), drawn(two, SCENE.parameters, engine_device)
    clear = reference(SCENE.parameters, SCENE).clear
    for a, b in zip(one.pictures, other.pictures, strict=True):
        assert float(((a - b).detach().cpu().abs() * clear).max()) < PICTURE
    weights = weights_of(one.pictures, clear)
    found, wanted = one.gradients(weights), other.gradients(weights)
    assert all(relative(found[name], wanted[name]) < GRADIENT[name] for name in NAMES)


def test_no_gaussians_and_no_faces(engine_device: torch.device) -> None:
    for faces in (SCENE.faces, SCENE.faces[:0]):
        empty = {name: SCENE.parameters[name][:0] for name in (*COLUMNS, "screen_offsets")}
        parameters = {**SCENE.parameters, **empty}
        scene = Scene(parameters, faces, SCENE.binding[:0], SCENE.width, SCENE.height)
        picture = on(engine_device, scene)
        image, alpha, _ = picture.pictures
        assert torch.equal(image, picture.leaves["background"][:, None, None].expand_as(image)) and not alpha.any()
        for name, gradient in picture.gradients(weights_of(picture.pictures)).items():
            assert bool(gradient.any()) == (name == "background"), name


def test_a_mesh_that_stands_still_costs_no_gradient(engine_device: torch.device) -> None:
    full = on(engine_device)
    leaves = {name: leaf.detach().clone().requires_grad_(name != "vertices") for name, leaf in full.leaves.items()}
    still = Drawn(drawing(SCENE)(leaves), leaves)
    found, wanted = (picture.gradients(weights_of(picture.pictures)) for picture in (still, full))
    assert found.keys() == wanted.keys() - {"vertices"}
    assert all(torch.equal(found[name], wanted[name]) for name in found)


# --- placing alone


def placed(device: torch.device, vertices: Tensor, faces: Tensor, binding: Tensor, columns: list[Tensor]) -> Drawn:
    moved = [value.to(device, copy=True).requires_grad_() for value in (vertices, *columns)]
    means, quats, scales, opacities = moved[1:]
    outputs = FaceRig(faces, len(vertices)).place(moved[0], binding, means, quats, scales, opacities)
    return Drawn(outputs, {str(k): leaf for k, leaf in enumerate(moved)})


def mesh_and_columns(count: int) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Some faces have no Gaussians, one has no area."""
    random = torch.Generator().manual_seed(count)
    vertices = torch.randn(60, 3, generator=random)
    faces = torch.stack([torch.randperm(60, generator=random)[:3] for _ in range(110)])
    faces[5] = faces[5, 0]
    columns = [torch.randn(count, width, generator=random) for width in (3, 4, 3, 1)]
    return vertices, faces, torch.randint(0, 110, (count,), generator=random), [*columns[:3], columns[3][:, 0]]


@pytest.mark.parametrize("count", [0, 1, 63, 64, 301])
def test_placed_as_by_the_cpu_engine(engine_device: torch.device, count: int) -> None:
    inputs = mesh_and_columns(count)
    if count > 2:
        inputs[2][:2] = 5
    ours = placed(engine_device, *inputs)
    with cpu_engine():
        theirs = placed(torch.device("cpu"), *inputs)
    random = torch.Generator().manual_seed(1)
    weights = [torch.randn(out.shape, generator=random) for out in theirs.outputs if out is not None]
    found = torch.autograd.grad(ours.outputs, list(ours.leaves.values()), [w.to(engine_device) for w in weights])  # type: ignore[arg-type]
    with cpu_engine():
        wanted = torch.autograd.grad(theirs.outputs, list(theirs.leaves.values()), weights)  # type: ignore[arg-type]
    for a, b in (*zip(ours.outputs, theirs.outputs, strict=True), *zip(found, wanted, strict=True)):
        assert a is not None and b is not None and bool(a.isfinite().all())
        scale = float(b.detach().abs().max()) if b.numel() else 0.0
        torch.testing.assert_close(a.detach().cpu(), b.detach(), rtol=1e-5, atol=2e-6 * scale)


def test_placing_gives_gradients_only_where_asked(engine_device: torch.device) -> None:
    full, part = (placed(engine_device, *mesh_and_columns(50)) for _ in range(2))
    leaves = list(full.leaves.values())
    wanted = torch.autograd.grad(full.outputs[0].sum(), leaves, allow_unused=True)  # type: ignore[union-attr]
    assert part.outputs[0] is not None
    alone = torch.autograd.grad(part.outputs[0].sum(), part.leaves["1"])[0]
    assert wanted[1] is not None and torch.equal(alone, wanted[1])


# --- what is kept of a mesh and a binding


def test_a_binding_is_looked_at_again_when_it_changes(engine_device: torch.device) -> None:
    binding = SCENE.binding.clone().to(engine_device)
    rig = FaceRig(SCENE.faces.to(engine_device), len(SCENE.parameters["vertices"]))
    near = torch.zeros(1, device=engine_device)
    first = rig.bind(binding, near)
    assert rig.bind(binding, near) is first and rig.bind(binding.clone(), near) is not first
    again = rig.bind(binding, near)
    binding[0] += 1
    assert rig.bind(binding, near) is not again
    assert rig.mesh_near(near) is rig.mesh_near(near) is not rig.mesh
    with cpu_engine():
        assert rig.mesh_near(torch.zeros(1)) is rig.mesh


def test_one_rig_serves_both_engines(engine_device: torch.device) -> None:
    rig = FaceRig(SCENE.faces, len(SCENE.parameters["vertices"]))
    first = on(engine_device, rig=rig)
    with cpu_engine():
        between = drawn(drawing(SCENE, rig=rig), SCENE.parameters, torch.device("cpu"))
        assert same_bits(between, drawn(drawing(SCENE), SCENE.parameters, torch.device("cpu")))
    assert same_bits(first, on(engine_device, rig=rig)) and same_bits(first, on(engine_device))


def test_another_binding_gives_another_picture(engine_device: torch.device) -> None:
    rig = FaceRig(SCENE.faces, len(SCENE.parameters["vertices"]))
    turned = Scene(SCENE.parameters, SCENE.faces, SCENE.binding.roll(1), SCENE.width, SCENE.height)
    first = on(engine_device, rig=rig)
    for scene in (turned, SCENE, turned):
        assert same_bits(on(engine_device, scene, rig=rig), on(engine_device, scene))
    assert not torch.equal(first.pictures[0], on(engine_device, turned, rig=rig).pictures[0])


# --- refusals: the CPU engine's own words


def refused_alike(device: torch.device, p: Mapping[str, Tensor], scene: Scene = SCENE) -> tuple[type, str]:
    said = refusal(lambda: drawing(scene)({name: value.to(device) for name, value in p.items()}))
    with cpu_engine():
        assert said == refusal(lambda: drawing(scene)(dict(p)))
    assert said is not None
    return said


def good() -> dict[str, Tensor]:
    return {name: value.float().clone() for name, value in SCENE.parameters.items()}


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_finite_is_named(engine_device: torch.device, name: str) -> None:
    for value in (float("nan"), float("inf")):
        p = good()
        p[name].view(len(p[name]), -1)[-1, -1] = value
        assert refused_alike(engine_device, p)[0] is NonFiniteError


@pytest.mark.parametrize(("name", "value"), [("scales_log", 89.0), ("scales_log", 3e38), ("means", -3e38)])
@pytest.mark.parametrize("row", [0, 17, 299])
def test_what_overflows_on_its_triangle_is_named(
    engine_device: torch.device, name: str, value: float, row: int
) -> None:
    p = good()
    p["vertices"] *= 1000.0
    p[name][row] = value
    said = refused_alike(engine_device, p)[1]
    assert said == f"scales or means: row {row} leaves the range of numbers on its triangle"


def test_a_face_that_is_not_there_is_named(engine_device: torch.device) -> None:
    for wrong in (-1, len(SCENE.faces), 2**40):
        binding = SCENE.binding.clone()
        binding[33] = wrong
        said = refused_alike(
            engine_device, good(), Scene(SCENE.parameters, SCENE.faces, binding, SCENE.width, SCENE.height)
        )
        assert said == (ValueError, f"binding: row 33 holds {wrong}, expected 0 to {len(SCENE.faces) - 1}")


@pytest.mark.parametrize("name", NAMES)
def test_wrong_shapes_and_types_are_named(engine_device: torch.device, name: str) -> None:
    for wrong in (good()[name][..., :-1], good()[name].double()):
        assert refused_alike(engine_device, {**good(), name: wrong})[1].startswith(f"{name} must have")


# --- the C door: batches, bits


class Door:
    """`views` pictures of the scene in one call, each with a mesh of its own."""

    def __init__(self, device: torch.device, views: int = 1, scene: Scene = SCENE) -> None:
        self.device, self.views, self.scene = device, views, scene
        self.tensors = {name: value.float().to(device) for name, value in scene.parameters.items()}
        for name in ("vertices", "world_to_camera", "intrinsics", "background", "screen_offsets"):
            tensor = self.tensors[name]
            self.tensors[name] = tensor.expand(views, *tensor.shape).contiguous()
        t = self.tensors
        self.rig, self.binding = FaceRig(scene.faces, t["vertices"].shape[1]), scene.binding.clone()
        self.workspace, count = Workspace(t["means"]), len(scene.binding)
        self.settings = _calls.Settings(
            *(t[name].data_ptr() for name in ("world_to_camera", "intrinsics", "background")),
            near_plane=NEAR, far_plane=FAR, eps2d=0.3, alpha_max=0.99, stop=1e-4,
            width=scene.width, height=scene.height, normalise_quats=1,
        )  # fmt: skip
        self.names = dict(zip(("means", "quats", "scales", "opacities", "sh0", "sh"), COLUMNS, strict=True))
        self.names |= {name: name for name in ("vertices", "screen_offsets")}
        self.inputs = _calls.Inputs(
            count=count, sh_coefficients=16, sh_degree=3, mesh=self.rig.mesh_near(t["means"]).value,
            binding=self.rig.bind(self.binding, t["means"]).value,
            **{name: t[own].data_ptr() for name, own in self.names.items()},
        )  # fmt: skip
        planes = [(views, channels, scene.height, scene.width) for channels in (3, 1, 1)]
        self.pictures = [torch.full(shape, 7.0, device=device) for shape in planes]
        self.pictures.append(torch.full((views, count), -7, dtype=torch.int32, device=device))
        self.outputs = _calls.PictureOutputs(*(tensor.data_ptr() for tensor in self.pictures))
        self.gradients = {name: torch.full_like(tensor, 7.0) for name, tensor in t.items()}
        wanted = {name: self.gradients[own].data_ptr() for name, own in self.names.items()}
        wanted |= {name: self.gradients[name].data_ptr() for name in ("world_to_camera", "intrinsics", "background")}
        self.wanted = _calls.AllGradients(**wanted)
        self.health = torch.zeros(6, dtype=torch.int32, device=device)

    def both_ways(self, capacity: int = -1) -> None:
        batch = Batch(self.views, True, capacity, None if capacity < 0 else self.health.data_ptr())
        _calls.call_batch("rasterize_forward", self.workspace, self.settings, self.inputs, self.outputs, batch)
        shapes = [picture[0] for picture in self.pictures[:3]]
        g = [w.to(self.device).expand(self.views, *w.shape).contiguous() for w in weights_of(shapes)]
        pictures = _calls.PictureInputs(*(tensor.data_ptr() for tensor in (*g, self.pictures[0], self.pictures[2])))
        structures = self.settings, self.inputs, pictures, self.wanted, batch
        _calls.call_batch("rasterize_backward", self.workspace, *structures)

    def bits(self) -> list[Tensor]:
        return [tensor.cpu().clone() for tensor in (*self.pictures, *self.gradients.values())]


def test_views_drawn_together_are_those_drawn_alone(engine_device: torch.device) -> None:
    together, alone = Door(engine_device, 3), [Door(engine_device) for _ in range(3)]
    own = ("vertices", "world_to_camera", "intrinsics", "background", "screen_offsets")
    for v, door in enumerate(alone):
        for tensors, at in ((door.tensors, 0), (together.tensors, v)):
            tensors["vertices"][at] += 0.01 * v
            tensors["world_to_camera"][at, 0, 3] += 0.02 * v
        door.both_ways()
    together.both_ways()
    for whole, parts in zip(together.pictures, zip(*(door.pictures for door in alone), strict=True), strict=True):
        assert torch.equal(whole, torch.cat(parts))
    for name, whole in together.gradients.items():
        parts = [door.gradients[name] for door in alone]
        if name in own:
            assert torch.equal(whole, torch.cat(parts)), name
        else:
            largest = float(whole.abs().max())
            torch.testing.assert_close(whole, torch.stack(parts).sum(0), rtol=1e-5, atol=1e-5 * largest)


def test_with_enough_room_a_fixed_capacity_draws_the_exact_picture(engine_device: torch.device) -> None:
    exact, fixed = Door(engine_device, 2), Door(engine_device, 2)
    exact.both_ways()
    pairs = exact.workspace.work()[0]
    fixed.both_ways(pairs + 77)
    assert all(torch.equal(a, b) for a, b in zip(exact.bits(), fixed.bits(), strict=True))
    assert fixed.health[0] == 0 and fixed.health[4] == pairs


def test_a_binding_of_another_mesh_is_refused(engine_device: torch.device) -> None:
    door, few = Door(engine_device), FaceRig(SCENE.faces[:5], len(SCENE.parameters["vertices"]))
    door.inputs.mesh = few.mesh_near(door.tensors["means"]).value
    with pytest.raises(ValueError, match="^rig: the binding is of another mesh$"):
        door.both_ways()
    door = Door(engine_device)
    door.inputs.count = len(SCENE.binding) - 1
    with pytest.raises(ValueError, match="^the binding is of another number of Gaussians$"):
        door.both_ways()


def test_any_order_of_threads_gives_the_same_bits(
    engine_device: torch.device, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = on(engine_device)
    expected = first.gradients(weights_of(first.pictures))
    for order in ("reverse", "1", "2") if request.node.callspec.params["engine_device"] == "emulated" else "abc":
        monkeypatch.setenv("MIEN_EMULATION_ORDER", order)
        again = on(engine_device)
        found = again.gradients(weights_of(again.pictures))
        assert all(torch.equal(a, b) for a, b in zip(first.pictures, again.pictures, strict=True)), order
        assert [name for name in found if not torch.equal(found[name], expected[name])] == [], order


# --- the renderer


def never() -> Splats:
    raise AssertionError("carried into the world")


def test_the_renderer_draws_in_one_pass(engine_device: torch.device) -> None:
    try:
        render = build_renderer("native")
    except EnvironmentFault as fault:
        pytest.skip(str(fault))
    p = {name: value.float().to(engine_device) for name, value in SCENE.parameters.items()}
    mesh = Mesh(p["vertices"], SCENE.faces.to(engine_device))
    means, quats, scales, opacities, sh0, higher = (p[name] for name in COLUMNS)
    binding = SCENE.binding.to(engine_device)
    splats = RiggedSplats(mesh, binding, means, quats, scales, opacities, sh0, higher, 3, never)
    camera = Camera(p["world_to_camera"], p["intrinsics"], SCENE.width, SCENE.height, near=NEAR, far=FAR)
    picture = render(splats, camera, p["background"])
    plain = {**SCENE.parameters, "screen_offsets": torch.zeros_like(SCENE.parameters["screen_offsets"])}
    wanted = drawn(drawing(SCENE), plain, engine_device)
    assert torch.equal(picture.image, wanted.pictures[0]) and torch.equal(picture.radii.cpu(), wanted.radii)
    assert describe("native", engine_device).endswith("from mesh to picture in one pass")
