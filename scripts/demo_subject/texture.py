"""Paint: every colour is a function of the point on the template, baked once into one texture.

Colours are linear RGB; points are in millimetres. Texture channels: red, green, blue, gloss.
"""

from __future__ import annotations

import cv2
import numpy as np
from diff_gaussian_rasterization.mesh import rasterize_mesh

from scripts.demo_subject import shape
from scripts.demo_subject.parts import UV_TEETH
from scripts.demo_subject.rig import bump, smoothstep
from scripts.demo_subject.template import Template

Array = np.ndarray

HAIR_COLOUR = np.array([0.085, 0.043, 0.022])
HAIRLINE = (
    (0, 18, 34, 47, 57, 65, 73, 83, 87, 108, 120, 136, 180),  # azimuth, degrees
    (84, 87, 82, 64, 42, 12, -8, -8, 32, 34, -6, -42, -54),  # height, mm
)


def linear(red: int, green: int, blue: int) -> Array:
    """Linear RGB of an sRGB colour given in 0..255."""
    c = np.array([red, green, blue]) / 255.0
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def _scramble(h: np.ndarray) -> Array:
    """Hash of 32-bit integers, as fractions in [0, 1]."""
    h = (h ^ (h >> 15)) * np.uint32(2246822519)
    h = (h ^ (h >> 13)) * np.uint32(3266489917)
    return (h ^ (h >> 16)) * (1.0 / 4294967295.0)


def _lattice(corner: np.ndarray, seed: int) -> list[np.ndarray]:
    """Partial hashes of integer coordinates [N, 3], one per axis; their exclusive or is the hash of the point."""
    factors = (73856093, 19349663, 83492791)
    offset = (seed * 2654435761) & 0xFFFFFFFF
    h = [((corner[:, i] * factors[i]) & 0xFFFFFFFF).astype(np.uint32) for i in range(3)]
    return [h[0] ^ np.uint32(offset), h[1], h[2]]


def noise(p: Array, cell: float, seed: int = 0) -> Array:
    """Smooth value noise [N] in [0, 1] on a lattice of `cell` millimetres, from a hash of the lattice points."""
    q = p / cell
    base = np.floor(q)
    f = q - base
    f = f * f * (3.0 - 2.0 * f)
    near, far = _lattice(base.astype(np.int64), seed), _lattice(base.astype(np.int64) + 1, seed)
    total = np.zeros(len(p))
    for hx, fx in ((near[0], 1 - f[:, 0]), (far[0], f[:, 0])):
        for hy, fy in ((near[1], 1 - f[:, 1]), (far[1], f[:, 1])):
            hxy, fxy = hx ^ hy, fx * fy
            total += _scramble(hxy ^ near[2]) * (fxy * (1 - f[:, 2])) + _scramble(hxy ^ far[2]) * (fxy * f[:, 2])
    return total


def fbm(p: Array, cell: float, octaves: int, seed: int = 0) -> Array:
    """Noise summed over octaves, [N], about zero, within [-1, 1]."""
    total = np.zeros(len(p))
    for i in range(octaves):
        total += 0.5**i * (2.0 * noise(p, cell / 2**i, seed + i) - 1.0)
    return total / (2.0 - 0.5 ** (octaves - 1))


def spots(p: Array, cell: float, seed: int, share: float) -> Array:
    """[N] in [0, 1]: round spots of random size, one in that share of the lattice cells (Worley 1996)."""
    q = p / cell
    home = np.floor(q).astype(np.int64)
    result = np.zeros(len(p))
    for shift in np.ndindex(3, 3, 3):
        corner = home + shift - 1
        jitter, size, chance = (
            [_scramble(np.bitwise_xor.reduce(_lattice(corner, seed + k))) for k in range(3)],
            _scramble(np.bitwise_xor.reduce(_lattice(corner, seed + 3))),
            _scramble(np.bitwise_xor.reduce(_lattice(corner, seed + 4))),
        )
        distance = np.linalg.norm(q - corner - 0.15 - 0.7 * np.stack(jitter, -1), axis=-1)
        spot = (0.4 + 0.6 * size) * (1 - smoothstep(0.4, 1.0, distance / (0.1 + 0.2 * size)))
        result = np.maximum(result, np.where(chance < share, spot, 0.0))
    return result


def hair_cover(p: Array) -> Array:
    """[N] in [0, 1]: where the skin carries hair; the edge is ragged."""
    azimuth = np.degrees(np.arctan2(np.abs(p[:, 0]), p[:, 2] + 4.0))
    line = np.interp(azimuth, *HAIRLINE)
    return smoothstep(-4.0, 5.0, p[:, 1] - line + 5.0 * fbm(p, 9.0, 2, 7))


