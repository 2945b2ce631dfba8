"""The double-precision, brute-force instance of the native maths; for tests and for judging the fast path. Slow."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from ctypes import c_double, c_int32, c_int64, c_void_p

import numpy as np

from ._library import check, library
from ._rules import RULES, Rules

PARAMETERS = (
    "means",
    "quats",
    "scales",
    "opacities",
    "sh",
    "screen_offsets",
    "world_to_camera",
    "intrinsics",
    "background",
)
OUTPUTS = ("image", "alpha", "depth")


class ReferenceScene(ctypes.Structure):
    _fields_ = [
        ("count", c_int64),
        *[(name, c_int32) for name in ("width", "height", "sh_degree", "sh_coefficients")],
        *[(name, c_double) for name in ("near", "far", "eps2d", "alpha_max", "stop")],
        *[(name, c_void_p) for name in (*PARAMETERS, "g_image", "g_alpha", "g_depth")],
    ]


class ReferenceResult(ctypes.Structure):
    _fields_ = [(name, c_void_p) for name in (*OUTPUTS, *PARAMETERS)]


def reference_render(
    parameters: Mapping[str, np.ndarray],
    size: tuple[int, int],
    sh_degree: int,
    gradients: Mapping[str, np.ndarray] | None = None,
    planes: tuple[float, float] = (0.01, 100.0),
    rules: Rules = RULES["ours"],
) -> dict[str, np.ndarray]:
    """Draw in float64.

    Args:
        parameters: arrays with the names in `PARAMETERS`, shapes as in `rasterize`.
        size: (width, height).
        gradients: dL/doutput of every name in `OUTPUTS`; then the result also holds `g_NAME` for every parameter.
        planes: (near, far).
        rules: only alpha_max, stop and eps2d are read; the rest is as in "ours".

    Returns:
        image [3, H, W], alpha [1, H, W], depth [1, H, W] and the gradients.
    """
    arrays = {name: np.ascontiguousarray(parameters[name], dtype=np.float64) for name in PARAMETERS}
    width, height = size
    given = {name: np.ascontiguousarray(gradients[name], dtype=np.float64) for name in OUTPUTS} if gradients else {}
    out = {name: np.zeros((3 if name == "image" else 1, height, width)) for name in OUTPUTS}
    result = {f"g_{name}": np.zeros_like(array) for name, array in arrays.items()}
    scene = ReferenceScene(
        count=len(arrays["means"]),
        width=width,
        height=height,
        sh_degree=sh_degree,
        sh_coefficients=arrays["sh"].shape[1],
        near=planes[0],
        far=planes[1],
        eps2d=rules.eps2d,
        alpha_max=rules.alpha_max,
        stop=rules.stop,
        **{name: array.ctypes.data for name, array in arrays.items()},
        **{f"g_{name}": array.ctypes.data for name, array in given.items()},
    )
    pointers = {name: array.ctypes.data for name, array in out.items()}
    pointers |= {name: result[f"g_{name}"].ctypes.data for name in PARAMETERS}
    check(library().mien_reference_render(ctypes.byref(scene), ctypes.byref(ReferenceResult(**pointers))))
    return out | (result if gradients else {})
