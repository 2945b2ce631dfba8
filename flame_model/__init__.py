"""A pure body model: safe loading, blend shapes, skinning, teeth and regions. No training, no options.

`load_flame(path).with_teeth()` -> `FlameModel(assets)` -> `.fold_identity(...)` -> `.posed(...)`.
"""

from flame_model.flame_assets import FlameAssets
from flame_model.landmarks import LandmarkEmbedding, landmarks, load_landmarks
from flame_model.load import MASK_NAMES, default_masks_path, default_model_path, load_flame, load_masks
from flame_model.model import FlameModel, Identity
from flame_model.pickle_reader import list_globals
from flame_model.regions import face_regions, with_unions

__all__ = [
    "MASK_NAMES",
    "FlameAssets",
    "FlameModel",
    "Identity",
    "LandmarkEmbedding",
    "default_masks_path",
    "default_model_path",
    "face_regions",
    "landmarks",
    "list_globals",
    "load_flame",
    "load_landmarks",
    "load_masks",
    "with_unions",
]
