"""The CUDA rasteriser's C functions: what they refuse, fixed capacities, and several views in one call."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
import torch
from diff_gaussian_rasterization import _calls
from diff_gaussian_rasterization._calls import Batch, Workspace
from diff_gaussian_rasterization._library import check_with
from torch import Tensor

from tests.engine.device_pictures import weights_of
from tests.engine.rasterizer_scenes import Scene, make_scene

SCENE = make_scene(150, 70, 45, seed=3)


class Door:
    """A call of the C functions, with nothing between."""

    def __init__(self, device: torch.device, scene: Scene = SCENE, views: int = 1) -> None:
        self.scene, self.views, self.device = scene, views, device
        self.tensors = {name: value.float().to(device) for name, value in scene.parameters.items()}
        for name in ("world_to_camera", "intrinsics", "background", "screen_offsets"):
            tensor = self.tensors[name]
            self.tensors[name] = tensor.expand(views, *tensor.shape).contiguous()
        self.workspace = Workspace(self.tensors["means"])
        count, height, width = len(self.tensors["means"]), scene.height, scene.width
        self.settings = _calls.Settings(
            *(self.tensors[name].data_ptr() for name in ("world_to_camera", "intrinsics", "background")),
            near_plane=0.01, far_plane=100.0, eps2d=0.3, alpha_max=0.99, stop=1e-4, width=width, height=height,
            normalise_quats=1,
        )  # fmt: skip
        self.inputs = _calls.Inputs(
            count=count, sh_coefficients=16, sh_degree=3,
            **{name: self.tensors[name].data_ptr() for name in _calls.SPLAT_TENSORS if name in self.tensors},
        )  # fmt: skip
        self.image, self.alpha, self.depth = (
            torch.full((views, channels, height, width), 7.0, device=device) for channels in (3, 1, 1)
        )
        self.radii = torch.full((views, count), -7, dtype=torch.int32, device=device)
        self.outputs = _calls.PictureOutputs(
            *(tensor.data_ptr() for tensor in (self.image, self.alpha, self.depth, self.radii))
        )
        self.gradients = {name: torch.full_like(tensor, 7.0) for name, tensor in self.tensors.items()}
        self.wanted = _calls.AllGradients(**{name: g.data_ptr() for name, g in self.gradients.items()})
        self.health = torch.zeros(6, dtype=torch.int32, device=device)  # Health of csrc/cuda/stages.h
        self.pictures = [self.image, self.alpha, self.depth, self.radii]

    def forward(self, capacity: int = -1, keep: bool = True) -> None:
        self.batch = Batch(self.views, keep, capacity, None if capacity < 0 else self.health.data_ptr())
        _calls.call_batch("rasterize_forward", self.workspace, self.settings, self.inputs, self.outputs, self.batch)

    def backward(self, weights: list[Tensor] | None = None) -> None:
        shapes = [self.image[0], self.alpha[0], self.depth[0]]
        self.g = [w.to(self.device).expand(self.views, *w.shape).contiguous() for w in weights or weights_of(shapes)]
        pictures = _calls.PictureInputs(*(tensor.data_ptr() for tensor in (*self.g, self.image, self.depth)))
        structures = self.settings, self.inputs, pictures, self.wanted, self.batch
        _calls.call_batch("rasterize_backward", self.workspace, *structures)

    def bits(self) -> list[Tensor]:
        return [tensor.cpu().clone() for tensor in (*self.pictures, *self.gradients.values())]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"count": -1}, "number of splats"),
        ({"means": None}, "means or opacities is null"),
        ({"quats": None}, "give either quats and scales or covariances"),
        ({"sh": None}, "give either sh or colors"),
        ({"sh_coefficients": 15}, "sh must hold"),
        ({"sh_degree": 4}, "sh_degree must lie in 0"),
        ({"vertices": 256}, "a binding or vertices without a mesh"),
    ],
)
@pytest.mark.parametrize("way", ["forward", "backward"])
def test_the_c_door_refuses(engine_device: torch.device, changes: dict[str, Any], said: str, way: str) -> None:
    door = Door(engine_device)
    door.forward()
    for name, value in changes.items():
        setattr(door.inputs, name, value)
    with pytest.raises(ValueError, match=said):
        getattr(door, way)()
    assert all((gradient == 7).all() for gradient in door.gradients.values())


def test_the_c_door_refuses_null(engine_device: torch.device) -> None:
    door = Door(engine_device)
    door.forward()
    queue: Any = door.workspace.queue
    structures = [ctypes.byref(part) for part in (door.settings, door.inputs, door.outputs, door.batch, queue)]
    for missing in range(6):
        arguments: list[Any] = [door.workspace.handle, *structures]
        arguments[missing] = None
        with pytest.raises(ValueError, match="a pointer is null"):
            check_with(door.workspace.native, door.workspace.native.mien_cuda_rasterize_forward(*arguments))
    for name in ("world_to_camera", "intrinsics", "background"):
        spoilt_door = Door(engine_device)
        setattr(spoilt_door.settings, name, None)
        with pytest.raises(ValueError, match=f"^{name} is null$"):
            spoilt_door.forward()


@pytest.mark.parametrize("views", [0, -1])
def test_the_c_door_refuses_no_views(engine_device: torch.device, views: int) -> None:
    door = Door(engine_device)
    door.views = views
    with pytest.raises(ValueError, match="out of range"):
        door.forward()


def test_backward_needs_its_forward(engine_device: torch.device) -> None:
    door, other = Door(engine_device), Door(engine_device, make_scene(149, 70, 45, seed=3))
    with pytest.raises(AttributeError):
        door.backward()
    door.batch = Batch(1, True, -1, None)
    with pytest.raises(ValueError, match="backward needs the workspace of the matching forward pass"):
        door.backward()
    door.forward(keep=False)
    with pytest.raises(ValueError, match="backward needs the workspace of the matching forward pass"):
        door.backward()
    door.forward()
    other.workspace, workspace = door.workspace, other.workspace
    other.forward()  # another picture, drawn in the same memory
    with pytest.raises(ValueError, match="backward needs the workspace of the matching forward pass"):
        door.backward()
    other.backward()
    other.workspace = workspace


def pair_count(door: Door) -> int:
    return door.workspace.work()[0]


@pytest.mark.parametrize("slack", [0, 1, 1000])
def test_with_enough_room_a_fixed_capacity_draws_the_exact_picture(engine_device: torch.device, slack: int) -> None:
    exact, fixed = Door(engine_device), Door(engine_device)
    exact.forward()
    exact.backward()
    pairs = pair_count(exact)
    fixed.forward(pairs + slack)
    fixed.backward()
    assert all(torch.equal(a, b) for a, b in zip(exact.bits(), fixed.bits(), strict=True))
    assert fixed.health[0] == 0 and fixed.health[4] == pairs


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_without_enough_room_the_farthest_are_left_out(engine_device: torch.device, share: float) -> None:
    exact, fixed = Door(engine_device), Door(engine_device)
    exact.forward()
    pairs = pair_count(exact)
    fixed.forward(int(pairs * share))
    fixed.backward()
    assert fixed.health[0] == 1 and fixed.health[4] == pairs  # kTooManyPairs
    assert all(bool(tensor.isfinite().all()) for tensor in fixed.bits())
    assert bool((fixed.alpha <= exact.alpha + 1e-6).all())
    if share == 0:
        assert not fixed.alpha.any() and not fixed.gradients["means"].any()
    fixed.health.zero_()
    fixed.forward(pairs)
    assert all(torch.equal(a, b) for a, b in zip(exact.pictures, fixed.pictures, strict=True))


def test_a_fixed_capacity_reports_what_is_not_finite(engine_device: torch.device) -> None:
    door = Door(engine_device)
    door.health[2] = -1  # the lowest bad row so far: none
    door.tensors["means"][41, 1] = float("nan")
    door.tensors["quats"][60, 1] = float("inf")
    door.forward(10_000)
    assert door.health[0] == 2 and door.health[2] == 41  # kBadInput


def test_views_drawn_together_are_those_drawn_alone(engine_device: torch.device) -> None:
    """Gradients of what the views share are sums; their own are the same bits."""
    together, alone = Door(engine_device, views=3), [Door(engine_device) for _ in range(3)]
    for v, door in enumerate(alone):
        for tensors, at in ((door.tensors, 0), (together.tensors, v)):
            tensors["world_to_camera"][at, 0, 3] += 0.05 * v
            tensors["intrinsics"][at, 1, 1] += 3.0 * v
            tensors["background"][at, 0] += 0.1 * v
            tensors["screen_offsets"][at] *= v
        door.forward()
        door.backward()
    together.forward()
    together.backward()
    for whole, parts in zip(together.pictures, zip(*(door.pictures for door in alone), strict=True), strict=True):
        assert torch.equal(whole, torch.cat(parts))
    for name, whole in together.gradients.items():
        parts = [door.gradients[name] for door in alone]
        if name in ("world_to_camera", "intrinsics", "background", "screen_offsets"):
            assert torch.equal(whole, torch.cat(parts)), name
        else:
            torch.testing.assert_close(
                whole, torch.stack(parts).sum(0), rtol=1e-5, atol=1e-5 * float(whole.abs().max())
            )
    fixed = Door(engine_device, views=3)
    for name, value in together.tensors.items():
        fixed.tensors[name].copy_(value)
    fixed.forward(pair_count(together))
    fixed.backward()
    assert all(torch.equal(a, b) for a, b in zip(together.bits(), fixed.bits(), strict=True))
