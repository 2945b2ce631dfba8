"""Quality and detail by region, against sums written out in NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from utils.contracts import Camera, Mesh
from utils.engine.region_metrics import (
    REGIONS,
    RegionSums,
    face_labels,
    label_map,
    pooled,
    region_detail,
    region_scores,
    region_sums,
    summarise_regions,
)
from utils.losses.photometric import ssim_map

NOWHERE = torch.zeros(4, dtype=torch.bool)


def flags(*faces: int) -> Tensor:
    inside = NOWHERE.clone()
    inside[list(faces)] = True
    return inside


def regions(**inside: Tensor) -> dict[str, Tensor]:
    return {**dict.fromkeys(REGIONS, NOWHERE), **inside}


def two_squares() -> Mesh:
    """Two unit squares at z = 2, y from 0 to 1: faces 0 and 1 have x from -1 to 0, faces 2 and 3 from 0 to 1."""
    corners = [(x, y, 2.0) for y in (0.0, 1.0) for x in (-1.0, 0.0, 1.0)]
    faces = [(0, 1, 4), (0, 4, 3), (1, 2, 5), (1, 5, 4)]
    return Mesh(torch.tensor(corners), torch.tensor(faces))


def pictures(seed: int = 0) -> tuple[Tensor, Tensor, np.ndarray]:
    """A render, a photograph and labels 0 to 2 of a 40 x 30 picture."""
    rng = np.random.default_rng(seed)
    image, truth = (torch.from_numpy(rng.random((3, 30, 40), dtype=np.float32)) for _ in range(2))
    labels = np.zeros((30, 40), np.uint8)
    labels[8:14, 9:20], labels[20, 30:33] = 1, 2
    return image, truth, labels


def test_the_first_region_holds_where_two_overlap() -> None:
    labels = face_labels(regions(nose=flags(0, 1, 2), eyes=flags(1), hair=flags(2, 3)))
    assert labels is not None and labels.tolist() == [3, 1, 3, 6] and labels.dtype == torch.uint8
    assert [REGIONS[label - 1] for label in labels.tolist()] == ["nose", "eyes", "nose", "hair"]
    assert face_labels({}) is None


def test_pixels_get_the_region_of_the_triangle_they_see() -> None:
    pytest.importorskip("diff_gaussian_rasterization.mesh", reason="the native rasteriser is not built")
    camera = Camera(torch.eye(4), torch.tensor([[8.0, 0, 8], [0, 8.0, 4], [0, 0, 1]]), 16, 12)
    labels = torch.tensor([0, 0, 5, 5], dtype=torch.uint8)
    found = label_map(two_squares(), camera, labels)
    expected = np.zeros((12, 16), np.uint8)
    expected[4:8, 8:12] = 5  # the right square projects to x 8 to 12, y 4 to 8
    assert np.array_equal(found, expected)


def test_gaussians_per_square_centimetre() -> None:
    rest = two_squares()
    small = Mesh(0.1 * rest.vertices, rest.faces)  # squares of 100 cm^2
    labels = face_labels(regions(mouth=flags(0), cheeks=flags(2, 3)))
    assert labels is not None
    found = region_detail(small, torch.tensor([0, 0, 0, 1, 2, 3, 3]), labels)
    assert (found["gaussians_mouth"], found["gaussians_cheeks"], found["gaussians_eyes"]) == (3, 3, 0)
    assert found["density_mouth"] == pytest.approx(3 / 50) and found["density_cheeks"] == pytest.approx(3 / 100)
    assert "density_eyes" not in found  # no triangle, no area


def test_sums_of_a_picture_are_those_written_out() -> None:
    image, truth, labels = pictures()
    found = region_sums(image, truth, labels, ("eyes", "mouth", "nose"))
    squared = ((image.double() - truth.double()) ** 2).numpy()
    similar = ssim_map(image, truth).double().numpy()
    for label, name in enumerate(("eyes", "mouth"), start=1):
        inside = labels == label
        assert found[name].pixels == inside.sum()
        assert found[name].squared == pytest.approx(squared[:, inside].sum(), rel=1e-6)
        assert found[name].similarity == pytest.approx(similar[:, inside].mean(0).sum(), rel=1e-6)
    assert found["nose"] == RegionSums(0, 0.0, 0.0)


def test_the_map_is_ssim_by_its_definition() -> None:
    """One pixel: an 11 x 11 window of sigma 1.5 in float64; near the border zeros are beyond it."""
    image, truth, _ = pictures(3)
    bell = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    weights = np.outer(bell, bell) / bell.sum() ** 2
    for y, x in ((12, 17), (1, 38)):
        labels = np.zeros((30, 40), np.uint8)
        labels[y, x] = 1
        values = []
        for a, b in zip(image.double().numpy(), truth.double().numpy(), strict=True):
            a, b = (np.pad(plane, 5)[y : y + 11, x : x + 11] for plane in (a, b))
            means = [(weights * v).sum() for v in (a, b, a * a, b * b, a * b)]
            over = (2 * means[0] * means[1] + 0.01**2) * (2 * (means[4] - means[0] * means[1]) + 0.03**2)
            under = (means[0] ** 2 + means[1] ** 2 + 0.01**2) * (
                means[2] - means[0] ** 2 + means[3] - means[1] ** 2 + 0.03**2
            )
            values.append(over / under)
        found = region_sums(image, truth, labels, ("eyes",))["eyes"]
        assert found.similarity == pytest.approx(np.mean(values), abs=1e-5)


def test_a_split_is_pooled_over_pixels_not_over_views() -> None:
    views = [{"eyes": RegionSums(100, 3.0, 90.0)}, {"eyes": RegionSums(1, 0.3, 0.1)}, {"eyes": RegionSums(0, 0.0, 0.0)}]
    found = summarise_regions(views, "no maps")
    assert found["psnr_eyes"] == pytest.approx(-10 * math.log10(3.3 / (3 * 101)))
    assert found["ssim_eyes"] == pytest.approx(90.1 / 101) and "psnr_eyes_reason" not in found
    assert found["psnr_hair"] is None and found["psnr_hair_reason"] == found["ssim_hair_reason"] == "no maps"
    unseen = summarise_regions(views[2:], "no maps")
    assert unseen["ssim_eyes"] is None and unseen["ssim_eyes_reason"] == "no picture shows it"


def test_of_one_picture() -> None:
    found = region_scores({"nose": RegionSums(4, 0.12, 3.0), "hair": RegionSums(0, 0.0, 0.0)})
    assert found == {
        "psnr_nose": pytest.approx(20.0), "ssim_nose": 0.75, "pixels_nose": 4,
        "psnr_hair": None, "ssim_hair": None, "pixels_hair": 0,
    }  # fmt: skip
    assert pooled([RegionSums(5, 0.0, 5.0)]) == (100.0, 1.0)
