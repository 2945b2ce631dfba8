"""The CUDA rasteriser against the CPU engine and float64: pictures, gradients, refusals, memory, and the same bits."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from diff_gaussian_rasterization import RULES, GaussianRasterizer, NonFiniteError, Rules, rasterize
from diff_gaussian_rasterization._calls import Workspace
from torch import Tensor

from tests.engine.conftest import cpu_engine
from tests.engine.device_pictures import Draw, Drawn, assert_agree, drawn, leaves_on, refusal, same_bits, weights_of
from tests.engine.rasterizer_scenes import NAMES, Scene, dense, make_scene
from tests.engine.test_rasterizer_compatible import settings_of, splats_of

EVERY_RULE = {**RULES, "antialias": Rules(antialias=True), "wide": Rules(eps2d=2.0, stop=0.05, alpha_max=0.8)}
SCENE = make_scene(150, 70, 45, seed=3)


def drawing(scene: Scene, degree: int = 3, **options: Any) -> Draw:
    return lambda p: rasterize(**p, sh_degree=degree, width=scene.width, height=scene.height, **options)  # type: ignore[arg-type]


def on(device: torch.device, scene: Scene = SCENE, degree: int = 3, **options: Any) -> Drawn:
    return drawn(drawing(scene, degree, **options), scene.parameters, device)


# --- agreement


@pytest.mark.parametrize("rules", list(EVERY_RULE))
def test_agrees_with_the_cpu_engine(engine_device: torch.device, rules: str) -> None:
    scene = make_scene(300, 83, 61, seed=len(rules))
    if not EVERY_RULE[rules].normalise_quats:
        scene.parameters["quats"] = torch.nn.functional.normalize(scene.parameters["quats"], dim=-1)
    draw = drawing(scene, rules=EVERY_RULE[rules])
    assert_agree(drawn(draw, scene.parameters, engine_device), draw, scene.parameters)


@pytest.mark.parametrize(
    ("count", "width", "height", "degree", "with_depth"),
    [(64, 33, 20, 0, True), (65, 16, 50, 1, False), (127, 48, 16, 2, True), (1, 9, 9, 3, True), (129, 31, 7, 0, False)],
)
def test_any_size_and_degree(
    engine_device: torch.device, count: int, width: int, height: int, degree: int, with_depth: bool
) -> None:
    scene = make_scene(count, width, height, seed=count)
    draw = drawing(scene, degree, with_depth=with_depth)
    assert_agree(drawn(draw, scene.parameters, engine_device), draw, scene.parameters)


def test_agrees_with_float64(engine_device: torch.device) -> None:
    """Beside the other engine, an independent renderer without tiles."""
    scene = make_scene(60, 45, 33, seed=60)
    exact = {name: value.clone().requires_grad_() for name, value in scene.parameters.items()}
    reference = dense(exact, scene.width, scene.height, 3)
    ours = on(engine_device, scene)
    weights = weights_of(ours.pictures)
    for found, wanted in zip(ours.pictures, reference, strict=True):
        assert float(((found.detach().cpu().double() - wanted.detach()).abs() > 2e-5).double().mean()) < 5e-3
    torch.stack([(out * w).sum() for out, w in zip(reference, weights, strict=True)]).sum().backward()
    for name, found in ours.gradients(weights).items():
        wanted = exact[name].grad
        assert wanted is not None
        if name == "intrinsics":
            found, wanted = (g[[0, 1, 0, 1], [0, 1, 2, 2]] for g in (found, wanted))  # noqa: PLW2901
        assert float((found - wanted).norm() / wanted.norm()) < 2e-3, name


def test_a_crowded_tile(engine_device: torch.device) -> None:
    """More splats on a tile than a block of either pass takes at a time; the first ones hide the last."""
    scene = make_scene(700, 20, 18, seed=4, spread=0.05)
    scene.parameters["opacities"][:] = 0.5 * scene.parameters["opacities"]
    draw = drawing(scene)
    assert_agree(drawn(draw, scene.parameters, engine_device), draw, scene.parameters)


def test_covariances_in_place_of_quats_and_scales(engine_device: torch.device) -> None:
    root = torch.randn(150, 3, 3, generator=torch.Generator().manual_seed(1)) * 0.02
    full = root @ root.transpose(1, 2)
    parameters = {**SCENE.parameters, "covariances": full[:, [0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]]}

    def draw(p: dict[str, Tensor]) -> tuple[Tensor | None, ...]:
        unused = 0 * (p["quats"].sum() + p["scales"].sum())
        image, *others = drawing(SCENE)({**p, "quats": p["quats"].detach(), "scales": p["scales"].detach()})
        assert image is not None
        return image + unused, *others

    assert_agree(drawn(draw, parameters, engine_device), draw, parameters)


@pytest.mark.parametrize("antialiasing", [False, True])
def test_the_interface_of_other_projects(engine_device: torch.device, antialiasing: bool) -> None:
    """Colours of their own, the coefficients in two parts; the settings' tensors may stay on the CPU."""
    settings = settings_of(SCENE, antialiasing=antialiasing)
    values = {name: value.detach() for name, value in splats_of(SCENE).items()}
    values["dc"], values["shs"] = values["shs"][:, :1], values["shs"][:, 1:]
    plain = {name: value for name, value in values.items() if name not in ("dc", "shs")}
    plain["colors_precomp"] = torch.rand(150, 3, generator=torch.Generator().manual_seed(2))
    for parameters in (values, plain):

        def draw(p: dict[str, Tensor]) -> tuple[Tensor | None, ...]:
            image, radii = GaussianRasterizer(settings)(**p)
            return image, None, None, radii

        assert_agree(drawn(draw, parameters, engine_device), draw, parameters)


