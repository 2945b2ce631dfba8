"""Triangle frames and attached Gaussians against the paper's formulas written plainly, and as axioms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from utils.maths import rotations as so3
from utils.maths.triangle_frames import TINY, TriangleFrames, attach, triangle_areas, triangle_frames


def plain_triangle_frames(vertices: Tensor, faces: Tensor) -> TriangleFrames:
    """The formulas as the paper's format notes give them; derivatives by autograd."""
    v0, v1, v2 = (vertices[faces[:, i]] for i in range(3))

    def unit(v: Tensor) -> Tensor:
        return v / v.norm(dim=-1, keepdim=True).clamp(min=TINY)

    a0 = unit(v1 - v0)
    a1 = unit(torch.linalg.cross(a0, v2 - v0))
    a2 = -unit(torch.linalg.cross(a1, a0))
    scales = ((v1 - v0).norm(dim=-1) + (a2 * (v2 - v0)).sum(-1).abs()) / 2
    matrices = torch.stack([a0, a1, a2], dim=-1)
    return TriangleFrames(matrices, so3.matrix_to_quaternion(matrices), (v0 + v1 + v2) / 3, scales)


def plain_attach(frames: TriangleFrames, binding: Tensor, means: Tensor, quats: Tensor, scales: Tensor):
    k = frames.scales[binding, None]
    world = k * (frames.rotations[binding] @ means[..., None])[..., 0] + frames.centres[binding]
    return world, so3.multiply(frames.quats[binding], quats), k * scales


def test_areas_by_herons_formula() -> None:
    vertices, faces = random_mesh()
    a, b, c = ((vertices[faces[:, i]] - vertices[faces[:, i - 1]]).norm(dim=-1) for i in range(3))
    s = (a + b + c) / 2
    torch.testing.assert_close(triangle_areas(vertices, faces), (s * (s - a) * (s - b) * (s - c)).sqrt())


def random_mesh(seed: int = 0, n_vertices: int = 40, n_faces: int = 200, dtype: torch.dtype = torch.float64):
    g = torch.Generator().manual_seed(seed)
    vertices = torch.randn(n_vertices, 3, generator=g, dtype=dtype)
    faces = torch.stack([torch.randperm(n_vertices, generator=g)[:3] for _ in range(n_faces)])
    return vertices, faces


def random_locals(n: int, n_faces: int, seed: int = 1, dtype: torch.dtype = torch.float64):
    g = torch.Generator().manual_seed(seed)
    binding = torch.randint(0, n_faces, (n,), generator=g)
    means = torch.randn(n, 3, generator=g, dtype=dtype)
    quats = so3.normalise(torch.randn(n, 4, generator=g, dtype=dtype))
    return binding, means, quats, torch.rand(n, 3, generator=g, dtype=dtype) + 0.1


def fields(frames: TriangleFrames) -> tuple[Tensor, ...]:
    return frames.rotations, frames.quats, frames.centres, frames.scales


def test_frames_equal_the_plain_formulas() -> None:
    vertices, faces = random_mesh()
    ours, plain = triangle_frames(vertices, faces), plain_triangle_frames(vertices, faces)
    for a, b in zip(fields(ours), fields(plain), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


def test_frame_of_a_known_triangle() -> None:
    vertices = torch.tensor([[0.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.5, 3.0, 0.0]])
    frames = triangle_frames(vertices, torch.tensor([[0, 1, 2]]))
    expected = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])  # columns x, z (normal), -y
    torch.testing.assert_close(frames.rotations[0], expected)
    assert frames.scales.item() == pytest.approx((2 + 3) / 2)
    torch.testing.assert_close(frames.centres[0], torch.tensor([2.5 / 3, 1.0, 0.0]))


def test_frames_are_right_handed_rotations_that_agree_with_their_quaternions() -> None:
    frames = triangle_frames(*random_mesh(3))
    eye = torch.eye(3, dtype=torch.float64).expand(200, 3, 3)
    torch.testing.assert_close(frames.rotations.transpose(1, 2) @ frames.rotations, eye)
    assert (torch.linalg.det(frames.rotations) > 0).all()
    torch.testing.assert_close(so3.quaternion_to_matrix(frames.quats), frames.rotations)


@pytest.mark.parametrize("used", ["rotations", "quats", "centres", "scales", "all"])
def test_frame_gradients_equal_autograd_of_the_plain_formulas(used: str) -> None:
    vertices, faces = random_mesh(5)
    g = torch.Generator().manual_seed(9)
    grads = []
    weights = [torch.randn(t.shape, generator=g, dtype=t.dtype) for t in fields(triangle_frames(vertices, faces))]
    for function in (triangle_frames, plain_triangle_frames):
        leaf = vertices.clone().requires_grad_()
        frames = function(leaf, faces)
        names = ["rotations", "quats", "centres", "scales"]
        parts = [(w * t).sum() for n, w, t in zip(names, weights, fields(frames), strict=True) if used in (n, "all")]
        torch.stack(parts).sum().backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-9)


