"""The globals that a FLAME file may name: exact (module, name) pairs and what each stands for. None is imported."""

from __future__ import annotations

from collections.abc import Mapping

Globals = Mapping[tuple[str, str], str]
"""(module, name) -> kind, as `flame_model.pickled_arrays` knows it."""

ARRAY_GLOBALS: Globals = {
    ("numpy.core.multiarray", "_reconstruct"): "array",
    ("numpy._core.multiarray", "_reconstruct"): "array",
    ("numpy.core.multiarray", "scalar"): "scalar",
    ("numpy._core.multiarray", "scalar"): "scalar",
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    ("_codecs", "encode"): "encode",
}
"""For numpy arrays and scalars."""

_SPARSE = {
    (f"scipy.sparse.{module}", f"{kind}_matrix"): kind for kind in ("csc", "csr") for module in (kind, f"_{kind}")
}
MODEL_GLOBALS: Globals = {
    ("chumpy.ch", "Ch"): "chumpy",
    ("__builtin__", "set"): "set",
    ("builtins", "set"): "set",
    **ARRAY_GLOBALS,
    **_SPARSE,
    ("copy_reg", "_reconstructor"): "instance",
    ("copyreg", "_reconstructor"): "instance",
    ("__builtin__", "object"): "object",
    ("builtins", "object"): "object",
}
"""For FLAME models and masks."""

LANDMARK_GLOBALS: Globals = {
    **MODEL_GLOBALS,
    ("collections", "OrderedDict"): "ignored",
    ("torch._utils", "_rebuild_tensor_v2"): "ignored",
    ("torch.storage", "_load_from_bytes"): "ignored",
}
"""The landmark file also holds torch tensors; they are recorded, never rebuilt."""