def _mix(base: Array, colour: Array, amount: Array) -> Array:
    return base + (colour - base) * amount[:, None]


def _skin(p: Array, row: Array, column: Array, rows: dict[str, int]) -> tuple[Array, Array]:
    """Colour [N, 3] and gloss [N] of skin, lips, lids, stubble of hair and shirt."""
    mirrored = np.abs(p) * [1, 0, 0] + p * [0, 1, 1]
    colour = np.tile(linear(226, 178, 152), (len(p), 1))
    colour *= (1.0 + 0.07 * fbm(p, 26.0, 3, 1) + 0.08 * fbm(p, 2.6, 2, 2))[:, None]
    flush = bump(mirrored, (42, -18, 62), (17, 14, 24)) + 0.8 * bump(p, (0, -12, 100), (12, 9, 16))
    flush = flush + 0.35 * bump(p, (0, -81, 84), (16, 10, 16)) + 0.25 * fbm(p, 14.0, 2, 3)
    colour = _mix(colour, linear(206, 118, 100), np.clip(0.42 * flush, 0, 1))
    freckles = np.zeros(len(p))
    face = (p[:, 2] > 30) & (p[:, 1] > -60) & (p[:, 1] < 60)
    freckles[face] = np.maximum(spots(p[face], 4.6, 11, 0.6), spots(p[face], 2.9, 31, 0.5))
    where = bump(mirrored, (30, -4, 75), (26, 13, 30)) + 0.8 * bump(p, (0, 0, 95), (16, 16, 30)) + 0.12
    colour = _mix(colour, linear(150, 92, 66), np.clip(0.8 * freckles * where, 0, 0.55))
    colour = _mix(colour, linear(176, 120, 108), 0.45 * bump(mirrored, (30, 14, 72), (15, 6, 12)))  # under the eyes
    gloss = 0.55 + 0.5 * bump(p, (0, 10, 95), (13, 45, 40)) + 0.25 * bump(p, (0, 62, 84), (40, 20, 30))
    gloss = gloss * (0.75 + 0.5 * noise(p, 1.6, 5))

    colour, gloss = _lips(p, row, column, rows, colour, gloss)
    colour = _lids(p, row, column, rows, colour)
    colour = _mix(colour, linear(60, 24, 18), 0.95 * bump(mirrored, (6.2, -20.5, 91.0), (2.6, 1.9, 4.2)))  # nostrils
    brow = bump(mirrored, (15, 40.5, 80), (9, 3.4, 14)) + bump(mirrored, (30, 43.5, 78), (10, 3.0, 14))
    brow = brow + 0.7 * bump(mirrored, (41, 41.5, 68), (7, 2.4, 12))
    colour = _mix(colour, HAIR_COLOUR * 1.3, np.clip(0.5 * brow, 0, 0.6))
    corner = bump(mirrored, (27.5, -45.6, 77), (3.6, 2.6, 8))
    colour, gloss = _mix(colour, linear(150, 88, 74), 0.6 * corner), gloss * (1 - corner)
    hair = smoothstep(0.0, 1.0, hair_cover(p - [0.0, 5.0, 0.0])) * (0.75 + 0.25 * hair_cover(p - [0.0, 16.0, 0.0]))
    colour = _mix(colour, HAIR_COLOUR * 0.55, 0.93 * hair)
    gloss = gloss * (1 - 0.9 * hair)
    return _shirt(p, row, rows, colour, gloss)


def _lips(
    p: Array, row: Array, column: Array, rows: dict[str, int], colour: Array, gloss: Array
) -> tuple[Array, Array]:
    top, bottom = rows["upper lip"], rows["lower lip"]
    red = smoothstep(top - 0.35, top + 0.55, row) * (1 - smoothstep(bottom - 0.7, bottom + 0.3, row))
    red = red * (1 - smoothstep(6.6, 8.3, np.abs(column)))
    stripes = fbm(p * [1.0, 0.22, 0.22], 1.3, 2, 21)
    lip = np.tile(linear(190, 112, 102), (len(p), 1)) * (1 + 0.2 * stripes + 0.1 * fbm(p, 7.0, 2, 22))[:, None]
    seam = np.exp(-(((row - rows["mouth"]) / 0.5) ** 2)) * (np.abs(column) < 8.6)
    lip = _mix(lip, linear(96, 40, 38), 0.85 * seam)
    return _mix(colour, lip, 0.85 * red), gloss + red * (0.7 + 0.5 * stripes)


