"""Teeth for FLAME's mesh, which has none: two plates of 15 columns behind the lips, as existing avatars number them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from flame_model.flame_assets import FlameAssets

COLUMNS = 15
N_VERTICES, N_FACES = 8 * COLUMNS, 12 * (COLUMNS - 1)
NECK, JAW = 1, 2

UPPER_LIP = np.array([1713, 1715, 1716, 1735, 1696, 1694, 1657, 3543, 2774, 2811, 2813, 2850, 2833, 2832, 2830])
LOWER_LIP = np.array([1576, 1577, 1773, 1774, 1795, 1802, 1865, 3503, 2948, 2905, 2898, 2881, 2880, 2713, 2712])

# First vertex (teeth-local) of each row of 15, in file order.
UPPER_ROOT, LOWER_ROOT, UPPER_EDGE, LOWER_EDGE, UPPER_ROOT_BACK, UPPER_EDGE_BACK, LOWER_ROOT_BACK, LOWER_EDGE_BACK = (
    range(0, N_VERTICES, COLUMNS)
)
IS_UPPER = np.repeat([True, False, True, False, True, True, False, False], COLUMNS)

# The two triangles of a column, as corners of the quad between columns i and i + 1: "a" is the first row of the strip,
# "b" the second, capitals are column i + 1. One diagonal up to the middle, the mirrored one after it.
_STRIPS = (
    (UPPER_ROOT, UPPER_EDGE, ("aBb", "aAB"), ("aAb", "ABb")),
    (UPPER_ROOT_BACK, UPPER_EDGE_BACK, ("abB", "aBA"), ("abA", "AbB")),
    (UPPER_EDGE_BACK, UPPER_EDGE, ("abA", "AbB"), ("abB", "aBA")),
    (LOWER_EDGE, LOWER_ROOT, ("aAb", "ABb"), ("aBb", "aAB")),
    (LOWER_ROOT_BACK, LOWER_EDGE_BACK, ("aBb", "aAB"), ("aAb", "ABb")),
    (LOWER_EDGE_BACK, LOWER_EDGE, ("aAb", "ABb"), ("aBb", "aAB")),
)


def faces() -> np.ndarray:
    """[168, 3] int64 teeth-local vertex ids: upper front, back, edge, then lower; column by column."""
    triangles = []
    for a, b, left, right in _STRIPS:
        for i in range(COLUMNS - 1):
            corner = {"a": a + i, "A": a + i + 1, "b": b + i, "B": b + i + 1}
            triangles += [[corner[c] for c in triangle] for triangle in (left if i < COLUMNS // 2 else right)]
    return np.array(triangles, np.int64)


def positions(template: np.ndarray) -> np.ndarray:
    """[120, 3] metres: the teeth of a mean head `template` [5023, 3], placed by its outer lip rings."""
    upper_lip, lower_lip = template[UPPER_LIP].astype(np.float64), template[LOWER_LIP].astype(np.float64)
    d = np.linalg.norm(upper_lip - lower_lip, axis=1).mean()
    middle = (upper_lip + lower_lip) / 2
    middle[:, 1] = middle[:, 1].mean()
    middle[:, 2] -= 1.5 * d
    up, back = np.array([0.0, d, 0.0]), np.array([0.0, 0.0, -d])
    upper_edge, lower_edge = middle + 0.1 * up, middle - 0.1 * up + 0.4 * back
    upper_root, lower_root = upper_edge + 2 * up, lower_edge - 2 * up
    front = [upper_root, lower_root, upper_edge, lower_edge]
    return np.concatenate([*front, upper_root + back, upper_edge + back, lower_root + back, lower_edge + back])


def append(assets: FlameAssets) -> FlameAssets:
    """`assets` of FLAME topology with the teeth behind its vertices and faces.

    Identity directions are those of the lips in front; expressions, correctives and joints do not see the teeth; the
    upper row is fixed to the neck joint and the lower one to the jaw.
    """
    lips = (assets.shape_dirs[UPPER_LIP] + assets.shape_dirs[LOWER_LIP]) / 2
    weights = np.zeros((N_VERTICES, assets.weights.shape[1]), np.float32)
    weights[np.arange(N_VERTICES), np.where(IS_UPPER, NECK, JAW)] = 1

    def padded(values: np.ndarray) -> np.ndarray:
        return np.concatenate([values, np.zeros((N_VERTICES, *values.shape[1:]), np.float32)])

    return replace(
        assets,
        template=np.concatenate([assets.template, positions(assets.template).astype(np.float32)]),
        shape_dirs=np.concatenate([assets.shape_dirs, np.tile(lips, (N_VERTICES // COLUMNS, 1, 1))]),
        expr_dirs=padded(assets.expr_dirs),
        pose_dirs=padded(assets.pose_dirs),
        joint_regressor=np.ascontiguousarray(padded(assets.joint_regressor.T).T),
        weights=np.concatenate([assets.weights, weights]),
        faces=np.concatenate([assets.faces, faces() + assets.n_vertices]),
        added_teeth=N_VERTICES,
    )
