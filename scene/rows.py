"""The one place where the number of Gaussians changes.

A row is a Gaussian: its parameters, its Adam moments, its densification statistics and the face that it is bound
to move together, so that no two of them can ever disagree about which Gaussian is which.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from scene.gaussian_model import GaussianModel


class Moments(Protocol):
    """What row edits need of an optimiser."""

    def edit_rows(self, keep: Tensor, appended: int, columns: Mapping[str, Tensor]) -> None: ...
    def replace(self, name: str, column: Tensor) -> None: ...


def edit_rows(
    model: GaussianModel,
    optimiser: Moments,
    statistics: dict[str, Tensor],
    *,
    keep: Tensor,
    append: Mapping[str, Tensor] | None = None,
    append_binding: Tensor | None = None,
) -> None:
    """Keep some Gaussians and append others after them.

    Args:
        keep: [N] bool, the rows that stay, in their order.
        append: a tensor [M, ...] for every column of the model; None appends nothing.
        append_binding: [M] int64, the faces of the appended rows.

    Appended rows start with zero moments and zero statistics.
    """
    count = 0 if append_binding is None else append_binding.shape[0]
    rows = {}
    for name, column in model.columns.items():
        kept = column.detach()[keep]
        rows[name] = torch.cat([kept, append[name].to(kept)]) if append is not None else kept
    model.columns = {name: row.contiguous().requires_grad_() for name, row in rows.items()}
    binding = model.binding[keep]
    model.binding = binding if append_binding is None else torch.cat([binding, append_binding])
    for name, values in statistics.items():
        statistics[name] = extend(values[keep], count)
    optimiser.edit_rows(keep, count, model.columns)


def extend(values: Tensor, count: int) -> Tensor:
    """Append `count` rows of zeros."""
    return torch.cat([values, values.new_zeros((count, *values.shape[1:]))]) if count else values


def keep_one_per_face(prune: Tensor, binding: Tensor, n_faces: int) -> Tensor:
    """Cancel the pruning of faces that would lose every Gaussian in this round (GaussianAvatars, section 3.3).

    Args:
        prune: [N] bool, candidates. binding: [N] int64. n_faces: number of faces of the mesh.

    Returns:
        [N] bool: `prune` without the rows of faces whose Gaussians are all candidates; such a face keeps all of them.
    """
    survivors = torch.zeros(n_faces, dtype=torch.int64, device=prune.device)
    survivors.index_add_(0, binding, (~prune).to(torch.int64))
    return prune & (survivors[binding] > 0)