def _lids(p: Array, row: Array, column: Array, rows: dict[str, int], colour: Array) -> Array:
    side = np.abs(column)
    in_eye = smoothstep(4.6, 6.2, side) * (1 - smoothstep(14.8, 16.4, side))
    edge = np.exp(-(((row - rows["eyes"]) / 0.55) ** 2)) * in_eye
    upper = row < rows["eyes"]
    crease = np.exp(-(((row - rows["eyes"] + 2.1) / 0.5) ** 2)) * in_eye * upper
    shadow = np.exp(-(((row - rows["eyes"] + 1.2) / 1.4) ** 2)) * in_eye * upper
    colour = _mix(colour, linear(178, 118, 104), 0.5 * shadow)
    colour = _mix(colour, linear(112, 62, 52), 0.6 * crease)
    return _mix(colour, linear(70, 34, 30), edge * np.where(upper, 0.95, 0.5))


def _shirt(p: Array, row: Array, rows: dict[str, int], colour: Array, gloss: Array) -> tuple[Array, Array]:
    edge = shirt_edge(p)
    cloth = smoothstep(-0.8, 0.8, edge)
    weave = 0.5 + 0.5 * np.sin(p[:, 0] * 1.1 + 0.4 * p[:, 2]) * np.sin(p[:, 1] * 1.3)
    rib = 0.5 + 0.5 * np.sin(np.arctan2(p[:, 0], p[:, 2] + 34.0) * 90.0)
    band = edge < 13.0
    tone = np.where(band, 0.85 + 0.2 * rib, 0.94 + 0.12 * weave) * (
        1 + 0.22 * fbm(p, 24.0, 3, 31) + 0.1 * fbm(p, 2.0, 1, 33)
    )
    tone = tone * np.where(np.abs(edge - 13.0) < 0.9, 0.45, 1.0)
    fabric = linear(52, 74, 98) * tone[:, None]
    return _mix(colour, fabric, cloth), gloss * (1 - 0.95 * cloth)


def shirt_edge(p: Array) -> Array:
    """[N] millimetres below the edge of the collar (negative above it); lower in front than behind."""
    return -128.0 - 0.28 * (p[:, 2] + 30.0) - p[:, 1]


def _eyeball(p: Array) -> tuple[Array, Array]:
    side = np.sign(p[:, :1])
    q = (p - shape.EYE_CENTRE * np.concatenate([side, 0 * side + 1, 0 * side + 1], 1)) / shape.EYE_RADIUS
    r = np.degrees(np.arctan2(np.hypot(q[:, 0], q[:, 1]), q[:, 2])) / 28.5  # 1 at the edge of the iris
    turn = np.arctan2(q[:, 1], q[:, 0])
    ray = np.stack([np.cos(turn) * 9, np.sin(turn) * 9, 1.2 * r], -1)
    fibre = 0.6 * fbm(ray, 1.0, 3, 41) + 0.4 * fbm(ray * [2.6, 2.6, 0.6], 1.0, 2, 42)
    white = np.tile(linear(232, 224, 218), (len(p), 1))
    veins = smoothstep(0.35, 0.6, fbm(np.stack([np.cos(turn) * 7, np.sin(turn) * 7, r * 2], -1), 1.0, 3, 43))
    white = _mix(white, linear(205, 130, 118), 0.35 * veins * smoothstep(1.2, 2.6, r) + 0.25 * smoothstep(1.5, 2.9, r))
    iris = np.tile(linear(92, 128, 140), (len(p), 1)) * (1 + 0.9 * fibre)[:, None]
    iris = _mix(iris, linear(168, 118, 62), np.clip(1 - smoothstep(0.4, 0.72, r + 0.12 * fibre), 0, 1) * 0.8)
    iris = _mix(iris, linear(24, 34, 42), smoothstep(0.74, 0.98, r) * 0.85)
    colour = _mix(iris, white, smoothstep(0.97, 1.12, r))
    colour = _mix(linear(8, 7, 7) + 0 * colour, colour, smoothstep(0.36, 0.43, r))
    return colour, np.full(len(p), 3.0)


