"""What the engine was to reach on the reference machine, and the gate that asks whether it does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from scripts.engine_benchmark.report import Row

# Milliseconds on two threads of the reference machine; a whole step was given for two scenes only.
GOALS: Mapping[str, Mapping[str, float]] = {
    "10k/256": {"forward": 0.7, "backward": 0.9, "sum": 1.6, "step": 3.5},
    "50k/256": {"forward": 2.2, "backward": 2.8, "sum": 5.0},
    "10k/512": {"forward": 1.6, "backward": 2.2, "sum": 3.8},
    "50k/512": {"forward": 3.7, "backward": 4.8, "sum": 8.5, "step": 13.0},
}
MUST_NOT_EXCEED: Mapping[str, float] = {"10k/256": 3.3, "50k/256": 10.5, "10k/512": 8.0, "50k/512": 18.0}
INSTRUCTION_SETS: Mapping[str, float] = {"avx512": 1.0, "avx2": 2.3, "scalar": 10.0}  # times the goals and limits
MOST_BOUNDS = 3.3  # sum / bound, on any machine
WITHOUT_VECTORS = "scalar"  # its kernels; its bound is that of the vectors that any compiler target has


def goal(scene: str, stage: str, threads: int) -> float | None:
    """Milliseconds for this number of threads, if perfect scaling is taken for granted; None: no goal was set."""
    found = GOALS.get(scene, {}).get(stage)
    return None if found is None else found * 2 / threads


def gate(rows: Sequence[Row], isa: str) -> tuple[bool, list[str]]:
    """Judge the sums of one thread: milliseconds against the column, ratio to this machine's bound against 3.3.

    The portable kernels have no vector instructions, so that only their milliseconds are judged.

    Returns:
        whether both hold in every scene, and a line for each verdict.
    """
    factor, passed, lines = INSTRUCTION_SETS[isa], True, []
    for row in rows:
        if row.stage != "sum" or row.threads != 1:
            continue
        verdicts = []
        if row.scene in MUST_NOT_EXCEED:
            verdicts.append(("ms", row.ms, MUST_NOT_EXCEED[row.scene] * factor))
        if row.ratio is not None and isa != WITHOUT_VECTORS:
            verdicts.append(("times the bound", row.ratio, MOST_BOUNDS))
        for unit, found, most in verdicts:
            passed &= found <= most
            word = "pass" if found <= most else "FAIL"
            lines.append(f"gate: {row.scene}, one thread: {found:.2f} {unit}, at most {most:.2f}: {word}")
    return passed and bool(lines), lines or ["gate: FAIL: no sum of one thread was measured"]
