"""How the subject moves: speech-like jaw and lips, blinks, glances and head turns, and a tracker's errors on top.

Radians, metres and expression coefficients; the parameter names and shapes are those of FLAME parameter files.
"""

from __future__ import annotations

import numpy as np

from scripts.demo_subject.rig import EXPRESSIONS, IDENTITIES
from utils.maths.random import generator

Array = np.ndarray

# jaw angle (rad), then lip expressions of sounds: closed, a, e, o, u, f, s, pause
VISEMES: tuple[tuple[float, dict[str, float]], ...] = (
    (0.00, {"lips pressed": 0.55}),
    (0.27, {"upper lip up": 0.35, "lower lip down": 0.3}),
    (0.13, {"mouth wide": 0.55, "upper lip up": 0.35, "lower lip down": 0.35}),
    (0.17, {"pucker": 0.65, "lower lip down": 0.2}),
    (0.08, {"pucker": 1.0, "upper lip up": 0.2}),
    (0.05, {"lower lip down": -0.4, "upper lip up": 0.8}),
    (0.04, {"mouth wide": 0.6, "upper lip up": 0.5, "lower lip down": 0.75}),
    (0.01, {}),
)
# Standard deviations. The root joint is 0.3 m below the crown: its error alone moves the hair by 0.7 mm, half a pixel.
NOISE = {
    "rotation": 0.0025,
    "neck_pose": 0.002,
    "jaw_pose": 0.004,
    "eyes_pose": 0.01,
    "translation": 0.0003,
    "expr": 0.02,
}
SHAPE = {
    "face width": -0.35, "jaw width": -1.1, "nose length": 0.35, "skull height": 0.2,
    "lip fullness": 0.9, "eye distance": 0.3, "brow depth": -0.3, "chin length": -0.4,
}  # fmt: skip


def _keys(values: Array, every: int, count: int) -> Array:
    """Eased interpolation of key poses [K, ...] that lie `every` timesteps apart, at `count` timesteps."""
    time = np.arange(count) / every
    index = np.minimum(time.astype(int), len(values) - 2)
    f = (time - index).reshape(-1, *[1] * (values.ndim - 1))
    f = f * f * (3 - 2 * f)
    return values[index] * (1 - f) + values[index + 1] * f


def _speech(rng: np.random.Generator, count: int) -> tuple[Array, Array]:
    """Jaw angle [T] and expression [T, 100] of babble that visits every viseme in shuffled rounds."""
    rounds = count // (3 * len(VISEMES)) + 2
    order = np.concatenate([rng.permutation(len(VISEMES)) for _ in range(rounds)])
    poses = np.zeros((len(order), 101))
    for row, which in zip(poses, order, strict=True):
        loudness = rng.uniform(0.75, 1.1)
        row[0] = VISEMES[which][0] * loudness
        for name, value in VISEMES[which][1].items():
            row[1 + EXPRESSIONS.index(name)] = value * loudness
    poses = _keys(poses, 3, count)
    return poses[:, 0], poses[:, 1:]


def _feelings(rng: np.random.Generator, expr: Array) -> None:
    """Slow changes of mood and blinks, added in place to the expression [T, 100]."""
    count = len(expr)
    t = np.arange(count)
    slow = {"smile": (0.42, 0.45, 17.0), "brows up": (0.12, 0.5, 13.0), "brows together": (0.1, 0.4, 11.0)}
    slow |= {"mouth corners down": (0.05, 0.2, 19.0), "cheeks puffed": (0.05, 0.25, 23.0), "sneer": (0.05, 0.25, 14.5)}
    slow |= {"squint": (0.12, 0.25, 15.5), "mouth to the left": (0.0, 0.3, 21.0), "eyes wide": (0.05, 0.25, 12.5)}
    for name, (mean, swing, period) in slow.items():
        wave = np.sin(2 * np.pi * (t / period + rng.uniform()))
        expr[:, EXPRESSIONS.index(name)] += mean + swing * wave
    closing = {-1: 0.55, 0: 1.0, 1: 0.75, 2: 0.2}
    start = int(rng.integers(3, 6))
    for centre in range(start, count + 2, 11):
        wink = rng.uniform(0.9, 1.0, 2)
        for offset, value in closing.items():
            if 0 <= centre + offset < count:
                for side, name in enumerate(("blink left", "blink right")):
                    expr[centre + offset, EXPRESSIONS.index(name)] = value * wink[side]


def truth(timesteps: int, seed: int) -> dict[str, Array]:
    """The exact parameters of the capture: per-frame [T, ...] arrays and `shape` [300]."""
    rng = generator(seed, "demo subject motion")
    t = np.arange(timesteps)
    jaw, expr = _speech(rng, timesteps)
    _feelings(rng, expr)

    def wave(swing: float, period: float) -> Array:
        return swing * np.sin(2 * np.pi * (t / period + rng.uniform()))

    turn = np.stack([wave(0.12, 14.5) + wave(0.04, 5.0), wave(0.34, 18.5) + wave(0.05, 6.0), wave(0.08, 16.0)], 1)
    glances = np.stack([rng.uniform(-0.13, 0.2, timesteps), rng.uniform(-0.35, 0.35, timesteps)], 1)
    gaze = np.repeat(glances, 4, axis=0)[:timesteps]  # eyes jump, then rest
    left, right = gaze - [0, 0.03], gaze + [0, 0.03]
    zero = np.zeros((timesteps, 1))
    shape = np.zeros(300)
    shape[: len(IDENTITIES)] = [SHAPE[name] for name in IDENTITIES]
    return {
        "rotation": turn * 0.4,
        "neck_pose": turn * 0.6 + np.stack([wave(0.02, 7.0), wave(0.02, 8.0), wave(0.02, 9.0)], 1),
        "jaw_pose": np.stack([jaw, wave(0.012, 10.0), wave(0.008, 13.0)], 1),
        "eyes_pose": np.concatenate([left, zero, right, zero], 1),
        "translation": np.stack([wave(0.006, 19.0), wave(0.004, 12.0), wave(0.006, 21.0)], 1),
        "expr": expr,
        "shape": shape,
    }


def tracked(exact: dict[str, Array], seed: int) -> dict[str, Array]:
    """What a tracker would have stored: the exact parameters with white noise on every per-frame group."""
    rng = generator(seed, "demo subject tracker")
    noisy = {name: value.copy() for name, value in exact.items()}
    for name, sigma in NOISE.items():
        noise = rng.normal(0.0, sigma, exact[name].shape)
        if name == "expr":
            noise[:, len(EXPRESSIONS) :] = 0.0  # the model has no such directions
        noisy[name] = noisy[name] + noise
    return noisy