def _teeth(p: Array, along: Array, down: Array) -> tuple[Array, Array]:
    index = along * 11.0
    gap = np.abs(index - np.round(index))
    colour = np.tile(linear(238, 228, 208), (len(p), 1)) * (1 + 0.04 * fbm(p, 3.0, 2, 51))[:, None]
    colour = _mix(colour, linear(120, 84, 66), 0.7 * np.exp(-((gap / 0.06) ** 2)))
    gum = 1 - smoothstep(0.14, 0.22, down + 0.10 * np.cos(2 * np.pi * index))
    colour = _mix(colour, linear(186, 92, 92), gum)
    back = smoothstep(0.62, 0.8, down)
    return _mix(colour, linear(90, 50, 46), back), np.full(len(p), 1.6)


def _paint(p: Array, part: np.ndarray, fields: Array, uv: Array, t: Template) -> Array:
    """[N, 4] colour and gloss of texels of known part; `fields` holds row, column and depth."""
    result = np.zeros((len(p), 4))
    for index, name in enumerate(t.names):
        k = part == index
        if not k.any():
            continue
        row, column, depth = fields[k].T
        if name == "skin":
            colour, gloss = _skin(p[k], row, column, t.rows)
        elif name.endswith("eyeball"):
            colour, gloss = _eyeball(p[k])
        elif name.endswith("teeth"):
            place = UV_TEETH[name == "upper teeth"]
            down = (uv[k, 1] - place[1]) / place[3]
            colour, gloss = _teeth(p[k], (uv[k, 0] - place[0]) / place[2], down)
        elif name.endswith("ear"):
            colour = np.tile(linear(222, 158, 136), (k.sum(), 1)) * (1 + 0.1 * fbm(p[k], 8.0, 3, 61))[:, None]
            gloss = np.full(k.sum(), 0.5)
        elif name.endswith("lid"):
            colour = _mix(
                np.tile(linear(214, 142, 128), (k.sum(), 1)), linear(150, 70, 64), smoothstep(1.0, 2.0, depth)
            )
            gloss = np.full(k.sum(), 1.8)
        else:
            wet = linear(178, 84, 82) if name == "tongue" else linear(150, 58, 56)
            colour = np.tile(wet, (k.sum(), 1)) * (1 + 0.12 * fbm(p[k], 4.0, 3, 71))[:, None]
            colour = colour * (1 - 0.75 * smoothstep(1.2, 3.0, depth))[:, None]
            gloss = np.full(k.sum(), 1.0)
        result[k] = np.concatenate([np.clip(colour, 0.0, 1.0), gloss[:, None]], 1)
    return result


def bake(t: Template, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Paint [size, size, 4] and offsets of the normal [size, size, 3] of the template."""
    corners = np.concatenate([t.uv.reshape(-1, 2) * size, np.ones((3 * len(t.faces), 1))], 1).astype(np.float32)
    face, weights, _ = rasterize_mesh(corners, np.arange(len(corners)).reshape(-1, 3), size, size)
    texture = np.zeros((size, size, 4), np.float32)
    hit = face >= 0
    ids, w = t.faces[face[hit]], weights[hit].astype(float)[..., None]
    fields = np.nan_to_num(np.stack([t.row, t.column, t.depth], -1))
    fields[t.part != 0, :2] = 0.0
    seam = (t.column[ids].max(1) - t.column[ids].min(1)) > 32  # faces across the back, where columns jump
    inside = (fields[ids] * w).sum(1)
    inside[seam, 1] = 32.0
    y, x = np.nonzero(hit)
    uv = np.stack([x + 0.5, y + 0.5], -1) / size
    points, part = (t.vertices[ids] * w).sum(1), t.part[ids[:, 0]]
    texture[hit] = _paint(points, part, inside, uv, t)
    rough = np.zeros((size, size, 3), np.float32)
    rough[hit] = _roughness(points) * (part < t.names.index("left eyeball"))[:, None]
    return _spread(texture, hit), _spread(rough, hit)


def _roughness(p: Array) -> Array:
    """[N, 3] offsets of the unit normal: pores and shallow unevenness."""
    return np.stack([0.10 * fbm(p, 1.7, 2, s) + 0.07 * fbm(p, 6.0, 2, s + 5) for s in (101, 111, 121)], -1)


def _spread(texture: np.ndarray, filled: np.ndarray, steps: int = 4) -> np.ndarray:
    """Grow the painted islands outwards, so that interpolation at their edges meets paint."""
    mask = filled.astype(np.float32)
    for _ in range(steps):
        total, count = cv2.blur(texture * mask[..., None], (3, 3)), cv2.blur(mask, (3, 3))
        new = (mask == 0) & (count > 0)
        texture[new] = total[new] / count[new][:, None]
        mask[new] = 1.0
    return texture