# --- corner cases


def head_on(count: int, width: int, height: int) -> Scene:
    values = {
        "means": torch.zeros(count, 3),
        "quats": torch.tensor([[1.0, 0, 0, 0]]).repeat(count, 1),
        "scales": torch.full((count, 3), 0.01),
        "opacities": torch.full((count,), 0.5),
        "sh": torch.zeros(count, 1, 3),
        "world_to_camera": torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 1]]),
        "intrinsics": torch.tensor([[50.0, 0, width / 2], [0, 50, height / 2], [0, 0, 1]]),
        "background": torch.tensor([0.1, 0.2, 0.3]),
    }
    return Scene(values, width, height)


@pytest.mark.parametrize(("count", "move"), [(0, 0.0), (5, -1.0), (5, -2.0), (5, 150.0)])
def test_nothing_to_see(engine_device: torch.device, count: int, move: float) -> None:
    """No Gaussians; in the camera's centre, behind it, beyond the far plane."""
    scene = head_on(count, 20, 17)
    scene.parameters["means"][:, 2] += move
    picture = on(engine_device, scene, 0)
    image, alpha, depth = (out.detach().cpu() for out in picture.pictures)
    assert torch.equal(image, scene.parameters["background"][:, None, None].expand(3, 17, 20))
    assert not alpha.any() and not depth.any() and not picture.radii.any() and picture.radii.shape == (count,)
    for name, gradient in picture.gradients([torch.ones(3, 17, 20), *[torch.zeros(1, 17, 20)] * 2]).items():
        expected = torch.full((3,), 340.0) if name == "background" else torch.zeros_like(gradient)
        assert torch.equal(gradient, expected), name


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 40), (300, 1), (16, 16), (15, 33)])
def test_small_and_odd_pictures(engine_device: torch.device, width: int, height: int) -> None:
    scene = make_scene(20, width, height, seed=1)
    draw = drawing(scene)
    ours = drawn(draw, scene.parameters, engine_device)
    with cpu_engine():
        theirs = drawn(draw, scene.parameters, torch.device("cpu"))
    for found, wanted in zip(ours.pictures, theirs.pictures, strict=True):
        assert int(((found.cpu() - wanted).abs() > 2e-5).sum()) <= 1


