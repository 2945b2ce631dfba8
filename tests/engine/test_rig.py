"""Gaussians on a mesh, native: against the PyTorch composition in float64, for values and for every gradient."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from scene.placement import choose_placement, place_in_torch
from tests.optional import given, settings, st
from utils.contracts import Mesh
from utils.maths.rotations import axis_angle_to_matrix, axis_angle_to_quaternion, multiply, quaternion_to_matrix

native = pytest.importorskip("diff_gaussian_rasterization.rig", reason="the native package is not installed")
library = pytest.importorskip("diff_gaussian_rasterization._library")
FaceRig = native.FaceRig

NAMES = ("means", "quats", "scales", "opacities")  # columns, in the order of `FaceRig.place`
ISAS = ("scalar", "avx2", "avx512")


def scene(
    n_vertices: int = 60, n_faces: int = 110, count: int = 301, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Vertices, faces, an unsorted binding that leaves faces empty, and local columns; float32."""
    random = torch.Generator().manual_seed(seed)
    vertices = torch.randn(n_vertices, 3, generator=random)
    faces = torch.stack([torch.randperm(n_vertices, generator=random)[:3] for _ in range(n_faces)])
    binding = torch.randint(0, n_faces, (count,), generator=random)
    columns = [
        torch.randn(count, 3, generator=random),
        3.0 * torch.randn(count, 4, generator=random),
        torch.randn(count, 3, generator=random) - 1.0,
        3.0 * torch.randn(count, generator=random),
    ]
    return vertices, faces, binding, columns


def weights(placed: tuple[Tensor, ...], seed: int = 1) -> list[Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(value.shape, generator=random) for value in placed]


def in_float64(
    vertices: Tensor, faces: Tensor, binding: Tensor, columns: list[Tensor]
) -> tuple[tuple[Tensor, ...], list[Tensor]]:
    """The reference's outputs, and its gradients under `weights`: of the vertices, then of the columns."""
    leaves = [value.detach().double().requires_grad_() for value in (vertices, *columns)]
    placed = place_in_torch(Mesh(leaves[0], faces), binding, dict(zip(NAMES, leaves[1:], strict=True)))
    outputs = tuple(getattr(placed, name) for name in native.Placed._fields)
    total = torch.stack([(w.double() * value).sum() for w, value in zip(weights(outputs), outputs, strict=True)]).sum()
    return tuple(value.detach() for value in outputs), list(torch.autograd.grad(total, leaves))


def in_native(
    vertices: Tensor, faces: Tensor, binding: Tensor, columns: list[Tensor], threads: int = 1
) -> tuple[tuple[Tensor, ...], list[Tensor]]:
    leaves = [value.clone().requires_grad_() for value in (vertices, *columns)]
    outputs = FaceRig(faces, len(vertices)).place(leaves[0], binding, *leaves[1:], threads=threads)
    gradients = torch.autograd.grad(outputs, leaves, weights(outputs))
    return tuple(value.detach() for value in outputs), list(gradients)


def assert_near(found: Tensor, exact: Tensor, relative: float) -> None:
    """Every row is within `relative` of its own size; exact zeros are met to the bit."""
    found, exact = found.double().reshape(len(found), -1), exact.reshape(len(exact), -1)
    assert torch.isfinite(found).all()
    assert ((found - exact).norm(dim=1) <= relative * exact.norm(dim=1)).all()


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = library.isa_name()
    try:
        library.select_isa(request.param)
    except ValueError as error:
        pytest.skip(str(error))
    yield request.param
    library.select_isa(before)


@pytest.mark.parametrize("count", [1, 7, 16, 301])
def test_agrees_with_pytorch_in_float64(isa: str, count: int) -> None:
    inputs = scene(count=count)
    values, gradients = in_native(*inputs)
    exact_values, exact_gradients = in_float64(*inputs)
    for found, exact in zip(values, exact_values, strict=True):
        assert_near(found, exact, 3e-6)
    # A thin triangle turns fast: its corners' gradients are large and cancel in the sums of their vertices.
    largest = exact_gradients[0].norm(dim=1).max()
    assert ((gradients[0].double() - exact_gradients[0]).norm(dim=1) <= 3e-6 * largest).all()
    assert torch.equal(gradients[0] == 0, exact_gradients[0] == 0)  # vertices that nothing hangs on
    for found, exact in zip(gradients[1:], exact_gradients[1:], strict=True):
        assert ((found.double() - exact).abs() <= 3e-6 * exact.abs().max()).all()


