"""Gaussians drawn on their mesh: pictures and all gradients against float64, finite differences, the two-step way."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diff_gaussian_rasterization import Rules, rasterize
from diff_gaussian_rasterization._library import isa_name, select_isa
from diff_gaussian_rasterization._reference import OUTPUTS, PARAMETERS, reference_render
from diff_gaussian_rasterization.rig import FaceRig
from torch import Tensor

from flame_model import FlameModel, load_flame
from scene.placement import place_in_torch
from tests.engine.rigged_scenes import (
    COLUMNS,
    FAR,
    NAMES,
    NEAR,
    Scene,
    draw,
    gradients,
    make_scene,
    output_weights,
    reference,
    relative,
)
from tests.tiny import write_model
from utils.contracts import Mesh
from utils.maths.rotations import axis_angle_to_matrix

PICTURE = 2e-6  # largest error of image, alpha and depth at a clear pixel; values are of order 1
GRADIENT = {name: 2e-5 for name in NAMES}  # relative L2 errors; 5e-6 is the largest that was seen
GRADIENT |= {"world_to_camera": 1e-4, "intrinsics": 1e-4}  # sums over all Gaussians that nearly cancel: 5e-5 was seen
RULES = {"ours": "ours", "dgr": "dgr", "gsplat15": "gsplat15", "antialias": Rules(antialias=True)}
SCENES = {"plain": make_scene(0), "opaque": make_scene(1, opaque=True), "large": make_scene(3, 700, width=70)}


def assert_is_the_reference(scene: Scene, degree: int = 3, rules: str | Rules = "ours") -> None:
    exact, found = scene.leaves(torch.float64), scene.leaves(torch.float32)
    wanted = reference(exact, scene, degree, rules)
    weights = output_weights(scene, wanted.clear)
    *outputs, radii = draw(found, scene, degree, rules=rules)
    assert wanted.clear.double().mean() > 0.85
    for out, picture in zip(outputs, wanted.pictures, strict=True):
        error = (out.double() - picture).abs()
        assert float((error * wanted.clear).detach().max()) < PICTURE
        assert float((error > 1e-3).double().mean()) < 0.01  # what falls on the other side of a threshold is faint
    assert (radii > 0)[wanted.shown].all() and not (radii > 0)[wanted.radius == 0].any()
    drawn, slack = radii > 0, 1e-4 * wanted.radius
    assert (radii >= (wanted.radius - slack).ceil())[drawn].all()
    assert (radii <= (wanted.radius + slack).ceil())[drawn].all()
    wanted_gradients = gradients(exact, wanted.pictures, weights)
    for name, gradient in gradients(found, tuple(outputs), weights).items():
        if degree == 0 and name == "shN":
            assert not gradient.any() and not wanted_gradients[name].any()
            continue
        assert float(wanted_gradients[name].norm()) > 0, name
        assert relative(gradient, wanted_gradients[name]) < GRADIENT[name], name


@pytest.mark.parametrize("rules", list(RULES))
@pytest.mark.parametrize("scene", list(SCENES))
def test_pictures_and_gradients_are_those_of_float64(scene: str, rules: str) -> None:
    assert_is_the_reference(SCENES[scene], 3, RULES[rules])


@pytest.mark.parametrize("degree", [0, 1, 2])
def test_lower_degrees_are_those_of_float64(degree: int) -> None:
    assert_is_the_reference(SCENES["plain"], degree)


@pytest.mark.parametrize("seed", [4, 5, 6])
def test_any_number_of_gaussians_in_a_group(isa: str, seed: int) -> None:
    assert_is_the_reference(make_scene(seed, 101 + 6 * seed, width=35, height=30))


@pytest.mark.parametrize("coefficients", [0, 3, 8, 15])
def test_coefficients_beyond_the_degree_get_zeros(coefficients: int) -> None:
    scene = SCENES["plain"]
    degree = round((coefficients + 1) ** 0.5) - 1
    leaves = scene.leaves(torch.float32)
    full = draw(leaves, scene, degree)
    short = {**leaves, "shN": leaves["shN"].detach()[:, :coefficients].clone().requires_grad_()}
    cut = draw(short, scene, degree)
    assert all(torch.equal(a, b) for a, b in zip(full, cut, strict=True))
    weights = output_weights(scene)
    of_full, of_cut = gradients(leaves, full[:3], weights), gradients(short, cut[:3], weights)
    assert torch.equal(of_full["shN"][:, :coefficients], of_cut["shN"])
    assert not of_full["shN"][:, coefficients:].any()
    assert all(torch.equal(of_full[name], of_cut[name]) for name in NAMES if name != "shN")


def slope(scene: Scene, weights: list[Tensor], name: str, direction: Tensor, rules: str | Rules) -> float:
    """Central difference of the reference's weighted sum, in float64."""
    step = 1e-6
    sums = []
    for sign in (1, -1):
        moved = {**scene.parameters, name: scene.parameters[name] + sign * step * direction}
        out = reference(moved, scene, 3, rules).pictures
        sums.append(sum(float((w * picture).sum()) for w, picture in zip(weights, out, strict=True)))
    return (sums[0] - sums[1]) / (2 * step)


