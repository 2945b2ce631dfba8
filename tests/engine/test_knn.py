"""`simple_knn` against scipy's k-d tree and brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.optional import given, settings, st

pytest.importorskip("simple_knn._C", reason="the native package is not installed")
from simple_knn._C import distCUDA2  # noqa: E402


def brute_force(points: np.ndarray) -> np.ndarray:
    """All pairs in float64."""
    wide = points.astype(np.float64)
    squared = ((wide[:, None] - wide[None]) ** 2).sum(-1)
    np.fill_diagonal(squared, np.inf)
    others = min(3, len(points) - 1)
    return np.sort(squared, axis=1)[:, :others].mean(axis=1) if others else np.zeros(len(points))


def with_scipy(points: np.ndarray) -> np.ndarray:
    cKDTree = pytest.importorskip("scipy.spatial").cKDTree  # noqa: N806
    distances, _ = cKDTree(points.astype(np.float64)).query(points.astype(np.float64), k=4)
    return (distances[:, 1:] ** 2).mean(axis=1)


def distances(points: np.ndarray) -> np.ndarray:
    return distCUDA2(torch.from_numpy(points.astype(np.float32))).numpy()


def cloud(kind: str, count: int, rng: np.random.Generator) -> np.ndarray:
    if kind == "uniform":
        return rng.uniform(-1, 1, (count, 3))
    if kind == "clusters":  # tight ones, far apart
        return rng.normal(0, 100, (5, 3))[rng.integers(0, 5, count)] + rng.normal(0, 1e-3, (count, 3))
    if kind == "plane":
        return np.concatenate([rng.uniform(-1, 1, (count, 2)), np.zeros((count, 1))], axis=1)
    if kind == "line":
        return rng.uniform(-1, 1, (count, 1)) * np.array([[1.0, 2.0, -3.0]])
    if kind == "lattice":  # ties and duplicates everywhere
        return rng.integers(0, 8, (count, 3)).astype(float)
    return 10.0 ** rng.uniform(-6, 6, (count, 3))  # "scales"


KINDS = ["uniform", "clusters", "plane", "line", "lattice", "scales"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [5, 100, 4099])
def test_agrees_with_scipy(kind: str, count: int) -> None:
    points = cloud(kind, count, np.random.default_rng(count)).astype(np.float32)
    np.testing.assert_allclose(distances(points), with_scipy(points), rtol=1e-6, atol=1e-30)


@settings(max_examples=60, deadline=None)
@given(kind=st.sampled_from(KINDS), count=st.integers(1, 80), seed=st.integers(0, 10**6))
def test_agrees_with_brute_force(kind: str, count: int, seed: int) -> None:
    points = cloud(kind, count, np.random.default_rng(seed)).astype(np.float32)
    np.testing.assert_allclose(distances(points), brute_force(points), rtol=1e-6, atol=1e-30)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(*[st.floats(-(2.0**60), 2.0**60, width=32)] * 3), min_size=1, max_size=30))
def test_any_finite_coordinates(rows: list[tuple[float, float, float]]) -> None:
    points = np.array(rows, np.float32)
    np.testing.assert_allclose(distances(points), brute_force(points).astype(np.float32), rtol=1e-6, atol=1e-44)


def test_few_points() -> None:
    """The mean is over the neighbours that exist."""
    points = np.array([[0, 0, 0], [3, 0, 0], [0, 4, 0]])
    assert distances(points[:0]).tolist() == []
    assert distances(points[:1]).tolist() == [0.0]
    assert distances(points[:2]).tolist() == [9.0, 9.0]
    assert distances(points).tolist() == [12.5, 17.0, 20.5]


def test_duplicates_are_neighbours_at_distance_zero() -> None:
    points = np.concatenate([np.zeros((1000, 3)), np.ones((2, 3))])
    expected = np.concatenate([np.zeros(1000), [2.0, 2.0]])  # one twin and two points at the origin: (0 + 3 + 3) / 3
    np.testing.assert_array_equal(distances(points), expected)


@pytest.mark.parametrize("count", [*range(1, 20), 63, 64, 65, 66, 511, 512, 513, 520])
def test_every_size_around_leaves_and_nodes(count: int) -> None:
    """Eight points make a leaf, eight leaves a node: nothing may depend on where the last one ends."""
    points = cloud("uniform", count, np.random.default_rng(count)).astype(np.float32)
    np.testing.assert_allclose(distances(points), brute_force(points), rtol=1e-6)


def test_all_points_in_one_place() -> None:
    np.testing.assert_array_equal(distances(np.full((3000, 3), 1.25)), np.zeros(3000))


@pytest.mark.parametrize("size", [1e-40, 1e-20, 1e15, 2.0**61])
def test_tiny_and_huge_coordinates(size: float) -> None:
    """Squares and sums are taken in float64: 1e-40 and 2^61 have squares that float32 rounds to 0 and to infinity."""
    points = (np.random.default_rng(0).uniform(-1, 1, (300, 3)) * size).astype(np.float32)
    expected = brute_force(points).astype(np.float32)
    np.testing.assert_allclose(distances(points), expected, rtol=1e-6, atol=0)


def test_same_bits_for_any_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    points = cloud("uniform", 3001, np.random.default_rng(4)).astype(np.float32)
    expected = distances(points)
    tried = 0
    for isa in ("scalar", "avx2", "avx512"):
        monkeypatch.setenv("MIEN_ISA", isa)
        try:
            np.testing.assert_array_equal(distances(points), expected)
            tried += 1
        except ValueError as error:
            assert "not available" in str(error)  # noqa: PT017 - the CPU of the tests may lack it
    assert tried >= 1
    monkeypatch.setenv("MIEN_ISA", "mmx")
    with pytest.raises(ValueError, match="MIEN_ISA=mmx is not available"):
        distances(points)


def test_same_bits_for_any_thread_count_and_order(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    points = cloud("uniform", 70_000, rng)  # several chunks of the sort, many blocks of leaves
    shuffle = rng.permutation(len(points))
    results = []
    for threads in ("1", "2", "5"):
        monkeypatch.setenv("SIMPLE_KNN_THREADS", threads)
        results.append(distances(points))
    results.append(distances(points[shuffle])[np.argsort(shuffle)])
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


def test_strided_and_tracked_tensors() -> None:
    table = torch.rand(50, 7, generator=torch.Generator().manual_seed(0))
    expected = distCUDA2(table[:, :3].contiguous())
    found = distCUDA2(table.requires_grad_()[:, :3])
    assert torch.equal(found, expected) and not found.requires_grad


def test_bad_points_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    points = torch.zeros(4, 3)
    for value in (float("nan"), float("inf")):
        points[2, 1] = value
        with pytest.raises(ValueError, match=r"points: row 2 is \[0, -?(nan|inf), 0\], expected finite"):
            distCUDA2(points)
    with pytest.raises(ValueError, match="points: found shape"):
        distCUDA2(torch.zeros(4, 2))
    with pytest.raises(ValueError, match="points: found torch.float64"):
        distCUDA2(torch.zeros(4, 3, dtype=torch.float64))
    monkeypatch.setenv("SIMPLE_KNN_THREADS", "many")
    with pytest.raises(ValueError, match="SIMPLE_KNN_THREADS"):
        distCUDA2(torch.zeros(4, 3))


@pytest.mark.gpu
def test_cuda_tensors_come_back_to_their_device() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    points = torch.rand(100, 3)
    found = distCUDA2(points.cuda())
    assert found.is_cuda and torch.equal(found.cpu(), distCUDA2(points))
