"""The rasteriser's pictures and gradients against independent renderers, and its promises about bits."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.engine.rasterizer_scenes import NAMES, Scene, dense, make_scene, output_weights

dgr = pytest.importorskip("diff_gaussian_rasterization", reason="the native rasteriser is not installed")


def draw(p: dict[str, Tensor], scene: Scene, sh_degree: int = 3, **options: Any) -> tuple[Tensor, ...]:
    return dgr.rasterize(**p, sh_degree=sh_degree, width=scene.width, height=scene.height, **options)


def backward(outputs: tuple[Tensor, ...], weights: tuple[Tensor, ...]) -> None:
    sum((out * weight.to(out.dtype)).sum() for out, weight in zip(outputs, weights, strict=True)).backward()


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm().clamp_min(1e-30))


def intrinsics_used(gradient: Tensor) -> Tensor:
    """fx, fy, cx, cy: the entries of the matrix that a pinhole camera has."""
    return gradient[[0, 1, 0, 1], [0, 1, 2, 2]]


@pytest.mark.parametrize(
    ("n", "width", "height", "degree"), [(60, 45, 33, 3), (25, 16, 50, 1), (40, 64, 64, 2), (30, 31, 7, 0)]
)
def test_agrees_with_the_dense_renderer(n: int, width: int, height: int, degree: int) -> None:
    scene = make_scene(n, width, height, seed=n)
    weights = output_weights(scene)
    wanted, found = scene.leaves(torch.float64), scene.leaves(torch.float32)
    reference = dense(wanted, width, height, degree)
    backward(reference, weights)
    outputs = draw(found, scene, degree, threads=1)[:3]
    backward(outputs, weights)
    for a, b in zip(outputs, reference, strict=True):
        wrong = (a.double() - b).abs() > 2e-5
        assert wrong.double().mean() < 5e-3  # a pixel may fall on the other side of a threshold
    for name in NAMES:
        a, b = found[name].grad, wanted[name].grad
        assert a is not None and b is not None
        if name == "intrinsics":
            a, b = intrinsics_used(a), intrinsics_used(b)
        assert relative(a, b) < 2e-3, name


def test_agrees_with_the_double_instance_of_its_own_core() -> None:
    from diff_gaussian_rasterization._reference import OUTPUTS, reference_render

    scene = make_scene(400, 70, 90, seed=3)
    weights = output_weights(scene)
    leaves = scene.leaves(torch.float32)
    outputs = draw(leaves, scene, threads=2)[:3]
    backward(outputs, weights)
    arrays = {name: value.detach().double().numpy() for name, value in leaves.items()}
    gradients = {name: weight.float().double().numpy() for name, weight in zip(OUTPUTS, weights, strict=True)}
    wanted = reference_render(arrays, (70, 90), 3, gradients)
    for name, out in zip(OUTPUTS, outputs, strict=True):
        wrong = (out.detach().double() - torch.from_numpy(wanted[name])).abs() > 2e-5
        assert wrong.double().mean() < 5e-3
    for name in NAMES:
        assert relative(leaves[name].grad, torch.from_numpy(wanted[f"g_{name}"])) < 2e-3, name


@pytest.mark.parametrize("rules", ["ours", "dgr", "gsplat15"])
def test_threads_do_not_change_a_bit(rules: str) -> None:
    scene = make_scene(3000, 150, 130, seed=5)
    weights = output_weights(scene)
    seen = []
    for threads in (1, 2, 3):
        leaves = scene.leaves(torch.float32)
        outputs = draw(leaves, scene, rules=rules, threads=threads)
        backward(outputs[:3], weights)
        seen.append([*outputs, *(leaves[name].grad for name in NAMES)])
    for other in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], other, strict=True))


def draw_with(isa: str) -> tuple[list[Tensor], list[Tensor]]:
    from diff_gaussian_rasterization._library import isa_name, select_isa

    kept = isa_name()
    try:
        select_isa(isa)
    except ValueError as error:
        pytest.skip(str(error))
    try:
        scene = make_scene(700, 90, 75, seed=11)
        leaves = scene.leaves(torch.float32)
        outputs = draw(leaves, scene, threads=1)
        backward(outputs[:3], output_weights(scene))
        assert isa_name() == isa
    finally:
        select_isa(kept)
    return [out.detach() for out in outputs], [leaves[name].grad for name in NAMES]


@pytest.mark.parametrize("isa", ["avx512", "avx2"])
def test_instruction_sets_agree(isa: str) -> None:
    wanted, wanted_gradients = draw_with("scalar")
    outputs, gradients = draw_with(isa)
    for a, b in zip(outputs[:3], wanted[:3], strict=True):
        assert ((a - b).abs() > 1e-5).double().mean() < 1e-3
    assert any(
        not torch.equal(a, b) for a, b in zip(gradients, wanted_gradients, strict=True)
    )  # they were not the same code
    for name, a, b in zip(NAMES, gradients, wanted_gradients, strict=True):
        assert relative(a, b) < 1e-3, name


@pytest.mark.parametrize(
    ("isa", "said"), [("scalar", "scalar"), ("mmx", "MIEN_ISA must be avx512, avx2 or scalar, got mmx")]
)
def test_environment_chooses_the_instruction_set(isa: str, said: str) -> None:
    from diff_gaussian_rasterization import _library

    code = f"import runpy; m = runpy.run_path({_library.__file__!r}); print(m['isa_name']())"
    run = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "MIEN_ISA": isa}, capture_output=True, text=True
    )
    assert said in (run.stdout or run.stderr)


def test_backward_twice_and_two_pictures_before_backward() -> None:
    scene = make_scene(200, 40, 40, seed=2)
    weights = output_weights(scene)
    a, b = scene.leaves(torch.float32), scene.leaves(torch.float32)
    first = draw(a, scene, threads=1)[:3]
    second = draw(b, make_scene(200, 40, 40, seed=2), threads=1)[:3]  # must not disturb what `first` keeps
    loss = sum((o * w.float()).sum() for o, w in zip(first, weights, strict=True))
    loss.backward(retain_graph=True)
    once = a["means"].grad.clone()
    loss.backward()
    backward(second, weights)
    assert torch.equal(a["means"].grad, 2 * once)
    assert torch.equal(b["means"].grad, once)


def test_forked_child_draws() -> None:
    scene = make_scene(300, 40, 40)
    draw(scene.leaves(torch.float32), scene, threads=2)
    pid = os.fork()
    if pid == 0:  # the child has none of the parent's threads
        try:
            draw(scene.leaves(torch.float32), scene, threads=2)
        except BaseException:  # noqa: BLE001
            os._exit(1)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
