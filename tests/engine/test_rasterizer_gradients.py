"""Hand-written derivatives against float64 finite differences, the rasteriser against gsplat's reference functions."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from tests.engine.rasterizer_scenes import NAMES, SPLATS, make_scene, output_weights
from tests.engine.test_rasterizer import backward, dgr, draw, intrinsics_used, relative

# Thresholds far below what a step of the difference can reach: the finite difference sees a smooth function.
STEP = 1e-6


def loss_of(arrays: dict[str, np.ndarray], size: tuple[int, int], degree: int, weights: dict[str, np.ndarray]) -> float:
    from diff_gaussian_rasterization._reference import OUTPUTS, reference_render

    out = reference_render(arrays, size, degree)
    return float(sum((out[name] * weights[name]).sum() for name in OUTPUTS))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_double_core_against_finite_differences(name: str, degree: int) -> None:
    """A pixel that crosses the 1/255 threshold inside a step makes the loss jump: a few entries may be off."""
    from diff_gaussian_rasterization._reference import OUTPUTS, reference_render

    size = (19, 17)
    scene = make_scene(12, *size, seed=20 + degree)
    arrays = {key: value.numpy().copy() for key, value in scene.parameters.items()}
    arrays["means"][0] = [0.6, -0.5, 0.0]  # outside the clamp of the Jacobian, and large enough to be seen
    arrays["scales"][0] = 0.25
    weights = {key: value.numpy() for key, value in zip(OUTPUTS, output_weights(scene), strict=True)}
    gradient = reference_render(arrays, size, degree, weights)[f"g_{name}"].reshape(-1)
    flat = arrays[name].reshape(-1)
    chosen = np.random.default_rng(0).permutation(flat.size)[:24]
    if name == "intrinsics":
        chosen = np.array([0, 2, 4, 5])
    if name == "world_to_camera":
        chosen = np.arange(12)
    scale = np.abs(gradient).max()
    errors = []
    for index in chosen:
        kept = flat[index]
        flat[index] = kept + STEP
        above = loss_of(arrays, size, degree, weights)
        flat[index] = kept - STEP
        below = loss_of(arrays, size, degree, weights)
        flat[index] = kept
        errors.append(abs((above - below) / (2 * STEP) - gradient[index]) / scale)
    assert np.median(errors) < 1e-6, errors
    assert np.mean(np.array(errors) > 1e-5) <= 0.25, errors


def test_clamped_jacobian_has_its_true_derivative() -> None:
    """A large splat beyond the clamp: the intrinsics move its limit, the mean does not move J."""
    from tests.engine.rasterizer_scenes import dense

    scene = make_scene(6, 40, 40, seed=4)
    scene.parameters["means"][:3] += torch.tensor([0.35, 0.0, 0.0])
    scene.parameters["scales"][:3] = 0.15
    weights = output_weights(scene)
    wanted, found = scene.leaves(torch.float64), scene.leaves(torch.float32)
    backward(dense(wanted, 40, 40, 3), weights)
    backward(draw(found, scene, threads=1)[:3], weights)
    for name in NAMES:
        a, b = found[name].grad, wanted[name].grad
        if name == "intrinsics":
            a, b = intrinsics_used(a), intrinsics_used(b)
        assert relative(a, b) < 2e-3, name


def test_opacity_clamp_stops_or_passes_the_gradient() -> None:
    scene = make_scene(1, 16, 16, seed=0)
    p = scene.parameters
    p["means"].zero_(), p["world_to_camera"].copy_(torch.eye(4)), p["screen_offsets"].zero_()
    p["world_to_camera"][2, 3] = 1.0
    p["intrinsics"].copy_(torch.tensor([[100.0, 0, 8], [0, 100, 8], [0, 0, 1]]))
    p["opacities"].fill_(1.0)
    p["scales"].fill_(5.0)  # opaque all over the picture
    gradients = {}
    for rules in ("ours", "dgr", "gsplat15"):
        leaves = scene.leaves(torch.float32)
        image, alpha, _, _ = draw(leaves, scene, rules=rules)
        assert torch.allclose(alpha, torch.tensor(0.999 if rules == "gsplat15" else 0.99))
        image.sum().backward()
        gradients[rules] = float(leaves["opacities"].grad)
    assert gradients["ours"] == 0 == gradients["gsplat15"]
    assert abs(gradients["dgr"]) > 1


def load_oracle(shared: Path) -> ModuleType:
    path = shared / "oracle" / "gsplat_cpu_oracle.py"
    if not path.is_file():
        pytest.skip(f"{path} does not exist")
    for name in ("gsplat", "jaxtyping"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed (pip install --no-deps gsplat==1.5.3 jaxtyping rich packaging ninja)")
    spec = importlib.util.spec_from_file_location("gsplat_cpu_oracle", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_agrees_with_gsplat_reference_functions(shared: Path) -> None:
    oracle = load_oracle(shared)
    try:
        functions = oracle.install_standins()
    except (ImportError, OSError) as error:
        pytest.skip(f"gsplat does not import: {error}")
    width, height = 130, 101
    arrays = oracle.head_shell(2000, 1)
    view, k = oracle.camera(width, height)
    k[0, 2] += 6.0
    arrays = {**arrays, "world_to_camera": view, "intrinsics": k, "background": np.array([0.2, 0.4, 0.6])}
    r = np.random.default_rng(1)
    w_image, w_alpha = (torch.from_numpy(r.normal(size=s)) for s in ((height, width, 3), (height, width)))

    wanted = {name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in arrays.items()}
    splats = {name: wanted[name] for name in SPLATS}
    image, alpha, middle = oracle.render(
        functions,
        splats,
        wanted["world_to_camera"],
        wanted["intrinsics"],
        width,
        height,
        wanted["background"],
        "gsplat",
        "gsplat",
        False,
    )
    ((image * w_image).sum() + (alpha * w_alpha).sum()).backward()

    found = {name: torch.tensor(value, dtype=torch.float32, requires_grad=True) for name, value in arrays.items()}
    found["screen_offsets"] = torch.zeros(2000, 2, requires_grad=True)
    ours = dgr.rasterize(**found, sh_degree=3, width=width, height=height, rules="gsplat15", threads=2)
    ((ours[0] * w_image.permute(2, 0, 1).float()).sum() + (ours[1][0] * w_alpha.float()).sum()).backward()

    assert ((ours[0].double() - image.permute(2, 0, 1)).abs() > 1e-5).double().mean() < 1e-3
    assert ((ours[1][0].double() - alpha).abs() > 1e-5).double().mean() < 1e-3
    for name in arrays:
        a, b = found[name].grad, wanted[name].grad
        if name == "intrinsics":
            a, b = intrinsics_used(a), intrinsics_used(b)
        assert relative(a, b) < 5e-4, name
    screen = middle["means2d"].grad[0] * torch.tensor([width / 2, height / 2])
    assert relative(found["screen_offsets"].grad, screen) < 5e-4
