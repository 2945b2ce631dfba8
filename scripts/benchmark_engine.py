"""How fast the CPU rasteriser is: four head-shell scenes, forward and backward, beside its goals and hardware limits.

    python scripts/benchmark_engine.py [--threads 1 2] [--repeat 30] [--isa avx2] [--json FILE]

Times are the best of many repeats, as called from Python. `bound` counts the vector instructions of the scene's
4x4-block evaluations and its memory traffic, at the rates of the machine that the goals were set on (Zen 5, 4 GHz,
AVX-512); `goal` holds for that machine, too.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch import Tensor

from utils.io.atomic import write_json

VECTOR_RATE = 12.25e9  # 16-lane instructions per second and thread
FORWARD_INSTRUCTIONS, BACKWARD_INSTRUCTIONS = 25, 46  # per block evaluation
REDUCTION_INSTRUCTIONS = 45  # per (splat, tile) pair, backward
SPLAT_BYTES = 236  # of a splat with harmonics of degree 3; forward reads, backward reads, writes and allocates
BANDWIDTH = 37e9  # bytes per second and thread, for data beyond the caches


@dataclass(frozen=True)
class Case:
    splats: int
    size: int
    forward_goal: float  # ms, two threads
    total_goal: float  # ms, two threads, forward + backward

    @property
    def name(self) -> str:
        return f"{self.splats // 1000}k/{self.size}"


CASES = (
    Case(10_000, 256, 0.7, 1.6),
    Case(50_000, 256, 2.2, 5.0),
    Case(10_000, 512, 1.6, 3.8),
    Case(50_000, 512, 3.7, 8.5),
)


def head_shell(n: int, seed: int = 0) -> dict[str, Tensor]:
    """n flat Gaussians on a head-sized ellipsoid (0.15 x 0.22 x 0.19 m), each as large as their spacing."""
    r = np.random.default_rng(seed)
    axes = np.array([0.075, 0.11, 0.095])
    on_sphere = r.normal(size=(n, 3))
    on_sphere /= np.linalg.norm(on_sphere, axis=1, keepdims=True)
    normal = on_sphere / axes
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    # Rotation that takes +z to the normal, after a random spin about z.
    tilt = np.column_stack([1 + normal[:, 2], -normal[:, 1], normal[:, 0], np.zeros(n)])
    spin = r.uniform(0, 2 * np.pi, n) / 2
    c, s = np.cos(spin), np.sin(spin)
    quats = np.column_stack(
        [tilt[:, 0] * c, tilt[:, 1] * c + tilt[:, 2] * s, tilt[:, 2] * c - tilt[:, 1] * s, tilt[:, 0] * s]
    )
    spacing = np.sqrt(4 * np.pi * np.prod(axes) ** (2 / 3) / n)
    harmonics = 0.12 * r.normal(size=(n, 16, 3))
    harmonics[:, 0] = 1.1 * (r.uniform(size=(n, 3)) - 0.5)
    values = {
        "means": on_sphere * axes * (1 + 0.03 * r.normal(size=(n, 1))),
        "quats": quats / np.linalg.norm(quats, axis=1, keepdims=True),
        "scales": spacing * np.array([0.8, 0.8, 0.25]) * np.exp(0.45 * r.normal(size=(n, 3))),
        "opacities": np.clip(1 / (1 + np.exp(-0.5 - 1.5 * r.normal(size=n))), 0.01, 0.98),
        "sh": harmonics,
    }
    return {name: torch.tensor(value, dtype=torch.float32) for name, value in values.items()}


def camera(size: int) -> tuple[Tensor, Tensor]:
    """(world_to_camera, intrinsics): a metre away, a little from the side; the head fills 3/4 of the height."""
    yaw, pitch = 0.35, -0.1
    turn = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    nod = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
    view = np.eye(4)
    view[:3, :3], view[2, 3] = nod @ turn, 1.0
    focal = 0.75 * size / 0.22
    intrinsics = np.array([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])
    return torch.tensor(view, dtype=torch.float32), torch.tensor(intrinsics, dtype=torch.float32)


def measure(case: Case, threads: int, repeat: int) -> tuple[float, float]:
    """Best seconds of forward and of backward (gradients of all splat parameters)."""
    from diff_gaussian_rasterization import rasterize

    splats = {name: value.requires_grad_() for name, value in head_shell(case.splats).items()}
    view, intrinsics = camera(case.size)
    gradient = torch.randn(3, case.size, case.size, generator=torch.Generator().manual_seed(0))
    forward = backward = float("inf")
    for _ in range(repeat):
        for value in splats.values():
            value.grad = None
        start = time.perf_counter()
        image = rasterize(
            *(splats[name] for name in ("means", "quats", "scales", "opacities", "sh")),
            sh_degree=3,
            world_to_camera=view,
            intrinsics=intrinsics,
            width=case.size,
            height=case.size,
            background=torch.zeros(3),
            threads=threads,
        )[0]
        middle = time.perf_counter()
        image.backward(gradient)
        forward, backward = min(forward, middle - start), min(backward, time.perf_counter() - middle)
        del image
    return forward, backward


def bounds(case: Case, threads: int) -> tuple[float, float]:
    """Seconds of forward and backward at full instruction rate and bandwidth, for the picture drawn last."""
    from diff_gaussian_rasterization._calls import Workspace

    pairs, blocks = Workspace.idle()[-1].work()
    forward = blocks * FORWARD_INSTRUCTIONS / VECTOR_RATE
    backward = (blocks * BACKWARD_INSTRUCTIONS + pairs * REDUCTION_INSTRUCTIONS) / VECTOR_RATE
    memory = case.splats * SPLAT_BYTES / BANDWIDTH
    return (forward + memory) / threads, (backward + 3 * memory) / threads


def rows_of(case: Case, threads: int, repeat: int) -> list[dict[str, float | int | str]]:
    seconds = measure(case, threads, repeat)
    least = bounds(case, threads)
    rows = []
    for stage, spent, bound, goal in (
        ("forward", seconds[0], least[0], case.forward_goal),
        ("backward", seconds[1], least[1], case.total_goal - case.forward_goal),
        ("sum", sum(seconds), sum(least), case.total_goal),
    ):
        ms, bound_ms, goal_ms = 1e3 * spent, 1e3 * bound, goal * 2 / threads
        rows.append(
            {
                "scene": case.name,
                "stage": stage,
                "threads": threads,
                "ms": ms,
                "bound_ms": bound_ms,
                "ratio": ms / bound_ms,
            }
        )
        against = f"{goal_ms:8.2f} {ms / goal_ms:6.2f} {bound_ms:8.2f} {ms / bound_ms:6.2f}"
        print(f"{case.name:8} {threads} {stage:9} {ms:8.2f} {against}")
    return rows


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeat", type=int, default=30)
    parser.add_argument("--isa", choices=("avx512", "avx2", "scalar"), help="default: the best that this CPU has")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(argv)
    from diff_gaussian_rasterization._library import isa_name, select_isa

    if options.isa:
        select_isa(options.isa)
    torch.set_num_threads(1)
    print(f"instruction set {isa_name()}, best of {options.repeat}; goal and bound are those of the reference machine")
    print(f"{'scene':8} T {'stage':9} {'ms':>8} {'goal':>8} {'/goal':>6} {'bound':>8} {'/bound':>6}")
    rows = [row for case in CASES for threads in options.threads for row in rows_of(case, threads, options.repeat)]
    if options.json:
        write_json(options.json, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
