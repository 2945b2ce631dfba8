"""What is aimed at: 100,000 Gaussians, degree 3, 802 x 550, on an H200 or RTX 4090.

The absolute figures are estimates made before anything was measured on a GPU; the ratios compare with gsplat 1.5.3 on
the same machine.
"""

from __future__ import annotations

from dataclasses import dataclass

GAUSSIANS = 100_000
FULL_RUN = 600_000  # steps
CARD = 24 << 30  # bytes of the card that a run should fit on


@dataclass(frozen=True)
class Target:
    """At most so many milliseconds, and at least so many times gsplat's speed."""

    ms: float | None = None
    ratio: float | None = None


TARGETS = {
    "render, kernels": Target(0.20, 2.0),
    "render, as called from Python": Target(0.25, 3.0),
    "forward + backward, as called from Python": Target(0.55, 2.5),
    "training step": Target(0.9, 4.0),
    "training step, batch of 8, per view": Target(0.6, 5.0),
}
FULL_RUN_MINUTES = 15.0


def verdict(what: str, gaussians: int, ms: float, rival_ms: float | None) -> str:
    """`met`, `missed`, or empty where there is no target, with the target beside it."""
    target = TARGETS.get(what)
    if target is None or gaussians != GAUSSIANS:
        return ""
    parts = []
    if target.ms is not None:
        parts.append(f"{'met' if ms <= target.ms else 'missed'}: <= {target.ms:g} ms")
    if target.ratio is not None:
        if rival_ms is None:
            parts.append(f"not known: >= {target.ratio:g}x gsplat")
        else:
            parts.append(f"{'met' if rival_ms >= target.ratio * ms else 'missed'}: >= {target.ratio:g}x gsplat")
    return "; ".join(parts)
