"""The sculpture: a signed distance field of a head, built from blended ellipsoids and capsules.

Millimetres, FLAME axes (x to the subject's left, y up, the face looks along +z), symmetric in x.
Blending and ellipsoids follow Inigo Quilez, "Distance functions" (iquilezles.org/articles/distfunctions).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Array = np.ndarray
Point = Sequence[float]

EYE_CENTRE = np.array([31.0, 20.0, 59.5])  # of the left eye; the right one is its mirror image
EYE_RADIUS = 12.2
LID_RADIUS = 13.9


def ellipsoid(p: Array, centre: Point, radii: Point) -> Array:
    """Approximate signed distance [N] of points [N, 3] to an ellipsoid."""
    q = (p - np.asarray(centre)) / np.asarray(radii)
    k0 = np.linalg.norm(q, axis=-1)
    k1 = np.linalg.norm(q / np.asarray(radii), axis=-1)
    return k0 * (k0 - 1.0) / np.maximum(k1, 1e-9)


def capsule(p: Array, start: Point, end: Point, radius_start: float, radius_end: float) -> Array:
    """Signed distance [N] to a segment whose thickness changes linearly from start to end."""
    a, b = np.asarray(start, float), np.asarray(end, float)
    axis = b - a
    t = np.clip((p - a) @ axis / (axis @ axis), 0.0, 1.0)
    return np.linalg.norm(p - a - t[:, None] * axis, axis=-1) - (radius_start + t * (radius_end - radius_start))


def join(a: Array, b: Array, k: float) -> Array:
    """Union with a fillet of size k."""
    h = np.clip(0.5 + 0.5 * (b - a) / k, 0.0, 1.0)
    return b + (a - b) * h - k * h * (1.0 - h)


def carve(a: Array, b: Array, k: float) -> Array:
    """`a` without `b`, the edge rounded by k."""
    return -join(-a, b, k)


def _skull_and_jaw(p: Array) -> Array:
    d = ellipsoid(p, (0, 44, -16), (73, 84, 93))
    d = join(d, ellipsoid(p, (0, 47, 12), (60, 56, 73)), 22)  # forehead
    d = join(d, ellipsoid(p, (0, -6, 18), (60, 78, 65)), 20)  # middle of the face
    d = join(d, ellipsoid(p, (0, -41, 22), (48, 43, 56)), 18)  # jaw
    d = join(d, capsule(p, (43, -43, 2), (11, -74, 62), 10, 11), 16)  # edge of the jaw
    d = join(d, ellipsoid(p, (0, -76.5, 71), (15, 14, 17.5)), 16)  # chin
    d = join(d, ellipsoid(p, (42, -2, 54), (18, 13, 20)), 22)  # cheekbone
    return join(d, ellipsoid(p, (33, -29, 58), (19, 19, 17)), 18)  # flesh of the cheek


def _eye_region(d: Array, p: Array) -> Array:
    d = join(d, capsule(p, (6, 39, 76), (40, 43, 61), 8.5, 7), 10)  # brow ridge
    d = carve(d, ellipsoid(p, (29, 21, 86), (17, 9.5, 16)), 12)  # socket
    d = carve(d, ellipsoid(p, (14, 21, 83), (5, 8, 10)), 8)  # beside the bridge of the nose
    d = join(d, np.linalg.norm(p - EYE_CENTRE, axis=-1) - LID_RADIUS, 3.5)  # lids
    return join(d, capsule(p, (18, 9, 66), (42, 9.5, 58), 3.0, 2.5), 8)  # below the lower lid


def _nose(d: Array, p: Array) -> Array:
    d = join(d, capsule(p, (0, 30, 78.5), (0, -6, 94), 5.8, 7.4), 10)  # bridge
    d = join(d, ellipsoid(p, (0, -9.5, 95.5), (9.4, 8.6, 9.6)), 6)  # tip
    d = join(d, ellipsoid(p, (10.2, -13.5, 87.0), (6.2, 6.8, 9.5)), 5)  # wings
    return join(d, capsule(p, (0, -15, 95), (0, -22, 86), 4.2, 4.0), 5)  # columella


def _mouth(d: Array, p: Array) -> Array:
    p = p - [0.0, 3.0, 0.0]
    d = join(d, ellipsoid(p, (0, -48, 62), (33, 27, 26)), 18)  # muzzle
    d = carve(d, capsule(p, (0, -28, 94.0), (0, -40, 95.2), 2.0, 2.4), 5)  # philtrum
    upper = join(
        capsule(p, (0, -46.0, 88.4), (6.5, -45.0, 88.2), 4.2, 4.5),
        capsule(p, (6.5, -45, 88.2), (24, -48.8, 78), 4.4, 1.8),
        2,
    )
    lower = join(
        capsule(p, (0, -54.6, 87.6), (9, -54.2, 86.6), 4.8, 4.7),
        capsule(p, (9, -54.2, 86.6), (23.5, -50.2, 78), 4.7, 1.8),
        2,
    )
    d = join(d, upper, 3.5)
    d = join(d, lower, 3.5)
    d = carve(d, capsule(p, (0, -50.2, 97), (18, -50.0, 88.5), 1.6, 0.6), 3.0)  # line between the lips
    return carve(d, capsule(p, (0, -66.5, 92.5), (16, -64, 87), 3.0, 2.0), 10)  # fold above the chin


def _neck(d: Array, p: Array) -> Array:
    squeezed = p * np.array([1.0, 1.0, 0.97])
    d = join(d, capsule(squeezed, (0, -45, -22), (0, -210, -40), 47, 53), 16)
    d = join(d, capsule(p, (49, -44, -26), (13, -172, 14), 6, 8), 16)  # sternocleidomastoid
    d = join(d, capsule(p, (0, -104, 21), (0, -128, 18), 7, 7), 14)  # larynx
    d = join(d, capsule(p, (18, -80, -70), (84, -204, -48), 17, 20), 24)  # trapezius
    d = join(d, ellipsoid(p, (0, -214, -2), (84, 46, 62)), 26)  # chest
    return join(d, ellipsoid(p, (0, -246, -34), (152, 70, 74)), 30)  # shoulders


def head(points: Array) -> Array:
    """Signed distance [N] (millimetres, negative inside) of points [N, 3] to the skin, without ears and eyeballs."""
    p = np.asarray(points, float).copy()
    p[:, 0] = np.sqrt(p[:, 0] ** 2 + 0.04)  # |x| without a crease down the middle
    d = _skull_and_jaw(p)
    d = _neck(d, p)
    d = _eye_region(d, p)
    d = _nose(d, p)
    return _mouth(d, p)


def normals(points: Array, step: float = 0.4) -> Array:
    """Unit gradient [N, 3] of the field."""
    g = np.stack([head(points + step * e) - head(points - step * e) for e in np.eye(3)], -1)
    return g / np.maximum(np.linalg.norm(g, axis=-1, keepdims=True), 1e-9)


def cast(origins: Array, directions: Array, reach: float = 190.0) -> Array:
    """Where rays that start inside leave the head, [N, 3]. `directions` are unit vectors, `reach` is in millimetres."""
    steps = np.arange(6.0, reach, 3.0)
    outside = np.stack([head(origins + s * directions) > 0 for s in steps])
    first = outside.argmax(0)
    high = np.where(outside.any(0), steps[first], reach)
    low = high - 3.0
    for _ in range(14):
        middle = 0.5 * (low + high)
        inside = head(origins + middle[:, None] * directions) < 0
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    return origins + low[:, None] * directions


def occlusion(points: Array, normal: Array, rays: int = 40, seed: int = 1) -> Array:
    """Ambient openness [N] in [0, 1]: how freely light reaches a point, by walking the distance field."""
    rng = np.random.default_rng(seed)
    openness = np.zeros(len(points))
    for _ in range(rays):
        direction = rng.normal(size=3)
        direction = normal + direction / np.linalg.norm(direction)  # cosine-weighted around the normal
        direction /= np.maximum(np.linalg.norm(direction, axis=-1, keepdims=True), 1e-6)
        clear = np.ones(len(points))
        for s in (2.5, 6.0, 13.0, 26.0):
            clear = np.minimum(clear, np.clip(0.5 + 2.5 * head(points + s * direction + 0.5 * normal) / s, 0.0, 1.0))
        openness += clear
    return openness / rays
