"""How many vector instructions and bytes each stage needs at least: BOUNDS, one function per stage.

Instructions are those of the method as it is (4 x 4 pixel blocks, a separable SSIM window), whole registers of 16
lanes; memory is every array read or written once. Nothing is counted for overhead, so a ratio of 1 cannot be reached.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from scripts.engine_benchmark.machine import Work

FORWARD_BLOCK, BACKWARD_BLOCK = 25, 46  # instructions per 4 x 4 block and splat: offsets, quadratic, exp2, blend, tests
BACKWARD_PAIR = 45  # per splat and tile: nine sums over the tile's pixels
PASS = 4  # a splat's memory is met again after the traffic of a forward and a backward pass: two reads, one update
FLOAT = 4  # bytes
GEOMETRY = 11  # floats of a splat without its colour: mean, quaternion, scales, opacity

# Per 16 values. Window: 11 symmetric taps, two axes, on 4 maps forward and 3 backward, 11 instructions each.
# Pointwise: products of the pictures 3, similarity 12, L1 and sums 7, derivatives of the window means 15, gradient 8.
SSIM_INSTRUCTIONS = (4 + 3) * 2 * 11 + 45
# In float maps: the two pictures read forward and backward, three derivatives written and read, the gradient written.
SSIM_READ, SSIM_WRITTEN, SSIM_MAPS = 2 + 2 + 3, 3 + 1, 2 + 3 + 1

ADAM_INSTRUCTIONS = 9  # per 16 values: two moments 5, root, scale and eps, division, update

# Rig, in floats per Gaussian. Forward reads local mean, quaternion, log scales, logit and a 32-bit face; writes their
# world twins, the local scales and the triangle's scale. Backward reads the gradients of all but the last, the columns,
# two activations and the face; writes the gradients of the columns.
RIG_READ = (3 + 4 + 3 + 1 + 1) + (3 + 4 + 3 + 1 + 3) + (3 + 4 + 3 + 1) + (3 + 1) + 1
RIG_WRITTEN = (3 + 4 + 3 + 1 + 3 + 1) + (3 + 4 + 3 + 1)
FACE_READ, FACE_WRITTEN = 3 + 16 + 3, 16 + 9  # frame out and in; three corners' gradients out; indices twice


@dataclass(frozen=True)
class Facts:
    """The size of a scene, from which the work of every stage follows."""

    gaussians: int
    coefficients: int  # spherical harmonics per channel
    pairs: int  # (splat, tile)
    blocks: int  # (splat, 4 x 4 pixel block)
    pixels: int
    faces: int
    vertices: int
    flame_floats: int = 0  # of the FLAME basis in use; 0: another rig

    @property
    def columns(self) -> int:
        """Floats that are trained per Gaussian."""
        return GEOMETRY + 3 * self.coefficients


def forward(facts: Facts) -> list[Work]:
    splats = float(FLOAT * facts.columns * facts.gaussians)
    return [Work(facts.blocks * FORWARD_BLOCK, splats, 0.0, PASS * splats)]


def backward(facts: Facts) -> list[Work]:
    """Reads every splat and writes its gradients, to memory that was not in a cache."""
    splats = float(FLOAT * facts.columns * facts.gaussians)
    instructions = facts.blocks * BACKWARD_BLOCK + facts.pairs * BACKWARD_PAIR
    return [Work(instructions, splats, splats, PASS * splats)]


def ssim(facts: Facts) -> list[Work]:
    values = 3.0 * facts.pixels
    size = FLOAT * values
    return [Work(values / 16 * SSIM_INSTRUCTIONS, SSIM_READ * size, SSIM_WRITTEN * size, SSIM_MAPS * size)]


def adam(facts: Facts) -> list[Work]:
    """Reads the gradient; updates parameter and both moments."""
    values = float(facts.columns * facts.gaussians)
    return [Work(values / 16 * ADAM_INSTRUCTIONS, FLOAT * values, 3 * FLOAT * values, 4 * FLOAT * values)]


def rig(facts: Facts) -> list[Work]:
    """Memory alone; the vertices are read once and their gradient written once."""
    read = RIG_READ * facts.gaussians + FACE_READ * facts.faces + 3 * facts.vertices
    written = RIG_WRITTEN * facts.gaussians + FACE_WRITTEN * facts.faces + 3 * facts.vertices
    return [Work(0.0, float(FLOAT * read), float(FLOAT * written), float(FLOAT * (read + written)))]


def flame(facts: Facts) -> list[Work]:
    """Memory alone: the basis is read forward and backward."""
    size = float(FLOAT * facts.flame_floats)
    return [Work(0.0, 2 * size, 0.0, size)] if facts.flame_floats else []


def total(*stages: Callable[[Facts], list[Work]]) -> Callable[[Facts], list[Work]]:
    return lambda facts: [work for stage in stages for work in stage(facts)]


BOUNDS: Mapping[str, Callable[[Facts], list[Work]]] = {
    "forward": forward,
    "backward": backward,
    "sum": total(forward, backward),
    "ssim": ssim,
    "adam": adam,
    "rig": rig,
    "flame": flame,
    "step": total(forward, backward, ssim, adam, flame),
}


def work_of(stage: str, facts: Facts) -> list[Work]:
    """The work of a row, `STAGE` or `STAGE (RIVAL)`; none if its least is not known."""
    bound = BOUNDS.get(stage.split(" (")[0])
    return bound(facts) if bound else []
