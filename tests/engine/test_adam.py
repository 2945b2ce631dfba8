"""The fused Adam step against torch.optim.Adam."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

native = pytest.importorskip("diff_gaussian_rasterization.adam", reason="the native package is not installed")
adam_step, adam_steps, AdamColumn = native.adam_step, native.adam_steps, native.AdamColumn

CONSTANTS: dict[str, Any] = {"lr": 0.01, "beta1": 0.9, "beta2": 0.999, "eps": 1e-15}


def gradients(shape: tuple[int, ...], steps: int) -> list[Tensor]:
    """Of very different sizes, and exactly zero for some values in some steps."""
    generator = torch.Generator().manual_seed(0)
    size = 10.0 ** torch.empty(shape).uniform_(-8, 2, generator=generator)
    return [
        torch.randn(shape, generator=generator) * size * (torch.rand(shape, generator=generator) < 0.7)
        for _ in range(steps)
    ]


def with_torch(start: Tensor, grads: list[Tensor], lr: float, beta1: float, beta2: float, eps: float):
    param = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([param], lr=lr, betas=(beta1, beta2), eps=eps, foreach=False)
    for grad in grads:
        param.grad = grad.to(start.dtype)
        optimiser.step()
    state = optimiser.state[param]
    return param.detach(), state["exp_avg"], state["exp_avg_sq"]


def with_native(start: Tensor, grads: list[Tensor], threads: int = 1, **constants: float):
    param, mean, square = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for step, grad in enumerate(grads, 1):
        adam_step(param, grad, mean, square, step=step, threads=threads, **constants)
    return param, mean, square


@pytest.mark.parametrize("shape", [(1,), (17, 3), (700, 48)])
@pytest.mark.parametrize(
    "constants", [CONSTANTS, {"lr": 1e-3, "beta1": 0.5, "beta2": 0.9, "eps": 1e-8}, {**CONSTANTS, "beta1": 0.0}]
)
def test_agrees_with_torch(shape: tuple[int, ...], constants: dict[str, Any]) -> None:
    start, grads = torch.rand(shape, generator=torch.Generator().manual_seed(1)), gradients(shape, 25)
    found = with_native(start, grads, **constants)
    exact = with_torch(start.double(), grads, **constants)
    single = with_torch(start, grads, **constants)
    for ours, theirs, truth in zip(found, single, exact, strict=True):
        # As close to float64 as torch's own float32 is, up to a few roundings of the largest value.
        allowed = 2.0 * (theirs - truth).abs().max() + 4e-7 * truth.abs().max()
        assert (ours - truth).abs().max() <= allowed
    torch.testing.assert_close(found[0] - start, single[0] - start, rtol=1e-4, atol=1e-6)


def test_first_step_is_the_learning_rate_whatever_the_size_of_the_gradient() -> None:
    grads = torch.tensor([1e-6, -3.0, 1e6, 0.0])
    param, _, _ = with_native(torch.zeros(4), [grads], **CONSTANTS)
    torch.testing.assert_close(param, torch.tensor([-0.01, 0.01, -0.01, 0.0]), rtol=1e-6, atol=0.0)


def test_same_bits_for_any_thread_count() -> None:
    start, grads = torch.rand(40_000, 3, generator=torch.Generator().manual_seed(1)), gradients((40_000, 3), 3)
    one = with_native(start, grads, **CONSTANTS)
    for threads in (2, 5):
        other = with_native(start, grads, threads=threads, **CONSTANTS)
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_several_columns_at_once_equal_one_at_a_time(threads: int) -> None:
    """Large and small, empty and strange shapes; each with its own rate."""
    shapes = [(9000, 15, 3), (0, 3), (1,), (9000, 4), (7, 1, 3), (16384,), (16385,)]
    rates = [0.01 * (i + 1) for i in range(len(shapes))]
    made = [(torch.rand(s, generator=torch.Generator().manual_seed(i)), gradients(s, 3)) for i, s in enumerate(shapes)]
    alone = [with_native(p, g, lr=r, beta1=0.9, beta2=0.999, eps=1e-15) for (p, g), r in zip(made, rates, strict=True)]
    together = [(p.clone(), torch.zeros_like(p), torch.zeros_like(p)) for p, _ in made]
    for step in range(3):
        columns = [
            AdamColumn(p, grads[step], m, v, rate)
            for (p, m, v), (_, grads), rate in zip(together, made, rates, strict=True)
        ]
        adam_steps(columns, beta1=0.9, beta2=0.999, eps=1e-15, step=step + 1, threads=threads)
    for one, other in zip(alone, together, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_bad_column_among_good_ones_changes_nothing() -> None:
    good, bad = torch.ones(4), torch.ones(4)
    columns = [
        AdamColumn(good, torch.ones(4), torch.zeros(4), torch.zeros(4), 0.1),
        AdamColumn(bad, torch.ones(3), torch.zeros(4), torch.zeros(4), 0.1),
    ]
    with pytest.raises(ValueError, match="grad: found shape"):
        adam_steps(columns, beta1=0.9, beta2=0.999, eps=1e-15, step=1)
    assert torch.equal(good, torch.ones(4))


def test_non_finite_gradients_are_not_hidden() -> None:
    param, _, _ = with_native(torch.zeros(2), [torch.tensor([float("nan"), 1.0])], **CONSTANTS)
    assert torch.isnan(param[0]) and torch.isfinite(param[1])


def test_autograd_notices_the_change() -> None:
    param = torch.ones(3, requires_grad=True)
    loss = (param * param).sum()
    adam_step(param, torch.ones(3), torch.zeros(3), torch.zeros(3), step=1, **CONSTANTS)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_nothing_to_do() -> None:
    adam_steps([], beta1=0.9, beta2=0.999, eps=1e-15, step=1)
    empty = torch.zeros(0, 3)
    adam_step(empty, empty.clone(), empty.clone(), empty.clone(), step=1, **CONSTANTS)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"param": torch.zeros(4, 3).double()}, "param: found torch.float64"),
        ({"grad": torch.zeros(4, 2)}, "grad: found shape"),
        ({"grad": None}, "grad: found NoneType"),
        ({"exp_avg": torch.zeros(3, 4).T}, "exp_avg: is not contiguous"),
        ({"exp_avg_sq": torch.zeros(4, 3, device="meta")}, "exp_avg_sq: is on meta"),
        ({"lr": float("nan")}, "lr: found nan"),
        ({"eps": -1.0}, "eps: found -1"),
        ({"beta1": 1.0}, "beta1: found 1"),
        ({"beta2": -0.1}, "beta2: found -0.1"),
        ({"step": 0}, "step: found 0"),
        ({"step": 1.0}, "step: found 1.0"),
    ],
)
def test_bad_arguments_are_refused_by_name(change: dict, named: str) -> None:
    names = ("param", "grad", "exp_avg", "exp_avg_sq")
    arguments = {**{name: torch.zeros(4, 3) for name in names}, **CONSTANTS, "step": 1, **change}
    with pytest.raises(ValueError, match=named):
        adam_step(**arguments)


def rows_inputs(rows: list[int]) -> dict[str, Tensor | None]:
    random = torch.Generator().manual_seed(2)
    return {"param": torch.randn(6, 4, generator=random), "grad": torch.randn(len(rows), 4, generator=random),
            "rows": torch.tensor(rows), "exp_avg": torch.zeros(6, 4), "exp_avg_sq": torch.zeros(6, 4),
            "steps": torch.zeros(6)}  # fmt: skip


def test_rows_step_like_whole_parameters_of_their_own() -> None:
    """Bit for bit: the same kernel, the row's own count."""
    found = rows_inputs([4, 1])
    expected = {name: value.clone() for name, value in found.items() if value is not None}
    for _ in range(3):
        native.adam_rows(**found, **CONSTANTS)
    for i, row in enumerate((4, 1)):
        for step in (1, 2, 3):
            adam_step(expected["param"][row], expected["grad"][i], expected["exp_avg"][row],
                      expected["exp_avg_sq"][row], step=step, threads=1, **CONSTANTS)  # fmt: skip
    assert all(torch.equal(found[name], expected[name]) for name in ("param", "exp_avg", "exp_avg_sq"))  # type: ignore[arg-type]
    assert found["steps"].tolist() == [0, 3, 0, 0, 3, 0]  # type: ignore[union-attr]


