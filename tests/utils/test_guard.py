"""A non-finite loss or gradient stops before the update and is named."""

from __future__ import annotations

import pytest
import torch

from utils.contracts import Terms
from utils.engine.adam import Update, adam_rows, adam_step, adam_steps, choose_adam, guarded
from utils.engine.guard import POLL_EVERY, FiniteGuard
from utils.errors import NumericalFault
from utils.maths.table_rows import row_gradient


def parameter(gradient: float) -> torch.Tensor:
    values = torch.ones(3, requires_grad=True)
    values.grad = torch.tensor([0.0, gradient, 0.0])
    return values


def terms(bad: float) -> Terms:
    return Terms({"l1": torch.tensor(0.5), "ssim": torch.tensor(bad)})


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_loss_is_named_and_the_last_good_state_saved(bad: float) -> None:
    saved: list[int] = []
    guard = FiniteGuard(False, saved.append)
    assert guard.check(6, "00000_01", terms(0.1), {"means": parameter(1.0)}) is None
    with pytest.raises(NumericalFault, match=r"iteration 7, view 00003_02: .*ssim") as caught:
        guard.check(7, "00003_02", terms(bad), {"means": parameter(1.0)})
    assert saved == [6] and caught.value.exit_code == 4 and "l1" not in str(caught.value)


def test_gradient_is_named() -> None:
    guard = FiniteGuard(False, lambda step: None)
    with pytest.raises(NumericalFault, match=r"iteration 3, view v: .*gradient of scales \(1 values\)"):
        guard.check(3, "v", terms(0.1), {"means": parameter(1.0), "scales": parameter(float("nan"))})


def test_a_sparse_gradient_is_looked_at() -> None:
    guard, values = FiniteGuard(False, lambda step: None), torch.ones(9, 2, requires_grad=True)
    values.grad = row_gradient(4, torch.tensor([1.0, 2.0]), values.shape)
    assert guard.check(2, "v", terms(0.1), {"expr": values}) is None
    values.grad = row_gradient(4, torch.tensor([1.0, float("nan")]), values.shape)
    with pytest.raises(NumericalFault, match=r"gradient of expr \(1 values\)"):
        guard.check(3, "v", terms(0.1), {"expr": values})


def test_gradients_pass_unless_their_square_overflows() -> None:
    """Adam's second moment is a square: 3e38 is finite, but would freeze its parameter for ever."""
    values, guard = torch.ones(2, requires_grad=True), FiniteGuard(False, lambda step: None)
    values.grad = torch.full((2,), 1.5e19)  # finite squares whose sum overflows
    assert guard.check(1, "v", terms(0.1), {"means": values}) is None
    values.grad = torch.tensor([1.0, 3e38])
    with pytest.raises(NumericalFault, match=r"gradient of means \(1 values\)"):
        guard.check(2, "v", terms(0.1), {"means": values})


def test_parameters_are_looked_at_before_saving() -> None:
    guard = FiniteGuard(False, lambda step: None)
    guard.poll(4, {"opacities": torch.zeros(3), "means": torch.zeros(3, 2)})
    with pytest.raises(NumericalFault, match="iteration 5: shN: row 2 is not finite"):
        guard.poll(5, {"shN": torch.tensor([[0.0], [1.0], [float("inf")]])})


@pytest.mark.parametrize("value, saved", [(1.0, [4]), (float("nan"), [])])
def test_a_renderers_refusal_is_placed_and_a_good_state_saved(value: float, saved: list[int]) -> None:
    found: list[int] = []
    guard = FiniteGuard(False, found.append)
    parameters = {"means": torch.tensor([value])}
    with pytest.raises(NumericalFault, match="iteration 5, view 00001_02: renderer: means: row 3"):
        with guard.drawing(5, "00001_02", parameters):
            raise NumericalFault("renderer: means: row 3")
    assert found == saved


def test_deferred_guard_suppresses_updates_and_names_the_first_bad_step() -> None:
    guard = FiniteGuard(True, lambda step: None)
    values = torch.ones(3, requires_grad=True)
    moments = (torch.zeros(3), torch.zeros(3))
    for step in range(1, POLL_EVERY):
        allowed = guard.check(step, f"view{step}", terms(float("nan") if step == 5 else 0.1), {"means": parameter(1.0)})
        assert allowed is not None and bool(allowed) == (step < 5)
        before = values.detach().clone()
        guarded(
            allowed, (values.data, *moments), lambda count=step: adam_step(values, torch.ones(3), moments, 0.1, count)
        )
        assert torch.equal(before, values.detach()) == (step >= 5)
    with pytest.raises(NumericalFault, match="iteration 5, view view5: .*ssim"):
        guard.check(POLL_EVERY, "last", terms(0.1), {"means": parameter(1.0)})


