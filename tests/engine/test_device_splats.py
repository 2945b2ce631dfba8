"""The splat stage of the CUDA engine, emulated: against the CPU engine's, view by view; counts against every tile asked
on its own; and batches of views against single ones."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.engine.splat_stage import (
    BAD_GRADIENT,
    BAD_INPUT,
    CAMERA,
    Scene,
    Stage,
    make_scene,
    make_slots,
    new_health,
    shuffled,
)
from tests.engine.tile_stage import TILE
from utils.maths.rotations import quaternion_to_matrix

ROUNDING = 2e-6  # relative to the largest value of a column (seen: 2e-7)
GRADIENT = 5e-6  # relative L2 of a gradient (seen: 6e-7)
NOT_DRAWN = -1  # of keys, read as signed numbers

CASES: dict[str, dict[str, Any]] = {
    "apart": {},
    "one array": {"colour": "sh"},
    "more coefficients than degrees": {"colour": "sh", "coefficients": 25, "degree": 2},
    "degree 0": {"degree": 0},
    "degree 0, nothing else": {"degree": 0, "coefficients": 1},
    "degree 0, one array": {"degree": 0, "colour": "sh", "coefficients": 4},
    "degree 1": {"degree": 1},
    "degree 2, one array": {"degree": 2, "colour": "sh"},
    "colours": {"colour": "colors"},
    "covariances": {"shape": "covariances"},
    "as they are": {"normalise_quats": 0},
    "antialias": {"antialias": 1},
    "square": {"square_extent": 1, "symmetric_clamp": 1, "clamp_passes_gradient": 1},
    "mesh": {"mesh": True},
    "mesh, antialias": {"mesh": True, "antialias": 1, "degree": 1},
    "large": {"size": 0.3, "count": 70},
    "one block and one": {"count": 65},
    "one": {"count": 1, "size": 0.3},
    "several blocks of the CPU": {"count": 1100, "degree": 1},
}


@pytest.fixture(scope="module")
def stage(emulated_library: Path) -> Stage:
    return Stage(emulated_library)


def assert_close(found: Tensor, wanted: Tensor, name: str, bound: float = GRADIENT) -> None:
    error = (found.double() - wanted.double()).norm() / wanted.double().norm().clamp_min(1e-30)
    assert bool(found.isfinite().all()) and float(error) <= bound, (name, float(error))


# --- forward


@pytest.mark.parametrize("case", list(CASES))
def test_records_are_the_cpu_engines(stage: Stage, case: str) -> None:
    scene = make_scene(**CASES[case])
    found = stage.prepare(scene)
    wanted, finite = stage.prepare_on_cpu(scene)
    assert finite
    assert torch.equal(found["radii"], wanted["radii"])
    assert torch.equal(found["rects"], wanted["rects"])
    drawn = wanted["radii"] > 0
    assert scene.count == 1 or 0.5 < float(drawn.float().mean()) < 1
    a, b = found["records"][drawn, :12], wanted["records"][drawn, :12]
    assert float(((a - b).abs().amax(0) / b.abs().amax(0).clamp_min(1e-30)).max()) <= ROUNDING


def quadratic_minimum(record: list[float], x0: float, y0: float, x1: float, y1: float) -> float:
    """Of a dx^2 + b dx dy + c dy^2 over the rectangle, by its edges."""
    x, y, a, b, c = record[:5]
    left, right, top, bottom = x0 - x, x1 - x, y0 - y, y1 - y
    if left <= 0 <= right and top <= 0 <= bottom:
        return 0.0
    form = lambda p, q: a * p * p + b * p * q + c * q * q  # noqa: E731
    found = [form(p, min(max(-b * p / (2 * c), top), bottom)) for p in (left, right)]
    found += [form(min(max(-b * q / (2 * a), left), right), q) for q in (top, bottom)]
    return min(found)


def reached_tiles(record: list[float], rect: list[int], slack: float) -> int:
    """Tiles with an 8 x 4 part whose pixel centres' rectangle the splat reaches."""
    reach = record[5] + math.log2(255) + 4e-3 + slack
    count = 0
    for tile_y in range(rect[1], rect[3]):
        for tile_x in range(rect[0], rect[2]):
            corners = [(TILE * tile_x + 8 * (s % 2) + 0.5, TILE * tile_y + 4 * (s // 2) + 0.5) for s in range(8)]
            count += any(quadratic_minimum(record, x, y, x + 7, y + 3) <= reach for x, y in corners)
    return count


@pytest.mark.parametrize("size", [0.02, 0.3])
def test_counts_are_the_tiles_that_are_reached(stage: Stage, size: float) -> None:
    """Rectangles of a few tiles, which one thread looks through, and of many, which a warp does."""
    found = stage.prepare(make_scene(90, size=size))
    records, rects = found["records"].double().tolist(), found["rects"].tolist()
    tiles = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in rects]
    assert max(tiles) > 16 if size == 0.3 else 1 < max(tiles) <= 16
    wanted = [[reached_tiles(*row, slack) for row in zip(records, rects, strict=True)] for slack in (-1e-4, 1e-4)]
    counts = found["counts"].tolist()
    assert all(low <= count <= high for low, count, high in zip(wanted[0], counts, wanted[1], strict=True))
    assert sum(high - low for low, high in zip(*wanted, strict=True)) <= 1  # the bounds say something
    assert sum(counts) < sum(tiles)  # some rectangles have corners that their ellipses don't reach


def test_keys_are_depths_and_say_what_is_not_drawn(stage: Stage) -> None:
    found = stage.prepare(make_scene())
    listed = found["counts"] > 0
    assert 0 < int(listed.sum()) < len(listed)
    assert bool((found["keys"][~listed] == NOT_DRAWN).all())
    assert torch.equal(found["keys"][listed], found["records"][listed, 9].contiguous().view(torch.int32))
    assert not bool(found["rects"][found["radii"] == 0].any())


# --- backward


def random_counts(scene: Scene, rows: int, seed: int = 5) -> Tensor:
    """A third without pairs, a few with more than a warp's worth."""
    counts = torch.randint(-2, 5, (rows,), generator=torch.Generator().manual_seed(seed)).clamp_min(0)
    counts[7::23] = 77
    counts[5::11] = 0  # those behind the camera
    return counts.int() if scene.count > 1 else torch.tensor([3], dtype=torch.int32)


@pytest.mark.parametrize("case", list(CASES))
def test_gradients_are_the_cpu_engines(stage: Stage, case: str) -> None:
    scene = make_scene(**CASES[case])
    counts = random_counts(scene, scene.count)
    slots, first = make_slots(counts)
    wanted = stage.backward_on_cpu(scene, counts, slots)
    found = stage.backward(scene, counts, *reversed(shuffled(counts, slots, first)))
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        if name == "camera":
            assert_close(found[name].sum(1)[:, :23], value.sum(1)[:, :23], name)
            assert not found[name][:, :, 23:].any()
            continue
        assert_close(found[name], value, name)
        if name != "frame_slots":
            assert not found[name][counts == 0].any()


def test_a_splat_that_adds_nothing_has_no_gradient(stage: Stage) -> None:
    """Listed, but no pixel met it: its sums are zero."""
    scene = make_scene(mesh=True)
    counts = random_counts(scene, scene.count)
    slots, first = make_slots(counts)
    silent = 40
    counts[silent] = 3
    slots, first = make_slots(counts)
    slots[int(first[silent]) : int(first[silent]) + 3, :10] = 0
    found = stage.backward(scene, counts, first, slots)
    assert not any(found[name][silent].any() for name in scene.tensors)
    assert scene.slot_of is not None and not found["frame_slots"][scene.slot_of[silent]].any()


def test_slots_beyond_the_capacity_do_not_exist(stage: Stage) -> None:
    scene = make_scene(30)
    counts = random_counts(scene, scene.count)
    slots, first = make_slots(counts)
    capacity = int(counts.sum()) // 2
    inside = (capacity - first).clamp_min(0).minimum(counts)
    assert bool((inside < counts).any()) and bool(((0 < inside) & (inside < counts)).any())
    found = stage.backward(scene, counts, first, slots[:capacity].clone(), capacity=capacity)
    wanted = stage.backward(scene, inside, first, slots)
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


# --- batches


BATCHES: dict[str, dict[str, Any]] = {
    "mesh": {"mesh": True},
    "world": {"colour": "sh", "degree": 2},
    "colours": {"colour": "colors", "shape": "covariances"},
}


@pytest.mark.parametrize("case", list(BATCHES))
def test_views_together_are_views_alone(stage: Stage, case: str) -> None:
    scene = make_scene(130, 3, **BATCHES[case])
    together = stage.prepare(scene)
    alone = [stage.prepare(scene.view(b)) for b in range(3)]
    for name, value in together.items():
        if name != "records":
            assert torch.equal(value, torch.cat([one[name] for one in alone])), name
    drawn = together["radii"] > 0
    records = torch.cat([one["records"] for one in alone])
    assert torch.equal(together["records"][drawn, :12], records[drawn, :12])
    assert not torch.equal(records[:130], records[130:260])


@pytest.mark.parametrize("case", list(BATCHES))
def test_gradients_of_views_together_are_sums(stage: Stage, case: str) -> None:
    scene = make_scene(130, 3, **BATCHES[case])
    counts = random_counts(scene, 3 * scene.count)
    slots, first = shuffled(counts, *make_slots(counts))
    together = stage.backward(scene, counts, first, slots)
    parts = zip(counts.view(3, -1), first.view(3, -1), strict=True)
    alone = [stage.backward(scene.view(b), c.clone(), f.clone(), slots) for b, (c, f) in enumerate(parts)]
    for name, value in together.items():
        each = [one[name] for one in alone]
        if name in ("screen_offsets", "frame_slots", "camera"):
            assert torch.equal(value, torch.cat(each)), name
        else:
            assert_close(value, each[0].double() + each[1].double() + each[2].double(), name, 2e-6)
            unseen = ~(counts.view(3, -1) > 0).any(0)
            assert not value[unseen].any()


# --- order, faults, cameras


@pytest.mark.parametrize("order", ["reverse", "5"])
def test_any_order_of_threads_gives_the_same_bits(stage: Stage, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = make_scene(90, 2, mesh=True, size=0.3)
    counts = random_counts(scene, 180)
    slots, first = shuffled(counts, *make_slots(counts))

    def run() -> dict[str, Tensor]:
        prepared, health = stage.prepare(scene, new_health()), new_health()
        return prepared | stage.backward(scene, counts, first, slots, health=health)

    expected = run()
    monkeypatch.setenv("MIEN_EMULATION_ORDER", order)
    for name, value in run().items():
        assert torch.equal(value.view(torch.uint8), expected[name].view(torch.uint8)), name


@pytest.mark.parametrize("name", ["means", "quats", "scales", "opacities", "sh", "sh0", "screen_offsets"])
@pytest.mark.parametrize("mesh", [False, True])
def test_what_is_not_finite_is_reported_and_not_drawn(stage: Stage, name: str, mesh: bool) -> None:
    scene = make_scene(100, mesh=mesh)
    before, health = stage.prepare(scene), new_health()
    assert torch.equal(stage.prepare(scene, health)["counts"], before["counts"])
    assert health[0] == 0
    for row, value in ((70, math.inf), (68, math.nan)):
        scene.tensors[name].view(100, -1)[row, -1] = value
    found = stage.prepare(scene, health)
    assert health[0] == BAD_INPUT and health[2] == 68
    assert not found["counts"][[68, 70]].any() and not found["radii"][[68, 70]].any()
    others = [i for i in range(100) if i not in (68, 70)]
    assert torch.equal(found["counts"][others], before["counts"][others])


def test_a_scale_that_leaves_the_range_of_numbers_is_reported(stage: Stage) -> None:
    scene, health = make_scene(20, mesh=True), new_health()
    scene.tensors["scales"][13, 1] = 95.0  # e^95 is infinite
    stage.prepare(scene, health)
    assert health[0] == BAD_INPUT and health[2] == 13


@pytest.mark.parametrize(("number", "column"), [(1e25, 6), (math.nan, 1), (-math.inf, 0)])
def test_a_gradient_whose_square_is_not_finite_is_reported(stage: Stage, number: float, column: int) -> None:
    scene, health = make_scene(80, colour="sh"), new_health()
    counts = random_counts(scene, 80)
    counts[17] = 2
    slots, first = make_slots(counts)
    stage.backward(scene, counts, first, slots, health=health)
    assert health[0] == 0
    slots[first[17], column] = number
    stage.backward(scene, counts, first, slots, health=health)
    assert health[0] == BAD_GRADIENT and health[2] == 17


def test_no_gaussians(stage: Stage) -> None:
    scene = make_scene(0, 2)
    stage.prepare(scene)
    none = torch.zeros(0, dtype=torch.int32)
    stage.backward(scene, none, none, torch.zeros(0, 12))
    assert all(not value.any() for value in camera_gradients(stage, scene, torch.zeros(2, 0, CAMERA)))


def camera_gradients(stage: Stage, scene: Scene, partial: Tensor) -> tuple[Tensor, Tensor]:
    pose, intrinsics = torch.full((scene.views, 4, 4), math.nan), torch.full((scene.views, 3, 3), math.nan)
    views = stage.make_views(scene)
    stage.call("camera_backward", scene.sizes, stage.cameras(scene), views, partial, pose, intrinsics)
    return pose, intrinsics


def test_camera_sums_are_spread_over_the_matrices(stage: Stage) -> None:
    """The centre is -R^T t; the limits of the Jacobian's clamp depend on the focal lengths and the principal point."""
    scene = make_scene(64 * 37, 2)
    partial = torch.randn(2, 37, CAMERA, generator=torch.Generator().manual_seed(1))
    pose, intrinsics = camera_gradients(stage, scene, partial)
    leaves = {name: value.double().requires_grad_() for name, value in scene.cameras.items()}
    k, turn, shift = leaves["intrinsics"], leaves["world_to_camera"][:, :3, :3], leaves["world_to_camera"][:, :3, 3]
    sums = partial.double().sum(1)
    parts = [turn.flatten(1), shift, -(turn.mT @ shift[:, :, None])[:, :, 0], k[:, [0, 1, 0, 1], [0, 1, 2, 2]]]
    for axis, pixels in ((0, scene.width), (1, scene.height)):
        low, high = -(k[:, axis, 2] + 0.15 * pixels), pixels - k[:, axis, 2] + 0.15 * pixels
        parts.append(torch.stack([low, high], 1) / k[:, axis, axis, None])
    total = (torch.cat(parts, 1) * sums[:, :23]).sum()
    wanted = torch.autograd.grad(total, [leaves["world_to_camera"], k])
    assert_close(pose, wanted[0], "world_to_camera", 1e-6)
    assert_close(intrinsics, wanted[1], "intrinsics", 1e-6)


@pytest.mark.parametrize(
    ("name", "at", "value"),
    [("world_to_camera", (1, 2, 3), math.nan), ("intrinsics", (1, 0, 0), 0.0), ("background", (0, 1), math.inf)],
)
def test_a_bad_camera_is_reported(stage: Stage, name: str, at: tuple[int, ...], value: float) -> None:
    scene, health = make_scene(1, 2), new_health()
    stage.make_views(scene, health)
    assert health[0] == 0
    scene.cameras[name][at] = value
    stage.make_views(scene, health)
    assert health[0] == BAD_INPUT


def test_the_scenes_cameras_are_turned() -> None:
    turn = make_scene(1, 2).cameras["world_to_camera"][:, :3, :3]
    assert torch.allclose(turn @ turn.mT, torch.eye(3), atol=1e-5) and not torch.equal(turn[0], turn[1])
    assert torch.equal(quaternion_to_matrix(torch.tensor([1.0, 0, 0, 0])), torch.eye(3))