def test_rows_give_the_same_bits_for_any_thread_count() -> None:
    start, grads = torch.rand(40, 5000), gradients((40, 5000), 3)
    ends = []
    for threads in (1, 2, 3):
        param, mean, square, steps = start.clone(), torch.zeros_like(start), torch.zeros_like(start), torch.zeros(40)
        for grad in grads:
            native.adam_rows(param, grad, None, mean, square, steps, threads=threads, **CONSTANTS)
        ends.append(torch.cat([param, mean, square, steps[:, None].expand(-1, 5000)]))
    assert torch.equal(ends[0], ends[1]) and torch.equal(ends[0], ends[2])


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"param": torch.zeros(6, 4).double()}, "param"),
        ({"param": torch.zeros(4, 6).t()}, "param"),
        ({"grad": torch.zeros(3, 4)}, "grad"),
        ({"grad": torch.zeros(2, 5)}, "grad"),
        ({"rows": None}, "grad"),
        ({"rows": torch.tensor([1, 4], dtype=torch.int32)}, "rows"),
        ({"rows": torch.tensor([1, 6])}, "a row is not in the table"),
        ({"rows": torch.tensor([-1, 2])}, "a row is not in the table"),
        ({"rows": torch.tensor([4, 4])}, "a row is there twice"),
        ({"rows": torch.tensor(4)}, "rows"),
        ({"rows": [1, 4]}, "rows"),
        ({"param": torch.tensor(1.0)}, "param"),
        ({"param": [1.0]}, "param"),
        ({"exp_avg": torch.zeros(5, 4)}, "exp_avg"),
        ({"exp_avg_sq": torch.zeros(6, 4).to("meta")}, "exp_avg_sq"),
        ({"steps": torch.zeros(5)}, "steps"),
        ({"steps": torch.zeros(6, dtype=torch.int64)}, "steps"),
        ({"lr": float("nan")}, "lr"),
        ({"beta1": 1.0}, "beta1"),
    ],
)
def test_wrong_row_arguments_are_refused(changed: dict[str, Tensor], named: str) -> None:
    inputs = rows_inputs([1, 4])
    with pytest.raises(ValueError, match=named):
        native.adam_rows(**({**inputs, **CONSTANTS} | changed))
    assert not inputs["steps"].any()  # type: ignore[union-attr]