def test_debug_from_looks_at_once() -> None:
    guard = FiniteGuard(True, lambda step: None, debug_from=3)
    assert guard.check(2, "a", terms(0.1), {"means": parameter(1.0)}) is not None
    with pytest.raises(NumericalFault, match="iteration 3, view b: .*ssim"):
        guard.check(3, "b", terms(float("nan")), {"means": parameter(1.0)})


@pytest.mark.parametrize("which", ["plain", "chosen"])
def test_adam_equals_torch(which: str) -> None:
    step = adam_steps if which == "plain" else choose_adam("cpu", 1)[0]
    torch.manual_seed(0)
    mine = torch.randn(50, 3)
    theirs = mine.clone().requires_grad_()
    reference = torch.optim.Adam([theirs], lr=0.01, eps=1e-15)
    moments = (torch.zeros_like(mine), torch.zeros_like(mine))
    for count in range(1, 30):
        gradient = torch.randn(50, 3)
        step([Update(mine, gradient, moments, 0.01)], count)
        theirs.grad = gradient.clone()
        reference.step()
    torch.testing.assert_close(mine, theirs.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("which", ["plain", "chosen"])
@pytest.mark.parametrize("layout", ["dense", "sparse", "sum of views"])
def test_rows_are_independent_adams(which: str, layout: str) -> None:
    """Each row behaves as if it had an Adam of its own that only steps when the row has a gradient."""
    step_rows = adam_rows if which == "plain" else choose_adam("cpu", 1).rows
    torch.manual_seed(1)
    mine = torch.randn(5, 2, 3)
    start = mine.clone()
    rows = [mine[i].clone().requires_grad_() for i in range(5)]
    optimisers = [torch.optim.Adam([row], lr=0.01, eps=1e-15) for row in rows]
    moments, steps = (torch.zeros_like(mine), torch.zeros_like(mine)), torch.zeros(5)
    for count in range(40):
        row = (count * 7) % 3  # row 3 never has a gradient, row 4 always one of zero
        parts = torch.randn(2, 2, 3)
        gradient = torch.zeros(5, 2, 3)
        gradient[row] = parts.sum(0)
        if layout == "sparse":
            index, values = torch.tensor([[row, 4]]), torch.stack([parts.sum(0), torch.zeros(2, 3)])
            step_gradient = torch.sparse_coo_tensor(index, values, mine.shape, is_coalesced=True, check_invariants=True)
        elif layout == "sum of views":
            step_gradient = row_gradient(row, parts[0], mine.shape) + row_gradient(4, torch.zeros(2, 3), mine.shape)
            step_gradient = step_gradient + row_gradient(row, parts[1], mine.shape)
        else:
            step_gradient = gradient
        step_rows(mine, step_gradient, moments, 0.01, steps)
        rows[row].grad = gradient[row].clone()
        optimisers[row].step()
    torch.testing.assert_close(mine, torch.stack([row.detach() for row in rows]), rtol=1e-5, atol=1e-6)
    assert steps.tolist() == [14, 13, 13, 0, 0] and torch.equal(mine[3:], start[3:])
    assert not moments[0][3:].any() and not moments[1][3:].any()


def test_a_parameter_that_is_not_finite_is_named_with_its_step_on_a_gpu_too() -> None:
    guard, values = FiniteGuard(True, lambda step: None), torch.zeros(3)
    guard.check(7, "view", Terms({"l1": torch.tensor(1.0)}), {})
    values[1] = float("nan")
    with pytest.raises(NumericalFault, match="iteration 7: means: row 1 is not finite"):
        guard.poll(7, {"means": values})


def test_a_fault_in_a_batch_names_every_view_that_it_may_be_in() -> None:
    guard = FiniteGuard(True, lambda step: None)
    guard.check(3, "first", Terms({"l1": torch.tensor(float("nan"))}), {})
    guard.check(3, "second", Terms({"l1": torch.tensor(1.0)}), {})
    with pytest.raises(NumericalFault, match="iteration 3, view first, second"):
        guard.poll()
