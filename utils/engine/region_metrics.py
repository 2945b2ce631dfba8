"""Quality and detail by region of the face: PSNR, SSIM, Gaussians and how densely they lie.

A triangle belongs to one region at most: the first of `REGIONS` that holds its three vertices (`flame_model.regions`).
A pixel belongs to the region of the triangle of the posed mesh that it sees; so hair that stands off the scalp counts
where the mesh lies behind it. Definitions: docs/metrics.md.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from utils.contracts import Camera, Mesh
from utils.engine.metrics import Scores, decibels
from utils.losses.photometric import WINDOW, ssim_map
from utils.maths.triangle_frames import triangle_areas
from utils.maths.visible_faces import visible_faces

REGIONS = ("eyes", "mouth", "nose", "forehead", "cheeks", "hair")  # label k + 1; where two overlap the first holds
SQUARE_CENTIMETRES = 1e4  # in a square metre


@dataclass(frozen=True)
class RegionSums:
    """What a picture shows of a region: enough to pool pictures exactly."""

    pixels: int
    squared: float  # sum over pixels and channels of the squared error
    similarity: float  # sum over pixels of the SSIM map's mean over channels


def face_labels(regions: Mapping[str, Tensor]) -> Tensor | None:
    """Labels uint8 [F] of regions [F] bool: 0: none, k + 1: `REGIONS[k]`. None without regions."""
    if not regions:
        return None
    labels = torch.zeros_like(next(iter(regions.values())), dtype=torch.uint8)
    for label, name in reversed(list(enumerate(REGIONS, start=1))):
        if name in regions:
            labels[regions[name]] = label
    return labels


def lacks_rasteriser() -> str:
    """Why the mesh can't be drawn on this machine; empty if it can."""
    try:
        importlib.import_module("diff_gaussian_rasterization.mesh")
    except (ImportError, OSError) as error:
        return str(error)
    return ""


def label_map(mesh: Mesh, camera: Camera, labels: Tensor, threads: int | None = None) -> np.ndarray:
    """The label of each pixel, uint8 [H, W], from the labels [F] of the faces of a posed mesh."""
    faces = visible_faces(mesh, camera, threads)[0].long()
    return torch.where(faces >= 0, labels.cpu()[faces.clamp_min(0)], 0).to(torch.uint8).numpy()


def region_detail(rest: Mesh, binding: Tensor, labels: Tensor) -> dict[str, float]:
    """`gaussians_REGION`: Gaussians on its faces; `density_REGION`: per cm^2 of these faces at rest (not without area).

    Args:
        rest: metres. binding: [N] int64, the face of each Gaussian. labels: of the faces, [F].
    """
    areas = SQUARE_CENTIMETRES * triangle_areas(rest.vertices.double(), rest.faces)
    found: dict[str, float] = {}
    for label, name in enumerate(REGIONS, start=1):
        inside = labels == label
        count, area = int(inside[binding].sum()), float(areas[inside].sum())
        found[f"gaussians_{name}"] = count
        if area > 0:
            found[f"density_{name}"] = round(count / area, 4)
    return found


def region_sums(image: Tensor, truth: Tensor, labels: np.ndarray, names: Sequence[str]) -> dict[str, RegionSums]:
    """The sums of one picture by region.

    Args:
        image, truth: [3, H, W] in [0, 1]. labels: uint8 [H, W] up to len(names).
    """
    rows, columns = (spread(labels.max(axis)) for axis in (1, 0))
    image, truth, labels = image[:, rows, columns], truth[:, rows, columns], labels[rows, columns]
    squared = (image - truth).double().square().sum(0)
    similar = ssim_map(image, truth).double().mean(0)
    flat, length = labels.ravel(), len(names) + 1
    pixels = np.bincount(flat, minlength=length).tolist()
    errors, similarities = (np.bincount(flat, sums.numpy().ravel(), length).tolist() for sums in (squared, similar))
    return {name: RegionSums(pixels[k], errors[k], similarities[k]) for k, name in enumerate(names, start=1)}


def spread(occupied: np.ndarray) -> slice:
    """From the first to the last of the rows or columns that aren't 0, and as far beyond as their SSIM looks."""
    found = np.flatnonzero(occupied)
    return slice(max(0, found[0] - WINDOW // 2), found[-1] + 1 + WINDOW // 2) if len(found) else slice(0, 1)


def pooled(sums: Iterable[RegionSums]) -> tuple[float | None, float | None]:
    """PSNR in dB and SSIM over all pixels of a region in some pictures; None where it isn't seen."""
    known = list(sums)
    pixels = sum(one.pixels for one in known)
    if not pixels:
        return None, None
    squared, similarity = sum(one.squared for one in known), sum(one.similarity for one in known)
    return decibels(squared / (3 * pixels)), similarity / pixels


def region_scores(sums: Mapping[str, RegionSums]) -> Scores:
    """`psnr_REGION`, `ssim_REGION` and `pixels_REGION` of one picture."""
    found: Scores = {}
    for name, one in sums.items():
        found[f"psnr_{name}"], found[f"ssim_{name}"] = pooled([one])
        found[f"pixels_{name}"] = one.pixels
    return found


def summarise_regions(views: Sequence[Mapping[str, RegionSums]], reason: str) -> dict[str, float | str | None]:
    """`psnr_REGION` and `ssim_REGION` of a split, pooled over its pictures, and reasons for what is missing.

    Args:
        reason: why there are no region maps at all, if there are none.
    """
    found: dict[str, float | str | None] = {}
    for name in REGIONS:
        known = [view[name] for view in views if name in view]
        for metric, value in zip((f"psnr_{name}", f"ssim_{name}"), pooled(known), strict=True):
            found[metric] = value
            if value is None:
                found[f"{metric}_reason"] = "no picture shows it" if known else reason
    return found
