"""Single rows of a table: values, sparse gradients, and how they add up with what else reaches the table."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from utils.maths.table_rows import rows_with_gradient, stored_values, take_row


def tables() -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    return [torch.randn(6, *shape, generator=random).requires_grad_() for shape in ((3,), (2, 4), ())]


def test_values_are_those_of_indexing() -> None:
    for row in (0, 5, -1):
        assert all(
            torch.equal(taken, table[row]) for taken, table in zip(take_row(row, *tables()), tables(), strict=True)
        )
    with pytest.raises(IndexError):
        take_row(6, *tables()[:1])[0].sum().backward()


def test_gradients_add_up_as_those_of_indexing() -> None:
    """Two views of one row, one of another, and a loss on the whole table; gradients with odd strides among them."""
    ours, plain = tables(), tables()

    def loss(rows: list[Tensor], power: int) -> Tensor:
        return torch.stack([(row**power).sum() + row.expand(2, *row.shape).sum() for row in rows]).sum()

    for row, power in ((1, 2), (4, 3), (1, 1), (-1, 2)):
        loss(list(take_row(row, *ours)), power).backward()
        loss([table[row] for table in plain], power).backward()
    for mine, theirs in zip(ours, plain, strict=True):
        assert mine.grad is not None and mine.grad.is_sparse and theirs.grad is not None
        torch.testing.assert_close(mine.grad.to_dense(), theirs.grad)
        rows, values = rows_with_gradient(mine.grad)
        assert rows is not None and sorted(rows.tolist()) == [1, 4, 5]
        torch.testing.assert_close(values, theirs.grad[rows])
    for table in (*ours, *plain):
        table.square().mean().backward()
    for mine, theirs in zip(ours, plain, strict=True):
        assert mine.grad is not None and theirs.grad is not None
        torch.testing.assert_close(mine.grad.to_dense(), theirs.grad)
        rows, values = rows_with_gradient(mine.grad)
        assert rows is None and values.shape == mine.shape and stored_values(mine.grad).shape == mine.shape


def test_many_views_of_rows_of_a_single_vertex() -> None:
    """A row whose leading dimensions are 1 has strides that say nothing; sums must not trust them."""
    table = torch.zeros(9, 1, 3, requires_grad=True)
    for _ in range(50):
        wide = torch.randn(1, 200)[:, :3]
        take_row(2, table)[0].backward(wide)
        take_row(3, table)[0].backward(torch.ones(1, 3).expand(1, 3))
    assert table.grad is not None
    assert table.grad.to_dense()[3].tolist() == [[50.0] * 3] and not table.grad.to_dense()[4:].any()


def test_rows_that_nobody_asked_for() -> None:
    table, fixed = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3)
    first, second = take_row(2, table, fixed)
    (first * second).sum().backward()
    assert table.grad is not None and fixed.grad is None
    assert torch.equal(table.grad.to_dense()[2], fixed[2])
    unused = torch.randn(4, 3, requires_grad=True)
    take_row(1, table, unused)[0].sum().backward()
    assert unused.grad is None
