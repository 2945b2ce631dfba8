"""The template mesh: a grid of rays cast from inside the sculpture, slit open at eyes and mouth, and separate parts.

The grid has one row per elevation and one column per azimuth. The rows follow guides (hairline, brow, lids, lips ...),
so that the edges of lids and lips are mesh edges. Units are millimetres.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from scripts.demo_subject import parts, shape
from scripts.demo_subject.parts import Part

Array = np.ndarray
Ints = np.ndarray

# Column -> azimuth in degrees (0 = nose, positive = subject's left), for the left half.
# Column 6: inner corner of the eye, 8: corner of the mouth, 15: outer corner of the eye.
COLUMN_KEYS, AZIMUTH_KEYS = (0, 6, 8, 15, 19, 24, 32), (0.0, 12.9, 18.3, 38.2, 55.0, 86.0, 180.0)
HALF = 32
EYE_COLUMNS, MOUTH_COLUMN = (6, 15), 8


@dataclass(frozen=True)
class Guide:
    """A row given by its elevation (degrees) at some azimuths, seen from a point on the axis of the head."""

    rows_below: int  # rows from here to the next guide
    azimuths: tuple[float, ...]
    elevations: tuple[float, ...]
    origin: tuple[float, float] = (0.0, 0.0)  # y, z


def _at_heights(rows: int, front: list[tuple[float, float, float]], side: float, back: float) -> Guide:
    """A guide through points (x, y, z) of the face, then elevations at the side (90 deg) and the back (180 deg)."""
    azimuth = [float(np.degrees(np.arctan2(x, z))) for x, _, z in front]
    elevation = [float(np.degrees(np.arctan2(y, np.hypot(x, z)))) for x, y, z in front]
    return Guide(rows, (*azimuth, 90.0, 180.0), (*elevation, side, back))


GUIDES = {
    "crown": Guide(6, (0, 180), (90, 90)),
    "hairline": Guide(5, (0, 90, 180), (48, 42, 40)),
    "brow": _at_heights(6, [(0, 41, 85), (30, 43, 78)], 25, 20),
    "eyes": _at_heights(6, [(0, 17, 84), (14.9, 17.6, 65), (45.6, 20.5, 57.5)], 11, 6),
    "cheekbone": _at_heights(7, [(0, -2, 103), (30, -2, 76)], -2, -4),
    "nose": _at_heights(4, [(0, -23.5, 91), (26, -24, 78)], -14, -16),
    "upper lip": _at_heights(3, [(0, -39.4, 92), (5.5, -37.6, 92), (12, -39.8, 89), (25.6, -44.4, 79)], -22, -22),
    "mouth": _at_heights(3, [(0, -47.2, 91), (7, -46.9, 90), (25.8, -45.4, 78)], -25, -24),
    "lower lip": _at_heights(5, [(0, -57.2, 91), (9, -56.6, 89), (25, -47.4, 79)], -28, -25),
    "chin": _at_heights(3, [(0, -78, 90), (40, -66, 60)], -36, -28),
    "jaw": Guide(3, (0, 40, 90, 180), (-52.5, -50, -42, -34)),
    "throat": Guide(4, (0, 60, 90, 180), (-52, -50, -42, -26), (-42, -16)),
    "neck": Guide(3, (0, 90, 180), (-12, -6, 4), (-118, -25)),
    "collar": Guide(4, (0, 90, 180), (-24, -14, -6), (-156, -32)),
    "hem": Guide(0, (0, 90, 180), (-46, -34, -40), (-190, -36)),
}


@dataclass
class Template:
    """The finished mesh. Vertex attributes are [V]; texture coordinates belong to face corners."""

    vertices: Array  # [V, 3] mm
    faces: Ints  # [F, 3]
    uv: Array  # [F, 3, 2] in [0, 1]
    part: Ints  # [V] index into `names`
    names: list[str]
    row: Array  # [V] row of the skin grid (NaN elsewhere)
    column: Array  # [V] signed column of the skin grid (NaN elsewhere)
    lip: Array  # [V] +1 above the mouth slit, -1 below it, 0 where there is no slit
    lid: Array  # [V] +1 above an eye slit, -1 below it, 0 where there is no slit
    depth: Array  # [V] rings behind the slit, 0 on the skin
    rows: dict[str, int] = field(default_factory=dict)  # guide -> row

    def of(self, *names: str) -> np.ndarray:
        """[V] bool: vertices of these parts."""
        return np.isin(self.part, [self.names.index(n) for n in names])


def guide_rows() -> dict[str, int]:
    """Row number of every guide; the crown is row 0, a single vertex."""
    rows, at = {}, 0
    for name, guide in GUIDES.items():
        rows[name] = at
        at += guide.rows_below
    return rows


def column_azimuth(column: Array) -> Array:
    """Azimuth in radians of signed columns."""
    return np.sign(column) * np.radians(np.interp(np.abs(column), COLUMN_KEYS, AZIMUTH_KEYS))


def _elevation(guide: Guide, azimuth: Array) -> Array:
    return np.radians(np.interp(np.degrees(np.abs(azimuth)), guide.azimuths, guide.elevations))


def lid_elevation(azimuth: Array, upper: bool) -> Array:
    """Elevation (radians) of the edge of an open lid at these azimuths, by fixed-point iteration on the lid sphere."""
    inner, outer = (np.radians(AZIMUTH_KEYS[COLUMN_KEYS.index(c)]) for c in EYE_COLUMNS)
    t = np.clip((np.abs(azimuth) - inner) / (outer - inner), 0.0, 1.0)
    bow = np.sin(np.pi * t**0.86) ** 0.75 * 6.4 if upper else -(np.sin(np.pi * t**1.12) ** 0.85) * 4.0
    y = 17.6 + (20.5 - 17.6) * t + bow
    x = 14.9 + (45.6 - 14.9) * t
    z = 65.0 + (57.5 - 65.0) * t
    c = shape.EYE_CENTRE
    for _ in range(6):
        ball = shape.LID_RADIUS**2 - (x - c[0]) ** 2 - (y - c[1]) ** 2
        z = np.maximum(z, c[2] + np.sqrt(np.maximum(ball, 0.0)))
        x = np.tan(np.abs(azimuth)) * z
    return np.arctan2(y, np.hypot(x, z))


def _rays(rows: dict[str, int]) -> tuple[Array, Array, Array]:
    """Elevations above and below each row [R + 1, C] (they differ along the slits) and origins [R + 1, 2]."""
    azimuth = column_azimuth(np.arange(2 * HALF) - HALF + 0.0)
    columns = np.abs(np.arange(2 * HALF) - HALF)
    count = rows["hem"] + 1
    above, below, origin = np.zeros((count, len(azimuth))), np.zeros((count, len(azimuth))), np.zeros((count, 2))
    names = list(GUIDES)
    in_eye = (columns > EYE_COLUMNS[0]) & (columns < EYE_COLUMNS[1])
    for name, after in zip(names, names[1:], strict=False):
        start, end = _elevation(GUIDES[name], azimuth), _elevation(GUIDES[after], azimuth)
        if name == "eyes":
            start = np.where(in_eye, lid_elevation(azimuth, upper=False), start)
        if after == "eyes":
            end = np.where(in_eye, lid_elevation(azimuth, upper=True), end)
        n = GUIDES[name].rows_below
        for i in range(n + 1):
            f = i / n
            row = rows[name] + i
            elevation = start + (end - start) * f
            (above if i else below)[row] = elevation
            if 0 < i < n:
                below[row] = elevation
            origin[row] = (1 - f) * np.array(GUIDES[name].origin) + f * np.array(GUIDES[after].origin)
    below[-1] = above[-1]
    return above, below, origin


def _cast_rows(elevation: Array, origin: Array) -> Array:
    """Points [R, C, 3] where the rays of the grid leave the head."""
    azimuth = np.broadcast_to(column_azimuth(np.arange(2 * HALF) - HALF + 0.0), elevation.shape)
    direction = np.stack(
        [np.cos(elevation) * np.sin(azimuth), np.sin(elevation), np.cos(elevation) * np.cos(azimuth)], -1
    )
    start = np.zeros_like(direction)
    start[..., 1:] = origin[:, None, :]
    return shape.cast(start.reshape(-1, 3), direction.reshape(-1, 3)).reshape(direction.shape)


def _skin(rows: dict[str, int]) -> Part:
    """The grid with its slits. Ids: 0 is the crown, then row by row, then the lower copies along the slits."""
    above, below, origin = _rays(rows)
    width, columns = 2 * HALF, np.arange(2 * HALF) - HALF
    distance = np.abs(columns)
    slits = {
        "eyes": np.flatnonzero((distance > EYE_COLUMNS[0]) & (distance < EYE_COLUMNS[1])),
        "mouth": np.flatnonzero(distance < MOUTH_COLUMN),
    }
    grid = 1 + rows["hem"] * width
    count = grid + sum(len(slit) for slit in slits.values())
    id_above = np.concatenate([np.zeros((1, width), int), np.arange(1, grid).reshape(-1, width)])
    id_below = id_above.copy()
    vertices, row, column = np.zeros((count, 3)), np.zeros(count), np.zeros(count)
    vertices[0] = shape.cast(np.zeros((1, 3)), np.array([[0.0, 1.0, 0.0]]))[0]
    vertices[1:grid] = _cast_rows(above[1:], origin[1:]).reshape(-1, 3)
    row[1:grid], column[1:grid] = np.repeat(np.arange(1, rows["hem"] + 1), width), np.tile(columns, rows["hem"])
    edges = {name: np.zeros(count) for name in slits}
    start = grid
    for name, slit in slits.items():
        r, lower = rows[name], start + np.arange(len(slit))
        id_below[r, slit] = lower
        vertices[lower] = _cast_rows(below[r : r + 1], origin[r : r + 1])[0, slit]
        row[lower], column[lower] = r, columns[slit]
        edges[name][id_above[r, slit]], edges[name][lower] = 1.0, -1.0
        start += len(slit)
    faces, uv = _grid_faces(id_above, id_below, rows["hem"])
    tables = (id_above, id_below)
    return Part("skin", vertices, faces, uv, row, column, edges["mouth"], edges["eyes"], tables=tables)


def _grid_faces(id_above: Ints, id_below: Ints, last: int) -> tuple[Ints, Array]:
    """Triangles of the grid, outside counter-clockwise; the diagonal is mirrored between the halves of the face."""
    width = 2 * HALF
    faces, uv = [], []
    across, along = _texture_scale()

    def corner(row: int, column: int) -> tuple[float, float]:
        return float(across[column]), float(along[row])

    for r in range(last):
        for j in range(width):
            k = (j + 1) % width
            a, b, c, d = id_below[r, j], id_below[r, k], id_above[r + 1, j], id_above[r + 1, k]
            ua, ub, uc, ud = corner(r, j), corner(r, j + 1), corner(r + 1, j), corner(r + 1, j + 1)
            if r == 0:
                faces.append((a, c, d))
                uv.append((ua, uc, ud))
            elif j < HALF:
                faces += [(a, c, d), (a, d, b)]
                uv += [(ua, uc, ud), (ua, ud, ub)]
            else:
                faces += [(a, c, b), (b, c, d)]
                uv += [(ua, uc, ub), (ub, uc, ud)]
    return np.array(faces), np.array(uv)


def _texture_scale() -> tuple[Array, Array]:
    """u of the columns [C + 1] and v of the rows [R + 1]: wide columns and tall rows get more texels."""
    step = np.diff(np.degrees(column_azimuth(np.arange(-HALF, HALF + 1.0))))
    u = np.concatenate([[0.0], np.cumsum(step**0.6)])
    tall = {"crown": 1.8, "hairline": 1.5, "throat": 2.2, "neck": 2.2, "collar": 2.2}
    v = np.concatenate(
        [[0.0], np.cumsum(np.repeat([tall.get(n, 1.0) for n in GUIDES], [g.rows_below for g in GUIDES.values()]))]
    )
    return 0.002 + 0.996 * u / u[-1], 0.002 + 0.746 * v / v[-1]


def _loop(id_above: Ints, id_below: Ints, row: int, first: int, last: int) -> Ints:
    """Ids around a slit: along its upper edge from `first` to `last` (signed columns), back along the lower edge."""
    top = id_above[row, first + HALF : last + HALF + 1]
    bottom = id_below[row, first + HALF + 1 : last + HALF][::-1]
    return np.concatenate([top, bottom])


def build() -> Template:
    """The whole template: skin, linings of mouth and lids, teeth, tongue, eyeballs and ears."""
    rows = guide_rows()
    skin = _skin(rows)
    above, below = skin.tables
    for side in (1, -1):  # lid edges lie on the lid sphere exactly
        first, last = sorted((side * EYE_COLUMNS[0], side * EYE_COLUMNS[1]))
        loop = _loop(above, below, rows["eyes"], first, last)
        centre = shape.EYE_CENTRE * np.array([side, 1, 1])
        offset = skin.vertices[loop] - centre
        length = np.linalg.norm(offset, axis=-1, keepdims=True)
        near = length < shape.LID_RADIUS + 1.5
        skin.vertices[loop] = np.where(near, centre + offset / length * (shape.LID_RADIUS - 0.3), skin.vertices[loop])
    mouth = _loop(above, below, rows["mouth"], -MOUTH_COLUMN, MOUTH_COLUMN)
    pieces = [skin, parts.mouth_lining(skin, mouth)]
    for side in (1, -1):
        first, last = sorted((side * EYE_COLUMNS[0], side * EYE_COLUMNS[1]))
        loop = _loop(above, below, rows["eyes"], first, last)
        pieces.append(parts.lid_lining(skin, loop, side))
    pieces += [parts.teeth(True), parts.teeth(False), parts.tongue()]
    pieces += [parts.eyeball(1), parts.eyeball(-1), parts.ear(1), parts.ear(-1)]
    return _assemble(pieces, rows)


def _assemble(pieces: list[Part], rows: dict[str, int]) -> Template:
    """Concatenate the parts; those with `attached` faces refer to skin ids below zero as -1 - id."""
    names = [p.name for p in pieces]
    starts = np.cumsum([0] + [len(p.vertices) for p in pieces])
    faces = []
    for piece, start in zip(pieces, starts, strict=False):
        f = piece.faces
        faces.append(np.where(f < 0, -1 - f, f + start))

    def gather(name: str, empty: float) -> Array:
        values = [getattr(p, name) for p in pieces]
        return np.concatenate(
            [np.full(len(p.vertices), empty) if v is None else v for p, v in zip(pieces, values, strict=True)]
        )

    return Template(
        vertices=np.concatenate([p.vertices for p in pieces]),
        faces=np.concatenate(faces).astype(np.int64),
        uv=np.concatenate([p.uv for p in pieces]),
        part=np.repeat(np.arange(len(pieces)), [len(p.vertices) for p in pieces]),
        names=names,
        row=gather("row", np.nan),
        column=gather("column", np.nan),
        lip=gather("lip", 0.0),
        lid=gather("lid", 0.0),
        depth=gather("depth", 0.0),
        rows=rows,
    )
