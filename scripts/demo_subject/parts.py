"""The parts that hang on the skin: linings of mouth and lids, teeth, tongue, eyeballs and ears. Units are millimetres.

Face ids below zero stand for vertices of the skin: -1 - id.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scripts.demo_subject import shape

Array = np.ndarray
Ints = np.ndarray

# Rectangles (u, v, width, height) of the texture; the skin takes v < 0.75, parts of both sides share one rectangle.
UV_EYE = (0.005, 0.76, 0.23, 0.23)
UV_EAR = (0.255, 0.76, 0.23, 0.23)
UV_MOUTH = (0.505, 0.76, 0.24, 0.11)
UV_LID = (0.505, 0.88, 0.24, 0.11)
UV_TEETH = {True: (0.755, 0.76, 0.24, 0.07), False: (0.755, 0.84, 0.24, 0.07)}
UV_TONGUE = (0.755, 0.92, 0.24, 0.07)
TEETH_COLUMNS = 25


@dataclass
class Part:
    """A named piece of the mesh with optional vertex attributes [V] (see `template.Template`)."""

    name: str
    vertices: Array  # [V, 3]
    faces: Ints  # [F, 3]
    uv: Array  # [F, 3, 2]
    row: Array | None = None
    column: Array | None = None
    lip: Array | None = None
    lid: Array | None = None
    depth: Array | None = None
    tables: tuple[Ints, Ints] = (np.zeros((0, 0), np.int64), np.zeros((0, 0), np.int64))


def _sheet(ids: Ints, uv: Array, flip: bool = False) -> tuple[Ints, Array]:
    """Triangles of a grid of ids [R, C] with texture coordinates [R, C, 2]."""
    a, b, c, d = ids[:-1, :-1], ids[:-1, 1:], ids[1:, :-1], ids[1:, 1:]
    ua, ub, uc, ud = uv[:-1, :-1], uv[:-1, 1:], uv[1:, :-1], uv[1:, 1:]
    faces = np.concatenate([np.stack([a, c, d], -1).reshape(-1, 3), np.stack([a, d, b], -1).reshape(-1, 3)])
    corners = np.concatenate(
        [np.stack([ua, uc, ud], -2).reshape(-1, 3, 2), np.stack([ua, ud, ub], -2).reshape(-1, 3, 2)]
    )
    return (faces[:, ::-1], corners[:, ::-1]) if flip else (faces, corners)


def _rectangle(place: tuple[float, float, float, float], rows: int, columns: int) -> Array:
    """Texture coordinates [rows, columns, 2] that fill a rectangle."""
    u = place[0] + place[2] * np.linspace(0, 1, columns)
    v = place[1] + place[3] * np.linspace(0, 1, rows)
    return np.stack(np.meshgrid(u, v), -1)


def _lining(
    name: str, loop: Ints, rings: list[Array], place: tuple[float, float, float, float], last: Array | None
) -> Part:
    """A tube from a loop of skin ids through rings [n, 3], closed by the point `last` if there is one."""
    n = len(loop)
    ids = np.concatenate([(-1 - loop)[None], np.arange(len(rings) * n).reshape(-1, n)])
    ids = np.concatenate([ids, ids[:, :1]], 1)
    uv = _rectangle(place, len(rings) + 1 + (last is not None), n + 1)
    faces, corners = _sheet(ids, uv[: len(rings) + 1])
    vertices = np.concatenate(rings)
    if last is not None:
        tip = len(vertices)
        fan = np.stack([ids[-1, :-1], np.full(n, tip), ids[-1, 1:]], -1)
        fan_uv = np.stack([uv[-2, :-1], uv[-1, :-1], uv[-2, 1:]], -2)
        faces, corners = np.concatenate([faces, fan]), np.concatenate([corners, fan_uv])
        vertices = np.concatenate([vertices, last[None]])
    depth = np.repeat(np.arange(1.0, len(rings) + 1), n)
    depth = np.append(depth, [len(rings) + 1.0] if last is not None else [])
    return Part(name, vertices, faces, corners, depth=depth)


def mouth_lining(skin: Part, loop: Ints) -> Part:
    """The inside of the lips and the cavity: a sack that opens like a funnel behind the closed lips."""
    edge = skin.vertices[loop]
    lip = skin.lip[loop] if skin.lip is not None else np.zeros(len(loop))
    wide = np.sqrt(np.clip(1.0 - (edge[:, 0] / np.abs(edge[:, 0]).max()) ** 2, 0.0, 1.0))
    rings = []
    for back, up, squeeze in ((3.0, 0.6, 0.985), (8.0, 5.0, 0.95), (20.0, 13.0, 0.92), (40.0, 14.0, 0.75)):
        ring = edge.copy()
        ring[:, 0] *= squeeze
        ring[:, 1] += lip * wide * up
        ring[:, 2] = ring[:, 2] - back
        rings.append(ring)
    part = _lining("mouth", loop, rings, UV_MOUTH, np.array([0.0, -47.0, 40.0]))
    part.lip = np.append(np.tile(lip * 1.0, len(rings)), 0.0)
    return part


def lid_lining(skin: Part, loop: Ints, side: int) -> Part:
    """The rim of the lids, from their edge down to the inside of the eyeball."""
    centre = shape.EYE_CENTRE * np.array([side, 1, 1])
    offset = skin.vertices[loop] - centre
    length = np.linalg.norm(offset, axis=-1, keepdims=True)
    unit = offset / length
    rings = [
        centre + unit * np.minimum(length - 1.2, shape.EYE_RADIUS + 0.15),
        centre + unit * (shape.EYE_RADIUS - 1.8),
    ]
    part = _lining("left lid" if side > 0 else "right lid", loop, rings, UV_LID, None)
    part.lid = np.tile(skin.lid[loop] if skin.lid is not None else np.zeros(len(loop)), len(rings))
    return part


def eyeball(side: int) -> Part:
    """A sphere with a shallow cornea, seen along +z, open at the back."""
    angles = np.radians([0.0, 7, 13, 19, 24.5, 28.5, 35, 48, 66, 88, 112])
    turns = np.linspace(0, 2 * np.pi, 19)[:-1]
    radius = shape.EYE_RADIUS + 0.45 * np.clip(1 - (angles / np.radians(29)) ** 2, 0, 1)
    points = [np.array([[0.0, 0.0, radius[0]]])]
    for angle, r in zip(angles[1:], radius[1:], strict=True):
        ring = [np.sin(angle) * np.cos(turns), np.sin(angle) * np.sin(turns), np.full(len(turns), np.cos(angle))]
        points.append(r * np.stack(ring, -1))
    vertices = np.concatenate(points)
    place = np.array([UV_EYE[0] + UV_EYE[2] / 2, UV_EYE[1] + UV_EYE[3] / 2])
    n, rings = len(turns), len(angles) - 1
    plane = np.concatenate(
        [np.zeros((1, 2))] + [a / angles[-1] * np.stack([np.cos(turns), np.sin(turns)], -1) for a in angles[1:]]
    )
    vertex_uv = place + plane * 0.5 * UV_EYE[2]
    faces = [(0, 1 + j, 1 + (j + 1) % n) for j in range(n)]
    for r in range(rings - 1):
        for j in range(n):
            a, b = 1 + r * n + j, 1 + r * n + (j + 1) % n
            faces += [(a, a + n, b + n), (a, b + n, b)]
    ids = np.array(faces)
    centre = shape.EYE_CENTRE * np.array([side, 1, 1])
    return Part("left eyeball" if side > 0 else "right eyeball", vertices + centre, ids, vertex_uv[ids])


def teeth(upper: bool) -> Part:
    """A row of teeth along a parabolic arch: front, edge and back."""
    turns = np.radians(np.linspace(-88, 88, TEETH_COLUMNS))
    arch = np.stack([24.0 * np.sin(turns), 0 * turns, 83.5 - 34.0 * (1 - np.cos(turns))], -1)
    outward = np.stack([np.sin(turns) * 0.8, 0 * turns, np.cos(turns)], -1)
    if not upper:
        arch = arch * np.array([0.95, 1, 1]) - np.array([0, 0, 2.2])
    # (height, thickness) from root to edge and back: heights above the line between the lips
    profile = [(9.5, -1.0), (5.5, 0.6), (2.0, 0.7), (-0.8, 0.0), (-0.8, -2.2), (6.0, -5.0)]
    sink = np.abs(np.sin(turns)) ** 5 * (3.0 if upper else -6.0)  # back teeth hide in the gums
    rows = []
    for height, out in profile:
        y = -47.8 + height if upper else -49.2 - (height + 0.6) * 0.85
        row = arch + outward * out
        row[:, 1] += y + sink
        rows.append(row)
    ids = np.arange(len(profile) * TEETH_COLUMNS).reshape(-1, TEETH_COLUMNS)
    faces, uv = _sheet(ids, _rectangle(UV_TEETH[upper], len(profile), TEETH_COLUMNS), flip=not upper)
    return Part("upper teeth" if upper else "lower teeth", np.concatenate(rows), faces, uv)


def tongue() -> Part:
    """The upper half of a flat ellipsoid behind the lower teeth."""
    across, along = np.meshgrid(np.linspace(-1, 1, 9), np.linspace(0.08, 1, 7))
    width = np.sqrt(np.clip(1 - (1 - along * 1.02) ** 2, 0, 1)) * 17
    x = across * width
    y = (
        -57.0
        + 5.0 * np.sqrt(np.clip(1 - across**2, 0, 1)) * np.clip(4 * along, 0, 1)
        - 1.2 * np.exp(-((across / 0.2) ** 2))
    )
    z = 74.0 - 34.0 * along
    ids = np.arange(63).reshape(7, 9)
    faces, uv = _sheet(ids, _rectangle(UV_TONGUE, 7, 9), flip=True)
    return Part("tongue", np.stack([x, y, z], -1).reshape(-1, 3), faces, uv)


def ear(side: int) -> Part:
    """A shell in polar coordinates: bowl, ridge, groove and rolled rim, then the back of the ear down to the head."""
    rings = np.array([0.0, 0.2, 0.36, 0.5, 0.62, 0.74, 0.85, 0.94, 1.0, 0.97, 0.86, 0.66])
    relief = np.array([-3.5, -3.4, -3.0, -0.5, 3.6, 0.4, 0.2, 4.6, 3.2, 0.0, -4.5, -15.0])
    turns = np.linspace(0, 2 * np.pi, 23)[:-1]  # 0 = backwards, 90 degrees = up
    back, up = np.cos(turns), np.sin(turns)
    width = 15.0 + 3.0 * up - 1.5 * np.clip(-up, 0, 1) ** 4
    height = np.where(up > 0, 29.0, 31.0)
    front = np.clip(-back, 0, 1) ** 0.9  # the side that grows out of the cheek
    lobe = np.clip(-up - 0.55, 0, 1) / 0.45
    points = []
    for i, (rho, depth) in enumerate(zip(rings, relief, strict=True)):
        a, b = rho * width * back, rho * height * up
        soft = depth * (1 - 0.95 * front) * (1 - 0.7 * lobe if i > 2 else 1 - 0.3 * lobe)
        soft = soft + (
            3.5 * np.exp(-(((turns - np.pi - 0.25) / 0.4) ** 2)) if 0.3 < rho < 0.7 and i < 6 else 0
        )  # tragus
        lifted = soft - 5.0 * front * rho + (3.0 * lobe if i < 9 else 0)
        points.append(np.stack([a, b, lifted], -1))
    local = np.concatenate([points[0][:1], *points[1:]])
    tilt = np.radians(11)
    flare = np.radians(19)
    rotate = np.array([[np.cos(tilt), np.sin(tilt), 0], [-np.sin(tilt), np.cos(tilt), 0], [0, 0, 1]])
    local = local @ np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1.0]]) @ rotate
    frame = np.array([[np.sin(flare), 0, -np.cos(flare)], [0, 1, 0], [np.cos(flare), 0, np.sin(flare)]])
    vertices = (local @ frame + np.array([73.5, 8.0, -14.0])) * np.array([side, 1, 1])
    n = len(turns)
    angle = np.linspace(0, 1, len(rings))
    plane = np.concatenate([np.zeros((1, 2))] + [r * np.stack([back, up], -1) for r in angle[1:]])
    vertex_uv = np.array([UV_EAR[0] + UV_EAR[2] / 2, UV_EAR[1] + UV_EAR[3] / 2]) + plane * 0.5 * UV_EAR[2]
    faces = [(0, 1 + j, 1 + (j + 1) % n) for j in range(n)]
    for r in range(len(rings) - 2):
        for j in range(n):
            c, d = 1 + r * n + j, 1 + r * n + (j + 1) % n
            faces += [(c, c + n, d + n), (c, d + n, d)]
    ids = np.array(faces)
    if side < 0:
        ids = ids[:, ::-1]
    return Part("left ear" if side > 0 else "right ear", vertices, ids, vertex_uv[ids])
