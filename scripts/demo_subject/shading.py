"""Light on skin, eyes, cloth and hair. Arrays are float32; vectors are [3, N] or [..., 3] as stated; linear RGB."""

from __future__ import annotations

import numpy as np

Floats = np.ndarray


def _f(*values: float) -> Floats:
    return np.array(values, np.float32)


# direction to the light (world), colour, how far light wraps around the terminator
LIGHTS = tuple(
    (_f(*direction) / np.float32(np.linalg.norm(direction)), _f(*colour), np.float32(wrap))
    for direction, colour, wrap in (
        ((-0.45, 0.50, 0.74), (1.22, 1.13, 1.02), 0.22),
        ((0.80, 0.15, 0.58), (0.34, 0.38, 0.44), 0.35),
        ((0.35, 0.55, -0.76), (0.30, 0.30, 0.32), 0.25),
    )
)
SKY, GROUND = _f(0.27, 0.29, 0.32), _f(0.15, 0.125, 0.11)
WRAP = _f(1.25, 0.85, 0.75)  # red light travels further under the skin
WET = 2.8  # gloss above this is a wet surface with a sharp highlight


def unit(v: Floats, axis: int = -1) -> Floats:
    """Vectors scaled to length one along `axis`."""
    if axis == 0:
        length = np.sqrt(v[0] * v[0] + v[1] * v[1] + v[2] * v[2])
        return v / np.maximum(length, np.float32(1e-9))
    length = np.sqrt(np.einsum("...i,...i->...", v, v))[..., None]
    return v / np.maximum(length, np.float32(1e-9))


def _dot(a: Floats, b: Floats) -> Floats:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def surface(normal: Floats, view: Floats, openness: Floats, paint: Floats, rough: Floats) -> Floats:
    """Colours [3, N] of a surface under `LIGHTS`: wrapped diffuse light, ambient light and two Blinn-Phong lobes.

    Args:
        normal: [3, N] unit normals of the side that is seen.
        view: [3, N] unit vectors to the camera.
        openness: [N] how much ambient light arrives.
        paint: [4, N] linear albedo and gloss.
        rough: [3, N] small offsets that break up the highlights.
    """
    facing = np.clip(_dot(normal, view), 0, 1)
    uneven = unit(normal + rough, 0)
    up = 0.5 + 0.5 * uneven[1]
    direct = np.float32(0.35) + np.float32(0.65) * openness
    fresnel = (1 - facing) ** 3 * np.float32(0.65) + np.float32(0.35)
    gloss = paint[3]
    wet = np.flatnonzero(gloss > WET)
    diffuse = [(GROUND[i] + (SKY[i] - GROUND[i]) * up) * openness for i in range(3)]
    shine = [np.zeros_like(openness) for _ in range(3)]
    for light, colour, wrap in LIGHTS:
        cosine = _dot(uneven, light[:, None])
        half = unit(view + light[:, None], 0)
        aligned = np.clip(_dot(uneven, half), 0, 1)
        a4 = (aligned * aligned) ** 2
        a12 = a4 * a4 * a4
        lobe = (np.float32(0.10) * a12 + np.float32(0.22) * a12 * a12 * a12) * gloss * fresnel
        smooth = np.clip(_dot(normal[:, wet], half[:, wet]), 0, 1)
        lobe[wet] = np.float32(2.5) * smooth**240 + np.float32(0.02) * a12[wet]
        lobe *= np.clip(2 * cosine, 0, 1) * direct * openness
        for i in range(3):
            spread = wrap * WRAP[i]
            diffuse[i] += np.clip(cosine + spread, 0, None) * (direct * (colour[i] / (1 + spread)))
            shine[i] += lobe * colour[i]
    return np.stack([paint[i] * diffuse[i] + shine[i] for i in range(3)])


def strands(points: Floats, tangents: Floats, outward: Floats, albedo: Floats, openness: Floats, eye: Floats) -> Floats:
    """Colours [S, P, 3] of thin fibres after Kajiya and Kay (1989), with a white and a tinted highlight.

    Args:
        points, tangents: [S, P, 3] world points and unit tangents.
        outward: [S, 3] unit vectors away from the head.
        albedo: [S, P, 3] linear colours.
        openness: [S, P] how much light arrives between the other fibres.
        eye: [3] the camera.
    """
    view = unit(eye - points)
    across = np.einsum("si,spi->sp", outward, tangents)[..., None]
    normal = unit(outward[:, None] - across * tangents)
    up = 0.5 + 0.5 * normal[..., 1:2]
    light_sum = GROUND + (SKY - GROUND) * up
    shine = np.zeros_like(points)
    for light, colour, _ in LIGHTS:
        along = tangents @ light
        sine = np.sqrt(np.clip(1 - along * along, 0, 1))
        front = np.clip((normal @ light) * np.float32(0.6) + np.float32(0.4), 0, 1)
        light_sum = light_sum + ((np.float32(0.45) * sine + np.float32(0.55) * front) * front)[..., None] * colour
        half = unit(view + light)
        for shift, power, weight, tint in ((-0.08, 30, 0.10, _f(1.0, 0.95, 0.9)), (0.12, 7, 0.09, _f(1.0, 0.62, 0.36))):
            moved = unit(tangents + np.float32(shift) * normal)
            dot = np.einsum("spi,spi->sp", moved, half)
            align = np.clip(1 - dot * dot, 0, 1) ** power
            shine += (np.float32(weight) * align * front)[..., None] * (colour * tint)
    return (albedo * light_sum + np.float32(0.55) * shine) * openness[..., None]


def display(colour: Floats) -> Floats:
    """Linear light to sRGB in [0, 1], with a soft shoulder above 0.6, from a table of 4096 steps."""
    steps = np.linspace(0.0, 4.0, 16384)
    c = np.where(steps > 0.6, 0.6 + 0.4 * (1 - np.exp(-(steps - 0.6) / 0.4)), steps)
    table = np.where(c <= 0.0031308, 12.92 * c, 1.055 * np.maximum(c, 1e-9) ** (1 / 2.4) - 0.055).astype(np.float32)
    index = np.clip(colour * np.float32(16383 / 4.0), 0, 16383)
    return table[(index + np.float32(0.5)).astype(np.int32)]
