"""Turns the template into a model in FLAME's file format: joints, skin weights, directions of shape and pose, regions.

Fields of motion are sums of soft bumps in the space of the template (millimetres); the written model is in metres.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from scripts.demo_subject import shape
from scripts.demo_subject.template import Template

Array = np.ndarray
Mask = np.ndarray

EDITION = "mien-demo-1"
JOINTS = np.array([[0, -168, -30], [0, -98, -24], [0, -12, -8], shape.EYE_CENTRE, shape.EYE_CENTRE * [-1, 1, 1]], float)
PARENTS = np.array([2**32 - 1, 0, 1, 1, 1])
EXPRESSIONS = (
    "brows up", "brows together", "blink left", "blink right", "smile", "mouth corners down", "pucker", "mouth wide",
    "cheeks puffed", "sneer", "upper lip up", "lower lip down", "lips pressed", "squint", "eyes wide",
    "mouth to the left",
)  # fmt: skip
IDENTITIES = (
    "face width", "jaw width", "nose length", "skull height", "lip fullness", "eye distance", "brow depth",
    "chin length",
)  # fmt: skip


def smoothstep(low: float, high: float, x: Array) -> Array:
    """0 below `low`, 1 above `high`, a cubic between."""
    t = np.clip((x - low) / (high - low), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def bump(p: Array, centre: Sequence[float] | Array, radii: float | Sequence[float]) -> Array:
    """A soft bump [V] of height one with compact support of about twice the radii."""
    q = (p - np.asarray(centre)) / np.asarray(radii)
    return np.exp(-0.5 * (q * q).sum(-1) * 1.6)


def _pair(p: Array, centre: Sequence[float], radii: float | Sequence[float], move: Sequence[float]) -> Array:
    """Displacement [V, 3] of a bump on the left and its mirror image on the right."""
    mirror = np.array([-1.0, 1.0, 1.0])
    c, m = np.asarray(centre, float), np.asarray(move, float)
    return bump(p, c, radii)[:, None] * m + bump(p, c * mirror, radii)[:, None] * (m * mirror)


def lower_lip_gate(t: Template) -> Array:
    """[V] in [0, 1]: 1 on what follows the jaw near the mouth, 0 above, soft at the corners and across the cheeks."""
    p = t.vertices
    line = -12.0 - (p[:, 2] + 8.0) * (35.5 / 92.0)
    below = line - p[:, 1]
    mouth_row = t.rows["mouth"]
    sign = np.where(np.isnan(t.row), 0.0, np.sign(np.nan_to_num(t.row) - mouth_row))
    sign = np.where(t.lip != 0, -t.lip, sign)
    wide = np.sqrt(np.clip(1.0 - (p[:, 0] / 25.5) ** 2, 0.0, 1.0)) * smoothstep(30, 66, p[:, 2] + 12.0 * t.depth)
    return smoothstep(-15.0, 15.0, below + sign * wide * (15.0 + 6.0 * t.depth))


def skin_weights(t: Template) -> Array:
    """[V, 5] weights that sum to one: root, neck, jaw, left eye, right eye."""
    p = t.vertices
    neck = smoothstep(-178.0, -86.0, p[:, 1] + 0.22 * (p[:, 2] + 20.0))
    jaw = lower_lip_gate(t) * smoothstep(-30.0, 8.0, p[:, 2]) * smoothstep(-128.0, -92.0, p[:, 1])
    jaw[t.of("upper teeth", "left ear", "right ear", "left lid", "right lid")] = 0.0
    jaw[t.of("lower teeth", "tongue")] = 1.0
    inside = t.of("upper teeth", "lower teeth", "tongue", "mouth", "left eyeball", "right eyeball")
    neck[inside] = 1.0
    weights = np.stack([1 - neck, neck * (1 - jaw), neck * jaw, np.zeros_like(neck), np.zeros_like(neck)], -1)
    weights[t.of("left eyeball")] = np.eye(5)[3]
    weights[t.of("right eyeball")] = np.eye(5)[4]
    return weights


def joint_regressor(t: Template) -> Array:
    """[5, V] rows that sum to one and give `JOINTS` on the template exactly (least-norm change of a plain mean)."""
    p = t.vertices
    chosen = [
        np.linalg.norm(p - JOINTS[0], axis=-1) < 75,
        np.linalg.norm(p - JOINTS[1], axis=-1) < 65,
        (np.abs(p[:, 1] + 12) < 22) & (np.abs(p[:, 2] + 8) < 25) & (t.part == 0),
        t.of("left eyeball"),
        t.of("right eyeball"),
    ]
    rows = np.zeros((5, len(p)))
    for joint, mask in enumerate(chosen):
        system = np.concatenate([p[mask].T, np.ones((1, mask.sum()))])
        mean = np.full(mask.sum(), 1.0 / mask.sum())
        rows[joint, mask] = mean + np.linalg.pinv(system) @ (np.append(JOINTS[joint], 1.0) - system @ mean)
    return rows


def blink(t: Template, side: int) -> Array:
    """[V, 3]: the upper lid meets the lower one (a little of it rises), the skin up to the brow follows."""
    eye, brow = t.rows["eyes"], t.rows["brow"]
    move = np.zeros_like(t.vertices)
    on_side = np.sign(np.nan_to_num(t.column)) == side
    upper = np.flatnonzero((t.lid > 0) & on_side & (t.part == 0))
    lower = {int(t.column[i]): i for i in np.flatnonzero((t.lid < 0) & on_side & (t.part == 0))}
    gap = {int(t.column[i]): t.vertices[lower[int(t.column[i])]] - t.vertices[i] for i in upper}
    for i in np.flatnonzero((t.part == 0) & on_side):
        column, row = int(t.column[i]), t.row[i]
        if column not in gap:
            continue
        if t.lid[i] < 0 or row > eye:
            share = -0.14 * np.exp(-(((row - eye) / 1.5) ** 2))
        else:
            share = 0.88 * np.clip((row - brow) / (eye - brow), 0.0, 1.0) ** 1.7
        move[i] = gap[column] * share
        move[i, 2] += 0.9 * abs(share) * np.exp(-(((row - eye) / 3.0) ** 2))
    lining = t.of("left lid" if side > 0 else "right lid")
    edges = np.flatnonzero((t.row == eye) & (t.part == 0) & on_side)
    for i in np.flatnonzero(lining):  # the rim goes with the nearest vertex of the edge
        near = edges[np.argmin(np.linalg.norm(t.vertices[edges] - t.vertices[i], axis=-1))]
        move[i] = move[near]
    return move


def expressions(t: Template) -> Array:
    """[V, 3, 16] displacements in millimetres at coefficient one, in the order of `EXPRESSIONS`."""
    p = t.vertices
    low = lower_lip_gate(t)[:, None]
    up = 1.0 - low
    lips = bump(p, (0, -48, 86), (26, 14, 24))[:, None]
    x = p[:, :1]
    lid_below = _pair(p, (31, 12, 70), (16, 8, 14), (0, 2.6, 0.4))
    fields = [
        _pair(p, (27, 46, 75), (22, 18, 25), (0.4, 6.5, -0.6)),
        _pair(p, (13, 39, 80), (14, 13, 20), (-2.6, -4.6, 1.0)),
        blink(t, 1),
        blink(t, -1),
        _pair(p, (27, -46, 77), (14, 14, 20), (5.8, 6.6, -4.2))
        + _pair(p, (41, -20, 64), (16, 15, 20), (1.5, 4.0, 2.5)),
        _pair(p, (25, -49, 78), (13, 13, 20), (1.0, -6.2, -1.0)) + _pair(p, (0, -70, 88), (16, 9, 20), (0, 1.5, 1)),
        lips * np.concatenate([-0.36 * x, 0 * x, 6.0 + 0 * x], 1) + up * lips * [0, 1.2, 0] - low * lips * [0, 1.2, 0],
        _pair(p, (25, -48, 78), (16, 13, 22), (6.0, -0.6, -3.6)) + lips * [0, 0, -1.2],
        _pair(p, (38, -42, 62), (17, 17, 20), (6.5, 0, 3.5)) + lips * [0, 0, 1.5],
        _pair(p, (11, -13, 90), (9, 9, 14), (1.2, 3.6, 0.4))
        + up * _pair(p, (9, -41, 88), (11, 9, 16), (0.3, 3.4, 0.6)),
        up * _pair(p, (6, -43, 90), (13, 9, 16), (0, 3.2, 0.8)),
        low * _pair(p, (6, -52, 88), (13, 9, 16), (0, -3.6, 0.8)),
        lips * (up * [0, -2.0, -2.8] + low * [0, 2.0, -2.8]),
        lid_below + _pair(p, (38, -2, 66), (15, 11, 18), (0, 2.0, 1.2)) + 0.18 * (blink(t, 1) + blink(t, -1)),
        -0.24 * (blink(t, 1) + blink(t, -1)) + _pair(p, (28, 45, 75), (20, 14, 25), (0, 2.0, 0)),
        bump(p, (0, -49, 86), (30, 18, 26))[:, None] * [5.0, 0, 0],
    ]
    result = np.stack(fields, -1)
    still = t.of("left eyeball", "right eyeball", "upper teeth", "lower teeth", "tongue", "left ear", "right ear")
    result[still] = 0.0
    deep = np.flatnonzero(t.of("mouth"))
    result[deep] *= np.clip(1.0 - 0.33 * (t.depth[deep] - 1.0), 0.0, 1.0)[:, None, None]
    return result


def identities(t: Template) -> Array:
    """[V, 3, 8] displacements in millimetres at coefficient one, ordered as `IDENTITIES`; eyeballs stay rigid."""
    p = t.vertices.copy()
    for name, side in (("left eyeball", 1), ("right eyeball", -1)):
        p[t.of(name)] = shape.EYE_CENTRE * [side, 1, 1]
    x, zero = p[:, :1], np.zeros((len(p), 1))
    low = lower_lip_gate(t)[:, None]
    lips = bump(p, (0, -48, 88), (24, 12, 20))[:, None]
    mouth = t.rows["mouth"]
    off_seam = (1.0 - np.exp(-((np.nan_to_num(t.row, nan=mouth) - mouth) ** 2) / 3.0))[:, None]
    above = smoothstep(20, 110, p[:, 1])[:, None]
    fields = [
        bump(p, (0, 0, 10), (200, 90, 90))[:, None] * np.concatenate([0.055 * x, zero, zero], 1),
        bump(p, (0, -60, 20), (200, 34, 60))[:, None] * np.concatenate([0.07 * x, zero, zero], 1),
        _pair(p, (0, -10, 98), (13, 14, 22), (0, -1.0, 1.4)),
        above * [0, 4.0, 0],
        lips * off_seam * ((1 - low) * [0, 1.0, 0] - low * [0, 1.2, 0]) + lips * [0, 0, 0.8],
        _pair(p, (31, 20, 62), (26, 26, 36), (1.6, 0, 0)),
        _pair(p, (20, 43, 78), (26, 12, 20), (0, 0.4, 1.8)),
        bump(p, (0, -88, 66), (40, 22, 40))[:, None] * [0, -4.0, 1.0],
    ]
    return np.stack(fields, -1)


def pose_correctives(t: Template) -> Array:
    """[V, 3, 36] millimetres per entry of (R - I), row-major, of neck, jaw, left eye, right eye."""
    p = t.vertices
    result = np.zeros((len(p), 3, 36))
    pitch, yaw = 7, 2  # entries [2, 1] = sin(pitch) and [0, 2] = sin(yaw)
    result[..., pitch] = _pair(p, (0, -112, 20), (24, 18, 24), (0, -1.0, 4.0))
    side = bump(p, (40, -112, 0), (22, 30, 30)) - bump(p, (-40, -112, 0), (22, 30, 30))
    result[..., yaw] = side[:, None] * [0.0, 0.0, 5.0]
    result[..., 9 + pitch] = _pair(p, (36, -32, 60), (15, 18, 22), (-6.0, 0, -3.0)) + _pair(
        p, (0, -98, 56), (30, 12, 24), (0, -6.0, -4.0)
    )
    result[..., 18 + pitch] = 0.95 * blink(t, 1)
    result[..., 27 + pitch] = 0.95 * blink(t, -1)
    result[t.of("left eyeball", "right eyeball", "upper teeth", "lower teeth", "tongue", "mouth")] = 0.0
    return result


def regions(t: Template) -> dict[str, Array]:
    """FLAME's 14 region names -> vertex ids (int64). Regions overlap."""
    p, row, column = t.vertices, np.nan_to_num(t.row, nan=-1.0), np.abs(np.nan_to_num(t.column, nan=99.0))
    skin = t.part == 0
    front = skin & (column <= 21)
    hair = skin & (row <= t.rows["hairline"]) | skin & (column > 22) & (row <= t.rows["chin"])
    neck = skin & (row > t.rows["jaw"])
    around = front & (row >= t.rows["brow"]) & (row <= t.rows["eyes"] + 3) & (column >= 4) & (column <= 18)
    eyes = around | t.of("left lid", "right lid")
    masks: dict[str, Mask] = {
        "face": front & (row > t.rows["hairline"]) & ~neck,
        "neck": neck,
        "scalp": hair & ~neck,
        "boundary": skin & (row == t.rows["hem"]),
        "right_eyeball": t.of("right eyeball"),
        "left_eyeball": t.of("left eyeball"),
        "right_ear": t.of("right ear"),
        "left_ear": t.of("left ear"),
        "forehead": front & (row > t.rows["hairline"]) & (row <= t.rows["brow"]),
        "eye_region": eyes,
        "nose": front & (column <= 6) & (row > t.rows["eyes"]) & (row <= t.rows["nose"] + 1),
        "lips": (front & (column <= 8) & (row >= t.rows["upper lip"]) & (row <= t.rows["lower lip"]))
        | (t.of("mouth") & (t.depth <= 2)),
        "right_eye_region": eyes & (p[:, 0] < 0),
        "left_eye_region": eyes & (p[:, 0] > 0),
    }
    return {name: np.flatnonzero(mask).astype(np.int64) for name, mask in masks.items()}


def flame_file(t: Template) -> dict[str, Any]:
    """The dict that a FLAME pickle holds, in metres, plain numpy arrays only."""
    count = len(t.vertices)
    shapedirs = np.zeros((count, 3, 400))
    shapedirs[..., : len(IDENTITIES)] = identities(t) / 1000.0
    shapedirs[..., 300 : 300 + len(EXPRESSIONS)] = expressions(t) / 1000.0
    regressor = joint_regressor(t)
    return {
        "v_template": t.vertices / 1000.0,
        "shapedirs": shapedirs,
        "posedirs": pose_correctives(t) / 1000.0,
        "J_regressor": regressor,
        "kintree_table": np.stack([PARENTS, np.arange(5)]).astype(np.int64),
        "weights": skin_weights(t),
        "f": t.faces.astype(np.uint32),
        "J": regressor @ t.vertices / 1000.0,
        "bs_style": "lbs",
        "bs_type": "lrotmin",
        "edition": EDITION,
    }
