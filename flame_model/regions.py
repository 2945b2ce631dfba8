"""From vertex masks to face regions."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from flame_model import teeth
from flame_model.flame_assets import FLAME_FACES, FLAME_VERTICES


def with_unions(masks: Mapping[str, np.ndarray], faces: np.ndarray) -> dict[str, np.ndarray]:
    """`masks` and what follows from them: teeth (if the mesh has FLAME's added ones), eyeballs, hair, skin, and the
    parts of a face that people look at: eyes, mouth, cheeks (nose and forehead are masks).

    hair is the scalp without face and neck; skin is everything but eyeballs, hair, lips, boundary and teeth; eyes are
    the eye regions with the eyeballs; mouth is lips and teeth; cheeks, the chin with them, are the rest of the face.
    A region of these names that the file brings itself is kept.

    Args:
        masks: name -> vertex ids, from `load_masks`.
        faces: [F, 3] vertex ids.

    Returns:
        name -> sorted vertex ids int64.
    """
    n_vertices = int(faces.max()) + 1
    regions = {name: np.asarray(ids, np.int64) for name, ids in masks.items()}
    with_teeth = (FLAME_VERTICES + teeth.N_VERTICES, FLAME_FACES + teeth.N_FACES)
    if (n_vertices, len(faces)) == with_teeth:
        regions.setdefault("teeth", np.arange(FLAME_VERTICES, n_vertices))
    regions.setdefault("eyeballs", np.union1d(regions["left_eyeball"], regions["right_eyeball"]))
    regions.setdefault("hair", np.setdiff1d(regions["scalp"], np.union1d(regions["face"], regions["neck"])))
    not_skin = [regions[name] for name in ("eyeballs", "hair", "lips", "boundary", "teeth") if name in regions]
    regions.setdefault("skin", np.setdiff1d(np.arange(n_vertices), np.concatenate(not_skin)))
    regions.setdefault("eyes", np.union1d(regions["eye_region"], regions["eyeballs"]))
    regions.setdefault("mouth", np.union1d(regions["lips"], regions.get("teeth", regions["lips"])))
    features = [regions[name] for name in ("eyes", "mouth", "nose", "forehead")]
    regions.setdefault("cheeks", np.setdiff1d(regions["face"], np.concatenate(features)))
    return regions


def face_regions(masks: Mapping[str, np.ndarray], faces: np.ndarray) -> dict[str, np.ndarray]:
    """Which faces belong to which region: those with all three vertices in it. Regions overlap.

    Args:
        masks: name -> vertex ids, from `load_masks`.
        faces: [F, 3] vertex ids.

    Returns:
        name -> [F] bool, for every mask and the unions of `with_unions`.
    """
    faces = np.asarray(faces)
    belongs: dict[str, np.ndarray] = {}
    for name, ids in with_unions(masks, faces).items():
        inside = np.zeros(int(faces.max()) + 1, bool)
        inside[ids[ids < len(inside)]] = True  # a vertex that no face uses may have a region too
        belongs[name] = np.asarray(inside[faces].all(1))
    return belongs
