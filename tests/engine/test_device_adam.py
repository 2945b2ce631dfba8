"""Adam of the CUDA engine: the same bits as the CPU engine's where that one fuses; within an ulp a step on a GPU, whose
`pow` need not round as the CPU's does."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

native = pytest.importorskip("diff_gaussian_rasterization.adam", reason="the native package is not installed")
from diff_gaussian_rasterization._calls import address  # noqa: E402 - after the skip
from diff_gaussian_rasterization._device import device_call  # noqa: E402
from diff_gaussian_rasterization._library import isa_name  # noqa: E402

from tests.engine.conftest import cpu_engine  # noqa: E402
from tests.engine.test_adam import CONSTANTS, gradients, rows_inputs, with_torch  # noqa: E402

AdamColumn = native.AdamColumn
RULE: dict[str, Any] = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-15}
SHAPES = [(300, 15, 3), (0, 3), (1,), (301, 4), (7, 1, 3), (1023,), (1025,), (2,), (5, 3), (300, 3)]  # > 8 columns


def assert_equal(device: torch.device, found: list[Tensor], expected: list[Tensor], ulps: int = 2) -> None:
    """The same bits; a few ulps of the largest number where GPU and CPU may round differently."""
    for ours, theirs in zip(found, expected, strict=True):
        if device.type == "cpu" and isa_fuses():
            assert torch.equal(ours.cpu(), theirs)
        elif theirs.numel():
            limit = ulps * float(np.spacing(theirs.abs().max().numpy()))
            assert (ours.cpu() - theirs).abs().max() <= limit


def isa_fuses() -> bool:
    with cpu_engine():
        return isa_name() != "scalar"


def columns(device: torch.device) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
    """param, exp_avg, exp_avg_sq of every shape; and three gradients of each."""
    random = torch.Generator().manual_seed(3)
    state = [[torch.randn(s, generator=random), torch.zeros(s), torch.zeros(s)] for s in SHAPES]
    return [[t.to(device) for t in one] for one in state], [[g.to(device) for g in gradients(s, 3)] for s in SHAPES]


def run(state: list[list[Tensor]], grads: list[list[Tensor]], steps: int = 3, **more: Any) -> list[Tensor]:
    for step in range(steps):
        work = [
            AdamColumn(p, g[step], m, v, 0.01 * (i + 1))
            for i, ((p, m, v), g) in enumerate(zip(state, grads, strict=True))
        ]
        native.adam_steps(work, step=step + 1, **RULE, **more)
    return [tensor for one in state for tensor in one]


def test_columns_equal_the_cpu_engine(engine_device: torch.device) -> None:
    """Large and small, empty and strange shapes, more than one launch takes; each with its own rate."""
    found = run(*columns(engine_device))
    with cpu_engine():
        expected = run(*columns(torch.device("cpu")), threads=1)
    assert_equal(engine_device, found, expected)


def test_agrees_with_torch(engine_device: torch.device) -> None:
    start, grads = torch.rand((700, 5), generator=torch.Generator().manual_seed(1)), gradients((700, 5), 25)
    state = [tensor.to(engine_device) for tensor in (start.clone(), torch.zeros(700, 5), torch.zeros(700, 5))]
    for step, grad in enumerate(grads, 1):
        native.adam_step(state[0], grad.to(engine_device), *state[1:], step=step, **CONSTANTS)
    exact, single = with_torch(start.double(), grads, **CONSTANTS), with_torch(start, grads, **CONSTANTS)
    for ours, theirs, truth in zip(state, single, exact, strict=True):
        allowed = 2.0 * (theirs - truth).abs().max() + 4e-7 * truth.abs().max()
        assert (ours.cpu() - truth).abs().max() <= allowed


@pytest.mark.parametrize("shift", [0, 1, 2, 3])
def test_arrays_that_are_not_aligned(engine_device: torch.device, shift: int) -> None:
    """One of the four begins at an odd place; the same bits as when all are aligned."""
    sizes = [torch.randn(2060, generator=torch.Generator().manual_seed(k)) for k in range(4)]
    sizes[3].abs_()
    plain = [tensor[:2055].clone().to(engine_device) for tensor in sizes]
    moved = [torch.cat([torch.zeros(shift), t.cpu()]).to(engine_device)[shift:] if k == 1 else t.clone()
             for k, t in enumerate(plain)]  # fmt: skip
    assert (moved[1].data_ptr() % 16 == 0) == (shift == 0)
    for state in (plain, moved):
        native.adam_step(*state, step=3, **CONSTANTS)
    assert all(torch.equal(a, b) for a, b in zip(plain, moved, strict=True))


@pytest.mark.parametrize("allowed", [True, False])
def test_a_step_that_is_not_allowed_changes_nothing(engine_device: torch.device, allowed: bool) -> None:
    flag = torch.tensor(allowed, device=engine_device)
    state, grads = columns(engine_device)
    before = [tensor.clone() for one in state for tensor in one]
    after = run(state, grads, 1, allowed=flag)
    changed = [not torch.equal(a, b) for a, b in zip(before, after, strict=True) if a.numel()]
    assert all(changed) if allowed else not any(changed)
    rows = {k: None if v is None else v.to(engine_device) for k, v in rows_inputs([4, 1]).items()}
    old = {k: v.clone() for k, v in rows.items() if v is not None}
    native.adam_rows(**rows, **CONSTANTS, allowed=flag)
    same = [torch.equal(old[k], rows[k]) for k in ("param", "exp_avg", "exp_avg_sq", "steps")]  # type: ignore[arg-type]
    assert not any(same) if allowed else all(same)


def test_nothing_changes_once_training_has_stopped(engine_device: torch.device) -> None:
    """Health.stopped comes first in its structure."""
    health = torch.tensor([8, 0, 0, 0, 0, 0, 0, 0], dtype=torch.int32, device=engine_device)
    tensors = {k: v.to(engine_device) for k, v in rows_inputs([3, 2]).items() if v is not None}
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    state = [address(tensors[name]) for name in ("steps", "param", "exp_avg", "exp_avg_sq")]
    rows = native._Rows(address(tensors["grad"]), address(tensors["rows"]), 2, 6, 4, *state)
    rows.lr, rows.beta1, rows.beta2, rows.eps, rows.health = 0.1, 0.9, 0.999, 1e-15, address(health)
    pointers = [address(tensors[name]) for name in ("param", "param", "exp_avg", "exp_avg_sq")]
    column = (native._Column * 1)((*pointers, 24, 0.1))
    rule = [*map(ctypes.c_double, (0.9, 0.999, 1e-15)), ctypes.c_int64(1), None, ctypes.c_void_p(address(health))]
    for stopped in (True, False):
        device_call("adam_rows", ctypes.byref(rows), near=health)
        device_call("adam_step", column, ctypes.c_int64(1), *rule, near=health)
        same = [torch.equal(before[name], tensors[name]) for name in ("param", "exp_avg", "exp_avg_sq", "steps")]
        assert all(same) if stopped else not any(same)
        health.zero_()


def test_rows_equal_the_cpu_engine(engine_device: torch.device) -> None:
    """Wide and narrow rows, gradients of zero, some rows or all."""
    for table, rows in [((6, 4), [4, 1]), ((6, 4), None), ((9, 700), [8, 0, 3]), ((3, 2, 5), [2])]:
        random = torch.Generator().manual_seed(5)
        count = table[0] if rows is None else len(rows)
        start = [torch.randn(table, generator=random), torch.zeros(table), torch.zeros(table), torch.zeros(table[0])]
        grads = [torch.randn((count, *table[1:]), generator=random) for _ in range(4)]
        grads[1][count - 1] = 0.0
        ends: list[list[Tensor]] = []
        for device in (engine_device, None):
            state = [tensor.clone() if device is None else tensor.clone().to(device) for tensor in start]
            for grad in grads:
                where = None if rows is None else torch.tensor(rows)
                arguments = dict(zip(("param", "exp_avg", "exp_avg_sq", "steps"), state, strict=True))
                if device is None:
                    with cpu_engine():
                        native.adam_rows(grad=grad, rows=where, **arguments, **CONSTANTS, threads=1)
                else:
                    where = None if where is None else where.to(device)
                    native.adam_rows(grad=grad.to(device), rows=where, **arguments, **CONSTANTS)
            ends.append(state)
        assert_equal(engine_device, *ends, ulps=8)
        assert ends[0][3].sum() == 4 * count - 1


def test_gradients_of_one_row_add_up_in_order(engine_device: torch.device) -> None:
    """As if the row had been there once, with the float32 sum from the first on; a sum of zero is no step."""
    random = torch.Generator().manual_seed(6)
    rows = torch.tensor([2, 5, 2, 2, 0, 5, 1])
    grad = torch.randn(7, 300, generator=random) * 10.0 ** torch.arange(-3, 4)[:, None]
    grad[5] = -grad[1]
    start = torch.randn(6, 300, generator=random)
    summed = torch.stack([(grad[0] + grad[2]) + grad[3], grad[4], grad[6]])
    ends = []
    for where, slopes in ((rows, grad), (torch.tensor([2, 0, 1]), summed)):
        state = [t.to(engine_device) for t in (start.clone(), torch.zeros(6, 300), torch.zeros(6, 300), torch.zeros(6))]
        for _ in range(2):
            native.adam_rows(state[0], slopes.to(engine_device), where.to(engine_device), *state[1:], **CONSTANTS)
        ends.append(state)
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
    assert ends[0][3].tolist() == [2, 2, 2, 0, 0, 0]


def test_rows_outside_the_table_are_ignored(engine_device: torch.device) -> None:
    inputs = {k: None if v is None else v.to(engine_device) for k, v in rows_inputs([-1, 4, 6, 1 << 40]).items()}
    before = inputs["param"].clone()  # type: ignore[union-attr]
    native.adam_rows(**inputs, **CONSTANTS)
    assert inputs["steps"].tolist() == [0, 0, 0, 0, 1, 0]  # type: ignore[union-attr]
    assert (inputs["param"] != before).any(1).tolist() == [False] * 4 + [True, False]  # type: ignore[operator,union-attr]


def test_a_rate_from_the_device(engine_device: torch.device) -> None:
    ends = []
    rate = torch.tensor([0.25], device=engine_device)
    for lr, place in ((0.25, None), (77.0, rate)):
        tensors = {k: v.to(engine_device) for k, v in rows_inputs([3, 2]).items() if v is not None}
        state = [address(tensors[name]) for name in ("steps", "param", "exp_avg", "exp_avg_sq")]
        work = native._Rows(address(tensors["grad"]), address(tensors["rows"]), 2, 6, 4, *state)
        work.lr, work.beta1, work.beta2, work.eps, work.rate = lr, 0.9, 0.999, 1e-15, address(place)
        device_call("adam_rows", ctypes.byref(work), near=rate)
        ends.append(tensors["param"])
    assert torch.equal(*ends)


@pytest.mark.parametrize("order", ["reverse", "1", "2"])
def test_same_bits_whatever_the_order_of_threads(
    engine_device: torch.device, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    def everything() -> list[Tensor]:
        state = [t.to(engine_device) for t in (torch.ones(4, 400), torch.zeros(4, 400), torch.zeros(4, 400))]
        steps, rows = torch.zeros(4, device=engine_device), torch.tensor([1, 3, 1, 1]).to(engine_device)
        grad = torch.randn(4, 400, generator=torch.Generator().manual_seed(0)).to(engine_device)
        native.adam_rows(state[0], grad, rows, *state[1:], steps, **CONSTANTS)
        return [*run(*columns(engine_device), 1), *state, steps]

    monkeypatch.delenv("MIEN_EMULATION_ORDER", raising=False)
    forward = everything()
    monkeypatch.setenv("MIEN_EMULATION_ORDER", order)
    assert all(torch.equal(a, b) for a, b in zip(forward, everything(), strict=True))


def test_autograd_notices_the_change(engine_device: torch.device) -> None:
    param = torch.ones(3, device=engine_device, requires_grad=True)
    loss = (param * param).sum()
    zeros = torch.zeros(2, 3, device=engine_device)
    native.adam_step(param, torch.ones(3, device=engine_device), zeros[0], zeros[1], step=1, **CONSTANTS)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"param": torch.zeros(4, 3).double()}, "param: found torch.float64"),
        ({"grad": torch.zeros(4, 2)}, "grad: found shape"),
        ({"exp_avg": torch.zeros(3, 4).T}, "exp_avg: is not contiguous"),
        ({"exp_avg_sq": torch.zeros(4, 3, device="meta")}, "exp_avg_sq: is on meta"),
        ({"param": torch.zeros(4, 3, device="meta")}, "param: is on meta"),
        ({"step": 0}, "step: found 0"),
        ({"allowed": torch.tensor(1)}, "allowed: expected a 0-dim bool"),
        ({"allowed": torch.tensor([True])}, "allowed: found shape"),
        ({"allowed": True}, "allowed: expected"),
    ],
)
def test_bad_arguments_are_refused_by_name(engine_device: torch.device, change: dict[str, Any], named: str) -> None:
    def there(value: Any) -> Any:
        return value.to(engine_device) if isinstance(value, Tensor) and not value.is_meta else value

    names = ("param", "grad", "exp_avg", "exp_avg_sq")
    arguments = {**{name: torch.zeros(4, 3) for name in names}, **change}
    arguments = {name: there(value) for name, value in arguments.items()}
    if (given := change.get("exp_avg")) is not None:
        arguments["exp_avg"] = torch.zeros(given.T.shape, device=engine_device).T
    with pytest.raises(ValueError, match=named):
        native.adam_steps(
            [AdamColumn(*(arguments.pop(name) for name in names), 0.01)], **{**RULE, "step": 1, **arguments}
        )


def test_on_the_cpu_a_step_is_left_out_by_the_caller(engine_device: torch.device) -> None:
    tensors = [torch.ones(3) for _ in range(4)]
    with cpu_engine(), pytest.raises(ValueError, match="allowed: is for tensors on a GPU"):
        native.adam_steps([AdamColumn(*tensors, 0.1)], **RULE, step=1, allowed=torch.tensor(True))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"grad": torch.zeros(3, 4)}, "grad"),
        ({"rows": torch.tensor([1, 4], dtype=torch.int32)}, "rows"),
        ({"steps": torch.zeros(5)}, "steps"),
        ({"exp_avg_sq": torch.zeros(6, 4).to("meta")}, "exp_avg_sq"),
        ({"lr": float("nan")}, "lr"),
    ],
)
def test_wrong_row_arguments_are_refused(engine_device: torch.device, changed: dict[str, Any], named: str) -> None:
    inputs = {**rows_inputs([1, 4]), **CONSTANTS, **changed}
    inputs = {k: v.to(engine_device) if isinstance(v, Tensor) and not v.is_meta else v for k, v in inputs.items()}
    with pytest.raises(ValueError, match=named):
        native.adam_rows(**inputs)
    assert not inputs["steps"].any()
