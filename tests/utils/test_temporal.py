"""The prior of the motion: against dense linear algebra, finite differences, and motion whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from utils.contracts import Camera, Frame, Mesh, Rendered, Subject
from utils.errors import InputError
from utils.losses import LossContext
from utils.losses.temporal import TemporalOptions, TemporalTerms, build, describe
from utils.temporal_consistency import (
    GAUGE,
    ORDERS,
    TemporalConsistencyLoss,
    consecutive_runs,
    estimate_prior,
    noise_of,
    smoothed,
)

T = 40


def difference(order: int, count: int) -> np.ndarray:
    return np.diff(np.eye(count), order, axis=0)


def moving(seed: int = 0, count: int = T) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A truth that moves smoothly and what a tracker with known noise makes of it; `jaw_pose` never moves."""
    rng, t = np.random.default_rng(seed), np.arange(count)[:, None]
    truth = {
        "rotation": 0.2 * np.sin(t / np.array([9.0, 12.0, 15.0])),
        "translation": 0.01 * np.cos(t / np.array([8.0, 11.0, 14.0])),
        "expr": np.concatenate([0.3 * np.sin(t / 6.0), np.zeros((count, 5))], 1),
        "jaw_pose": np.full((count, 3), 0.1),
    }
    noise = {"rotation": 0.004, "translation": 0.0004, "expr": 0.02, "jaw_pose": 0.0}
    tracked = {name: values + noise[name] * rng.standard_normal(values.shape) for name, values in truth.items()}
    return tuple({n: torch.from_numpy(v).float() for n, v in of.items()} for of in (truth, tracked))  # type: ignore[return-value]


def energy(loss: TemporalConsistencyLoss, motion: dict[str, Tensor], runs: list[range]) -> Tensor:
    """The whole sum, written naively in float64."""
    total = torch.zeros((), dtype=torch.float64)
    for name, values in motion.items():
        prior, start = loss.priors[name], loss.tracked[name].double()
        for run in runs:
            x, x0 = values.double()[run.start : run.stop], start[run.start : run.stop]
            parts = (x - x0).square().sum(0) + GAUGE * len(run) * (x - x0).mean(0).square()
            for weight, order in zip(prior.weights.double(), ORDERS, strict=True):
                if len(run) > order:
                    parts = parts + weight * (torch.from_numpy(difference(order, len(run))) @ x).square().sum(0)
            total = total + (parts / prior.noise.double().square()).sum()
    return total / loss.moving


def test_the_gradient_of_every_row_is_that_of_the_whole_sum() -> None:
    _, tracked = moving()
    sequence = torch.tensor([0] * 20 + [1] * 12 + [-1] * 8)
    loss = TemporalConsistencyLoss(tracked, sequence)
    rng = torch.Generator().manual_seed(1)
    tables = {n: (v + 0.01 * torch.randn(v.shape, generator=rng)).requires_grad_() for n, v in tracked.items()}
    naive = {n: v.detach().double().requires_grad_() for n, v in tables.items()}
    energy(loss, naive, [range(20), range(20, 32)]).backward()
    for timestep in range(32):
        loss.compute_flame_param_smoothness(tables, timestep).backward()
    assert float(loss.compute_flame_param_smoothness(tables, 33)) == 0
    for name, table in tables.items():
        found, wanted = table.grad.to_dense().double(), naive[name].grad  # type: ignore[union-attr]
        assert wanted is not None
        assert bool((found[32:] == 0).all()), "timesteps that training does not see"
        assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max())), name


def test_a_row_s_value_counts_the_differences_it_is_part_of_and_no_border_is_crossed() -> None:
    _, tracked = moving()
    whole = TemporalConsistencyLoss(tracked, torch.zeros(T, dtype=torch.int64))
    parts = TemporalConsistencyLoss(tracked, torch.tensor([0] * 20 + [1] * 20))
    parts.priors, parts.precision, parts.smoothness = whole.priors, whole.precision, whole.smoothness
    far, near = (loss.compute_flame_param_smoothness(tracked, 10) for loss in (whole, parts))
    assert float(far) == float(near)  # the border is more than three timesteps away
    assert float(parts.compute_flame_param_smoothness(tracked, 19)) < float(
        whole.compute_flame_param_smoothness(tracked, 19)
    )
    jumped = {n: torch.cat([v[:20], v[20:] + 1.0]) for n, v in tracked.items()}
    shifted = TemporalConsistencyLoss(tracked, torch.tensor([0] * 20 + [1] * 20))
    before = float(shifted.compute_flame_param_smoothness(tracked, 19))
    assert float(shifted.compute_flame_param_smoothness(jumped, 19)) == before


