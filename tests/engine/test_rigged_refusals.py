"""What the rasteriser of Gaussians on a mesh refuses, at the Python door and at the C door."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
import torch
from diff_gaussian_rasterization import NonFiniteError, _calls, rasterize_rigged
from diff_gaussian_rasterization._library import check, library
from diff_gaussian_rasterization.rig import FaceRig
from torch import Tensor

from tests.engine.rigged_scenes import CAMERA, COLUMNS, NAMES, Scene, draw, make_scene

SCENE = make_scene(0, 1023, width=20, height=18)
SAID = {"scales_log": "scales", "opacity_logit": "opacities"}  # the columns' names in a trained avatar


def good() -> dict[str, Tensor]:
    return {name: value.float() for name, value in SCENE.parameters.items()}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["vertices", *COLUMNS, "screen_offsets"])
@pytest.mark.parametrize("row", [0, 600, -1])
def test_rows_that_are_not_finite_are_named(name: str, row: int, value: float) -> None:
    p = good()
    row %= len(p[name])
    p[name].view(len(p[name]), -1)[row, -1] = value
    with pytest.raises(NonFiniteError, match=rf"^{SAID.get(name, name)}: row {row} is not finite$"):
        draw(p, SCENE, threads=2)


@pytest.mark.parametrize("name", CAMERA)
def test_a_camera_that_is_not_finite_is_named(name: str) -> None:
    p = good()
    p[name].view(-1)[-1] = float("nan")
    with pytest.raises(NonFiniteError, match=f"^{name} is not finite$"):
        draw(p, SCENE)


@pytest.mark.parametrize(
    ("name", "value"), [("scales_log", 89.0), ("scales_log", 3e38), ("means", 3e38), ("means", -3e38)]
)
@pytest.mark.parametrize("row", [0, 17, 511, 512, 700, 1022])
def test_gaussians_that_overflow_on_their_triangle_are_named(name: str, value: float, row: int) -> None:
    p, scene = good(), SCENE
    p["vertices"] *= 1000.0  # a triangle scale above 1, so that a mean may overflow
    p[name][row] = value
    with pytest.raises(NonFiniteError, match=f"^scales or means: row {row} leaves the range of numbers on its"):
        draw(p, scene, threads=2)
    p[name][row] = -200.0 if name == "scales_log" else 1e30  # no size at all, far away: numbers
    assert bool(draw(p, scene)[0].isfinite().all())


def test_a_refusal_leaves_no_trace() -> None:
    p = good()
    before = draw(p, SCENE)
    spoilt = {**p, "quats": p["quats"].clone()}
    spoilt["quats"][5, 1] = float("nan")
    with pytest.raises(NonFiniteError):
        draw(spoilt, SCENE)
    assert all(torch.equal(a, b) for a, b in zip(before, draw(p, SCENE), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_wrong_shapes_types_and_devices_are_named(name: str) -> None:
    p = good()
    with pytest.raises(ValueError, match=rf"^{name} must have shape \[.*\], got \[.*\]$"):
        draw({**p, name: p[name][..., :-1]}, SCENE)
    with pytest.raises(ValueError, match=rf"^{name} must have dtype torch.float32, got torch.float64$"):
        draw({**p, name: p[name].double()}, SCENE)
    with pytest.raises(ValueError, match=rf"^{name} must be on .*, got meta$"):
        draw({**p, name: p[name].to("meta")}, SCENE)
    if name != "vertices":  # whose length the helper reads
        with pytest.raises(ValueError, match=rf"^{name} must be a tensor, got ndarray$"):
            draw({**p, name: p[name].numpy()}, SCENE)  # type: ignore[dict-item]


@pytest.mark.parametrize("name", [*COLUMNS, "screen_offsets"])
def test_columns_of_another_length_than_the_binding_are_named(name: str) -> None:
    p = good()
    with pytest.raises(
        ValueError, match=rf"^{name} must have shape \[1023, .*\], got \[1022.*\]$|^{name} must have shape \[1023\]"
    ):
        draw({**p, name: p[name][:-1]}, SCENE)


def with_binding(binding: Any, **changed: Any) -> tuple[Tensor, ...]:
    return draw({**good(), **changed}, Scene(SCENE.parameters, SCENE.faces, binding, SCENE.width, SCENE.height))


def test_wrong_bindings_are_refused() -> None:
    faces, binding = len(SCENE.faces), SCENE.binding
    for wrong in (-1, faces, 2**40):
        spoilt = binding.clone()
        spoilt[33] = wrong
        with pytest.raises(ValueError, match=rf"^binding: row 33 holds {wrong}, expected 0 to {faces - 1}$"):
            with_binding(spoilt)
    for spoilt, said in (
        (binding.int(), "found torch.int32, expected a torch.int64 tensor"),
        (binding[:, None], r"found shape \[1023, 1\], expected \[n\]"),
        (binding.to("meta"), "is on meta, expected the CPU or a GPU"),
        (binding.numpy(), "found int64, expected a torch.int64 tensor"),
    ):
        with pytest.raises(ValueError, match=f"^binding: {said}$"):
            with_binding(spoilt)
    with pytest.raises(ValueError, match=r"^means must have shape \[1022, 3\], got \[1023, 3\]$"):
        with_binding(binding[:-1])
    p: dict[str, Any] = good()
    with pytest.raises(ValueError, match=r"^vertices must have shape \[81, 3\], got \[80, 3\]$"):
        p["vertices"] = p["vertices"][:80]
        rasterize_rigged(FaceRig(SCENE.faces, 81), binding, **p, sh_degree=0, width=8, height=8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"degree": 4}, "sh_degree must be 0, 1, 2 or 3"),
        ({"degree": True}, "sh_degree must be 0, 1, 2 or 3"),
        ({"width": 0}, "width must lie in 1"),
        ({"height": 70000}, "height must lie in 1"),
        ({"near": 0.0}, "near must be positive"),
        ({"near": 2.0, "far": 1.0}, "near must be positive and smaller than far"),
        ({"rules": "theirs"}, "rules must be one of ours, dgr, gsplat15"),
        ({"threads": 0}, "threads must be a positive integer"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw(good(), SCENE, **options)


def test_too_few_harmonics_are_refused() -> None:
    p = good()
    with pytest.raises(
        ValueError, match=r"^shN must have shape \[1023, >= 15, 3\] for sh_degree 3, got \[1023, 8, 3\]$"
    ):
        draw({**p, "shN": p["shN"][:, :8]}, SCENE)


@pytest.mark.parametrize("name", ["means", "shN", "vertices"])
def test_arrays_with_gaps_between_their_numbers_are_drawn_alike(name: str) -> None:
    p = good()
    strided = p[name].transpose(0, -1).contiguous().transpose(0, -1)
    assert not strided.is_contiguous()
    assert all(torch.equal(a, b) for a, b in zip(draw(p, SCENE), draw({**p, name: strided}, SCENE), strict=True))


def test_no_gaussians_and_no_faces() -> None:
    p = good()
    empty = {name: p[name][:0].clone().requires_grad_() for name in (*COLUMNS, "screen_offsets")}
    for faces, vertices in ((SCENE.faces, p["vertices"]), (SCENE.faces[:0], p["vertices"][:0])):
        leaf = vertices.clone().requires_grad_()
        scene = Scene({}, faces, SCENE.binding[:0], SCENE.width, SCENE.height)
        image, alpha, _, radii = draw({**p, **empty, "vertices": leaf}, scene)
        assert torch.equal(image, p["background"][:, None, None].expand_as(image)) and not alpha.any()
        image.sum().backward()
        assert radii.shape == (0,) and leaf.grad is not None and not leaf.grad.any()


class Door:
    """A call that the C functions take, to be spoilt."""

    def __init__(self) -> None:
        self.rig, self.tensors = FaceRig(SCENE.faces, len(SCENE.parameters["vertices"])), good()
        self.workspace, n = _calls.Workspace(), len(SCENE.binding)
        p = self.tensors
        self.settings = _calls.Settings(
            *(p[name].data_ptr() for name in ("world_to_camera", "intrinsics", "background")),
            near_plane=0.2, far_plane=3.0, eps2d=0.3, alpha_max=0.99, stop=1e-4, width=20, height=18,
        )  # fmt: skip
        names = {"means": "means", "quats": "quats", "scales": "scales_log", "opacities": "opacity_logit", "sh0": "sh0",
                 "sh": "shN", "vertices": "vertices"}  # fmt: skip
        self.inputs = _calls.Inputs(
            count=n, sh_coefficients=16, sh_degree=3, mesh=self.rig.mesh.value,
            binding=self.rig.bind(SCENE.binding).value, **{name: p[own].data_ptr() for name, own in names.items()},
        )  # fmt: skip
        self.image, self.alpha, self.radii = torch.zeros(3, 18, 20), torch.zeros(1, 18, 20), torch.zeros(n).int()
        self.outputs = _calls.PictureOutputs(self.image.data_ptr(), self.alpha.data_ptr(), None, self.radii.data_ptr())
        self.g_vertices = torch.full_like(p["vertices"], 7.0)
        self.wanted = _calls.AllGradients(vertices=self.g_vertices.data_ptr())

    def forward(self) -> None:
        _calls.call("mien_rasterize_forward", self.workspace, self.settings, self.inputs, self.outputs, threads=1)

    def backward(self) -> None:
        pictures = _calls.PictureInputs(g_image=self.image.data_ptr(), image=self.image.data_ptr())
        _calls.call(
            "mien_rasterize_backward", self.workspace, self.settings, self.inputs, pictures, self.wanted, threads=1
        )


def test_the_c_door_draws() -> None:
    door = Door()
    door.forward()
    plain = {name: value for name, value in good().items() if name != "screen_offsets"}
    assert torch.equal(door.image, draw(plain, SCENE)[0])
    door.backward()
    assert door.g_vertices.any() and bool(door.g_vertices.isfinite().all()) and not (door.g_vertices == 7).any()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"binding": None}, "rig: a null handle"),
        ({"mesh": None}, "a binding or vertices without a mesh"),
        ({"mesh": None, "binding": None}, "a binding or vertices without a mesh"),
        ({"vertices": None}, "vertices is null"),
        ({"count": 1022}, "the binding is of another number of Gaussians"),
        ({"count": -1}, "number"),
        ({"means": None}, "means or opacities is null"),
        ({"opacities": None}, "means or opacities is null"),
        ({"quats": None}, "give either quats and scales or covariances"),
        ({"sh": None}, "give either sh or colors"),
        ({"sh_coefficients": 15}, "sh must hold"),
        ({"sh_degree": 4}, "sh_degree must lie in 0"),
    ],
)
def test_the_c_door_refuses(changes: dict[str, Any], said: str) -> None:
    """Forward, and backward after a good forward."""
    for way in ("forward", "backward"):
        door = Door()
        if way == "backward":
            door.forward()
        for name, value in changes.items():
            setattr(door.inputs, name, value)
        with pytest.raises(ValueError, match=said):
            getattr(door, way)()
    assert (door.g_vertices == 7).all()


@pytest.mark.parametrize("name", ["covariances", "colors"])
def test_the_c_door_refuses_what_no_mesh_has(name: str) -> None:
    door, numbers = Door(), torch.ones(1023, 6)
    setattr(door.inputs, name, numbers.data_ptr())
    with pytest.raises(ValueError, match="Gaussians on a mesh have quats, scales and sh"):
        door.forward()


def test_the_c_door_refuses_another_mesh() -> None:
    """One with other faces than the binding's; and in backward, one with other faces than forward's."""
    door, few = Door(), FaceRig(SCENE.faces[:5], 81)
    door.inputs.mesh = few.mesh.value
    with pytest.raises(ValueError, match="rig: the binding is of another mesh"):
        door.forward()
    door = Door()
    more = FaceRig(torch.cat([SCENE.faces] * 9), door.rig.n_vertices)
    door.forward()
    door.inputs.mesh, door.inputs.binding = more.mesh.value, more.bind(SCENE.binding + 8 * len(SCENE.faces)).value
    with pytest.raises(ValueError, match="backward needs the mesh of the matching forward pass"):
        door.backward()
    plain, door = Door(), Door()
    plain.inputs.mesh = plain.inputs.binding = plain.inputs.vertices = (
        None  # the columns, taken for splats in the world
    )
    plain.forward()
    door.workspace = plain.workspace
    with pytest.raises(ValueError, match="backward needs the mesh of the matching forward pass"):
        door.backward()
    door = Door()
    door.forward()
    door.inputs.mesh = door.inputs.binding = door.inputs.vertices = None
    with pytest.raises(ValueError, match="backward needs the mesh of the matching forward pass"):
        door.backward()
    fresh = Door()
    with pytest.raises(ValueError, match="backward needs"):
        fresh.backward()


def test_the_c_door_refuses_a_camera_centre_that_is_not_finite() -> None:
    door, centre = Door(), torch.tensor([0.0, float("nan"), 0.0])
    door.settings.centre = centre.data_ptr()
    with pytest.raises(NonFiniteError, match="^camera centre is not finite$"):
        door.forward()


def test_the_c_door_refuses_null() -> None:
    door = Door()
    structures = [ctypes.byref(part) for part in (door.settings, door.inputs, door.outputs)]
    for missing in range(4):
        arguments: list[Any] = [door.workspace.handle, *structures]
        arguments[missing] = None
        with pytest.raises(ValueError, match="a pointer is null"):
            check(library().mien_rasterize_forward(*arguments, ctypes.c_int(1)))