@pytest.mark.parametrize("rules", list(RULES))
def test_the_reference_has_the_slopes_of_finite_differences(rules: str) -> None:
    """Along its own gradient and a random direction, for everything that is trained. At clear pixels nothing jumps."""
    scene, random = make_scene(0, 120, width=30, height=26), torch.Generator().manual_seed(5)
    leaves = scene.leaves(torch.float64)
    out = reference(leaves, scene, 3, RULES[rules])
    weights = output_weights(scene, out.clear)
    total = torch.stack([(w * picture).sum() for w, picture in zip(weights, out.pictures, strict=True)]).sum()
    found = torch.autograd.grad(total, list(leaves.values()))
    for name, gradient in zip(leaves, found, strict=True):
        other = torch.randn(gradient.shape, generator=random, dtype=torch.float64)
        if name == "world_to_camera":
            other[3] = 0
        direction = gradient / gradient.norm() + other / other.norm()
        expected = float((gradient * direction).sum())
        assert slope(scene, weights, name, direction, RULES[rules]) == pytest.approx(expected, rel=2e-6), name


def test_the_reference_is_the_double_instance_of_the_native_core() -> None:
    """Its own derivative for the splats, PyTorch's for the way from the mesh to them."""
    scene = SCENES["plain"]
    leaves = scene.leaves(torch.float64)
    out = reference(leaves, scene)
    weights = output_weights(scene, out.clear)
    wanted = gradients(leaves, out.pictures, weights)
    columns: dict[str, Tensor] = dict(zip(PARAMETERS[:4], (leaves[name] for name in COLUMNS[:4]), strict=True))
    placed = place_in_torch(Mesh(leaves["vertices"], scene.faces), scene.binding, columns)
    splats = {name: getattr(placed, name) for name in columns}
    splats["sh"] = torch.cat([leaves["sh0"], leaves["shN"]], 1)
    given = {name: (splats.get(name, leaves.get(name))).detach().numpy() for name in PARAMETERS}  # type: ignore[union-attr]
    given_gradients = {name: weight.numpy() for name, weight in zip(OUTPUTS, weights, strict=True)}
    found = reference_render(given, (scene.width, scene.height), 3, given_gradients, (NEAR, FAR))
    for name, picture in zip(OUTPUTS, out.pictures, strict=True):
        assert float(((torch.from_numpy(found[name]) - picture) * out.clear).abs().detach().max()) < 1e-12
    flowing = [torch.from_numpy(found[f"g_{name}"]) for name in splats]
    names = ("vertices", *COLUMNS)
    back = torch.autograd.grad(list(splats.values()), [leaves[name] for name in names], flowing)
    for name, gradient in zip(names, back, strict=True):
        assert relative(gradient, wanted[name]) < 1e-10, name
    assert relative(torch.from_numpy(found["g_background"]), wanted["background"]) < 1e-12
    assert relative(torch.from_numpy(found["g_screen_offsets"]), wanted["screen_offsets"]) < 1e-10
    assert relative(torch.from_numpy(found["g_world_to_camera"][:3]), wanted["world_to_camera"]) < 1e-10


FLAME = {"shape": 7, "expr": 5, "rotation": 3, "neck_pose": 3, "jaw_pose": 3, "eyes_pose": 6, "translation": 3}


