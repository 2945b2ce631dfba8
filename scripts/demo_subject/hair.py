"""Hair, brows and lashes: thin ribbons that grow from faces of the template and ride on them. Units are millimetres."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from scripts.demo_subject import shape
from scripts.demo_subject.rig import smoothstep
from scripts.demo_subject.template import Template
from scripts.demo_subject.texture import HAIR_COLOUR, fbm, hair_cover, noise
from utils.maths.random import generator

Array = np.ndarray
POINTS = 8  # per strand


@dataclass
class Strands:
    """S strands of POINTS points each."""

    face: np.ndarray  # [S] the face that a strand grows from
    local: Array  # [S, POINTS, 3] mm, in the frame of that face
    width: Array  # [S] mm at the root
    colour: Array  # [S, POINTS, 3] linear RGB
    openness: Array  # [S, POINTS] ambient light that reaches it


def face_frames(vertices: Array, faces: np.ndarray) -> tuple[Array, Array]:
    """Centres [F, 3] and rotations [F, 3, 3] (columns: first edge, across, normal) of triangles."""
    a, b, c = vertices[faces[:, 0]], vertices[faces[:, 1]], vertices[faces[:, 2]]
    x = b - a
    x = x / np.linalg.norm(x, axis=-1, keepdims=True)
    n = np.cross(b - a, c - a)
    n = n / np.maximum(np.linalg.norm(n, axis=-1, keepdims=True), 1e-12)
    return (a + b + c) / 3.0, np.stack([x, np.cross(n, x), n], -1)


def _bind(t: Template, points: Array, face: np.ndarray) -> Array:
    centre, frame = face_frames(t.vertices, t.faces[face])
    return np.einsum("sji,skj->ski", frame, points - centre[:, None])


def _roots(
    t: Template, cover: Callable[[Array], Array], count: int, rng: np.random.Generator
) -> tuple[Array, np.ndarray]:
    """`count` points on the skin, as dense as `cover` says, and their faces."""
    skin = np.flatnonzero(t.part[t.faces[:, 0]] == 0)
    corners = t.vertices[t.faces[skin]]
    area = 0.5 * np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=-1)
    weight = area * cover(corners.mean(1))
    chosen = rng.choice(len(skin), 2 * count, p=weight / weight.sum())
    u = np.sqrt(rng.uniform(size=(2 * count, 1)))
    v = rng.uniform(size=(2 * count, 1))
    p = corners[chosen]
    points = (1 - u) * p[:, 0] + u * (1 - v) * p[:, 1] + u * v * p[:, 2]
    keep = np.flatnonzero(rng.uniform(size=2 * count) < cover(points))[:count]
    return points[keep], skin[chosen[keep]]


def _flow(p: Array) -> Array:
    """The direction [N, 3] in which hair is combed: from a parting over the top, down and back at the sides."""
    top = smoothstep(62, 100, p[:, 1])[:, None]
    back = smoothstep(20, 75, -p[:, 2])[:, None]
    parting = 26.0
    across = np.tanh((p[:, :1] - parting) / 5.0)
    sweep = np.concatenate([0.9 * across, 0.12 - 0.0 * across, -0.62 + 0 * across], 1)
    side = np.concatenate([0.25 * np.sign(p[:, :1]), -0.72 + 0 * across, -0.62 + 0 * across], 1)
    down = np.concatenate([0.12 * np.sign(p[:, :1]), -1.0 + 0 * across, -0.1 + 0 * across], 1)
    lower = side * (1 - back) + down * back
    flow = sweep * top + lower * (1 - top)
    swirl = np.stack([fbm(p, 13.0, 2, s) for s in (81, 82, 83)], -1)
    flow = flow + 0.42 * swirl
    return flow / np.linalg.norm(flow, axis=-1, keepdims=True)


def _grow(root: Array, length: Array, height: Array, flow: Callable[[Array], Array]) -> Array:
    """Points [S, POINTS, 3] that leave the skin, follow the flow and stay `height` [S, POINTS] above the sculpture."""
    points = [root]
    p = root.copy()
    for k in range(1, POINTS):
        p = p + flow(p) * (length / (POINTS - 1))[:, None]
        n = shape.normals(p)
        p = p + n * (height[:, k] - shape.head(p))[:, None]
        points.append(p)
    return np.stack(points, 1)


def _tint(rng: np.random.Generator, root: Array, strength: float) -> Array:
    """Colours [S, POINTS, 3]: strands differ, tips are lighter, some are golden."""
    count = len(root)
    tone = np.exp(strength * (0.5 * rng.normal(size=count) + 1.1 * fbm(root, 16.0, 2, 91)))
    gold = (rng.uniform(size=count) < 0.2) * rng.uniform(0.4, 1.0, count) * (strength > 0.3)
    colour = HAIR_COLOUR * tone[:, None] * (1 + gold[:, None] * np.array([1.5, 1.2, 0.8]))
    along = np.linspace(0, 1, POINTS)
    return colour[:, None] * (0.7 + 0.7 * along[None, :, None])


def scalp(t: Template, seed: int, count: int) -> Strands:
    """The hair of the head, short at the sides and the nape, longer and swept from a parting on top."""
    rng = generator(seed, "demo subject hair")
    root, face = _roots(t, hair_cover, count, rng)
    top = smoothstep(45, 100, root[:, 1])
    edge = smoothstep(0.55, 1.0, hair_cover(root - [0, 9, 0]))
    length = (17 + 46 * top) * (0.5 + 0.5 * edge) * rng.uniform(0.75, 1.15, len(root))
    layer = rng.uniform(size=len(root)) ** 0.8
    along = np.linspace(0, 1, POINTS)
    rise = smoothstep(-0.1, 0.6, along) * (1 - 0.5 * along**3)
    lift = (1.2 + (3.2 + 7.0 * top) * layer) * (0.5 + 0.5 * edge)
    lift = lift * (0.72 + 0.56 * noise(root, 15.0, 95))
    points = _grow(root, length, lift[:, None] * rise + 0.3, _flow)
    points += rng.normal(size=(len(root), 1, 3)) * along[None, :, None] ** 2 * 0.8
    openness = np.clip(0.38 + 0.62 * layer[:, None] ** 0.8 * (0.45 + 0.55 * np.minimum(1, along * 2.5)), 0, 1)
    return Strands(
        face, _bind(t, points, face), np.full(len(root), 0.62 * (9000 / count) ** 0.5), _tint(rng, root, 0.5), openness
    )


def _brow_cover(p: Array) -> Array:
    x = np.abs(p[:, 0])
    middle = np.interp(x, [7, 20, 33, 42, 50], [38.0, 42.0, 44.8, 43.2, 38.5])
    half = np.interp(x, [7, 12, 26, 42, 50], [1.2, 3.1, 2.8, 1.7, 0.6])
    inside = smoothstep(6.0, 14.0, x) * (1 - smoothstep(46, 50, x)) * (p[:, 2] > 40)
    return inside * (1 - smoothstep(0.7, 1.2, np.abs(p[:, 1] - middle) / half))


def brows(t: Template, seed: int, count: int = 620) -> Strands:
    """Two eyebrows: hairs that stand up near the nose and lie along the arch further out."""
    rng = generator(seed, "demo subject brows")
    root, face = _roots(t, _brow_cover, count, rng)
    outward = smoothstep(9, 24, np.abs(root[:, 0]))
    angle = rng.normal(0, 0.22, len(root)) + np.interp(np.abs(root[:, 0]), [8, 20, 34, 48], [1.15, 0.55, 0.1, -0.45])
    direction = np.stack([np.sign(root[:, 0]) * np.cos(angle), np.sin(angle), 0 * angle], -1)
    length = (5.0 + 2.5 * outward) * rng.uniform(0.7, 1.15, len(root))
    height = 0.25 + 0.9 * np.sin(np.pi * np.linspace(0, 1, POINTS))[None] * rng.uniform(0.4, 1.0, (len(root), 1))
    points = _grow(root, length, height, lambda p: direction)
    colour = _tint(rng, root, 0.25) * 0.75
    return Strands(face, _bind(t, points, face), np.full(len(root), 0.42), colour, np.full((len(root), POINTS), 0.8))


def lashes(t: Template, seed: int) -> Strands:
    """Curved lashes along the edges of the lids."""
    rng = generator(seed, "demo subject lashes")
    along = np.linspace(0, 1, POINTS)
    all_points, all_faces, all_colours = [], [], []
    for side in (1, -1):
        for lid, count, long in ((1, 48, 4.8), (-1, 18, 2.2)):
            edge = np.flatnonzero((t.lid == lid) & (t.part == 0) & (np.sign(np.nan_to_num(t.column)) == side))
            edge = edge[np.argsort(t.vertices[edge, 0] * side)]
            position = rng.uniform(0, len(edge) - 1.001, count)
            i = position.astype(int)
            root = t.vertices[edge[i]] + (t.vertices[edge[i + 1]] - t.vertices[edge[i]]) * (position - i)[:, None]
            outer = position / len(edge) - 0.45
            out = np.stack([side * 0.9 * outer, np.full(count, 0.12 * lid), np.full(count, 1.0)], -1)
            out += rng.normal(0, 0.08, out.shape)
            length = long * rng.uniform(0.7, 1.1, count) * (0.8 + 0.5 * np.clip(outer, 0, 1))
            curl = np.array([0, lid * 0.6, -0.2])
            move = out[:, None] * along[None, :, None] + curl * along[None, :, None] ** 2
            all_points.append(root[:, None] + move * length[:, None, None])
            faces = [np.flatnonzero((t.faces == edge[k]).any(1) & (t.part[t.faces].max(1) == 0))[0] for k in i]
            all_faces.append(np.array(faces))
            all_colours.append(np.tile(HAIR_COLOUR * (0.4 if lid > 0 else 1.8), (count, POINTS, 1)))
    points, face = np.concatenate(all_points), np.concatenate(all_faces)
    colour = np.concatenate(all_colours)
    return Strands(face, _bind(t, points, face), np.full(len(face), 0.26), colour, np.full((len(face), POINTS), 0.7))


def grow(t: Template, seed: int, detail: float) -> Strands:
    """All strands of the subject; less detail is fewer and wider hairs."""
    sets = [scalp(t, seed, int(9000 * detail)), brows(t, seed), lashes(t, seed)]
    fields = [np.concatenate([getattr(s, f) for s in sets]) for f in Strands.__dataclass_fields__]
    return Strands(fields[0], *(f.astype(np.float32) for f in fields[1:]))
