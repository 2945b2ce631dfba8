"""The torch model against an independent float64 evaluation, finite differences, and what must hold by geometry."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from flame_model import FlameAssets, FlameModel, load_flame
from flame_model.skinning import rotation_matrices, rotation_matrices_backward
from tests.flame_model import synthetic

SIZES = {"expr": 12, "rotation": 3, "neck_pose": 3, "jaw_pose": 3, "eyes_pose": 6, "translation": 3}


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> FlameAssets:
    return load_flame(synthetic.write(tmp_path_factory.mktemp("model") / "model.pkl", synthetic.fields(40)))


@pytest.fixture(scope="module")
def model(assets: FlameAssets) -> FlameModel:
    return FlameModel(assets).double()


def parameters(seed: int = 0, scale: float = 0.6, sizes: dict[str, int] = SIZES) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {k: scale * torch.randn(n, generator=generator, dtype=torch.float64) for k, n in sizes.items()}


def offset(vertices: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.01 * torch.randn(vertices, 3, generator=generator, dtype=torch.float64)


def reference(
    assets: FlameAssets,
    shape: np.ndarray,
    static: np.ndarray,
    dynamic: np.ndarray,
    p: dict[str, np.ndarray],
    follow: bool = True,
) -> np.ndarray:
    """FLAME vertex by vertex and joint by joint in float64, with scipy's rotations."""
    expr = np.pad(p["expr"], (0, assets.expr_dirs.shape[2] - len(p["expr"])))
    shape = np.pad(shape, (0, 300 - len(shape)))
    rest = assets.template.astype(float) + assets.shape_dirs.astype(float) @ shape
    rest = rest + assets.expr_dirs.astype(float) @ expr + static + dynamic
    joints = assets.joint_regressor.astype(float) @ (rest if follow else rest - static)
    poses = [p["rotation"], p["neck_pose"], p["jaw_pose"], p["eyes_pose"][:3], p["eyes_pose"][3:]]
    turns = [Rotation.from_rotvec(pose).as_matrix() for pose in poses]
    feature = np.concatenate([(turn - np.eye(3)).reshape(9) for turn in turns[1:]])
    rest = rest + assets.pose_dirs.astype(float) @ feature

    def followed(joint: int, point: np.ndarray) -> np.ndarray:
        """Where `point` goes that is fixed to `joint`: turn about the joint, then follow its parent."""
        point = turns[joint] @ (point - joints[joint]) + joints[joint]
        parent = synthetic.PARENTS[joint]
        return point if parent < 0 else followed(parent, point)

    weights = assets.weights.astype(float)
    posed = [sum(weights[v, j] * followed(j, rest[v]) for j in range(5)) for v in range(len(rest))]
    return np.array(posed) + p["translation"]


@pytest.mark.parametrize("seed", range(4))
def test_equals_an_independent_evaluation(assets: FlameAssets, model: FlameModel, seed: int) -> None:
    p, shape = parameters(seed), parameters(seed, sizes={"shape": 300})["shape"]
    static, dynamic = offset(40, seed), offset(40, seed + 100)
    identity = model.fold_identity(shape, static)
    posed = model.posed(identity, **p, dynamic_offset=dynamic)
    arrays = {name: value.numpy() for name, value in p.items()}
    expected = reference(assets, shape.numpy(), static.numpy(), dynamic.numpy(), arrays)
    np.testing.assert_allclose(posed, expected, atol=1e-12)
    single = FlameModel(assets)
    p32 = {name: value.float() for name, value in p.items()}
    posed32 = single.posed(single.fold_identity(shape.float(), static.float()), **p32, dynamic_offset=dynamic.float())
    assert posed32.dtype == torch.float32
    np.testing.assert_allclose(posed32, expected, atol=3e-6)


def test_joints_can_be_those_of_the_mesh_without_its_static_offset(assets: FlameAssets) -> None:
    p, shape, static, dynamic = (
        parameters(5),
        parameters(5, sizes={"shape": 300})["shape"],
        offset(40, 5),
        offset(40, 6),
    )
    model = FlameModel(assets, joints_follow_offset=False).double()
    posed = model.posed(model.fold_identity(shape, static), **p, dynamic_offset=dynamic)
    arrays = {name: value.numpy() for name, value in p.items()}
    truths = [
        reference(assets, shape.numpy(), static.numpy(), dynamic.numpy(), arrays, follow) for follow in (False, True)
    ]
    np.testing.assert_allclose(posed, truths[0], atol=1e-12)
    assert np.abs(truths[0] - truths[1]).max() > 1e-4