def test_equal_depths_keep_their_order(engine_device: torch.device) -> None:
    scene = head_on(2, 16, 16)
    scene.parameters["opacities"].fill_(0.9)
    scene.parameters["scales"].fill_(0.2)
    scene.parameters["sh"][:, 0] = torch.tensor([[1.7, -1.8, -1.8], [-1.8, 1.7, -1.8]])
    image = on(engine_device, scene, 0).pictures[0]
    assert image[0, 8, 8] > 0.8 > 0.2 > image[1, 8, 8]


def test_only_what_is_asked_for_gets_a_gradient(engine_device: torch.device) -> None:
    full, leaves = on(engine_device), leaves_on(engine_device, SCENE.parameters)
    for name in ("sh", "world_to_camera", "intrinsics", "quats", "background"):
        leaves[name].requires_grad_(False)
    part = Drawn(drawing(SCENE)(leaves), leaves)
    weights = weights_of(full.pictures)
    weights[0].zero_()  # depth and alpha alone
    found, wanted = part.gradients(weights), full.gradients(weights)
    assert found.keys() == {"means", "scales", "opacities", "screen_offsets"}
    assert all(torch.equal(gradient, wanted[name]) for name, gradient in found.items())
    assert part.outputs[2] is not None
    alone = torch.autograd.grad(part.outputs[2].sum(), leaves["means"], retain_graph=True)[0]
    assert torch.equal(alone, torch.autograd.grad(part.outputs[2].sum(), leaves["means"])[0])


def test_without_gradients_nothing_is_kept(engine_device: torch.device) -> None:
    with torch.no_grad():
        flat = on(engine_device)
    assert all(torch.equal(a, b) for a, b in zip(flat.pictures, on(engine_device).pictures, strict=True))
    assert not flat.pictures[0].requires_grad


# --- refusals: the CPU engine's own words


def spoilt(name: str, row: int, value: float) -> dict[str, Tensor]:
    p = {key: parameter.float().clone() for key, parameter in SCENE.parameters.items()}
    p[name].view(len(p[name]), -1)[row, -1] = value
    return p


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_named(engine_device: torch.device, name: str, value: float) -> None:
    row = -1 if len(SCENE.parameters[name]) < 20 else 77
    p = spoilt(name, row, value)
    said = refusal(lambda: drawing(SCENE)({key: part.to(engine_device) for key, part in p.items()}))
    with cpu_engine():
        assert said == refusal(lambda: drawing(SCENE)(p))
    assert said is not None and said[0] is NonFiniteError and said[1].startswith(name)


def test_coefficients_beyond_the_degree_are_not_looked_at(engine_device: torch.device) -> None:
    clean, p = on(engine_device, degree=1), spoilt("sh", 3, float("nan"))
    leaves = leaves_on(engine_device, p)
    assert same_bits(Drawn(drawing(SCENE, 1)(leaves), leaves), clean)
    assert not clean.gradients(weights_of(clean.pictures))["sh"][:, 4:].any()


def test_the_first_of_several_bad_rows_is_named(engine_device: torch.device) -> None:
    p = spoilt("quats", 9, float("nan"))
    p["opacities"][3] = float("nan")
    p["quats"][140] = float("inf")
    with pytest.raises(NonFiniteError, match="^quats: row 9 is not finite$"):
        drawing(SCENE)({key: part.to(engine_device) for key, part in p.items()})
    assert same_bits(on(engine_device), on(engine_device))  # no trace


@pytest.mark.parametrize(
    "changes",
    [
        {"near": 0.0},
        {"near": 2.0, "far": 1.0},
        {"rules": Rules(eps2d=-1.0)},
        {"rules": Rules(alpha_max=1.0)},
        {"rules": Rules(stop=0.0)},
        {"rules": "theirs"},
    ],
)
def test_options_out_of_range(engine_device: torch.device, changes: dict[str, Any]) -> None:
    said = refusal(lambda: on(engine_device, **changes))
    with cpu_engine():
        assert said == refusal(lambda: on(torch.device("cpu"), **changes))
    assert said is not None and said[0] is ValueError


