"""The tile stage of the CUDA engine, emulated: lists, pictures, gradients, against plain numpy and the CPU engine."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest

from tests.engine.tile_stage import (
    BUCKET,
    FAINTEST,
    HEALTH,
    SLOT,
    TILE,
    TOO_MANY_PAIRS,
    VIEW,
    Array,
    BlendTables,
    Library,
    Sizes,
    Splats2D,
    Stage,
    TileTables,
    make_gradients,
    make_splats,
    plain_picture,
)

ORDERS = ("forward", "reverse", "1", "2")
OUTPUTS = ("image", "alpha", "depth", "transmittance", "masks", "slots", "tile_background")
LISTS = ("order", "first_slot", "pair_total", "entries", "listed_masks", "tile_begin", "bucket_begin", "bucket_tile")
SIZES = [(64, 48), (50, 37), (16, 16), (5, 3), (33, 80)]


@pytest.fixture(scope="module")
def tiles(emulated_library: Path) -> Library:
    return Library(emulated_library)


def draw(tiles: Library, splats: Splats2D, gradients: dict[str, Array], capacity: int | None = None) -> Stage:
    """Forward and backward; nothing was written outside its array."""
    stage = tiles.list_tiles(splats, capacity)
    tiles.blend(stage, depth="depth" in gradients)
    tiles.blend_backward(stage, gradients)
    assert stage.memory.overrun() == []
    return stage


def assert_like(value: Array, truth: Array, bound: float, what: str) -> None:
    scale = max(float(np.abs(truth).max(initial=0)), 1e-6)
    error = float(np.abs(value - truth).max(initial=0)) / scale
    assert error <= bound, f"{what}: off by {error:.2e} of the largest value"


def assert_pictures(
    stage: Stage, splats: Splats2D, gradients: dict[str, Array], keep: Array | None = None, bound: float = 2e-5
) -> None:
    """Pictures, and within `bound` the splats' sums, are those of float64, where rounding decides nothing."""
    per_view, sums = stage.sizes.tiles // stage.sizes.views, stage.splat_sums()
    for v in range(stage.sizes.views):
        rows = slice(v * splats.count, (v + 1) * splats.count)
        truth = plain_picture(splats, v, gradients, None if keep is None else keep[rows])
        assert truth.doubtful.mean() < 0.05
        sure = ~truth.doubtful
        assert_like(stage.arrays["image"][v][:, sure], truth.image[:, sure], 2e-6, "image")
        assert_like(stage.arrays["alpha"][v][sure], truth.alpha[sure], 2e-6, "alpha")
        if "depth" in gradients:
            assert_like(stage.arrays["depth"][v][sure], truth.depth[sure], 2e-6, "depth")
        for k in range(truth.sums.shape[1]):
            assert_like(sums[rows, k], truth.sums[:, k], bound, f"sum {k} of view {v}")
        light = stage.arrays["tile_background"][v * per_view : (v + 1) * per_view].sum(axis=0)
        assert_like(light, truth.background, 2e-5, "background")


def lowest(r: Array, x: tuple[float, float], y: tuple[float, float]) -> float:
    """Of the form a x^2 + b x y + c y^2 on a rectangle: it lies at the centre, or on an edge."""
    a, b, c = (float(r[name]) for name in "abc")
    if x[0] <= 0 <= x[1] and y[0] <= 0 <= y[1]:
        return 0.0
    points = [(u, min(max(-b * u / (2 * c), y[0]), y[1])) for u in x]
    points += [(min(max(-b * v / (2 * a), x[0]), x[1]), v) for v in y]
    return min(a * u * u + b * u * v + c * v * v for u, v in points)


def reached(splats: Splats2D, row: int, x: int, y: int, sub_tile: int) -> bool:
    """Whether alpha reaches 1/255, less the stated slack, between a sub-tile's pixel centres."""
    r = splats.records[row]
    left = x * TILE + sub_tile % 2 * 8 + 0.5 - float(r["x"])
    top = y * TILE + sub_tile // 2 * 4 + 0.5 - float(r["y"])
    return lowest(r, (left, left + 7), (top, top + 3)) <= float(r["log2_opacity"]) - FAINTEST + 4e-3