def test_agrees_with_finite_differences() -> None:
    """Along random directions of every input; one triangle, so that float32 differences are meaningful."""
    vertices = torch.tensor([[0.1, 0.2, -0.3], [1.2, 0.1, 0.2], [0.3, 0.9, 0.4]])
    faces, binding = torch.tensor([[0, 1, 2]]), torch.zeros(3, dtype=torch.int64)
    columns = scene(count=3)[3]
    random = torch.Generator().manual_seed(3)
    rig, start = FaceRig(faces, 3), [vertices, *columns]

    def loss(leaves: list[Tensor]) -> Tensor:
        outputs = rig.place(leaves[0], binding, *leaves[1:], threads=1)
        parts = [(w.double() * value.double()).sum() for w, value in zip(weights(outputs), outputs, strict=True)]
        return torch.stack(parts).sum()

    leaves = [value.clone().requires_grad_() for value in start]
    gradients = torch.autograd.grad(loss(leaves), leaves)
    for which, gradient in enumerate(gradients):
        direction, step = torch.randn(gradient.shape, generator=random), 1e-2
        moved = [
            [value + sign * step * direction if i == which else value for i, value in enumerate(start)]
            for sign in (1, -1, 2, -2)
        ]
        one_up, one_down, two_up, two_down = (loss(leaves).item() for leaves in moved)
        slope = (8 * (one_up - one_down) - (two_up - two_down)) / (12 * step)  # error of fourth order
        assert slope == pytest.approx((gradient * direction).sum().item(), rel=2e-3, abs=2e-3)


def test_threads_do_not_change_a_bit(isa: str) -> None:
    inputs = scene(n_vertices=5000, n_faces=9001, count=12_345)
    values, gradients = in_native(*inputs, threads=1)
    for threads in (2, 3, 8):
        again_values, again_gradients = in_native(*inputs, threads=threads)
        for first, second in zip([*values, *gradients], [*again_values, *again_gradients], strict=True):
            assert torch.equal(first, second)


@pytest.mark.parametrize(
    "triangle",
    [
        [[0.5, 0.5, 0.5]] * 3,
        [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [2.0, 0.0, 0.0]],
        [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]],
    ],
)
def test_triangles_without_area(isa: str, triangle: list[list[float]]) -> None:
    """Finite, axes zero, no rotation gradient: what the PyTorch frames do."""
    vertices, faces = torch.tensor(triangle), torch.tensor([[0, 1, 2]])
    columns = scene(count=5)[3]
    inputs = (vertices, faces, torch.zeros(5, dtype=torch.int64), columns)
    values, gradients = in_native(*inputs)
    exact_values, exact_gradients = in_float64(*inputs)
    for found, exact in zip([*values, *gradients], [*exact_values, *exact_gradients], strict=True):
        assert torch.isfinite(found).all()
        torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)
    leaf = vertices.clone().requires_grad_()
    FaceRig(faces, 3).place(leaf, inputs[2], *columns).quats.sum().backward()
    assert leaf.grad is not None and not leaf.grad.any()


@pytest.mark.parametrize(("n_vertices", "n_faces", "count"), [(0, 0, 0), (3, 1, 0), (5, 0, 0)])
def test_nothing_there(n_vertices: int, n_faces: int, count: int) -> None:
    vertices, faces = torch.rand(n_vertices, 3), torch.arange(3 * n_faces).view(n_faces, 3)
    binding = torch.zeros(count, dtype=torch.int64)
    columns = [torch.zeros(0, 3), torch.zeros(0, 4), torch.zeros(0, 3), torch.zeros(0)]
    values, gradients = in_native(vertices, faces, binding, columns)
    assert [len(value) for value in values] == [0] * 4
    assert gradients[0].shape == vertices.shape and not gradients[0].any()


def test_extreme_activations(isa: str) -> None:
    """exp and sigmoid at the ends of float32, and NaN comes out as NaN."""
    logits = torch.tensor([-200.0, -80.0, -20.0, 0.0, 20.0, 200.0, float("inf"), float("nan")])
    vertices, faces = torch.eye(3), torch.tensor([[0, 1, 2]])
    count = len(logits)
    columns = [torch.zeros(count, 3), torch.ones(count, 4), logits[:, None].repeat(1, 3), logits]
    placed = FaceRig(faces, 3).place(vertices, torch.zeros(count, dtype=torch.int64), *columns)
    size = (2.0**0.5 + 1.5**0.5) / 2  # of the triangle
    for found, exact in ((placed.opacities, logits.double().sigmoid()), (placed.scales[:, 1], size * logits.exp())):
        torch.testing.assert_close(found.double(), exact.double(), rtol=1e-6, atol=1e-37, equal_nan=True)


def test_gradients_that_nobody_asked_for() -> None:
    vertices, faces, binding, columns = scene(count=40)
    rig = FaceRig(faces, len(vertices))
    means = columns[0].clone().requires_grad_()
    placed = rig.place(vertices, binding, means, *columns[1:])
    assert placed.means.requires_grad
    placed.means.square().sum().backward()
    _, all_of_them = in_native(vertices, faces, binding, columns)
    assert means.grad is not None and means.grad.shape == all_of_them[1].shape
    assert not rig.place(vertices, binding, *columns).means.requires_grad


