"""World-space splats as files that other programs read: the 3D Gaussian splatting PLY, and `.splat` for old viewers.

Viewers of such files expect room-sized scenes with y downwards; `turned_for_viewers` makes a head fit.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from utils.contracts import Splats
from utils.errors import NumericalFault
from utils.io.atomic import atomic_file
from utils.io.ply import write_gaussian_ply

SH_0 = 0.5 / np.sqrt(np.pi)  # the basis function of degree 0
COEFFICIENTS = 16  # per channel in the PLY: degree 3, which strict importers insist on
SMALLEST = 1e-12  # metres; a splat of no size has no logarithm
OPACITY_MARGIN = 1e-7  # an opacity of exactly 0 or 1 has no logit
VIEWER_SCALE = 10.0  # a 0.25 m head fills the default view of viewers made for rooms
DOT_SPLAT = np.dtype([("means", "<f4", 3), ("scales", "<f4", 3), ("rgba", "u1", 4), ("quats", "u1", 4)])


def turned_for_viewers(splats: Splats) -> Splats:
    """The splats turned by 180 degrees about z and ten times larger: y points down, the face looks along +z as before.

    Harmonics of order m gain the factor (-1)^m: turning by pi about z multiplies exp(i m phi) by exp(i m pi).
    """
    w, x, y, z = splats.quats.unbind(-1)
    degrees = range(round(splats.sh.shape[1] ** 0.5))
    signs = [(-1.0) ** abs(m) for degree in degrees for m in range(-degree, degree + 1)]
    return replace(
        splats,
        means=splats.means * splats.means.new_tensor([-VIEWER_SCALE, -VIEWER_SCALE, VIEWER_SCALE]),
        quats=torch.stack([-z, -y, x, w], dim=-1),  # (0, 0, 0, 1) times q
        scales=splats.scales * VIEWER_SCALE,
        sh=splats.sh * splats.sh.new_tensor(signs)[:, None],
        covariances=None,
    )


def write_splat_ply(path: Path, splats: Splats) -> None:
    """Write the PLY of 3D Gaussian splatting: 62 float32 (248 bytes) per splat, no binding, in the splats' own frame.

    Scale as a logarithm, opacity as a logit, unit quaternions (w, x, y, z); coefficients above the degree in use are
    zero.

    Raises:
        NumericalFault: a value is not finite.
        EnvironmentFault: the file can't be written.
    """
    arrays = splat_arrays(splats)
    opacities = np.clip(arrays["opacities"], OPACITY_MARGIN, 1 - OPACITY_MARGIN)
    sh = np.zeros((len(opacities), COEFFICIENTS, 3))
    sh[:, : arrays["sh"].shape[1]] = arrays["sh"]
    columns = {
        "means": arrays["means"],
        "sh0": sh[:, :1],
        "shN": sh[:, 1:],
        "opacities": np.log(opacities) - np.log1p(-opacities),
        "scales": np.log(np.maximum(arrays["scales"], SMALLEST)),
        "quats": arrays["quats"],
    }
    write_gaussian_ply(path, columns, None)


def write_dot_splat(path: Path, splats: Splats) -> None:
    """Write `.splat`: 32 bytes per splat and no header; position and scale float32, RGBA and quaternion bytes.

    Only the colour of degree 0 is kept. The largest and most opaque splats come first, as viewers that draw while they
    load expect (layout of antimatter15/splat).

    Raises:
        NumericalFault: a value is not finite.
        EnvironmentFault: the file can't be written.
    """
    arrays = splat_arrays(splats)
    check_finite(path, arrays)
    rows = np.empty(len(arrays["means"]), DOT_SPLAT)
    rows["means"], rows["scales"] = arrays["means"], arrays["scales"]
    rgba = np.concatenate([base_colour(arrays["sh"]), arrays["opacities"][:, None]], axis=1)
    rows["rgba"] = np.rint(255 * rgba.clip(0, 1))
    rows["quats"] = np.rint(128 + 128 * arrays["quats"]).clip(0, 255)
    order = np.argsort(-arrays["opacities"] * arrays["scales"].prod(axis=1), kind="stable")
    with atomic_file(path) as file:
        file.write(rows[order].tobytes())


def splat_arrays(splats: Splats) -> dict[str, np.ndarray]:
    """The tensors as float64 arrays: quaternions of unit length, harmonics only up to the degree in use."""
    names = ("means", "quats", "scales", "opacities", "sh")
    arrays = {name: getattr(splats, name).detach().cpu().double().numpy() for name in names}
    arrays["sh"] = arrays["sh"][:, : (splats.sh_degree + 1) ** 2]
    arrays["quats"] = arrays["quats"] / np.linalg.norm(arrays["quats"], axis=1, keepdims=True)
    return arrays


def base_colour(sh: np.ndarray) -> np.ndarray:
    """[N, K, 3] coefficients -> [N, 3] RGB in [0, 1] without what depends on the view."""
    return (0.5 + SH_0 * sh[:, 0]).clip(0, 1)


def check_finite(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Raises NumericalFault naming the first array and row that is not finite."""
    for name, values in arrays.items():
        bad = np.flatnonzero(~np.isfinite(values).all(axis=tuple(range(1, values.ndim))))
        if len(bad):
            raise NumericalFault(f"{path}: {name}: row {bad[0]} is not finite")