def test_frame_gradients_equal_finite_differences() -> None:
    vertices, faces = random_mesh(6, 8, 6)
    assert torch.autograd.gradcheck(lambda v: fields(triangle_frames(v, faces)), vertices.requires_grad_())


def test_attach_equals_the_plain_formulas_with_gradients() -> None:
    vertices, faces = random_mesh(7)
    binding, *columns = random_locals(500, len(faces))
    g = torch.Generator().manual_seed(2)
    weights = [torch.randn(500, c, generator=g, dtype=torch.float64) for c in (3, 4, 3)]
    results = []
    for frame_function, function in ((triangle_frames, attach), (plain_triangle_frames, plain_attach)):
        leaves = [t.clone().requires_grad_() for t in (vertices, *columns)]
        outputs = function(frame_function(leaves[0], faces), binding, *leaves[1:])
        torch.stack([(w * t).sum() for w, t in zip(weights, outputs, strict=True)]).sum().backward()
        results.append((*outputs, *(leaf.grad for leaf in leaves)))
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-9)


def test_attach_gradients_to_free_frames_equal_finite_differences() -> None:
    frames = [t.detach().clone().requires_grad_() for t in fields(triangle_frames(*random_mesh(8, 6, 4)))]
    binding, *columns = random_locals(7, 4)
    leaves = [c.requires_grad_() for c in columns]
    assert torch.autograd.gradcheck(
        lambda *t: attach(TriangleFrames(*t[:4]), binding, *t[4:]), (*frames, *leaves)
    )  # fmt: skip


def test_without_frame_gradients_the_local_ones_are_the_same() -> None:
    vertices, faces = random_mesh(7)
    binding, *columns = random_locals(50, len(faces))
    grads = []
    for leaf in (vertices.clone().requires_grad_(), vertices):
        local = [c.clone().requires_grad_() for c in columns]
        means, quats, scales = attach(triangle_frames(leaf, faces), binding, *local)
        (means.sum() + quats.sum() + scales.sum()).backward()
        grads.append([c.grad for c in local])
    for with_frames, without in zip(*grads, strict=True):
        assert torch.equal(with_frames, without)


def test_moving_turning_and_scaling_the_mesh_does_the_same_to_its_gaussians() -> None:
    vertices, faces = random_mesh(11)
    binding, *columns = random_locals(100, len(faces))
    turn = so3.axis_angle_to_matrix(torch.tensor([0.4, -1.1, 0.7], dtype=torch.float64))
    shift, size = torch.tensor([0.3, -2.0, 5.0], dtype=torch.float64), 1.7
    means, quats, scales = attach(triangle_frames(vertices, faces), binding, *columns)
    moved = attach(triangle_frames(size * vertices @ turn.T + shift, faces), binding, *columns)
    torch.testing.assert_close(moved[0], size * means @ turn.T + shift)
    torch.testing.assert_close(so3.quaternion_to_matrix(moved[1]), turn @ so3.quaternion_to_matrix(quats))
    torch.testing.assert_close(moved[2], size * scales)


@pytest.mark.parametrize("tiny", [0.0, 1e-22])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_triangles_without_area_give_finite_frames_and_gradients(tiny: float, dtype: torch.dtype) -> None:
    vertices = torch.tensor([[0, 0, 0], [1, 0, 0], [2, tiny, 0], [0, 0, tiny]], dtype=dtype).requires_grad_()
    # Collinear; a single point; no base.
    frames = triangle_frames(vertices, torch.tensor([[0, 1, 2], [0, 3, 0], [0, 3, 1]]))
    torch.stack([t.sum() for t in fields(frames)]).sum().backward()
    assert all(t.isfinite().all() for t in fields(frames))
    assert vertices.grad is not None and vertices.grad.abs().max() < 100


def test_faces_and_gaussians_may_be_none() -> None:
    vertices = torch.zeros(3, 3, requires_grad=True)
    frames = triangle_frames(vertices, torch.zeros(0, 3, dtype=torch.int64))
    means, quats, scales = attach(
        frames, torch.zeros(0, dtype=torch.int64), torch.zeros(0, 3), torch.zeros(0, 4), torch.zeros(0, 3)
    )
    (means.sum() + quats.sum() + scales.sum()).backward()
    assert vertices.grad is not None and not vertices.grad.any()
