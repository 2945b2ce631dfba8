"""Weights of faces redistribute a budget of Gaussians: thresholds, choice, pruning, counts; policies and training."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

import train
from scene.densification import DensificationOptions, build_strategy
from scene.densification.adaptive import WRONG_RANGES, AdaptiveStrategy, build_policy, features
from scene.flame_gaussian_model import FlameGaussianModel
from tests.scene.avatars import avatar
from tests.scene.test_densification import EXTENT, optimiser
from tests.tiny import write_tiny
from utils.adaptive_densification import (
    EXPENDABLE,
    AdaptiveDensificationStrategy,
    SpatiallyAdaptiveDensification,
    additions,
)
from utils.contracts import Mesh
from utils.engine.build import load_run
from utils.engine.checkpoint import TENSORS
from utils.errors import InputError, run_main

AREAS = torch.tensor([1.0, 2.0, 3.0, 4.0])
EMPHASIS = torch.tensor([2.0, 1.0, 1.0, 1.0])  # mean over the area: (2 + 2 + 3 + 4) / 10 = 1.1
POLICIES = (AdaptiveDensificationStrategy, SpatiallyAdaptiveDensification)


def with_regions(folder: Path) -> FlameGaussianModel:
    """An avatar some faces of which are eyes, mouth and nose."""
    model = avatar(folder)
    number = torch.arange(model.rig.faces.shape[0])
    model.rig.regions = {"eyes": number % 7 == 0, "mouth": number % 7 == 1, "nose": number % 7 == 2}
    return model


def strategy(model: FlameGaussianModel, **changes: object) -> AdaptiveStrategy:
    settings = {"densify_from_iter": 0, "densify_until_iter": 100, "densification_interval": 10,
                "densify_grad_threshold": 0.5, "use_adaptive_densification": True, **changes}  # fmt: skip
    made = build_strategy(DensificationOptions(**settings), 100, EXTENT, 0, True, model)  # type: ignore[arg-type]
    assert isinstance(made, AdaptiveStrategy)
    return made


def observed(made: AdaptiveStrategy, gradient: torch.Tensor) -> None:
    """As if training had seen these gradients, and every Gaussian were of influence."""
    made.statistics["gradient"], made.statistics["seen"] = gradient, torch.ones_like(gradient)
    made.statistics["influence"] = torch.ones_like(gradient)


@pytest.mark.parametrize("policy", POLICIES)
def test_weights_are_one_on_average_over_the_area(policy: type[AdaptiveDensificationStrategy]) -> None:
    weights = policy(EMPHASIS, AREAS).weights
    torch.testing.assert_close(weights, EMPHASIS / 1.1)
    torch.testing.assert_close((weights * AREAS).sum(), AREAS.sum())


def test_a_threshold_is_the_base_over_the_weight() -> None:
    found = AdaptiveDensificationStrategy(EMPHASIS, AREAS).get_adaptive_threshold(3.0, torch.tensor([0, 3, 0]))
    torch.testing.assert_close(found, torch.tensor([1.65, 3.3, 1.65]))


def test_weights_decide_who_and_not_how_many() -> None:
    binding, gradient = torch.tensor([0, 1, 2, 3]), torch.tensor([5.0, 6.0, 7.0, 8.0])
    plain = AdaptiveDensificationStrategy(torch.ones(4), AREAS)
    weighted = AdaptiveDensificationStrategy(EMPHASIS, AREAS)
    assert plain.choose(gradient, binding, 2).tolist() == [False, False, True, True]
    assert weighted.choose(gradient, binding, 2).tolist() == [True, False, False, True]
    for count in (-1, 0, 1, 3, 4, 9):
        assert int(weighted.choose(gradient, binding, count).sum()) == min(4, max(0, count))
    assert not weighted.choose(torch.zeros(4), binding, 4).any()  # nobody asks


def test_pruned_are_the_faint_and_those_without_influence_for_their_weight() -> None:
    policy = AdaptiveDensificationStrategy(torch.tensor([4.0, 1.0, 1.0, 1.0]), torch.ones(4))  # weights 16/7 and 4/7
    binding = torch.tensor([0, 1, 2, 3])
    all_alike = torch.full((4,), 1.0)
    opacity = torch.tensor([0.006, 0.006, 0.02, 0.004])  # limits 0.01 * 7/16 = 0.0044, and 0.0175
    assert policy.prune(opacity, all_alike, binding, 0.01).tolist() == [False, True, False, True]
    little = torch.tensor([0.6 * EXPENDABLE, 0.6 * EXPENDABLE, 1.0, 1.0])  # of 2: 0.3 of what may go, times the weight
    worth = [0.6 * 4, 0.6]  # of EXPENDABLE * 4/7; together 3, of which 2 may go: only the lighter one
    assert sum(worth) > 2 > worth[1]
    visible = torch.full((4,), 0.5)
    assert policy.prune(visible, little, binding, 0.01).tolist() == [False, True, False, False]


def test_errors_of_the_picture_become_weights() -> None:
    policy = SpatiallyAdaptiveDensification(torch.ones(4), AREAS)
    faces = torch.tensor([[0, 0, 1, 1], [-1, -1, 2, 2]]).repeat(100, 1)
    error = torch.tensor([[4.0, 4.0, 1.0, 1.0], [9.0, 9.0, 1.0, 1.0]]).repeat(100, 1)  # -1 is no face
    policy.observe(faces, error)
    policy.update()
    bad, good, same, unseen = policy.weights.tolist()
    assert good == pytest.approx(same) and bad / good == pytest.approx(4.0, rel=0.05)
    assert good < unseen < bad and unseen / good == pytest.approx(2.0, rel=0.05)  # as bad as the mean, 2
    torch.testing.assert_close((policy.weights * AREAS).sum(), AREAS.sum())
    policy.start()
    policy.update()
    assert policy.weights.tolist() == [bad, good, same, unseen]  # nothing seen, nothing learnt


def test_without_any_influence_nobody_is_judged_by_it() -> None:
    """A round whose pictures show nothing of the avatar must not empty it."""
    policy = AdaptiveDensificationStrategy(torch.ones(4), AREAS)
    found = policy.prune(torch.tensor([0.5, 0.5, 0.001, 0.5]), torch.zeros(4), torch.arange(4), 0.01)
    assert found.tolist() == [False, False, True, False]


def test_additions_reach_the_target_and_never_pass_it() -> None:
    count = 100
    for rounds in range(9, 0, -1):
        more = additions(count, 1000, rounds)
        assert 0 <= more <= 1000 - count
        count += more
    assert count == 1000 and additions(1001, 1000, 3) == 0


@pytest.mark.parametrize("source", ["both", "masks", "error"])
def test_a_budget_is_spent_and_never_exceeded(tmp_path: Path, source: str) -> None:
    model = with_regions(tmp_path)
    budget = len(model) + 37
    made, adam = strategy(model, gaussian_budget=budget, region_source=source), optimiser(model)
    for step in range(10, 100, 10):
        observed(made, torch.linspace(1, 2, len(model)))
        made.refine(step, model, adam)
        assert len(model) <= budget
    assert len(model) == budget


def test_a_budget_is_spent_in_a_run_that_ends_before_densification(tmp_path: Path) -> None:
    model = with_regions(tmp_path)
    budget = len(model) + 37
    made, adam = strategy(model, gaussian_budget=budget, densify_until_iter=100_000), optimiser(model)
    for step in range(10, 101, 10):
        observed(made, torch.linspace(1, 2, len(model)))
        made.refine(step, model, adam)
    assert len(model) == budget


def test_without_a_budget_uniform_thresholds_say_how_many_and_weights_where(tmp_path: Path) -> None:
    counts, featured = {}, {}
    for ratio in (1.0, 3.0):
        model = with_regions(tmp_path)
        made, adam = strategy(model, region_source="masks", adaptive_densify_ratio=ratio), optimiser(model)
        start = len(model)
        observed(made, torch.where(torch.arange(start) % 2 == 0, 1.0, 0.4))  # one half is over the threshold
        made.refine(90, model, adam)  # the last round
        counts[ratio] = len(model)
        inside = torch.stack(list(model.rig.regions.values())).any(0)[model.binding]
        featured[ratio] = int(inside.sum())
        assert counts[ratio] == max(start, int(0.84 * (start + (start + 1) // 2)))
    assert counts[1.0] == counts[3.0] and featured[3.0] > featured[1.0]


def test_a_face_keeps_its_last_gaussian(tmp_path: Path) -> None:
    model = with_regions(tmp_path)
    made = strategy(model, gaussian_budget=len(model))
    observed(made, torch.ones(len(model)))
    made.statistics["influence"][5] = 0.0
    made.refine(10, model, optimiser(model))
    assert bool((torch.bincount(model.binding, minlength=model.rig.faces.shape[0]) >= 1).all())


def test_the_wrong_ranges_are_those_of_the_public_attempt() -> None:
    assert WRONG_RANGES == ((3930, 3996), (3997, 4066), (3325, 3449), (2812, 3024))
    faces = torch.tensor([[3930, 3996, 3950], [3996, 3997, 3998], [4066, 3997, 4000], [2811, 2812, 2813],
                          [2812, 3024, 3000], [3449, 3325, 3400], [3450, 3449, 3448]])  # fmt: skip
    mesh = Mesh(torch.zeros(5023, 3), faces)
    assert features("ranges", {}, mesh).tolist() == [True, False, True, False, True, True, False]
    with pytest.raises(InputError, match="the mesh has 4066 vertices"):
        features("ranges", {}, Mesh(torch.zeros(4066, 3), faces))


def test_a_mesh_without_regions_is_refused(tmp_path: Path) -> None:
    model = avatar(tmp_path)
    with pytest.raises(InputError, match="--flame_masks"):
        build_policy(DensificationOptions(), model.rig)
    build_policy(DensificationOptions(region_source="error"), model.rig)


STEPS = ["--iterations", "24",
         "--densify_from_iter", "3", "--densify_until_iter", "20", "--densification_interval", "4",
         "--checkpoint_iterations", "10", "--use_adaptive_densification"]  # fmt: skip


@pytest.mark.parametrize("source, interval", [("both", "4"), ("masks", "4"), ("error", "4"), ("both", "1")])
def test_training_resumes_to_the_same_bits(tmp_path: Path, source: str, interval: str) -> None:
    """An interval of 1: most rounds see no new error, and go on with the weights of an earlier one."""
    flags = [*write_tiny(tmp_path / "tiny"), *STEPS, "--region_source", source, "--gaussian_budget", "200",
             "--densification_interval", interval]  # fmt: skip
    bits = []
    for name, parts in (("whole", [[]]), ("parts", [["--threads", "1"], ["--resume"]])):
        folder = tmp_path / name
        for more in parts:
            assert run_main(train.main, [*flags, "-m", str(folder), *more]) == 0
            if more == ["--threads", "1"]:  # as if it had been killed after step 10
                for path in (folder / "checkpoints").glob("step_*"):
                    if path.name != "step_0000010":
                        (path / "manifest.json").unlink()
        files = (folder / "point_cloud/iteration_24/point_cloud.ply", folder / "checkpoints/step_0000024" / TENSORS)
        bits.append([hashlib.sha256(path.read_bytes()).hexdigest() for path in files])
    assert bits[0] == bits[1] and len(load_run(tmp_path / "whole").avatar) == 200


@pytest.mark.parametrize("more, named", [
    (["--flame_masks", ""], "--flame_masks"), (["--adaptive_densify_ratio", "0"], "--adaptive_densify_ratio"),
    (["--densification", "none"], "--use_adaptive_densification"),
    (["--region_source", "ranges"], "--region_source")])  # fmt: skip
def test_bad_options_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], named: str
) -> None:
    flags = [*write_tiny(tmp_path / "tiny"), *STEPS, *more]
    capsys.readouterr()
    assert run_main(train.main, [*flags, "-m", str(tmp_path / "run")]) == 2
    *notes, error = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ") and named in error and not any("error" in note for note in notes)
    assert not (tmp_path / "run" / "options.json").exists()
