"""The limits on dynamic offsets against their formulas, and what they do to a trained offset."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.utils.test_losses import context
from utils.contracts import Frame, Mesh
from utils.errors import InputError
from utils.losses import LossContext
from utils.losses.offsets import OffsetOptions, build

TIMESTEPS, VERTICES = 4, 5
FACES = torch.tensor([[0, 1, 2], [0, 2, 3]])  # vertex 4 has no neighbour


def offset_context(offsets: Tensor, timestep: int = 2) -> LossContext:
    plain = context()
    frame: Frame = replace(plain.frame, timestep=timestep)
    return replace(plain, frame=frame, mesh=Mesh(offsets[timestep], FACES), motion={"dynamic_offset": offsets})


def offsets() -> Tensor:
    return torch.randn(TIMESTEPS, VERTICES, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_formulas() -> None:
    o = offsets()
    weights = {"lambda_dynamic_offset": 2.0, "lambda_dynamic_offset_std": 3.0, "lambda_laplacian": 5.0}
    terms = build(OffsetOptions(**weights))(offset_context(o))
    now = o[2].numpy()
    canonical = np.random.default_rng(1).normal(size=(VERTICES, 3))
    neighbours = {0: [1, 2, 3], 1: [0, 2], 2: [0, 1, 3], 3: [0, 2], 4: []}

    def uniform(vertices: np.ndarray) -> np.ndarray:
        rows = [vertices[near].mean(0) - vertices[i] if near else np.zeros(3) for i, near in neighbours.items()]
        return np.stack(rows)

    rough = ((uniform(canonical) - uniform(canonical + now)) ** 2).sum(1).mean()
    assert float(terms["dynamic_offset"]) == pytest.approx(2 * np.linalg.norm(now, axis=1).mean())
    assert float(terms["dynamic_offset_std"]) == pytest.approx(3 * o.numpy().std(0, ddof=1).mean())
    assert float(terms["laplacian"]) == pytest.approx(5 * rough)


@pytest.mark.parametrize("name", ["lambda_dynamic_offset", "lambda_dynamic_offset_std", "lambda_laplacian"])
def test_gradients(name: str) -> None:
    loss = build(OffsetOptions(**{name: 1.0}))

    def term(o: Tensor) -> Tensor:
        return next(iter(loss(offset_context(DenseGradient.apply(o))).values()))  # type: ignore[arg-type]

    assert torch.autograd.gradcheck(term, offsets().requires_grad_())


class DenseGradient(torch.autograd.Function):
    """The identity; `gradcheck` knows no sparse gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.to_dense() if grad.is_sparse else grad


def test_offsets_that_start_at_zero_have_finite_gradients() -> None:
    o = torch.zeros(TIMESTEPS, VERTICES, 3, requires_grad=True)
    terms = build(OffsetOptions(1.0, 1.0, 1.0))(offset_context(o))
    sum(terms.values()).backward()  # type: ignore[union-attr]
    assert o.grad is not None and bool(o.grad.isfinite().all()) and len(terms) == 3


def test_absent_without_weights_or_offsets() -> None:
    assert build(OffsetOptions())(offset_context(offsets())) == {}
    assert build(OffsetOptions(1.0, 1.0, 1.0))(replace(offset_context(offsets()), motion={})) == {}


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(InputError, match="--lambda_laplacian: is -1"):
        OffsetOptions(lambda_laplacian=-1.0)