@pytest.mark.parametrize("count", [1, 2, 3, 5, 30])
def test_smoothing_solves_the_normal_equations(count: int) -> None:
    rng = np.random.default_rng(count)
    tracked = rng.standard_normal((count, 4))
    weights = rng.uniform(0, 50, (len(ORDERS), 4))
    found = smoothed(torch.from_numpy(tracked), torch.from_numpy(weights)).numpy()
    for column in range(4):
        matrix = np.eye(count)
        for weight, order in zip(weights[:, column], ORDERS, strict=True):
            if count > order:
                matrix += weight * difference(order, count).T @ difference(order, count)
        assert np.allclose(matrix @ found[:, column], tracked[:, column], atol=1e-9)


def test_the_start_is_nearer_to_the_truth_than_the_tracker_and_minimises_the_sum() -> None:
    truth, tracked = moving()
    sequence = torch.tensor([0] * 30 + [-1] * 10)
    loss = TemporalConsistencyLoss(tracked, sequence)
    start = loss.most_plausible()
    for name in ("rotation", "translation", "expr"):
        before, after = ((of[name] - truth[name])[:30].square().mean().sqrt() for of in (tracked, start))
        assert float(after) < 0.75 * float(before), name
        assert torch.equal(start[name][30:], tracked[name][30:])
    assert torch.equal(start["jaw_pose"], tracked["jaw_pose"])
    runs, best = [range(30)], float(energy(loss, start, [range(30)]))
    rng = torch.Generator().manual_seed(0)
    for _ in range(10):
        other = {n: v + 1e-3 * torch.randn(v.shape, generator=rng) for n, v in start.items()}
        assert float(energy(loss, other, runs)) > best


def test_noise_is_estimated_and_fast_components_do_not_count() -> None:
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((400, 8)) * 0.02
    noise[:, 6:] += np.where(np.arange(400)[:, None] % 2, 1.0, -1.0)  # as fast as can be
    still = torch.zeros(8, dtype=torch.bool)
    assert float(noise_of([torch.from_numpy(noise)], still)) == pytest.approx(0.02, rel=0.1)


def test_what_moves_fast_is_left_alone_and_what_only_shakes_is_calmed() -> None:
    rng = np.random.default_rng(3)
    shaking = 0.02 * rng.standard_normal((60, 8))
    blink = shaking.copy()
    blink[::7, 0] += 1.0
    prior = estimate_prior("expr", torch.from_numpy(blink).float(), [range(60)])
    strength = prior.weights.sum(0)
    assert float(strength[0]) < 1e-2 and float(strength[1:].min()) > 0.1 and float(strength[1:].median()) > 1
    assert bool(((prior.weights > 0).sum(0) <= 1).all()), "one order each"


def test_still_parameters_are_held_and_short_recordings_have_no_opinion() -> None:
    _, tracked = moving()
    loss = TemporalConsistencyLoss(tracked, torch.zeros(T, dtype=torch.int64))
    assert not loss.priors["jaw_pose"].weights.any()
    zero = float(loss.compute_flame_param_smoothness({**tracked}, 5))
    moved = {**tracked, "jaw_pose": tracked["jaw_pose"] + 1e-3}
    assert float(loss.compute_flame_param_smoothness(moved, 5)) > zero + 1
    short = TemporalConsistencyLoss(tracked, torch.tensor([0] * 5 + [-1] * 35))
    assert not short.smoothness.any() and math.isfinite(float(short.compute_flame_param_smoothness(tracked, 2)))
    assert torch.equal(short.most_plausible()["rotation"], tracked["rotation"])