def test_a_changed_binding_is_noticed() -> None:
    vertices, faces, binding, columns = scene(count=40)
    rig = FaceRig(faces, len(vertices))
    leaf = vertices.clone().requires_grad_()
    before = rig.place(leaf, binding, *columns)
    kept = before.means.detach().clone()
    other = binding.flip(0).contiguous()
    moved = rig.place(vertices, other, *columns).means
    assert torch.equal(moved, FaceRig(faces, len(vertices)).place(vertices, other, *columns).means)
    assert not torch.equal(moved, kept)
    other.copy_(binding)  # in place: the same tensor says something else
    assert torch.equal(rig.place(vertices, other, *columns).means, kept)
    gradient = torch.autograd.grad(before.means.sum(), leaf)[0]  # of the binding that the forward pass saw
    again = FaceRig(faces, len(vertices)).place(leaf, binding, *columns)
    assert torch.equal(gradient, torch.autograd.grad(again.means.sum(), leaf)[0])


@pytest.mark.parametrize("wrong", [-1, 60, 2**40])
def test_wrong_faces_are_refused(wrong: int) -> None:
    faces = scene()[1]
    faces[17, 1] = wrong
    with pytest.raises(ValueError, match=rf"faces: row 17 holds {wrong}, expected 0 to 59"):
        FaceRig(faces, 60)


@pytest.mark.parametrize("wrong", [-1, 110, 2**40])
def test_wrong_bindings_are_refused(wrong: int) -> None:
    vertices, faces, binding, columns = scene()
    binding[33] = wrong
    rig = FaceRig(faces, len(vertices))
    with pytest.raises(ValueError, match=rf"binding: row 33 holds {wrong}, expected 0 to 109"):
        rig.place(vertices, binding, *columns)


def test_wrong_shapes_and_types_are_refused() -> None:
    vertices, faces, binding, columns = scene()
    rig = FaceRig(faces, len(vertices))
    means, quats, scales, opacities = columns
    for name, arguments in {
        "vertices": (vertices[:-1], binding, *columns),
        "binding": (vertices, binding.int(), *columns),
        "means": (vertices, binding, means[:-1], quats, scales, opacities),
        "quats": (vertices, binding, means, quats[:, :3], scales, opacities),
        "scales_log": (vertices, binding, means, quats, scales.double(), opacities),
        "opacity_logit": (vertices, binding, means, quats, scales, opacities[:, None]),
    }.items():
        with pytest.raises(ValueError, match=name):
            rig.place(*arguments)
    for wrong_faces, n_vertices in ((faces.int(), 60), (faces[:, :2], 60), (faces, -1), (faces, True)):
        with pytest.raises(ValueError, match="faces|n_vertices"):
            FaceRig(wrong_faces, n_vertices)


numbers = st.floats(-3.0, 3.0, width=32)
triples = st.tuples(numbers, numbers, numbers)


@settings(max_examples=40, deadline=None)
@given(turn=triples, shift=triples, factor=st.floats(0.25, 4.0, width=32), seed=st.integers(0, 20))
def test_a_rigid_motion_carries_everything_along(
    turn: tuple[float, ...], shift: tuple[float, ...], factor: float, seed: int
) -> None:
    vertices, faces, binding, columns = scene(seed=seed, count=50)
    rotation, quat = axis_angle_to_matrix(torch.tensor(turn)), axis_angle_to_quaternion(torch.tensor(turn))
    rig = FaceRig(faces, len(vertices))
    here = rig.place(vertices, binding, *columns)
    there = rig.place(factor * vertices @ rotation.T + torch.tensor(shift), binding, *columns)
    turned = quaternion_to_matrix(multiply(quat.expand_as(here.quats), here.quats))
    for found, expected in (
        (there.means, factor * here.means @ rotation.T + torch.tensor(shift)),
        (there.scales, factor * here.scales),
        (quaternion_to_matrix(there.quats), turned),
    ):  # thin triangles magnify the rounding of the moved vertices
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(there.opacities, here.opacities)


def test_the_choice_is_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    vertices, faces, binding, columns = scene()
    by_name: dict[str, Tensor] = dict(zip(NAMES, columns, strict=True))
    place, note = choose_placement("cpu", 1)
    assert note == "rig: native kernel"
    placed, expected = (each(Mesh(vertices, faces), binding, by_name) for each in (place, place_in_torch))
    for name in native.Placed._fields:
        torch.testing.assert_close(getattr(placed, name), getattr(expected, name), rtol=1e-4, atol=1e-4)
    chosen, note = choose_placement("meta", 1)
    assert chosen is place_in_torch and note.endswith(
        "(the native kernel can't be used: there are no kernels for meta)"
    )
    monkeypatch.setattr("scene.placement.NATIVE", "no_such_package.rig")
    chosen, note = choose_placement("cpu", 1)
    assert chosen is place_in_torch and note.startswith("rig: PyTorch (the native kernel can't be used: ")
