"""Corner cases of the rasteriser: nothing to draw, too much to draw, and what it refuses."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
import torch
from diff_gaussian_rasterization._calls import Workspace
from torch import Tensor

from tests.engine.rasterizer_scenes import NAMES, SPLATS, dense, make_scene
from tests.engine.test_rasterizer import dgr, draw


def head_on(n: int, width: int, height: int) -> dict[str, Tensor]:
    """n equal splats one metre before a plain camera."""
    return {
        "means": torch.zeros(n, 3),
        "quats": torch.tensor([[1.0, 0, 0, 0]]).repeat(n, 1),
        "scales": torch.full((n, 3), 0.01),
        "opacities": torch.full((n,), 0.5),
        "sh": torch.zeros(n, 1, 3),
        "world_to_camera": torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 1]]),
        "intrinsics": torch.tensor([[50.0, 0, width / 2], [0, 50, height / 2], [0, 0, 1]]),
        "background": torch.tensor([0.1, 0.2, 0.3]),
    }


def render(p: dict[str, Tensor], width: int, height: int, **options: Any) -> tuple[Tensor, ...]:
    return dgr.rasterize(**p, sh_degree=0, width=width, height=height, **options)


def assert_empty(p: dict[str, Tensor], width: int = 20, height: int = 12) -> None:
    leaves = {name: value.clone().requires_grad_() for name, value in p.items()}
    image, alpha, depth, radii = render(leaves, width, height)
    assert torch.equal(image, p["background"][:, None, None].expand(3, height, width))
    assert not alpha.any() and not depth.any() and not radii.any()
    image.sum().backward()
    for name, leaf in leaves.items():
        expected = torch.full((3,), float(width * height)) if name == "background" else torch.zeros_like(leaf)
        assert torch.equal(leaf.grad, expected), name


def test_no_gaussians() -> None:
    assert_empty(head_on(0, 20, 12))


@pytest.mark.parametrize(
    "move", [(0.0, 0.0, -2.0), (0.0, 0.0, -1.0), (50.0, 0.0, 0.0), (0.0, -50.0, 0.0), (0.0, 0.0, 150.0)]
)
def test_nothing_visible(move: tuple[float, float, float]) -> None:
    """Behind the camera, in its centre, beside the picture, above it, beyond the far plane."""
    p = head_on(5, 20, 12)
    p["means"] += torch.tensor(move)
    assert_empty(p)


@pytest.mark.parametrize("opacity", [0.0, -0.5, 0.0039])
def test_too_faint_to_see(opacity: float) -> None:
    p = head_on(3, 20, 12)
    p["opacities"].fill_(opacity)
    assert_empty(p)


def test_both_planes_themselves_are_outside() -> None:
    p = head_on(1, 20, 12)
    assert render(p, 20, 12, near=0.9999)[3].item() > 0
    assert render(p, 20, 12, near=0.5, far=1.0001)[3].item() > 0
    assert render(p, 20, 12, near=1.0)[3].item() == 0
    assert render(p, 20, 12, near=0.5, far=1.0)[3].item() == 0


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 40), (17, 1), (16, 16), (15, 33)])
def test_small_and_odd_pictures(width: int, height: int) -> None:
    scene = make_scene(20, width, height, seed=1)
    image, alpha, depth, _ = draw(scene.leaves(torch.float32), scene)
    for found, wanted in zip((image, alpha, depth), dense(scene.parameters, width, height, 3), strict=True):
        assert ((found.double() - wanted).abs() > 2e-5).sum() <= 1


@pytest.mark.parametrize("n", [1, 7, 15, 16, 17, 511, 512, 513])
def test_any_number_of_gaussians(n: int) -> None:
    """Around the sizes of vectors and of parallel blocks, the last splat counts."""
    p = head_on(n, 20, 12)
    p["opacities"].zero_()
    p["opacities"][-1] = 0.5
    leaves = {name: value.clone().requires_grad_() for name, value in p.items()}
    image, alpha, _, radii = render(leaves, 20, 12)
    assert radii.count_nonzero() == 1 and radii[-1] > 0
    image.sum().backward()
    assert leaves["opacities"].grad[-1] != 0 and not leaves["opacities"].grad[:-1].any()


def test_a_hundred_thousand_on_one_tile() -> None:
    n = 100_000
    p = head_on(n, 16, 16)
    p["opacities"].fill_(0.005)
    p["scales"].fill_(0.2)
    p["means"][:, 2] = torch.linspace(0, 0.5, n).flip(0)
    leaves = {name: value.clone().requires_grad_() for name, value in p.items()}
    image, alpha, depth, _ = render(leaves, 16, 16, threads=2)
    (image.sum() + depth.sum()).backward()
    opaque = alpha[0, 8, 8]
    assert 1 - 2e-4 < opaque < 1
    taken = leaves["opacities"].grad != 0
    assert 1000 < taken.sum() < 4000  # (1 - 0.005)^n reaches 1e-4 at about 1840 at the centre, later beside it
    assert taken[-1] and not taken[0]  # the nearest is the last
    assert all(leaf.grad.isfinite().all() for leaf in leaves.values())


def test_equal_depths_keep_their_order() -> None:
    p = head_on(2, 16, 16)
    p["opacities"].fill_(0.9)
    p["scales"].fill_(0.2)
    p["sh"][0, 0] = torch.tensor([1.7, -1.8, -1.8])
    p["sh"][1, 0] = torch.tensor([-1.8, 1.7, -1.8])
    image = render(p, 16, 16)[0]
    assert image[0, 8, 8] > 5 * image[1, 8, 8]


def test_extreme_but_finite_inputs() -> None:
    p = head_on(6, 20, 12)
    p["means"][0] = 1e30
    p["scales"][1] = 1e25
    p["scales"][2] = 0.0
    p["quats"][3] = 0.0  # counts as the identity
    p["quats"][4] = 1e-18
    p["means"][5, 2] = -0.99
    leaves = {name: value.clone().requires_grad_() for name, value in p.items()}
    image, alpha, depth, radii = render(leaves, 20, 12)
    (image.sum() + alpha.sum() + depth.sum()).backward()
    assert image.isfinite().all() and depth.isfinite().all()
    assert radii[0] == 0 and radii[1] == 0 and radii[2] > 0 and radii[3] > 0
    assert leaves["means"].grad.isfinite().all() and leaves["scales"].grad.isfinite().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", [*SPLATS, "screen_offsets"])
@pytest.mark.parametrize("row", [0, 600, 1022])
def test_non_finite_rows_are_named(name: str, row: int, value: float) -> None:
    scene = make_scene(1023, 20, 20)
    leaves = {key: tensor.detach() for key, tensor in scene.leaves(torch.float32).items()}
    leaves[name].view(1023, -1)[row, -1] = value
    with pytest.raises(dgr.NonFiniteError, match=rf"^{name}: row {row} is not finite$"):
        draw(leaves, scene, threads=2)


@pytest.mark.parametrize("name", ["world_to_camera", "intrinsics", "background"])
def test_non_finite_camera_is_named(name: str) -> None:
    scene = make_scene(3, 8, 8)
    leaves = {key: tensor.detach() for key, tensor in scene.leaves(torch.float32).items()}
    leaves[name].view(-1)[-1] = float("nan")
    with pytest.raises(ValueError, match=f"^{name} is not finite$"):
        draw(leaves, scene)


def test_wrong_shape_dtype_and_kind_are_named() -> None:
    scene = make_scene(4, 8, 8)
    good = {name: tensor.detach() for name, tensor in scene.leaves(torch.float32).items()}
    for name in NAMES:
        with pytest.raises(ValueError, match=rf"^{name} must have shape \[.*\], got \[.*\]$"):
            draw({**good, name: good[name][..., :-1]}, scene)
        with pytest.raises(ValueError, match=rf"^{name} must have dtype torch.float32, got torch.float64$"):
            draw({**good, name: good[name].double()}, scene)
    with pytest.raises(ValueError, match="^quats must be a tensor, got ndarray$"):
        draw({**good, "quats": np.zeros((4, 4), np.float32)}, scene)
    with pytest.raises(ValueError, match=r"^sh must have shape \[4, >= 16, 3\] for sh_degree 3, got \[4, 9, 3\]$"):
        draw({**good, "sh": good["sh"][:, :9]}, scene)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sh_degree": 4}, "sh_degree must be 0, 1, 2 or 3"),
        ({"width": 0}, "width must lie in 1"),
        ({"height": 70000}, "height must lie in 1"),
        ({"near": 0.0}, "near must be positive"),
        ({"near": 2.0, "far": 1.0}, "near must be positive and smaller than far"),
        ({"rules": "theirs"}, "rules must be one of ours, dgr, gsplat15"),
        ({"threads": 0}, "threads must be a positive integer"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    scene = make_scene(4, 8, 8)
    arguments: dict[str, Any] = {"sh_degree": 3, "width": 8, "height": 8, **options}
    with pytest.raises(ValueError, match=message):
        dgr.rasterize(**scene.leaves(torch.float32), **arguments)


def test_thread_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIEN_THREADS", "3")
    assert dgr.thread_count(None) == 3
    monkeypatch.setenv("MIEN_THREADS", "many")
    with pytest.raises(ValueError, match="MIEN_THREADS must be a positive integer, got 'many'"):
        dgr.thread_count(None)


def test_the_c_door_checks_for_itself() -> None:
    """Whoever calls without the Python wrapper gets a status, not a crash."""
    import ctypes

    from diff_gaussian_rasterization import _calls
    from diff_gaussian_rasterization._library import check, library

    workspace = _calls.Workspace()
    empty = [_calls.Settings(), _calls.Inputs(), _calls.PictureOutputs()]
    with pytest.raises(ValueError, match="is null"):
        _calls.call("mien_rasterize_forward", workspace, *empty, threads=1)
    with pytest.raises(ValueError, match="a pointer is null"):
        check(library().mien_rasterize_forward(None, None, None, None, ctypes.c_int(1)))
    numbers = torch.eye(4)
    settings = _calls.Settings(
        numbers.data_ptr(), numbers.data_ptr(), numbers.data_ptr(), width=8, height=8, near_plane=0.1, far_plane=1
    )
    picture = _calls.PictureOutputs(*[torch.empty(192).data_ptr()] * 4)
    with pytest.raises(ValueError, match="focal|rules"):
        _calls.call("mien_rasterize_forward", workspace, settings, _calls.Inputs(count=-1), picture, threads=1)


def test_non_contiguous_inputs() -> None:
    scene = make_scene(50, 30, 30)
    plain = scene.leaves(torch.float32)
    strided = {
        name: value.detach().transpose(0, -1).contiguous().transpose(0, -1).requires_grad_()
        for name, value in plain.items()
    }
    a, b = draw(plain, scene), draw(strided, scene)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    a[0].sum().backward()
    b[0].sum().backward()
    assert all(torch.equal(plain[name].grad, strided[name].grad) for name in NAMES)


def test_gradients_only_where_asked() -> None:
    scene = make_scene(50, 30, 30)
    full, part = scene.leaves(torch.float32), scene.leaves(torch.float32)
    for name in ("sh", "world_to_camera", "quats"):
        part[name].requires_grad_(False)
    for leaves in (full, part):
        draw(leaves, scene)[2].sum().backward()  # depth alone: the picture's gradient is absent
    for name in NAMES:
        if part[name].requires_grad:
            assert torch.equal(part[name].grad, full[name].grad), name
        else:
            assert part[name].grad is None


def test_a_workspace_freed_by_the_garbage_collector_is_not_used_again() -> None:
    """An autograd graph caught in a cycle (by an exception's traceback, say) is finalised in any order."""
    for order in (0, 1):
        lease = Workspace.take()
        cycle: list[object] = [lease, lease.workspace] if order else [lease.workspace, lease]
        cycle.append(cycle)
        del lease, cycle
        gc.collect()
        leases = [Workspace.take() for _ in range(6)]
        assert all(lease.workspace.handle for lease in leases)
