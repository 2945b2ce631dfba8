"""The tile stage of the CUDA engine, emulated, on numpy arrays; scenes for it; and a plain renderer in float64."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

TILE, BUCKET, SLOT, SUMS, STATE = 16, 128, 12, 10, 5
LOG2E = math.log2(math.e)
FAINTEST = math.log2(1 / 255)
GUARD = 64  # bytes before and behind every array, watched
PATTERN = 0xA5
TOO_MANY_PAIRS = 1

VIEW = np.dtype(
    [("pose", "f4", 15), ("lens", "f4", 8), ("near", "f4"), ("far", "f4"), ("eps2d", "f4"), ("alpha_max", "f4")]
    + [("stop", "f4"), ("background", "f4", 3), ("width", "i4"), ("height", "i4"), ("tiles_x", "i4")]
    + [("tiles_y", "i4"), ("normalise", "i4"), ("square", "i4"), ("clamp_passes_gradient", "i4"), ("antialias", "i4")]
)
RECORD = np.dtype(
    [(name, "f4") for name in ("x", "y", "a", "b", "c", "log2_opacity", "red", "green", "blue", "z", "slope_x")]
    + [("slope_y", "f4"), ("unused", "f4", 4)]
)
HEALTH = np.dtype([("stopped", "u4"), ("step", "u4"), ("bad_row", "u4"), ("bad_terms", "u4"), ("pairs", "u8")])


class Sizes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int32) for name in ("views", "count", "width", "height", "tiles_x", "tiles_y")]
    _fields_ += [("pair_capacity", ctypes.c_int64)]

    @property
    def rows(self) -> int:
        return self.views * self.count

    @property
    def tiles(self) -> int:
        return self.views * self.tiles_x * self.tiles_y

    @property
    def buckets(self) -> int:
        return self.pair_capacity // BUCKET + self.tiles


def _pointers(names: str) -> list[tuple[str, type]]:
    return [(name, ctypes.c_size_t if name == "scratch_bytes" else ctypes.c_void_p) for name in names.split()]


class TileTables(ctypes.Structure):
    _fields_ = _pointers(
        "views records rects counts keys sorted_keys order order_in pair_keys_in pair_keys pair_ids_in pair_ids "
        "pair_splat pair_mask scratch scratch_bytes first_slot pair_total entries masks tile_begin bucket_begin "
        "bucket_tile health"
    )


class BlendTables(ctypes.Structure):
    _fields_ = _pointers("views records tile_begin bucket_begin bucket_tile entries masks transmittance states")


class Picture(ctypes.Structure):
    _fields_ = _pointers("image alpha depth")


class PictureGradients(ctypes.Structure):
    _fields_ = _pointers("image alpha depth out_image out_depth")


@dataclass
class Splats2D:
    """What the splat stage leaves: `records`, `rects`, `keys` [B * N] of B views, and the views."""

    views: Array
    records: Array
    rects: Array
    keys: Array
    width: int
    height: int

    @property
    def count(self) -> int:
        return len(self.records) // len(self.views)

    def sizes(self, capacity: int) -> Sizes:
        across, down = -(-self.width // TILE), -(-self.height // TILE)
        return Sizes(len(self.views), self.count, self.width, self.height, across, down, capacity)


def make_views(views: int, width: int, height: int, **rules: float) -> Array:
    out = np.zeros(views, VIEW)
    out["alpha_max"], out["stop"] = rules.get("alpha_max", 0.99), rules.get("stop", 1e-4)
    out["clamp_passes_gradient"] = rules.get("clamp_passes_gradient", 0)
    out["background"] = np.random.default_rng(99).uniform(0, 1, (views, 3))
    out["width"], out["height"] = width, height
    out["tiles_x"], out["tiles_y"] = -(-width // TILE), -(-height // TILE)
    return out


def make_splats(
    views: int,
    count: int,
    width: int,
    height: int,
    seed: int = 0,
    sigma: float = 4.0,
    opacity: tuple[float, float] = (0.02, 1.0),
    **rules: float,
) -> Splats2D:
    """Random ellipses of about `sigma` pixels, some out of the picture, a tenth not drawn, many at equal depth."""
    r = np.random.default_rng(seed)
    rows = views * count
    records = np.zeros(rows, RECORD)
    records["x"] = r.uniform(-0.1, 1.1, rows) * width
    records["y"] = r.uniform(-0.1, 1.1, rows) * height
    s1, s2 = sigma * np.exp(0.5 * r.normal(size=(2, rows)))
    turn = r.uniform(0, math.pi, rows)
    xx = (np.cos(turn) * s1) ** 2 + (np.sin(turn) * s2) ** 2 + 0.3
    yy = (np.sin(turn) * s1) ** 2 + (np.cos(turn) * s2) ** 2 + 0.3
    xy = np.cos(turn) * np.sin(turn) * (s1**2 - s2**2)
    determinant = xx * yy - xy**2
    records["a"], records["b"] = 0.5 * LOG2E * yy / determinant, -LOG2E * xy / determinant
    records["c"] = 0.5 * LOG2E * xx / determinant
    records["slope_x"], records["slope_y"] = xy / yy, xy / xx  # -B/A and -B/C of the conic [A B; B C]
    records["log2_opacity"] = np.log2(r.uniform(*opacity, rows))
    for name in ("red", "green", "blue"):
        records[name] = r.uniform(0, 1, rows)
    records["z"] = np.round(r.uniform(1, 3, rows), 2)  # ties
    drawn = r.uniform(size=rows) < 0.9
    rects = _rects(records, xx, yy, width, height, drawn)
    keys = np.where(rects.any(axis=1), records["z"].view(np.uint32), np.uint32(0xFFFFFFFF))
    return Splats2D(make_views(views, width, height, **rules), records, rects, keys, width, height)


def _rects(records: Array, xx: Array, yy: Array, width: int, height: int, drawn: Array) -> Array:
    """Tiles that hold a pixel centre inside the bounding box of the ellipse alpha = 1/255."""
    reach = np.maximum(2 * math.log(2) * (records["log2_opacity"] - FAINTEST + 4e-3), 0)
    low = [np.clip(np.ceil(records[n] - np.sqrt(reach * v) - 0.5), 0, None) for n, v in (("x", xx), ("y", yy))]
    high = [np.floor(records[n] + np.sqrt(reach * v) - 0.5) + 1 for n, v in (("x", xx), ("y", yy))]
    high = [np.minimum(high[0], width), np.minimum(high[1], height)]
    inside = drawn & (low[0] < high[0]) & (low[1] < high[1])
    rects = np.stack([low[0] // TILE, low[1] // TILE, -(-high[0] // TILE), -(-high[1] // TILE)], axis=1)
    return np.where(inside[:, None], rects, 0).astype(np.uint16)


class Memory:
    """Arrays filled with a pattern, and with watched bytes around them."""

    def __init__(self) -> None:
        self._all: list[tuple[str, Array]] = []
        self.arrays: dict[str, Array] = {}

    def room(self, name: str, shape: int | tuple[int, ...], dtype: str | np.dtype) -> Array:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        block = np.full(size + 2 * GUARD + 64, PATTERN, np.uint8)
        block = block[-block.ctypes.data % 64 :][: size + 2 * GUARD]  # aligned, as device memory is
        self._all.append((name, block))
        self.arrays[name] = block[GUARD : GUARD + size].view(dtype).reshape(shape)
        return self.arrays[name]

    def copy(self, name: str, values: Array) -> Array:
        out = self.room(name, values.shape, values.dtype)
        out[...] = values
        return out

    def pointers(self, table: type, **numbers: int) -> ctypes.Structure:
        names = [name for name, kind in table._fields_ if kind is ctypes.c_void_p]
        found = {name: self.arrays[name].ctypes.data for name in names if name in self.arrays}
        return table(**found, **numbers)

    def overrun(self) -> list[str]:
        """Names of the arrays that were written beyond."""
        return [n for n, b in self._all if (b[:GUARD] != PATTERN).any() or (b[-GUARD:] != PATTERN).any()]


@dataclass
class Stage:
    """One run of the stage: `arrays` holds what lies on the device."""

    sizes: Sizes
    memory: Memory = field(default_factory=Memory)

    @property
    def arrays(self) -> dict[str, Array]:
        return self.memory.arrays

    def tile(self, t: int) -> slice:
        begin = self.arrays["tile_begin"]
        return slice(int(begin[t]), int(begin[t + 1]))

    def splat_sums(self) -> Array:
        """[B * N, SUMS] in float64: what the splat stage makes of the slots."""
        counts, first, slots = (self.arrays[n] for n in ("counts", "first_slot", "slots"))
        sums = np.zeros((self.sizes.rows, SUMS))
        for row in np.flatnonzero(counts):
            last = min(int(first[row]) + int(counts[row]), self.sizes.pair_capacity)
            sums[row] = slots[int(first[row]) : last, :SUMS].astype(np.float64).sum(axis=0)
        return sums


class Library:
    """The emulated library's ways into the stage."""

    def __init__(self, path: Path) -> None:
        self._native = ctypes.CDLL(str(path))
        self._native.mien_last_error.restype = ctypes.c_char_p
        self._native.mien_hook_list_tiles_scratch.restype = ctypes.c_int64

    def layout(self) -> list[int]:
        out = (ctypes.c_int64 * 5)()
        self._native.mien_hook_layout(out)
        return list(out)

    def _call(self, name: str, *arguments: object) -> None:
        status = getattr(self._native, f"mien_hook_{name}")(*arguments)
        if status != 0:
            raise RuntimeError(self._native.mien_last_error().decode())

    def list_tiles(
        self, splats: Splats2D, capacity: int | None = None, captured: bool = False, health: Array | None = None
    ) -> Stage:
        """Count, sort and list; without `capacity` there is room for every pair and some. `health`: what it was."""
        counts = np.zeros(len(splats.records), np.uint32)
        sizes = splats.sizes(0)
        self._native.mien_hook_count_tiles(
            ctypes.byref(sizes), _at(splats.records), _at(splats.rects), counts.ctypes.data_as(ctypes.c_void_p)
        )
        stage = Stage(splats.sizes(int(counts.sum()) + 37 if capacity is None else capacity))
        memory, rows, pairs = stage.memory, stage.sizes.rows, stage.sizes.pair_capacity
        for name in ("views", "records", "rects", "keys"):
            memory.copy(name, getattr(splats, name))
        memory.copy("counts", counts)
        for name in ("sorted_keys", "order", "order_in", "first_slot"):
            memory.room(name, rows, "u4")
        for name in ("pair_keys_in", "pair_keys", "pair_ids_in", "pair_ids", "pair_splat"):
            memory.room(name, pairs, "u4")
        for name, shape in (("pair_mask", pairs), ("masks", pairs)):
            memory.room(name, shape, "u1")
        for name in ("tile_begin", "bucket_begin"):
            memory.room(name, stage.sizes.tiles + 1, "u4")
        memory.room("entries", (pairs, 2), "u4")
        memory.room("pair_total", 1, "u4")
        memory.room("bucket_tile", stage.sizes.buckets, "u4")
        memory.copy("health", np.zeros(1, HEALTH) if health is None else health)
        scratch = int(self._native.mien_hook_list_tiles_scratch(ctypes.byref(stage.sizes)))
        memory.room("scratch", scratch, "u1")
        tables = memory.pointers(TileTables, scratch_bytes=scratch)
        self._call("list_tiles", ctypes.byref(stage.sizes), ctypes.byref(tables), int(captured))
        memory.copy("listed_masks", memory.arrays["masks"])
        return stage

    def list_again(self, stage: Stage) -> None:
        """With what its arrays hold now."""
        tables = stage.memory.pointers(TileTables, scratch_bytes=stage.arrays["scratch"].nbytes)
        self._call("list_tiles", ctypes.byref(stage.sizes), ctypes.byref(tables), 0)

    def blend(self, stage: Stage, depth: bool = True, states: bool = True, captured: bool = False) -> None:
        sizes, memory = stage.sizes, stage.memory
        planes = (sizes.views, sizes.height, sizes.width)
        memory.room("image", (sizes.views, 3, *planes[1:]), "f4")
        memory.room("alpha", planes, "f4")
        memory.room("transmittance", planes, "f4")
        if depth:
            memory.room("depth", planes, "f4")
        if states:
            memory.room("states", (sizes.buckets, STATE, TILE * TILE), "f4")
        tables, out = memory.pointers(BlendTables), memory.pointers(Picture)
        self._call("blend_forward", ctypes.byref(sizes), ctypes.byref(tables), ctypes.byref(out), int(captured))

    def blend_backward(self, stage: Stage, gradients: dict[str, Array], captured: bool = False) -> None:
        """`gradients`: image, maybe alpha and depth, like what was drawn. Leaves `slots` and `tile_background`."""
        memory = stage.memory
        tables = memory.pointers(BlendTables)
        at = {name: memory.copy(f"g_{name}", value.astype(np.float32)) for name, value in gradients.items()}
        given = {name: value.ctypes.data for name, value in at.items()}
        outputs = {f"out_{n}": memory.arrays[n].ctypes.data for n in ("image", "depth") if n in memory.arrays}
        incoming = PictureGradients(**given, **outputs)
        slots = memory.room("slots", (stage.sizes.pair_capacity, SLOT), "f4")
        background = memory.room("tile_background", (stage.sizes.tiles, 3), "f4")
        self._call(
            "blend_backward", ctypes.byref(stage.sizes), ctypes.byref(tables), ctypes.byref(incoming),
            _at(slots), _at(background), int(captured),
        )  # fmt: skip

    def cpu(self, splats: Splats2D, view: int, gradients: dict[str, Array]) -> dict[str, Array]:
        """The CPU engine's picture of one view, its sums [N, SUMS] and background gradient [3]."""
        rows = slice(view * splats.count, (view + 1) * splats.count)
        records, rects = splats.records[rows].copy(), splats.rects[rows].copy()
        memory, planes = Memory(), (splats.height, splats.width)
        memory.copy("views", splats.views[view : view + 1])
        memory.copy("records", records)
        memory.room("image", (3, *planes), "f4")
        memory.room("alpha", planes, "f4")
        memory.room("depth", planes, "f4")
        at = {name: np.ascontiguousarray(value[view], np.float32) for name, value in gradients.items()}
        incoming = PictureGradients(
            **{name: value.ctypes.data for name, value in at.items()},
            out_image=memory.arrays["image"].ctypes.data,
            out_depth=memory.arrays["depth"].ctypes.data,
        )
        sums = memory.copy("sums", np.zeros((splats.count, SUMS), np.float32))
        background = memory.copy("background", np.zeros(3, np.float32))
        self._call(
            "cpu_tiles", _at(memory.arrays["views"]), ctypes.c_int64(splats.count), _at(memory.arrays["records"]),
            _at(rects), ctypes.byref(memory.pointers(Picture)), ctypes.byref(incoming), _at(sums), _at(background),
        )  # fmt: skip
        return memory.arrays


