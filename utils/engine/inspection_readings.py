"""Other readings of a dataset's cameras: which mistake in the export would explain that the mesh misses the pictures?

A reading undoes one kind of mistake or several. It is tested, not guessed: the posed mesh is projected under it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from scene.cameras import Intrinsics, rigid_fault

FLIP = np.diag([1.0, -1.0, -1.0, 1.0])  # between OpenGL and OpenCV camera axes
UNITS = {0.001: "in millimetres", 0.01: "in centimetres", 0.25: "divided by 4", 4.0: "multiplied by 4"}
SOURCES = ("", "transposed", "turned")  # as it is, the whole matrix transposed, only its rotation
OPENGL_FILES = ("flame_nerf", "blender")  # formats whose camera matrices have OpenGL axes


@dataclass(frozen=True)
class Convention:
    """What a format says about its cameras."""

    opengl: bool  # matrices have OpenGL axes
    bottom_up: bool  # cy counts from the bottom

    @classmethod
    def of(cls, format_name: str) -> Convention:
        return cls(format_name in OPENGL_FILES, format_name in OPENGL_FILES)


@dataclass(frozen=True)
class Reading:
    """A way to read matrices, units and principal points; the default is the format's own."""

    source: str = ""  # one of SOURCES
    inverse: bool = False  # the matrices are world-to-camera
    other_axes: bool = False  # OpenCV instead of OpenGL, or the other way round
    unit: float = 1.0  # factor that brings camera positions to metres
    moved_too: bool = False  # the factor also holds for the translation of the head
    other_cy: bool = False  # cy counts from the other side

    @property
    def changes(self) -> int:
        parts = (self.source != "", self.inverse, self.other_axes, self.unit != 1.0, self.moved_too, self.other_cy)
        return sum(parts)

    def words(self, convention: Convention) -> str:
        """What it assumes, as in `with world-to-camera matrices`."""
        parts = ["transposed rotations"] if self.source == "turned" else []
        if self.source == "transposed" or self.inverse:
            kinds = ("transposed " if self.source == "transposed" else "") + (
                "world-to-camera " if self.inverse else ""
            )
            parts.append(f"{kinds}matrices")
        if self.other_axes:
            axes = ("OpenCV", "OpenGL") if convention.opengl else ("OpenGL", "OpenCV")
            parts.append(f"{axes[0]} camera axes instead of {axes[1]}")
        if self.unit != 1.0:
            what = "camera positions and head translations" if self.moved_too else "camera positions"
            parts.append(f"{what} {UNITS[self.unit]}")
        if self.other_cy:
            parts.append(f"cy counted from the {'top' if convention.bottom_up else 'bottom'}")
        return "with " + " and ".join(parts)

    def world_to_camera(self, as_read: np.ndarray, convention: Convention) -> np.ndarray | None:
        """The matrix [4, 4] (OpenCV) under this reading, or None if it is then no rigid motion.

        Args:
            as_read: the matrix under the format's own reading; it need not be rigid.
        """
        axes = FLIP if convention.opengl else np.eye(4)
        try:
            matrix = np.linalg.inv(as_read) @ axes  # as in the file, were it camera-to-world
            if self.source == "transposed":
                matrix = matrix.T
            elif self.source == "turned":
                matrix = matrix.copy()
                matrix[:3, :3] = matrix[:3, :3].T
            matrix = np.linalg.inv(matrix) if self.inverse else matrix.copy()
        except np.linalg.LinAlgError:
            return None
        if rigid_fault(matrix):
            return None
        matrix[:3, 3] *= self.unit
        matrix = matrix @ FLIP if self.other_axes else matrix
        return np.linalg.inv(matrix @ axes)

    def intrinsics(self, as_read: Intrinsics) -> Intrinsics:
        return replace(as_read, cy=as_read.height - as_read.cy) if self.other_cy else as_read

    def vertices(self, vertices: np.ndarray, translation: np.ndarray | None) -> np.ndarray:
        """Vertices [V, 3] in metres of a head whose `translation` [3] was added last."""
        if not self.moved_too or translation is None:
            return vertices
        return vertices + (self.unit - 1.0) * translation


def readings(with_translation: bool) -> Iterator[Reading]:
    """All of them but those of cy, the simplest first."""
    units = [(1.0, False), *((unit, False) for unit in UNITS)]
    units += [(unit, True) for unit in UNITS] if with_translation else []
    found = [Reading(source, inverse, axes, *unit) for source, inverse, axes, unit in
             product(SOURCES, (False, True), (False, True), units)]  # fmt: skip
    yield from sorted(found, key=lambda reading: reading.changes)