def test_every_part_matters(model: FlameModel) -> None:
    """No parameter of the comparison above may be without effect, else it would prove nothing."""
    p, identity = parameters(), model.fold_identity(torch.randn(300, dtype=torch.float64))
    base = model.posed(identity, **p)
    for name, value in p.items():
        for i in range(len(value)):
            moved = value.clone()
            moved[i] += 0.1
            assert (model.posed(identity, **(p | {name: moved})) - base).abs().max() > 1e-4, (name, i)


@pytest.mark.parametrize("scale", [0.6, 1e-3, 1e-9, 0.0, 3.0])
def test_gradients_of_every_parameter(model: FlameModel, scale: float) -> None:
    p = parameters(1, scale)
    inputs = [*p.values(), parameters(sizes={"shape": 7})["shape"], offset(40, 1), offset(40, 2)]

    def posed(*values: Tensor) -> Tensor:
        identity = model.fold_identity(values[6], values[7])
        return model.posed(identity, **dict(zip(p, values, strict=False)), dynamic_offset=values[8])

    assert torch.autograd.gradcheck(posed, [value.requires_grad_() for value in inputs], atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("angle", [0.0, 1e-7, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 3.1, 6.0, 10.0])
def test_float32_rotations_are_accurate_at_every_angle(angle: float) -> None:
    """Value and gradient in float32 against float64, small angles included: nothing cancels."""
    axis = torch.nn.functional.normalize(torch.randn(20, 3, dtype=torch.float64), dim=1)
    grad = torch.randn(20, 3, 3, dtype=torch.float64)
    exact = axis * angle
    turned, saved = rotation_matrices(exact.float())
    np.testing.assert_allclose(turned, Rotation.from_rotvec(exact).as_matrix(), atol=3e-6)
    by_hand = rotation_matrices_backward(grad.float(), saved)
    np.testing.assert_allclose(by_hand, _central_difference(exact, grad), atol=3e-5)


def _central_difference(p: Tensor, grad: Tensor, step: float = 1e-5) -> np.ndarray:
    columns = []
    for i in range(3):
        moved = torch.zeros_like(p)
        moved[:, i] = step
        ahead, behind = (Rotation.from_rotvec(q).as_matrix() for q in (p + moved, p - moved))
        columns.append(((ahead - behind) * grad.numpy()).sum((1, 2)) / (2 * step))
    return np.stack(columns, 1)


def test_folding_once_is_the_same_as_folding_every_time(model: FlameModel) -> None:
    shape, static = parameters(sizes={"shape": 300})["shape"], offset(40, 3)
    identity = model.fold_identity(shape, static)
    for seed in range(3):
        p = parameters(seed)
        torch.testing.assert_close(
            model.posed(identity, **p), model.posed(model.fold_identity(shape, static), **p), atol=0, rtol=0
        )
    combined = model.posed(model.fold_identity(shape), **p, dynamic_offset=static)
    torch.testing.assert_close(combined, model.posed(identity, **p), atol=1e-14, rtol=0)


def test_neutral_pose_is_the_identity_mesh(model: FlameModel) -> None:
    identity = model.fold_identity(parameters(sizes={"shape": 300})["shape"])
    zeros = {name: torch.zeros(size, dtype=torch.float64) for name, size in SIZES.items()}
    torch.testing.assert_close(model.posed(identity, **zeros), identity.vertices, atol=1e-13, rtol=0)
    template = model.fold_identity(torch.zeros(0, dtype=torch.float64))
    torch.testing.assert_close(template.vertices, model.template.t(), atol=0, rtol=0)


def test_translation_shifts_and_root_rotation_turns_about_the_root_joint(model: FlameModel) -> None:
    identity, p = model.fold_identity(parameters(sizes={"shape": 300})["shape"]), parameters(5)
    zero = torch.zeros(3, dtype=torch.float64)
    still = model.posed(identity, **(p | {"rotation": zero, "translation": zero}))
    shifted = model.posed(identity, **(p | {"rotation": zero}))
    torch.testing.assert_close(shifted, still + p["translation"], atol=1e-13, rtol=0)
    turned = model.posed(identity, **(p | {"translation": zero}))
    root = identity.joints[0] + (p["expr"] @ model.joint_basis).view(5, 3)[0]
    turn = torch.from_numpy(Rotation.from_rotvec(p["rotation"]).as_matrix())
    torch.testing.assert_close(turned, (still - root) @ turn.t() + root, atol=1e-12, rtol=0)


def test_short_coefficient_vectors_count_as_zero_padded(model: FlameModel) -> None:
    p = parameters(2)
    shape = torch.cat([parameters(sizes={"shape": 50})["shape"], torch.zeros(250, dtype=torch.float64)])
    expr = torch.cat([p["expr"][:4], torch.zeros(8, dtype=torch.float64)])
    full = model.posed(model.fold_identity(shape), **(p | {"expr": expr}))
    short = model.posed(model.fold_identity(shape[:50]), **(p | {"expr": expr[:4]}))
    torch.testing.assert_close(short, full, atol=1e-14, rtol=0)


@pytest.mark.parametrize("correctives", [True, False])
@pytest.mark.parametrize("used", [0, 5, 12])
def test_skipping_zero_directions_changes_nothing(assets: FlameAssets, correctives: bool, used: int) -> None:
    expr_dirs, pose_dirs = assets.expr_dirs.copy(), assets.pose_dirs * np.float32(correctives)
    expr_dirs[:, :, used:] = 0
    changed = replace(assets, expr_dirs=expr_dirs, pose_dirs=pose_dirs)
    model = FlameModel(changed).double()
    assert model.basis.shape[0] == used + 36 * correctives
    p, zeros = parameters(3), np.zeros((40, 3))
    inputs = {name: value.requires_grad_() for name, value in p.items()}
    posed = model.posed(model.fold_identity(torch.zeros(300, dtype=torch.float64)), **inputs)
    arrays = {name: value.detach().numpy() for name, value in p.items()}
    np.testing.assert_allclose(posed.detach(), reference(changed, np.zeros(300), zeros, zeros, arrays), atol=1e-12)
    posed.sum().backward()
    assert inputs["expr"].grad is not None and inputs["expr"].grad.shape == (12,)
    assert (inputs["expr"].grad[used:] == 0).all()


def test_the_same_input_gives_the_same_bits(assets: FlameAssets) -> None:
    results = []
    for _ in range(3):
        model = FlameModel(assets)
        p = {name: value.float().requires_grad_() for name, value in parameters(8).items()}
        posed = model.posed(model.fold_identity(torch.ones(300)), **p)
        posed.square().sum().backward()
        results.append(torch.cat([posed.detach().flatten(), *(value.grad for value in p.values())]))  # type: ignore[misc]
    assert all(torch.equal(result, results[0]) for result in results)


def test_wrong_shapes_are_named(model: FlameModel) -> None:
    p, identity = parameters(), model.fold_identity(torch.zeros(300, dtype=torch.float64))
    for name in p:
        with pytest.raises(ValueError, match=name):
            model.posed(identity, **(p | {name: torch.zeros(13, dtype=torch.float64)}))
    with pytest.raises(ValueError, match="shape is"):
        model.fold_identity(torch.zeros(301, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"static_offset is \[39, 3\], expected \[40, 3\]"):
        model.fold_identity(torch.zeros(300, dtype=torch.float64), torch.zeros(39, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match="dynamic_offset"):
        model.posed(identity, **p, dynamic_offset=torch.zeros(3, 40, dtype=torch.float64))


def test_the_stand_in_with_teeth(shared: Path) -> None:
    """Real topology and sizes in float32; correctives and expressions, zero in the stand-in, are made non-zero."""
    real = load_flame(shared / "data" / "flame_stand_in" / "flame2023.pkl").with_teeth()
    random = np.random.default_rng(0)
    pose_dirs = random.normal(0, 1e-3, real.pose_dirs.shape).astype(np.float32)
    expr_dirs = random.normal(0, 1e-3, real.expr_dirs.shape).astype(np.float32)
    assets = replace(real, pose_dirs=pose_dirs, expr_dirs=expr_dirs)
    model = FlameModel(assets)
    p = parameters(4, 0.3, SIZES | {"expr": 100})
    shape, static = parameters(sizes={"shape": 300})["shape"], offset(5023, 6)
    padded = np.concatenate([static.numpy(), np.zeros((120, 3))])
    expected = reference(assets, shape.numpy(), padded, np.zeros((5143, 3)), {k: v.numpy() for k, v in p.items()})
    single = {name: value.float() for name, value in p.items()}
    posed = model.posed(model.fold_identity(shape.float(), static.float()), **single)
    np.testing.assert_allclose(posed, expected, atol=2e-6)
    with pytest.raises(ValueError, match=r"expected \[5143, 3\] or \[5023, 3\]"):
        model.fold_identity(shape.float(), torch.zeros(5000, 3))