def _at(array: Array) -> ctypes.c_void_p:
    return array.ctypes.data_as(ctypes.c_void_p)


@dataclass
class Truth:
    """One view, every splat at every pixel, in float64."""

    image: Array
    alpha: Array
    depth: Array
    doubtful: Array  # [H, W] pixels where rounding may decide whether a splat is seen, or where it ends
    sums: Array  # [N, SUMS] in the order of a slot
    background: Array  # [3]


def plain_picture(splats: Splats2D, view: int, gradients: dict[str, Array], keep: Array | None = None) -> Truth:
    """Back to front for the gradients, as autograd would do it. `keep` [N]: draw only these.

    `gradients` may miss alpha and depth.
    """
    v, rows = splats.views[view], slice(view * splats.count, (view + 1) * splats.count)
    records, drawn = splats.records[rows], splats.keys[rows] != 0xFFFFFFFF
    order = [i for i in np.argsort(records["z"], kind="stable") if drawn[i] and (keep is None or keep[i])]
    y, x = np.meshgrid(np.arange(splats.height) + 0.5, np.arange(splats.width) + 0.5, indexing="ij")
    transmittance, alive = np.ones_like(x), np.ones_like(x, dtype=bool)
    doubtful, met = np.zeros_like(alive), []
    for i in order:
        r = {name: float(records[name][i]) for name in ("x", "y", "a", "b", "c", "log2_opacity")}
        dx, dy = x - r["x"], y - r["y"]
        e = r["log2_opacity"] - (r["a"] * dx * dx + r["b"] * dx * dy + r["c"] * dy * dy)
        seen = alive & (e >= FAINTEST)
        raw = np.where(seen, np.exp2(e), 0.0)
        alpha = np.minimum(raw, float(v["alpha_max"]))
        after = transmittance * (1 - alpha)
        stop = float(v["stop"])
        doubtful |= alive & (np.abs(e - FAINTEST) < 2e-5) | seen & (np.abs(after / stop - 1) < 2e-4)
        doubtful |= seen & (np.abs(raw - float(v["alpha_max"])) < 1e-5)
        alive = alive & ((after >= stop) | ~seen)
        taken = seen & alive
        met.append((i, dx, dy, raw, np.where(taken, alpha, 0.0), transmittance))
        transmittance = np.where(taken, after, transmittance)
    colours = np.stack([records[n].astype(np.float64) for n in ("red", "green", "blue")], axis=1)
    background = v["background"].astype(np.float64)
    g_image = gradients["image"][view].astype(np.float64)
    g_depth = gradients["depth"][view].astype(np.float64) if "depth" in gradients else np.zeros_like(x)
    g_alpha = gradients["alpha"][view].astype(np.float64) if "alpha" in gradients else np.zeros_like(x)
    image = transmittance * background[:, None, None]
    depth, sums = np.zeros_like(x), np.zeros((splats.count, SUMS))
    # What lies behind, weighed by its gradient, per unit of light that gets there.
    behind = np.einsum("chw,c->hw", g_image, background) - g_alpha
    for i, dx, dy, raw, alpha, t in reversed(met):
        weight, z = alpha * t, float(records["z"][i])
        image = image + weight * colours[i][:, None, None]
        depth = depth + weight * z
        value = np.einsum("chw,c->hw", g_image, colours[i]) + g_depth * z
        moves = (alpha > 0) & (bool(v["clamp_passes_gradient"]) | (raw <= float(v["alpha_max"])))
        h = np.where(moves, t * (value - behind) * raw, 0.0)
        behind = alpha * value + (1 - alpha) * behind
        parts = [h, h * dx, h * dy, h * dx * dx, h * dx * dy, h * dy * dy]
        parts += [weight * g for g in g_image] + [weight * g_depth]
        sums[i] = [part.sum() for part in parts]
    light = np.einsum("chw,hw->c", g_image, transmittance)
    return Truth(image, 1 - transmittance, depth, doubtful, sums, light)


def make_gradients(splats: Splats2D, seed: int = 5, alpha: bool = True, depth: bool = True) -> dict[str, Array]:
    """dL/doutput, random, zero at doubtful pixels."""
    r = np.random.default_rng(seed)
    views, planes = len(splats.views), (splats.height, splats.width)
    out: dict[str, Array] = {"image": r.normal(size=(views, 3, *planes))}
    if alpha:
        out["alpha"] = r.normal(size=(views, *planes))
    if depth:
        out["depth"] = r.normal(size=(views, *planes))
    for v in range(views):
        doubtful = plain_picture(splats, v, out).doubtful
        for value in out.values():
            value[v][..., doubtful] = 0
    return out
