"""Synthetic persons and moments for the tests of FLAME's kernels, and the same in PyTorch and float64."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flame_model import FlameAssets, FlameModel, load_flame
from tests.flame_model import synthetic

native = pytest.importorskip("diff_gaussian_rasterization.flame", reason="the native package is not installed")

WIDTHS = {"expr": 12, "rotation": 3, "neck_pose": 3, "jaw_pose": 3, "eyes_pose": 6, "translation": 3}


def assets(folder: Path, vertices: int = 40) -> FlameAssets:
    path = folder / f"model{vertices}.pkl"
    return load_flame(path if path.exists() else synthetic.write(path, synthetic.fields(vertices)))


def moment(seed: int = 0, scale: float = 0.6, **widths: int) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(width, generator=random) for name, width in (WIDTHS | widths).items()}


def dynamic(vertices: int, seed: int = 7) -> Tensor:
    return 0.01 * torch.randn(vertices, 3, generator=torch.Generator().manual_seed(seed))


def poser(model: FlameModel, device: torch.device | str = "cpu", /, **changed: Any) -> Any:
    """The identity is folded on the CPU, wherever it is posed."""
    identity = model.fold_identity(torch.linspace(-1, 1, 300))
    arrays: dict[str, Any] = {
        "rest": identity.planar, "joints": identity.joints, "basis": model.basis, "joint_basis": model.joint_basis,
        "joint_regressor": model.joint_regressor, "weights": model.weights,
    }  # fmt: skip
    on_device = {name: array.to(device) for name, array in (arrays | changed).items() if isinstance(array, Tensor)}
    others = {"parents": model.parents, "correctives": model.n_correctives}
    return native.Poser(**(others | arrays | changed | on_device))


def in_float64(facts: FlameAssets, p: dict[str, Tensor], weights: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    model = FlameModel(facts).double()
    # The identity as float32 holds it, so that only posing is compared.
    single = FlameModel(facts).fold_identity(torch.linspace(-1, 1, 300))
    identity = replace(single, planar=single.planar.double(), joints=single.joints.double())
    leaves = {name: value.detach().double().requires_grad_() for name, value in p.items()}
    posed = model.posed(identity, **leaves)
    gradients = torch.autograd.grad((weights.double() * posed).sum(), list(leaves.values()))
    return posed.detach(), dict(zip(leaves, gradients, strict=True))


def in_native(
    posed_by: Any, p: dict[str, Tensor], weights: Tensor, threads: int = 1, device: torch.device | str = "cpu"
) -> tuple[Tensor, dict[str, Tensor]]:
    """On `device`, where the poser's constants are; the results are on the CPU."""
    leaves = {name: value.to(device, copy=True).requires_grad_() for name, value in p.items()}
    posed = posed_by.pose(**leaves, threads=threads)
    gradients = torch.autograd.grad(posed, list(leaves.values()), weights.to(device))
    return posed.detach().cpu(), {name: gradient.cpu() for name, gradient in zip(leaves, gradients, strict=True)}


def weights_of(vertices: int) -> Tensor:
    return torch.randn(vertices, 3, generator=torch.Generator().manual_seed(1))


def assert_agrees(
    facts: FlameAssets, p: dict[str, Tensor], weights: Tensor, relative: float = 2e-6,
    device: torch.device | str = "cpu",
) -> None:  # fmt: skip
    """Every value within a part of the largest; gradients of a direction that does nothing are exact zeros."""
    values, gradients = in_native(poser(FlameModel(facts), device), p, weights, device=device)
    exact_values, exact_gradients = in_float64(facts, p, weights)
    assert (values.double() - exact_values).abs().max() <= 1e-6 * max(1.0, float(exact_values.abs().max()))
    assert gradients.keys() == p.keys()
    for name, exact in exact_gradients.items():
        found = gradients[name]
        assert found.shape == p[name].shape and bool(torch.isfinite(found).all()), name
        if exact.numel():
            assert (found.double() - exact).abs().max() <= relative * exact.abs().max(), name
