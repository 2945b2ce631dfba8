"""The content of a FLAME model file as checked numpy arrays."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flame_model import teeth

FLAME_VERTICES, FLAME_FACES = 5023, 9976
FLAME = "FLAME"  # edition of a file on FLAME's topology that does not name itself: the pickles do not say their year


@dataclass(frozen=True)
class FlameAssets:
    """A FLAME-format body model. Metres, FLAME axes; float32 and int64 arrays, C order.

    Joints are 0 root, 1 neck, 2 jaw, 3 left eye, 4 right eye. All counts come from the file.
    """

    template: np.ndarray  # [V, 3] mean head
    shape_dirs: np.ndarray  # [V, 3, 300] identity directions
    expr_dirs: np.ndarray  # [V, 3, E] expression directions
    pose_dirs: np.ndarray  # [V, 3, 36] pose correctives: 4 joints x 9 entries of (R - I)
    joint_regressor: np.ndarray  # [5, V]
    parents: np.ndarray  # [5] int64, the root's is -1, a parent comes before its children
    weights: np.ndarray  # [V, 5] skinning weights, rows sum to one
    faces: np.ndarray  # [F, 3] int64
    edition: str  # what the file calls itself, or its topology
    fingerprint: str  # SHA-256 of the file, hexadecimal
    source: Path
    added_teeth: int = 0  # how many of the last vertices `with_teeth` appended

    @property
    def n_vertices(self) -> int:
        return self.template.shape[0]

    @property
    def has_flame_topology(self) -> bool:
        """Whether this is FLAME's own mesh, without added teeth (5,023 vertices, 9,976 faces)."""
        return (self.n_vertices, len(self.faces)) == (FLAME_VERTICES, FLAME_FACES)

    def with_teeth(self) -> FlameAssets:
        """FLAME's mesh with 120 vertices and 168 faces of teeth appended; any other topology brings its own teeth.

        The counts, order and positions are those of existing avatars, whose `binding_0` may point at these faces.
        """
        return teeth.append(self) if self.has_flame_topology else self