def test_a_focal_length_that_is_not_positive(engine_device: torch.device) -> None:
    p = spoilt("intrinsics", -1, 1.0)
    p["intrinsics"][1, 1] = 0.0
    with pytest.raises(ValueError, match="^intrinsics: the focal lengths must be positive$"):
        drawing(SCENE)({key: part.to(engine_device) for key, part in p.items()})


def test_the_graph_is_gone_after_one_backward(engine_device: torch.device) -> None:
    picture = on(engine_device)
    picture.pictures[0].sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        picture.pictures[0].sum().backward()


# --- memory


def test_memory_is_reused_for_pictures_of_other_sizes(engine_device: torch.device) -> None:
    scenes = [make_scene(n, w, h, seed=n) for n, w, h in ((40, 20, 15), (200, 64, 50), (3, 5, 90), (120, 33, 33))]
    first = [on(engine_device, scene) for scene in scenes]
    gc.collect()
    for scene, before in (*zip(scenes, first, strict=True), *zip(scenes[::-1], first[::-1], strict=True)):
        assert same_bits(on(engine_device, scene), before)
        gc.collect()
    near = first[0].leaves["means"]
    held = len(Workspace.idle(near))
    del first
    gc.collect()
    assert held < len(Workspace.idle(near)) <= 4
    pairs, sub_tiles = Workspace.idle(near)[-1].work()
    assert 0 < pairs <= sub_tiles <= 8 * pairs


def test_two_pictures_at_once(engine_device: torch.device) -> None:
    """Their graphs hold a workspace each, whatever the order of the ways back."""
    scenes = [SCENE, make_scene(90, 40, 52, seed=8)]
    alone = [on(engine_device, scene) for scene in scenes]
    expected = [one.gradients(weights_of(one.pictures)) for one in alone]
    both = [on(engine_device, scene) for scene in scenes]
    for k in (1, 0):
        found = both[k].gradients(weights_of(both[k].pictures))
        assert all(torch.equal(found[name], expected[k][name]) for name in found)


def test_too_little_memory_is_one_line(
    engine_device: torch.device, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if request.node.callspec.params["engine_device"] == "cuda":
        pytest.skip("the memory of a GPU is not ours to fill")
    Workspace.forget_idle()
    gc.collect()
    before = on(engine_device)
    monkeypatch.setenv("MIEN_EMULATION_BYTES", "200000")
    with pytest.raises(MemoryError) as caught:
        on(engine_device)
    words = str(caught.value)
    assert words.startswith("allocating ") and "\n" not in words
    assert words.endswith("out of memory (150 Gaussians, 70 x 45 pixels)")
    weights = weights_of(before.pictures)
    with pytest.raises(MemoryError, match=r"\(150 Gaussians, 70 x 45 pixels\)$"):
        before.gradients(weights)
    monkeypatch.delenv("MIEN_EMULATION_BYTES")
    assert same_bits(on(engine_device), before)  # nothing is broken, neither by forward nor by backward


# --- bits


def test_any_order_of_threads_gives_the_same_bits(
    engine_device: torch.device, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU the order is another one every time; the emulation is told which."""
    scene = make_scene(260, 52, 40, seed=5)
    first = on(engine_device, scene)
    expected = first.gradients(weights_of(first.pictures))
    for order in ("reverse", "1", "2") if request.node.callspec.params["engine_device"] == "emulated" else "abc":
        monkeypatch.setenv("MIEN_EMULATION_ORDER", order)
        again = on(engine_device, scene)
        found = again.gradients(weights_of(again.pictures))
        assert all(torch.equal(a, b) for a, b in zip(first.pictures, again.pictures, strict=True)), order
        assert [name for name in found if not torch.equal(found[name], expected[name])] == [], order