def flame_vertices(flame: FlameModel, p: dict[str, Tensor]) -> Tensor:
    posed = {name: p[name] for name in FLAME if name != "shape"}
    return flame.posed(flame.fold_identity(p["shape"]), **posed)


def test_flame_parameters_get_the_gradients_of_float64(tmp_path: Path) -> None:
    """From expression, poses and identity through skinning, frames and pixels to a squared error, and back."""
    flame = FlameModel(load_flame(write_model(tmp_path / "head.pkl")).with_teeth())
    twin, random = copy.deepcopy(flame).double(), torch.Generator().manual_seed(2)
    base = make_scene(0)
    binding = torch.randint(0, len(flame.faces), base.binding.shape, generator=random)
    scene = Scene(base.parameters, flame.faces, binding, base.width, base.height)
    values = {name: 0.1 * torch.randn(size, generator=random) for name, size in FLAME.items()}
    values["translation"] *= 0.1
    target = torch.rand(3, scene.height, scene.width, generator=random)

    def loss(model: FlameModel, p: dict[str, Tensor], clear: Tensor | None) -> tuple[Tensor, Tensor]:
        dtype = p["expr"].dtype
        tensors = {name: value.to(dtype) for name, value in scene.parameters.items()}
        tensors["vertices"] = flame_vertices(model, p)
        if dtype == torch.float32:
            image, seen = draw(tensors, scene)[0], clear
        else:
            out = reference(tensors, scene)
            image, seen = out.image, out.clear if clear is None else clear
        assert seen is not None
        return ((image - target.to(dtype)).square() * seen).sum(), seen

    exact = {name: value.double().requires_grad_() for name, value in values.items()}
    wanted, clear = loss(twin, exact, None)
    wanted_gradients = dict(zip(exact, torch.autograd.grad(wanted, list(exact.values())), strict=True))
    found = {name: value.clone().requires_grad_() for name, value in values.items()}
    total, _ = loss(flame, found, clear)
    assert clear.double().mean() > 0.85 and total.item() == pytest.approx(wanted.item(), rel=1e-5)
    for name, gradient in zip(found, torch.autograd.grad(total, list(found.values())), strict=True):
        assert relative(gradient, wanted_gradients[name]) < 1e-4, name
    plain = {name: value.detach() for name, value in exact.items()}
    for name, gradient in wanted_gradients.items():  # the float64 twin itself
        direction, step = gradient / gradient.norm(), 1e-6
        up, down = (float(loss(twin, {**plain, name: plain[name] + s * direction}, clear)[0]) for s in (step, -step))
        assert (up - down) / (2 * step) == pytest.approx(float(gradient.norm()), rel=1e-5), name


def in_two_steps(p: dict[str, Tensor], scene: Scene, degree: int, **options: Any) -> tuple[Tensor, ...]:
    rig = FaceRig(scene.faces, len(p["vertices"]))
    means, quats, scales, opacities = (p[name] for name in COLUMNS[:4])
    placed = rig.place(p["vertices"], scene.binding, means, quats, scales, opacities)
    rest = {name: p[name] for name in ("world_to_camera", "intrinsics", "background", "screen_offsets")}
    size = {"width": scene.width, "height": scene.height, "near": NEAR, "far": FAR}
    sh = torch.cat([p["sh0"], p["shN"]], 1)
    return rasterize(*placed[:4], sh, sh_degree=degree, **rest, **size, **options)


@pytest.mark.parametrize("rules", list(RULES))
@pytest.mark.parametrize("degree", [0, 3])
def test_one_step_equals_two(isa: str, rules: str, degree: int) -> None:
    scene = SCENES["opaque"]
    one, two = scene.leaves(torch.float32), scene.leaves(torch.float32)
    clear = reference(scene.parameters, scene, degree, RULES[rules]).clear
    a, b = draw(one, scene, degree, rules=RULES[rules]), in_two_steps(two, scene, degree, rules=RULES[rules])
    assert all(float(((x - y).abs() * clear).detach().max()) < PICTURE for x, y in zip(a[:3], b[:3], strict=True))
    assert int((a[3] != b[3]).sum()) <= 2 and int((a[3] - b[3]).abs().max()) <= 1
    weights = output_weights(scene, clear)
    first, second = gradients(one, a[:3], weights), gradients(two, b[:3], weights)
    for name in NAMES:
        assert relative(first[name], second[name]) < GRADIENT[name] or not second[name].any(), name


