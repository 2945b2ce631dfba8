"""Temporal consistency of an avatar: motion that a head can make, and pictures that follow it.

A tracker gives parameters x^ of every timestep with white noise of deviation s; heads move smoothly, though not all of
their parameters alike: a blink is over in two timesteps while a turn takes fifty. The motion x that is most plausible
under both minimises, over the timesteps t and components c of a parameter,

    sum_c 1 / s^2 [ sum_t (x_t - x^_t)^2 + sum_k w_kc sum_t |D_k x_t|^2 ],    D_k: k-th difference over time

(Whittaker, "On a new method of graduation", 1923). s and w are not flags: they are estimated from the tracked motion
itself, s from its fourth differences, in which hardly any motion is left, and w of each component by the smallest
unbiased estimate of the risk (Stein, "Estimation of the mean of a multivariate normal distribution", 1981). So one
weight serves radians, metres and expressions, and what moves fast is left alone. A parameter that the tracker kept
still is held where it is.

Photographs can't know the mean of a recording: an avatar that sits beside its mesh in every frame looks the same. Its
drift from the tracked mean, n GAUGE / s^2 (mean_t x_t - mean_t x^_t)^2, is added; the minimum stays where it is.

Training starts from the minimum of that sum, solved in closed form, and adds it to what the photographs say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from utils.flow_consistency import OpticalFlowConsistency, TemporalFeatureStability
from utils.maths.table_rows import take_row

__all__ = ["OpticalFlowConsistency", "TemporalConsistencyLoss", "TemporalFeatureStability"]

ORDERS = (1, 2, 3)  # differences over time
WEIGHTS = tuple(10.0 ** (step / 4) for step in range(-12, 25))  # candidates for w, from nothing to a straight line
NOISE_ORDER = 4
NOISE_QUANTILE = 0.25  # of the components' noise estimates: the fast ones overestimate theirs
FEWEST = 8  # timesteps of a recording that say something about how it moves
LONGEST = 256  # timesteps estimated at once: the cost grows with the cube
GAUGE = 100.0  # weight of the drift of a recording's mean, which photographs say nothing about
# Noise of a parameter that the tracker kept still (radians, metres, coefficients): it is held where it was.
RESOLUTION = {"translation": 1e-5, "expr": 1e-3}
FINEST_ANGLE = 1e-4
ROUNDING = 0.1  # of that: what moves less is still, and its noise says nothing about the tracker's


@dataclass(frozen=True)
class Prior:
    """How a parameter with C components moves, by the tracked motion."""

    noise: Tensor  # [C] standard deviation s of the tracker
    weights: Tensor  # [K, C] w of the differences of each order in ORDERS


class TemporalConsistencyLoss:
    """How implausible the motion is at a timestep, given the motion that was tracked (see the module).

    Args:
        tracked: name -> [T, C] the parameters before training. sequence: [T] int64, the recording of each timestep;
            -1: no training frame shows it. Differences never cross from one recording to another, nor into timesteps
            that training does not see.
    """

    def __init__(self, tracked: Mapping[str, Tensor], sequence: Tensor) -> None:
        self.tracked = dict(tracked)
        self.runs = consecutive_runs(sequence)
        self.priors = {name: estimate_prior(name, values.cpu(), self.runs) for name, values in self.tracked.items()}
        noise, device = [prior.noise for prior in self.priors.values()], next(iter(tracked.values()), sequence).device
        self.precision = torch.cat(noise).square().reciprocal().to(device) if noise else torch.zeros(0)
        weights = [prior.weights for prior in self.priors.values()]
        self.smoothness = torch.cat(weights, 1).to(device) if noise else torch.zeros(0)
        self.anchor = torch.cat(list(self.tracked.values()), 1) if noise else torch.zeros(0)
        self.moving = max(1, int((self.smoothness > 0).any(0).sum())) if noise else 1
        self.run_of = {t: run for run in self.runs for t in range(run.start, run.stop)}

    def most_plausible(self) -> dict[str, Tensor]:
        """name -> [T, C] the motion that minimises the sum without photographs; rows that training does not see stay
        as tracked."""
        if not self.tracked:
            return {}
        motion, weights = self.anchor.cpu().double(), self.smoothness.cpu().double()
        for run in self.runs:
            rows = slice(run.start, run.stop)
            motion[rows] = smoothed(motion[rows], weights)
        parts = motion.to(self.anchor).split([values.shape[1] for values in self.tracked.values()], 1)
        return dict(zip(self.tracked, parts, strict=True))

    def compute_flame_param_smoothness(self, motion: Mapping[str, Tensor], timestep: int) -> Tensor:
        """Mean over the moving components of the part of the sum above in which this timestep takes part.

        The gradient goes to the timestep's own row of the tables [T, C] of `motion`: the others have theirs when
        their turn comes, so that over an epoch every row follows the gradient of the whole sum.
        """
        tables, run = [motion[name] for name in self.tracked], self.run_of.get(timestep)
        if run is None or not tables:
            return self.anchor.new_zeros(())
        piece = piece_of(run, timestep)
        now = torch.cat([table.detach()[piece.start : piece.stop].mean(0) for table in tables])
        drift = now - self.anchor[piece.start : piece.stop].mean(0)
        first, last = max(run.start, timestep - max(ORDERS)), min(run.stop, timestep + max(ORDERS) + 1)
        rows = torch.cat([table.detach()[first:last] for table in tables], 1)
        matrix, orders = windows(last - first, timestep - first, rows.device, rows.dtype)
        differences = matrix @ rows
        pull = self.smoothness[orders] * differences
        off = rows[timestep - first] - self.anchor[timestep]
        square = off.square() + (pull * differences).sum(0) + GAUGE * len(piece) * drift.square()
        value = (self.precision * square).sum() / self.moving
        towards = off + (pull * matrix[:, timestep - first, None]).sum(0) + GAUGE * drift
        slope = 2 / self.moving * self.precision * towards
        row = torch.cat(take_row(timestep, *tables))
        return Known.apply(row, value, slope)  # type: ignore[return-value]

    def compute_dynamic_offset_smoothness(self, offsets: Tensor, timestep: int) -> Tensor:
        """Mean over vertices and axes of the squared first and second differences of offsets [T, V, 3] in which a
        timestep takes part, in millimetres^2; the gradient goes to its own row."""
        run = self.run_of.get(timestep)
        if run is None:
            return offsets.new_zeros(())
        first, last = max(run.start, timestep - 2), min(run.stop, timestep + 3)
        row = take_row(timestep, offsets)[0]
        rows = torch.cat([offsets.detach()[first:timestep], row[None], offsets.detach()[timestep + 1 : last]])
        matrix, _ = windows(last - first, timestep - first, rows.device, rows.dtype, most=2)
        squares = (matrix @ rows.flatten(1)).square()
        return 1e6 * squares.sum(0).mean()


class Known(torch.autograd.Function):
    """A value whose gradient is known: autograd would take five times as long over so few numbers."""

    @staticmethod
    def forward(ctx: Any, row: Tensor, value: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0] * ctx.saved_tensors[0], None, None


@lru_cache(maxsize=64)  # a copy to a GPU would wait for it at every step
def windows(
    count: int, here: int, device: torch.device, dtype: torch.dtype, most: int = len(ORDERS)
) -> tuple[Tensor, Tensor]:
    """The differences over `count` rows in which row `here` takes part, of the first `most` of ORDERS.

    Returns:
        [N, count] a difference each; [N] int64 the position of its order in ORDERS.
    """
    matrix, orders = [], []
    for position, order in enumerate(ORDERS[:most]):
        for start in range(max(0, here - order), min(here, count - order - 1) + 1):
            matrix.append(torch.zeros(count))
            matrix[-1][start : start + order + 1] = difference_coefficients(order)
            orders.append(position)
    differences = torch.stack(matrix) if matrix else torch.zeros(0, count)
    return differences.to(device, dtype), torch.tensor(orders, dtype=torch.int64, device=device)


def difference_coefficients(order: int) -> Tensor:
    """[order + 1] coefficients of a difference over time: binomials of alternating sign."""
    return torch.tensor([(-1.0) ** (order - i) * math.comb(order, i) for i in range(order + 1)])


def toeplitz(coefficients: Tensor, count: int) -> Tensor:
    """[count, count + K - 1] with the K coefficients along its diagonals."""
    matrix = coefficients.new_zeros(count, count + len(coefficients) - 1)
    for i, value in enumerate(coefficients):
        matrix.diagonal(int(i)).fill_(value)
    return matrix


def consecutive_runs(sequence: Tensor) -> list[range]:
    """Ranges of timesteps that follow each other in one recording and that training sees."""
    ids, runs, start = sequence.tolist(), [], 0
    for t in range(1, len(ids) + 1):
        if t == len(ids) or ids[t] != ids[start]:
            if ids[start] >= 0:
                runs.append(range(start, t))
            start = t
    return runs


def piece_of(run: range, timestep: int) -> range:
    """The part of a recording, of at most LONGEST timesteps, that a timestep is in."""
    start = run.start + (timestep - run.start) // LONGEST * LONGEST
    return range(start, min(start + LONGEST, run.stop))


def estimate_prior(name: str, tracked: Tensor, runs: Sequence[range]) -> Prior:
    """Noise and weights of a parameter [T, C] (see the module). One without a recording of FEWEST timesteps gets no
    weights: it is only held near its tracked values."""
    finest = RESOLUTION.get(name, FINEST_ANGLE)
    pieces = [
        tracked[start : min(start + LONGEST, run.stop)].double()
        for run in runs
        for start in range(run.start, run.stop, LONGEST)
        if min(start + LONGEST, run.stop) - start >= FEWEST
    ]
    count = tracked.shape[1]
    ranges = [piece.amax(0) - piece.amin(0) for piece in pieces] or [torch.zeros(count)]
    still = torch.stack(ranges).amax(0) <= ROUNDING * finest
    if bool(still.all()):
        noise = torch.full((count,), finest, dtype=torch.float64)
        return Prior(noise.to(tracked), torch.zeros(len(ORDERS), count).to(tracked))
    noise = noise_of(pieces, still).clamp_min(finest)
    weights = least_risk(pieces, float(noise))
    shown = torch.where(still, finest, noise).to(tracked)
    return Prior(shown, torch.where(still, 0.0, weights).to(tracked))


def noise_of(pieces: Sequence[Tensor], still: Tensor) -> Tensor:
    """0-dim: deviation of white noise from the differences of NOISE_ORDER of [T, C], over the components that move."""
    gain = math.comb(2 * NOISE_ORDER, NOISE_ORDER)  # sum of the squared coefficients
    squares = torch.cat([piece.diff(NOISE_ORDER, dim=0).square() for piece in pieces]).mean(0) / gain
    return torch.quantile(squares[~still], NOISE_QUANTILE).sqrt()


def least_risk(pieces: Sequence[Tensor], noise: float) -> Tensor:
    """[K, C]: for each component the order and weight whose smoother has the smallest estimated risk; one order each.

    Stein's estimate for a linear smoother S: |y - S y|^2 + 2 s^2 trace(S).
    """
    count = pieces[0].shape[1]
    best = torch.full((count,), sum(2 * noise**2 * len(piece) for piece in pieces), dtype=torch.float64)  # S = 1
    chosen = torch.zeros(len(ORDERS), count, dtype=torch.float64)
    for k, order in enumerate(ORDERS):
        spectra = []
        for piece in pieces:
            values, vectors = spectrum(order, len(piece))
            spectra.append((values, (vectors.t() @ piece).square()))
        for weight in WEIGHTS:
            risk = torch.zeros_like(best)
            for values, power in spectra:
                kept = 1 / (1 + weight * values)
                risk += ((1 - kept).square()[:, None] * power).sum(0) + 2 * noise**2 * kept.sum()
            better = risk < best
            best = torch.where(better, risk, best)
            chosen[:, better] = 0
            chosen[k, better] = weight
    return chosen


@lru_cache(maxsize=32)  # most pieces of a recording have one length
def spectrum(order: int, count: int) -> tuple[Tensor, Tensor]:
    """Eigenvalues [count] and eigenvectors [count, count] of D^T D, D the differences of `count` rows."""
    matrix = toeplitz(difference_coefficients(order).double(), count - order)
    values, vectors = torch.linalg.eigh(matrix.t() @ matrix)
    return values.clamp_min(0), vectors


def smoothed(tracked: Tensor, weights: Tensor) -> Tensor:
    """The minimum x of |x - tracked|^2 + sum_k w_k |D_k x|^2 for each column of [T, C], with weights [K, C].

    The matrix I + sum_k w_k D_k^T D_k has three diagonals on either side: its Cholesky factor is made row by row, for
    all columns at once.
    """
    count, width = len(tracked), max(ORDERS)
    bands = tracked.new_zeros(width + 1, count, tracked.shape[1])  # [d, t]: the entry at (t, t + d)
    bands[0] = 1
    for weight, order in zip(weights, ORDERS, strict=True):
        coefficients = difference_coefficients(order).tolist()
        for d in range(order + 1):
            for i in range(order + 1 - d):
                bands[d, i : max(i, i + count - order)] += weight * coefficients[i] * coefficients[i + d]
    return solve_banded(bands, tracked)


def solve_banded(bands: Tensor, right: Tensor) -> Tensor:
    """x of A x = right [T, C] for symmetric positive definite A, one a column, given by its diagonals [W + 1, T, C]."""
    width, count = len(bands) - 1, len(right)
    factor, x = bands.clone(), right.clone()  # A = L diag(p) L^T; afterwards factor[d, t] is L at (t + d, t)
    for t in range(count):
        reach = min(width, count - 1 - t)
        pivot = factor[0, t]
        for i in range(1, reach + 1):
            ratio = factor[i, t] / pivot
            factor[: reach - i + 1, t + i] -= ratio * factor[i : reach + 1, t]
            x[t + i] -= ratio * x[t]
    for t in reversed(range(count)):
        for d in range(1, min(width, count - 1 - t) + 1):
            x[t] -= factor[d, t] * x[t + d]
        x[t] /= factor[0, t]
    return x