def expected_lists(splats: Splats2D) -> list[list[tuple[int, int]]]:
    """(row, mask) of every tile of every view, near ones first, ties by row."""
    sizes = splats.sizes(0)
    order = np.argsort(splats.records["z"], kind="stable")
    lists: list[list[tuple[int, int]]] = [[] for _ in range(sizes.tiles)]
    for row in order.tolist():
        x0, y0, x1, y1 = (int(n) for n in splats.rects[row])
        for y in range(y0, y1):
            for x in range(x0, x1):
                mask = sum(reached(splats, row, x, y, s) << s for s in range(8))
                tile = (row // splats.count * sizes.tiles_y + y) * sizes.tiles_x + x
                if mask != 0:
                    lists[tile].append((row, mask))
    return lists


def test_the_tests_know_the_structs(tiles: Library) -> None:
    mirrored = [ctypes.sizeof(t) for t in (Sizes, TileTables, BlendTables)] + [VIEW.itemsize, HEALTH.itemsize]
    assert tiles.layout() == mirrored


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_lists_hold_what_reaches_a_tile_near_ones_first(tiles: Library, width: int, height: int) -> None:
    splats = make_splats(2, 60, width, height, seed=width, sigma=3.0)
    stage = tiles.list_tiles(splats)
    a, lists = stage.arrays, expected_lists(splats)
    assert a["pair_total"][0] == a["tile_begin"][-1] == sum(len(one) for one in lists) == a["counts"].sum()
    for t, wanted in enumerate(lists):
        here = stage.tile(t)
        rows = a["entries"][here, 0]
        assert list(zip(rows.tolist(), a["masks"][here].tolist(), strict=True)) == wanted, f"tile {t}"
        # Pairs of a splat lie one behind the other, in the places that belong to it.
        pairs, first = a["entries"][here, 1], a["first_slot"][rows]
        assert ((first <= pairs) & (pairs < first + a["counts"][rows])).all()
    used = np.sort(a["entries"][: a["tile_begin"][-1], 1])
    assert (used == np.arange(len(used))).all()
    assert (a["health"]["stopped"] == 0).all() and a["health"]["pairs"][0] == a["pair_total"][0]


def test_pairs_are_numbered_in_depth_order(tiles: Library) -> None:
    splats = make_splats(3, 80, 70, 40, seed=8)
    a = tiles.list_tiles(splats).arrays
    order = np.lexsort((np.arange(240), splats.keys))
    assert (a["order"] == order).all()
    assert (a["first_slot"][order] == np.concatenate([[0], np.cumsum(a["counts"][order])[:-1]])).all()


def test_every_bucket_knows_its_tile(tiles: Library) -> None:
    stage = tiles.list_tiles(make_splats(2, 900, 50, 20, seed=1, sigma=5.0))
    a = stage.arrays
    lengths = np.diff(a["tile_begin"].astype(np.int64))
    wanted = [t for t, length in enumerate(lengths.tolist()) for _ in range(-(-length // BUCKET))]
    assert lengths.max() > 3 * BUCKET
    assert a["bucket_tile"][: len(wanted)].tolist() == wanted
    assert (a["bucket_tile"][len(wanted) :] == 0xFFFFFFFF).all()
    assert (a["bucket_begin"] == np.searchsorted(wanted, np.arange(stage.sizes.tiles + 1))).all()


@pytest.mark.parametrize(("count", "seed"), [(0, 0), (1, 0), (40, 3)])
def test_nothing_drawn_leaves_the_background(tiles: Library, count: int, seed: int) -> None:
    splats = make_splats(2, count, 40, 24, seed=seed)
    splats.rects[:], splats.keys[:] = 0, 0xFFFFFFFF
    gradients = make_gradients(splats)
    for capacity in (None, 0):
        stage = draw(tiles, splats, gradients, capacity)
        assert stage.arrays["pair_total"][0] == 0 and (stage.arrays["tile_begin"] == 0).all()
        assert_pictures(stage, splats, gradients)


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_pictures_and_gradients_of_sizes_that_tiles_do_not_divide(tiles: Library, width: int, height: int) -> None:
    splats = make_splats(2, 60, width, height, seed=width + 1)
    gradients = make_gradients(splats)
    assert_pictures(draw(tiles, splats, gradients), splats, gradients)


@pytest.mark.parametrize(("alpha", "depth"), [(False, False), (True, False), (False, True)])
def test_outputs_without_gradient(tiles: Library, alpha: bool, depth: bool) -> None:
    splats = make_splats(2, 60, 40, 40, seed=2)
    gradients = make_gradients(splats, alpha=alpha, depth=depth)
    assert_pictures(draw(tiles, splats, gradients), splats, gradients)


def opaque_scene(seed: int = 4, **rules: float) -> Splats2D:
    """Lists of more than a thousand, most of it behind what is opaque; the stop lies in different buckets."""
    return make_splats(1, 1300, 30, 18, seed=seed, sigma=7.0, opacity=(0.01, 0.12), **rules)


def test_pixels_end_in_other_buckets_than_the_first(tiles: Library) -> None:
    splats = opaque_scene()
    gradients = make_gradients(splats)
    stage = draw(tiles, splats, gradients)
    a = stage.arrays
    assert np.diff(a["tile_begin"].astype(np.int64)).max() > 1000
    assert a["transmittance"].max() < 2e-4  # every pixel ends
    last = [int(np.flatnonzero(a["masks"][stage.tile(t)]).max()) // BUCKET for t in range(stage.sizes.tiles)]
    assert len(set(last)) > 1 and min(last) > 2 and max(last) < 6  # long before the lists do
    assert_pictures(stage, splats, gradients, bound=1e-4)


@pytest.mark.parametrize("opaque", [0.3, 0.95])
@pytest.mark.parametrize("passes", [0, 1])
def test_opaque_splats_and_the_clamp(tiles: Library, opaque: float, passes: int) -> None:
    splats = make_splats(1, 400, 40, 33, seed=6, opacity=(opaque, 1), clamp_passes_gradient=passes, alpha_max=0.9)
    gradients = make_gradients(splats)
    assert_pictures(draw(tiles, splats, gradients), splats, gradients, bound=1e-4)


def test_masks_keep_what_a_live_pixel_saw(tiles: Library) -> None:
    """What lies behind an opaque splat is forgotten; the splat that ends the pixels is not, but adds nothing."""
    splats = make_splats(1, 4, 16, 16, alpha_max=0.98, stop=1e-3)
    splats.records["x"] = splats.records["y"] = 8.0
    splats.records["a"] = splats.records["c"] = 1e-4
    splats.records["b"] = splats.records["slope_x"] = splats.records["slope_y"] = 0
    splats.records["log2_opacity"], splats.records["z"] = 0.0, [1, 2, 3, 4]
    splats.rects[:], splats.keys[:] = (0, 0, 1, 1), splats.records["z"].view(np.uint32)
    gradients = make_gradients(splats)
    stage = draw(tiles, splats, gradients)
    assert stage.arrays["listed_masks"][:4].tolist() == [255] * 4
    assert stage.arrays["masks"][:4].tolist() == [255, 255, 0, 0]
    assert (stage.splat_sums()[0] != 0).sum() >= 4 and (stage.splat_sums()[1:] == 0).all()
    assert_pictures(stage, splats, gradients)


def test_only_sub_tiles_whose_pixels_saw_it_stay_in_a_mask(tiles: Library) -> None:
    """Sub-tiles outside the picture leave too."""
    splats = make_splats(1, 90, 20, 10, seed=21, sigma=2.0, opacity=(0.02, 0.2))
    stage = draw(tiles, splats, make_gradients(splats))
    a, dropped = stage.arrays, 0
    assert a["transmittance"].min() > 1e-3  # no pixel ends
    y, x = np.meshgrid(np.arange(10) + 0.5, np.arange(20) + 0.5, indexing="ij")
    for e in range(int(a["tile_begin"][-1])):
        r = {
            name: float(splats.records[name][a["entries"][e, 0]]) for name in ("x", "y", "a", "b", "c", "log2_opacity")
        }
        dx, dy = x - r["x"], y - r["y"]
        seen = r["log2_opacity"] - (r["a"] * dx * dx + r["b"] * dx * dy + r["c"] * dy * dy) >= FAINTEST
        t = int(e >= a["tile_begin"][1])
        parts = [seen[s // 2 * 4 : s // 2 * 4 + 4, t * TILE + s % 2 * 8 : t * TILE + s % 2 * 8 + 8] for s in range(8)]
        assert a["masks"][e] == sum(bool(part.any()) << s for s, part in enumerate(parts))
        dropped += int(a["listed_masks"][e] != a["masks"][e])
    assert dropped > 0


def test_without_states_pictures_are_the_same(tiles: Library) -> None:
    splats = opaque_scene()
    with_states, without = tiles.list_tiles(splats), tiles.list_tiles(splats)
    tiles.blend(with_states)
    tiles.blend(without, states=False)
    for name in ("image", "alpha", "depth", "transmittance", "masks"):
        assert (with_states.arrays[name] == without.arrays[name]).all(), name


@pytest.mark.parametrize("share", [0.9, 0.3, 0.01])
def test_beyond_the_capacity_the_farthest_are_left_out(tiles: Library, share: float) -> None:
    splats = make_splats(2, 120, 45, 40, seed=9)
    whole = tiles.list_tiles(splats)
    total = int(whole.arrays["pair_total"][0])
    capacity = int(total * share)
    gradients = make_gradients(splats)
    stage = draw(tiles, splats, gradients, capacity)
    a = stage.arrays
    assert a["pair_total"][0] == total and a["tile_begin"][-1] == capacity
    assert a["health"]["stopped"][0] == TOO_MANY_PAIRS and a["health"]["pairs"][0] == total
    assert sorted(a["entries"][:, 1].tolist()) == list(range(capacity))
    kept, all_of_it = {tuple(e) for e in a["entries"].tolist()}, whole.arrays["entries"][:total].tolist()
    assert kept == {tuple(e) for e in all_of_it if e[1] < capacity}
    assert np.isfinite(a["image"]).all() and np.isfinite(stage.splat_sums()).all()


def test_a_capacity_that_just_suffices_is_fine(tiles: Library) -> None:
    splats = make_splats(1, 60, 45, 40, seed=9)
    total = int(tiles.list_tiles(splats).arrays["pair_total"][0])
    gradients = make_gradients(splats)
    stage = draw(tiles, splats, gradients, total)
    assert stage.arrays["health"]["stopped"][0] == 0 and stage.arrays["tile_begin"][-1] == total
    assert_pictures(stage, splats, gradients)


def test_whole_splats_within_the_capacity_are_drawn_as_alone(tiles: Library) -> None:
    splats = make_splats(1, 100, 45, 40, seed=10)
    whole = tiles.list_tiles(splats).arrays
    order = whole["order"]
    nearest = order[:40]
    capacity = int(whole["first_slot"][order[40]])
    keep = np.isin(np.arange(100), nearest)
    gradients = make_gradients(splats)
    assert_pictures(draw(tiles, splats, gradients, capacity), splats, gradients, keep)


def test_health_keeps_the_largest_number_and_other_reasons(tiles: Library) -> None:
    splats = make_splats(1, 30, 45, 40, seed=10)
    before = np.array([(2, 7, 8, 9, 10**10)], HEALTH)
    assert tiles.list_tiles(splats, 5, health=before).arrays["health"].tolist() == [
        (2 | TOO_MANY_PAIRS, 7, 8, 9, 10**10)
    ]
    assert tiles.list_tiles(splats, health=before).arrays["health"].tolist() == before.tolist()


def test_more_pairs_than_numbers_are_counted_as_too_many(tiles: Library) -> None:
    """The sum of the counts stays at the largest number instead of beginning again."""
    splats = make_splats(1, 40, 45, 40, seed=10)
    stage = tiles.list_tiles(splats, 50)
    counts, order = stage.arrays["counts"].copy(), stage.arrays["order"].copy()
    for many in (order[20:23], order[[3, 4, -1]]):
        stage.arrays["counts"][:] = counts
        stage.arrays["counts"][many] = 0x60000000
        tiles.list_again(stage)
        assert stage.arrays["pair_total"][0] == 0xFFFFFFFF and stage.arrays["health"]["stopped"][0] == TOO_MANY_PAIRS
        assert stage.arrays["tile_begin"][-1] <= 50 and stage.memory.overrun() == []


@pytest.mark.parametrize(("views", "opaque"), [(1, 0.02), (3, 0.02), (2, 0.9)])
def test_the_cpu_engine_draws_the_same(tiles: Library, views: int, opaque: float) -> None:
    splats = make_splats(views, 300, 50, 41, seed=11, opacity=(opaque, 1))
    gradients = make_gradients(splats)
    stage, n = draw(tiles, splats, gradients), splats.count
    for v in range(views):
        cpu, sums = tiles.cpu(splats, v, gradients), stage.splat_sums()[v * n : (v + 1) * n]
        # Where a pixel ends may hang on the last bit of a transmittance; then one splat at 1e-4 differs.
        assert np.abs(stage.arrays["image"][v] - cpu["image"]).max() < 2e-4
        assert (np.abs(stage.arrays["image"][v] - cpu["image"]) > 2e-6).mean() < 2e-3
        for k in range(sums.shape[1]):
            assert_like(sums[:, k], cpu["sums"][:, k], 2e-5, f"sum {k} of view {v}")


def test_the_order_of_threads_and_blocks_does_not_matter(tiles: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    splats = make_splats(2, 180, 24, 20, seed=12, sigma=6.0)
    gradients, first = make_gradients(splats), None
    for order in ORDERS:
        monkeypatch.setenv("MIEN_EMULATION_ORDER", order)
        stage = draw(tiles, splats, gradients)
        used = int(stage.arrays["tile_begin"][-1])
        kept = {name: stage.arrays[name].copy() for name in (*LISTS, *OUTPUTS)}
        for name in ("entries", "listed_masks", "masks", "slots"):
            kept[name] = kept[name][:used]
        first = first or kept
        assert np.diff(stage.arrays["tile_begin"].astype(np.int64)).max() > BUCKET
        for name, value in kept.items():
            assert value.tobytes() == first[name].tobytes(), f"{name} in order {order}"


def test_all_of_it_can_be_captured_in_a_graph(tiles: Library) -> None:
    splats = make_splats(2, 200, 40, 37, seed=13)
    gradients = make_gradients(splats)
    eager = draw(tiles, splats, gradients)
    captured = tiles.list_tiles(splats, captured=True)
    tiles.blend(captured, captured=True)
    tiles.blend_backward(captured, gradients, captured=True)
    used = int(eager.arrays["tile_begin"][-1])
    for name in OUTPUTS:
        a, b = (s.arrays[name][:used] if name in ("masks", "slots") else s.arrays[name] for s in (eager, captured))
        assert a.tobytes() == b.tobytes(), name


def test_slots_of_pairs_that_nobody_saw_are_zero(tiles: Library) -> None:
    splats = opaque_scene(seed=14)
    stage = draw(tiles, splats, make_gradients(splats))
    a = stage.arrays
    unseen = a["entries"][: a["tile_begin"][-1], 1][a["masks"][: a["tile_begin"][-1]] == 0]
    assert len(unseen) > 100 and (a["slots"][unseen] == 0).all()
    assert (a["slots"][: a["tile_begin"][-1], 10:] == 0).all() and a["slots"].shape[1] == SLOT