def everything(scene: Scene, **options: Any) -> list[Tensor]:
    leaves = scene.leaves(torch.float32)
    outputs = draw(leaves, scene, **options)
    return [*outputs, *gradients(leaves, outputs[:3], output_weights(scene)).values()]


def test_threads_and_repeats_do_not_change_a_bit(isa: str) -> None:
    scene = make_scene(8, 5000, width=90, height=70)
    first = everything(scene, threads=1)
    for threads in (1, 2, 3, 4):
        assert all(torch.equal(a, b) for a, b in zip(first, everything(scene, threads=threads), strict=True)), threads


def test_instruction_sets_agree(isa: str) -> None:
    before, scene = isa_name(), SCENES["large"]
    clear = reference(scene.parameters, scene).clear
    found = {}
    for each in ("scalar", isa):
        select_isa(each)
        leaves = scene.leaves(torch.float32)
        outputs = draw(leaves, scene)
        found[each] = outputs, gradients(leaves, outputs[:3], output_weights(scene, clear))
    select_isa(before)
    (plain, plain_gradients), (wide, wide_gradients) = found["scalar"], found[isa]
    assert all(
        float(((a - b).abs() * clear).detach().max()) < PICTURE for a, b in zip(plain[:3], wide[:3], strict=True)
    )
    assert all(relative(wide_gradients[name], plain_gradients[name]) < GRADIENT[name] for name in NAMES)
    same = all(torch.equal(wide_gradients[name], plain_gradients[name]) for name in NAMES)
    assert same == (isa == "scalar")  # else they were not two sets


def test_a_picture_without_depth_has_the_same_bits(isa: str) -> None:
    for scene in SCENES.values():
        full, flat = scene.leaves(torch.float32), scene.leaves(torch.float32)
        a, b = draw(full, scene), draw(flat, scene, with_depth=False)
        assert b[2] is None and all(torch.equal(a[i], b[i]) for i in (0, 1, 3))
        image, alpha, _ = output_weights(scene)
        first, second = (gradients(p, out[:2], [image, alpha]) for p, out in ((full, a), (flat, b)))
        assert all(torch.equal(first[name], second[name]) for name in NAMES)


@pytest.mark.parametrize("seed", range(6))
def test_mesh_and_camera_moved_together_show_the_same_picture(seed: int) -> None:
    """Without harmonics, which stay with the world; the vertices' gradient turns along."""
    scene, random = make_scene(seed % 2), torch.Generator().manual_seed(seed)
    turn = axis_angle_to_matrix(2 * torch.randn(3, generator=random, dtype=torch.float64))
    shift = torch.randn(3, generator=random, dtype=torch.float64)
    back, moved = torch.eye(4, dtype=torch.float64), dict(scene.parameters)
    back[:3, :3], back[:3, 3] = turn.T, -turn.T @ shift
    moved["vertices"] = scene.parameters["vertices"] @ turn.T + shift
    moved["world_to_camera"] = scene.parameters["world_to_camera"] @ back
    there = Scene(moved, scene.faces, scene.binding, scene.width, scene.height)
    clear = reference(scene.parameters, scene, 0).clear
    weights, seen = output_weights(scene, clear), []
    for each in (scene, there):
        leaves = each.leaves(torch.float32)
        outputs = draw(leaves, each, 0)
        seen.append((outputs, gradients(leaves, outputs[:3], weights)))
    (a, here), (b, gone) = seen
    for x, y in zip(a[:3], b[:3], strict=True):
        assert float(((x - y).abs() * clear).detach().max()) < 1e-4
        assert float(((x - y).abs() > 1e-4).double().mean()) < 0.01
    assert relative(gone["vertices"].double() @ turn, here["vertices"]) < 1e-3
    for name in (*COLUMNS[:5], "intrinsics", "background", "screen_offsets"):
        assert relative(gone[name], here[name]) < 1e-3, name
