"""Row edits move parameters, moments, statistics and binding together; no face is emptied in one round."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scene.gaussian_model import COLUMNS, GaussianModel, ModelOptions
from scene.rigs import StillRig
from scene.rows import edit_rows, keep_one_per_face
from utils.contracts import Points


class Moments:
    """An optimiser that keeps one moment per column: ten times the value the row started with."""

    def __init__(self, model: GaussianModel) -> None:
        self.rows = {name: column.detach() * 10 for name, column in model.columns.items()}

    def edit_rows(self, keep: torch.Tensor, appended: int, columns: object) -> None:
        self.rows = {name: torch.cat([rows[keep], rows.new_zeros((appended, *rows.shape[1:]))])
                     for name, rows in self.rows.items()}  # fmt: skip

    def replace(self, name: str, column: torch.Tensor) -> None:
        self.rows[name] = torch.zeros_like(column)


def model_of(faces: list[int]) -> GaussianModel:
    """Gaussians whose every parameter is their row number."""
    model = GaussianModel.on_rig(
        StillRig("cpu"), ModelOptions(), 0, "cpu", Points(torch.rand(len(faces), 3), torch.rand(len(faces), 3))
    )
    for name, column in model.columns.items():
        number = torch.arange(len(faces), dtype=torch.float32).view(-1, *[1] * (column.dim() - 1))
        model.columns[name] = (torch.zeros_like(column) + number).requires_grad_()
    model.binding = torch.tensor(faces)
    return model


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=20), st.data())
def test_everything_moves_together(faces: list[int], data: st.DataObject) -> None:
    model = model_of(faces)
    moments = Moments(model)
    statistics = {"seen": torch.arange(len(faces), dtype=torch.float32)}
    keep = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(faces), max_size=len(faces))))
    copied = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(faces), max_size=len(faces))))
    append = {name: column.detach()[copied] for name, column in model.columns.items()}
    edit_rows(model, moments, statistics, keep=keep, append=append, append_binding=model.binding[copied])
    kept = [row for row in range(len(faces)) if keep[row]]
    added = [row for row in range(len(faces)) if copied[row]]
    assert model.binding.tolist() == [faces[row] for row in kept + added]
    assert statistics["seen"].tolist() == [float(row) for row in kept] + [0.0] * len(added)
    for name in COLUMNS:
        column = model.columns[name]
        assert column.requires_grad and column.is_leaf and column.shape[0] == len(kept) + len(added)
        for row, origin in enumerate(kept + added):
            assert bool((column[row] == origin).all())
            expected = origin * 10 if row < len(kept) else 0
            assert bool((moments.rows[name][row] == expected).all())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=40))
def test_keep_one_rule(rows: list[tuple[int, bool]]) -> None:
    faces = [face for face, _ in rows]
    marked = [mark for _, mark in rows]
    found = keep_one_per_face(torch.tensor(marked), torch.tensor(faces), 7).tolist()
    for (face, mark), prune in zip(rows, found, strict=True):
        whole_face_marked = all(m for f, m in rows if f == face)
        assert prune == (mark and not whole_face_marked)
    survivors = {face for face, prune in zip(faces, found, strict=True) if not prune}
    assert survivors == set(faces)