def test_what_a_tracker_kept_still_but_for_rounding_is_still() -> None:
    """Half of the coefficients: their noise must not pass for the tracker's."""
    rng = np.random.default_rng(4)
    tracked = 0.02 * rng.standard_normal((60, 16))
    tracked[:, 8:] = 0.3 + 1e-7 * rng.standard_normal((60, 8))
    prior = estimate_prior("expr", torch.from_numpy(tracked).float(), [range(60)])
    assert float(prior.noise[0]) == pytest.approx(0.02, rel=0.25)
    assert not prior.weights[:, 8:].any() and bool((prior.noise[8:] == 1e-3).all())
    tracked[30:, 8:] -= 0.1  # another recording, kept still elsewhere
    again = estimate_prior("expr", torch.from_numpy(tracked).float(), [range(30), range(30, 60)])
    assert float(again.noise[0]) == pytest.approx(0.02, rel=0.25) and not again.weights[:, 8:].any()


def test_runs_end_at_borders_and_gaps() -> None:
    found = consecutive_runs(torch.tensor([0, 0, -1, 0, 1, 1, -1, -1, 2]))
    assert found == [range(2), range(3, 4), range(4, 6), range(8, 9)]


def test_offsets_by_their_formula() -> None:
    rng = torch.Generator().manual_seed(0)
    offsets = (1e-3 * torch.randn(6, 4, 3, generator=rng, dtype=torch.float64)).requires_grad_()
    loss = TemporalConsistencyLoss({}, torch.zeros(6, dtype=torch.int64))
    value = loss.compute_dynamic_offset_smoothness(offsets, 1)
    o = offsets.detach().numpy()
    first = [(o[1] - o[0]) ** 2, (o[2] - o[1]) ** 2]
    second = [(o[2] - 2 * o[1] + o[0]) ** 2, (o[3] - 2 * o[2] + o[1]) ** 2]
    assert value.item() == pytest.approx(1e6 * np.mean(sum(first) + sum(second)), rel=1e-5)
    value.backward()
    assert (
        offsets.grad is not None and offsets.grad.to_dense().flatten(1).any(1).tolist() == [False, True] + [False] * 4
    )


def context(motion: dict[str, Tensor], timestep: int) -> LossContext:
    camera, image = Camera(torch.eye(4), torch.eye(3), 4, 4), torch.zeros(3, 4, 4)
    frame = Frame(camera, image, None, torch.ones(3), timestep, "0", "0")
    rendered = Rendered(image, image[:1], None, torch.ones(1, dtype=torch.int32), torch.zeros(1, 2))
    mesh = Mesh(torch.zeros(3, 3), torch.tensor([[0, 1, 2]]))
    none = torch.zeros(1, 3)
    return LossContext(1, frame, rendered, none, none, mesh, torch.zeros(1, dtype=torch.int64), motion=motion)


def test_the_terms_of_training() -> None:
    _, tracked = moving()
    subject = Subject(tracked, torch.zeros(T, dtype=torch.int64))
    terms = build(TemporalOptions(True, 0.5), 1, subject)
    assert isinstance(terms, TemporalTerms)
    expected = 0.5 * terms.consistency.compute_flame_param_smoothness(tracked, 7)
    assert set(terms(context(tracked, 7))) == {"temporal"}
    assert torch.equal(terms(context(tracked, 7))["temporal"], expected)
    offsets = torch.zeros(T, 2, 3)
    assert set(terms(context({**tracked, "dynamic_offset": offsets}, 7))) == {"temporal", "temporal_offset"}
    for options, whom in (
        (TemporalOptions(), subject),
        (TemporalOptions(True, 0.0), subject),
        (TemporalOptions(True, 0.5), Subject()),
    ):
        off = build(options, 1, whom)
        assert off(context(tracked, 7)) == {} and not hasattr(off, "start")


def test_it_is_refused_where_no_motion_is_trained() -> None:
    still = Subject({}, torch.tensor([0, 0, -1]))
    with pytest.raises(InputError, match="--use_temporal_consistency: found no motion that is trained"):
        build(TemporalOptions(True, 0.5), 1, still)
    assert build(TemporalOptions(), 1, still)(context({}, 0)) == {}
    assert describe(TemporalOptions()) == "" and "has no effect" in describe(TemporalOptions(True, 0.0))


def test_a_weight_out_of_range_is_named() -> None:
    with pytest.raises(InputError, match="--lambda_temporal: is -1.0"):
        TemporalOptions(True, -1.0)
