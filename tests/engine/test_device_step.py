"""The captured training step: beside the CPU engine, step for step; what it reads; what stops it and what is left."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("diff_gaussian_rasterization", reason="the native package is not installed")
from diff_gaussian_rasterization import rasterize_rigged
from diff_gaussian_rasterization.adam import AdamColumn, adam_rows, adam_steps
from diff_gaussian_rasterization.binding import binding_limits
from diff_gaussian_rasterization.flame import Poser
from diff_gaussian_rasterization.image import l1_ssim, to_float
from diff_gaussian_rasterization.rig import FaceRig
from diff_gaussian_rasterization.statistics import add_view
from diff_gaussian_rasterization.training import (
    COLUMNS,
    TERMS,
    Cameras,
    Column,
    Limits,
    MotionTable,
    Reason,
    StepTables,
    TrainingStep,
)

from tests.engine.conftest import cpu_engine
from tests.engine.rigged_scenes import make_scene

FRAMES, WIDTH, HEIGHT, DEGREE = 4, 30, 21, 2
BETAS, EPS, SHARE = (0.9, 0.999), 1e-15, 0.2
LIMITS = Limits(threshold_xyz=0.5, threshold_scale=0.3, weight_xyz=0.01, weight_scale=1.0)
RATES = {"means": 1e-3, "quats": 1e-3, "scales": 5e-3, "opacities": 2e-2, "sh0": 5e-3, "shN": 2.5e-4}
MOTION_RATE = 1e-3
WIDTHS = {"expr": 4, "rotation": 3, "neck_pose": 3, "jaw_pose": 3, "eyes_pose": 6, "translation": 3}
# Rounding: a pixel's alpha may fall on either side of 1/255. Of a column's largest change in these steps.
CLOSE, ROUNDING = 2e-3, 1e-3


@dataclass
class State:
    """What training changes."""

    columns: dict[str, Tensor]
    moments: dict[str, tuple[Tensor, Tensor]]
    motion: dict[str, Tensor]
    motion_moments: dict[str, tuple[Tensor, Tensor]]
    steps: dict[str, Tensor]
    sums: tuple[Tensor, Tensor, Tensor]

    def tensors(self) -> dict[str, Tensor]:
        found = {**self.columns, **self.motion, **{f"{name} steps": steps for name, steps in self.steps.items()}}
        for name, pair in {**self.moments, **self.motion_moments}.items():
            found[f"{name} exp_avg"], found[f"{name} exp_avg_sq"] = pair
        return {**found, **dict(zip(("gradient", "seen", "radius"), self.sums, strict=True))}

    def copies(self) -> dict[str, Tensor]:
        return {name: tensor.cpu().clone() for name, tensor in self.tensors().items()}


@dataclass
class Case:
    """A scene, four frames of it, and a moving head."""

    device: torch.device
    faces: Tensor
    binding: Tensor
    cameras: Cameras
    meshes: Tensor  # [4, V, 3]
    store: Tensor
    offsets: list[int]
    person: dict[str, Tensor]

    def state(self, seed: int = 3) -> State:
        scene = make_scene(count=len(self.binding))
        names = dict(zip(COLUMNS, ("means", "quats", "scales_log", "opacity_logit", "sh0", "shN"), strict=True))
        columns = {name: scene.parameters[known].float().to(self.device) for name, known in names.items()}
        random = torch.Generator().manual_seed(seed)
        motion = {name: (0.05 * torch.randn(FRAMES, width, generator=random)).to(self.device)
                  for name, width in WIDTHS.items()}  # fmt: skip
        zero = torch.zeros(len(self.binding), device=self.device)
        return State(columns, {name: zeros(value) for name, value in columns.items()}, motion,
                     {name: zeros(value) for name, value in motion.items()},
                     {name: torch.zeros(FRAMES, device=self.device) for name in motion},
                     (zero.clone(), zero.clone(), zero.clone()))  # fmt: skip


def zeros(tensor: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(tensor), torch.zeros_like(tensor)


@pytest.fixture
def case(engine_device: torch.device) -> Case:
    scene = make_scene(count=160)
    random = torch.Generator().manual_seed(0)
    vertices = scene.parameters["vertices"].float()
    meshes = vertices + 2e-3 * torch.randn(FRAMES, *vertices.shape, generator=random)
    poses = scene.parameters["world_to_camera"].float().repeat(FRAMES, 1, 1)
    poses[:, :3, 3] += 0.01 * torch.randn(FRAMES, 3, generator=random)
    scale = torch.tensor([[WIDTH / scene.width], [HEIGHT / scene.height], [1.0]])
    intrinsics = (scene.parameters["intrinsics"].float() * scale).repeat(FRAMES, 1, 1)
    backgrounds = torch.rand(FRAMES, 3, generator=random)
    planes = 3 * WIDTH * HEIGHT
    pictures = torch.randint(0, 256, (FRAMES, planes + 13), generator=random, dtype=torch.uint8)
    vertex_count = vertices.shape[0]
    person = {
        "rest": vertices.t().contiguous(), "joints": 0.05 * torch.randn(5, 3, generator=random),
        "basis": 1e-3 * torch.randn(36 + 4, 3 * vertex_count, generator=random),
        "joint_basis": 1e-3 * torch.randn(4, 15, generator=random),
        "joint_regressor": torch.rand(5, vertex_count, generator=random) / vertex_count,
        "weights": torch.softmax(torch.randn(5, vertex_count, generator=random), 0),
    }  # fmt: skip
    cameras = Cameras(*(table.contiguous().to(engine_device) for table in (poses, intrinsics, backgrounds)),
                      torch.tensor([2, 0, 3, 1], device=engine_device), WIDTH, HEIGHT, 0.2, 3.0)  # fmt: skip
    return Case(engine_device, scene.faces, scene.binding.to(engine_device), cameras, meshes.to(engine_device),
                pictures.reshape(-1).to(engine_device), [i * (planes + 13) for i in range(FRAMES)], person)  # fmt: skip


def tables(case: Case, state: State, views: int, flame: bool = True, dense: bool = False, capacity: int = 20_000,
           **more: Any) -> StepTables:  # fmt: skip
    poser = Poser(**{name: value.to(case.device) for name, value in case.person.items()}, parents=(-1, 0, 1, 1, 1),
                  correctives=36)  # fmt: skip
    motion = {name: MotionTable(values, values.new_zeros(views, values.shape[1]), *state.motion_moments[name],
                                None if dense else state.steps[name], torch.zeros_like(values) if dense else None,
                                MOTION_RATE) for name, values in state.motion.items()}  # fmt: skip
    made = StepTables(
        columns={name: Column(values, torch.zeros_like(values), *state.moments[name])
                 for name, values in state.columns.items()},
        sh_degree=DEGREE, mesh=FaceRig(case.faces, case.meshes.shape[1]), binding=case.binding,
        poser=poser if flame else None, motion=motion if flame else {}, meshes=None if flame else case.meshes,
        cameras=case.cameras, store=case.store, statistics=state.sums, influence=None,
        image=torch.zeros(views, 3, HEIGHT, WIDTH, device=case.device),
        terms=torch.zeros(views, len(TERMS), device=case.device), limits=LIMITS, lambda_dssim=SHARE, betas=BETAS,
        eps=EPS, pair_capacity=capacity,
    )  # fmt: skip
    return replace(made, **more)


def ask(step: TrainingStep, case: Case, number: int, frames: Sequence[int], **rates: float) -> None:
    step.enqueue(number, number, frames, [case.offsets[frame] for frame in frames], {**RATES, **rates})


def expected_step(case: Case, state: State, number: int, frames: Sequence[int], flame: bool, dense: bool) -> Tensor:
    """One step by the CPU engine and autograd; the terms of each view."""
    cpu = torch.device("cpu")
    face_rig = FaceRig(case.faces, case.meshes.shape[1])
    poser = Poser(**case.person, parents=(-1, 0, 1, 1, 1), correctives=36)
    leaves = {name: value.requires_grad_() for name, value in {**state.columns, **state.motion}.items()}
    columns, terms, drawn = [leaves[name] for name in COLUMNS], [], []
    for frame in frames:
        row = int(case.cameras.rows[frame])
        vertices = case.meshes[row].to(cpu)
        if flame:
            vertices = poser.pose(**{name: leaves[name] for name in WIDTHS}, row=row)
        offsets = torch.zeros(len(case.binding), 2, requires_grad=True)
        camera = {name: getattr(case.cameras, name)[frame].cpu() for name in ("world_to_camera", "intrinsics")}
        image, _, _, radii = rasterize_rigged(
            face_rig, case.binding.cpu(), vertices, *columns, sh_degree=DEGREE, **camera, width=WIDTH, height=HEIGHT,
            near=0.2, far=3.0, background=case.cameras.backgrounds[frame].cpu(), screen_offsets=offsets,
            with_depth=False,
        )  # fmt: skip
        at = case.offsets[frame]
        target = to_float(case.store[at : at + 3 * HEIGHT * WIDTH].cpu()).view(3, HEIGHT, WIDTH)
        absolute, similarity = l1_ssim(image, target, weights=(1 - SHARE, -SHARE))
        xyz, scale = binding_limits(leaves["means"], leaves["scales"].exp(), radii, LIMITS[:2], LIMITS[2:])
        view = [(1 - SHARE) * absolute, SHARE * (1 - similarity), xyz, scale]
        total = torch.stack(view).sum()
        (total / len(frames)).backward()
        terms.append(torch.stack([*view, total]).detach())
        drawn.append((offsets.grad, radii))
    for gradient, radii in drawn:
        add_view(gradient, radii, float(len(frames)), *state.sums)
    adam: dict[str, Any] = {"beta1": BETAS[0], "beta2": BETAS[1], "eps": EPS}
    adam_steps([AdamColumn(state.columns[name].data, state.columns[name].grad, *state.moments[name], RATES[name])
                for name in COLUMNS], step=number, **adam)  # fmt: skip
    for name, values in state.motion.items() if flame else ():
        gradient = values.grad.coalesce()
        if dense:
            adam_steps([AdamColumn(values.data, gradient.to_dense(), *state.motion_moments[name], MOTION_RATE)],
                       step=number, **adam)  # fmt: skip
        else:
            adam_rows(values.data, gradient.values().contiguous(), gradient.indices()[0], *state.motion_moments[name],
                      state.steps[name], lr=MOTION_RATE, **adam)  # fmt: skip
    for leaf in leaves.values():
        leaf.grad = None
        leaf.requires_grad_(False)
    return torch.stack(terms)


def agree(found: dict[str, Tensor], wanted: dict[str, Tensor], before: dict[str, Tensor]) -> None:
    """Within CLOSE of the largest change. Adam turns a gradient of nothing but rounding into a whole step: parameters
    are compared where there is more of one."""
    for name, expected in wanted.items():
        error, change = (found[name] - expected).abs(), float((expected - before[name]).abs().max())
        if f"{name} exp_avg" in wanted:
            mean = wanted[f"{name} exp_avg"].abs()
            error = error[mean > ROUNDING * mean.max()]
        far = int((error > CLOSE * change + 1e-12).sum())
        assert far <= 2e-3 * error.numel(), f"{name}: {far} of {error.numel()}, {float(error.max())} of {change}"


@pytest.mark.parametrize("views, flame, dense", [(1, True, False), (3, True, True), (2, False, False)])
def test_steps_are_those_of_the_cpu_engine(case: Case, views: int, flame: bool, dense: bool) -> None:
    state, steps = case.state(), 3
    bound = tables(case, state, views, flame, dense)
    step = TrainingStep(case.store)
    step.bind(bound)
    before = state.copies()
    order = [[(2 * number + view) % FRAMES for view in range(views)] for number in range(steps)]
    if views == 3:
        order[1][2] = order[1][0]  # one row twice
    for number, frames in enumerate(order):
        ask(step, case, number + 1, frames)
    assert not step.poll().stopped and step.poll().pairs > 0
    with cpu_engine():
        wanted = on_cpu(case.state())
        terms = [expected_step(case, wanted, number + 1, frames, flame, dense) for number, frames in enumerate(order)]
    torch.testing.assert_close(bound.terms.cpu(), terms[-1], rtol=2e-4, atol=1e-6)
    agree(state.copies(), wanted.copies(), before)
    moved = {name: not torch.equal(values, before[name]) for name, values in state.copies().items()}
    assert all(moved[name] == (name not in WIDTHS or flame) for name in (*COLUMNS, *WIDTHS, "gradient", "seen"))


def on_cpu(state: State) -> State:
    def moved(values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.cpu() for name, value in values.items()}

    def pairs(values: dict[str, tuple[Tensor, Tensor]]) -> dict[str, tuple[Tensor, Tensor]]:
        return {name: (a.cpu(), b.cpu()) for name, (a, b) in values.items()}

    sums = (state.sums[0].cpu(), state.sums[1].cpu(), state.sums[2].cpu())
    return State(moved(state.columns), pairs(state.moments), moved(state.motion), pairs(state.motion_moments),
                 moved(state.steps), sums)  # fmt: skip


def run(case: Case, order: Sequence[Sequence[int]], capacity: int = 20_000, poll: bool = False) -> dict[str, Tensor]:
    """What steps leave behind; room is made and steps done again where it lacked."""
    state = case.state()
    bound = tables(case, state, len(order[0]), capacity=capacity)
    step = TrainingStep(case.store)
    step.bind(bound)
    number = 0
    while number < len(order):
        ask(step, case, number + 1, order[number])
        number += 1
        if (poll or number == len(order)) and (health := step.poll()).stopped:
            assert health.stopped == Reason.TOO_MANY_PAIRS and health.pairs > capacity
            capacity, number = health.pairs, health.step - 1
            step.bind(replace(bound, pair_capacity=capacity))
            step.clear()
    return {**state.copies(), "image": bound.image.cpu(), "terms": bound.terms.cpu()}


ORDER = ((0, 1), (2, 3), (1, 1))


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    for name, values in one.items():
        assert torch.equal(values, other[name]), name


def test_reruns_polls_and_room_do_not_change_a_bit(case: Case) -> None:
    calm = run(case, ORDER)
    same(run(case, ORDER, poll=True), calm)
    same(run(case, ORDER, capacity=100_000), calm)
    same(run(case, ORDER, capacity=10), calm)
    same(run(case, ORDER, capacity=10, poll=True), calm)


@pytest.mark.parametrize("order", ["reverse", "7"])
def test_the_order_of_threads_does_not_change_a_bit(case: Case, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if case.device.type != "cpu":
        pytest.skip("a GPU chooses its order itself")
    calm = run(case, ORDER[:2])
    monkeypatch.setenv("MIEN_EMULATION_ORDER", order)
    assert os.environ["MIEN_EMULATION_ORDER"] == order
    same(run(case, ORDER[:2]), calm)


def test_cameras_rows_pictures_and_rates_are_read_when_a_step_runs(case: Case) -> None:
    """One capture; every step's frame gives the picture that a capture for that frame alone gives."""
    state, bound = case.state(), None
    bound = tables(case, state, 1)
    step = TrainingStep(case.store)
    step.bind(bound)
    still = dict.fromkeys(RATES, 0.0)
    seen = []
    for number, frame in enumerate((3, 0, 2), 1):
        ask(step, case, number, [frame], **still)
        assert not step.poll().stopped
        fresh = tables(case, case.state(), 1)
        alone = TrainingStep(case.store)
        alone.bind(fresh)
        ask(alone, case, 1, [frame], **still)
        assert not alone.poll().stopped
        assert torch.equal(bound.image, fresh.image) and torch.equal(bound.terms, fresh.terms)
        seen.append(bound.image.clone())
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])
    before = state.copies()
    ask(step, case, 4, [1], **{**still, "sh0": 0.5})
    assert not step.poll().stopped
    after = state.copies()
    assert all(torch.equal(before[name], after[name]) for name in COLUMNS if name != "sh0")
    assert float((before["sh0"] - after["sh0"]).abs().max()) > 0.1
    case.cameras.backgrounds.fill_(0.25)  # what was bound is read anew
    ask(step, case, 5, [1], **still)
    step.poll()
    assert bool((bound.image[0] == 0.25).any())


@pytest.mark.parametrize("fault, reason", [
    ("means", Reason.BAD_INPUT), ("expr", Reason.BAD_INPUT), ("limits", Reason.BAD_GRADIENT)])  # fmt: skip
def test_a_step_that_goes_wrong_and_those_behind_it_change_nothing(case: Case, fault: str, reason: Reason) -> None:
    state = case.state()
    bound = tables(case, state, 2)
    step = TrainingStep(case.store)
    step.bind(bound)
    ask(step, case, 1, (0, 1))
    assert not step.poll().stopped
    if fault == "limits":
        step.bind(replace(bound, limits=replace_limits(weight_scale=1e30)))
    else:
        {**state.columns, **state.motion}[fault][int(case.cameras.rows[2])] = float("nan")
    before = state.copies()
    for number, frames in ((2, (2, 3)), (3, (0, 1)), (4, (0, 1))):
        ask(step, case, number, frames)
    health = step.poll()
    assert reason in health.stopped and health.step == 2
    for name, values in state.copies().items():
        assert torch.equal(values.nan_to_num(-1), before[name].nan_to_num(-1)), name


def replace_limits(**changed: float) -> Limits:
    return LIMITS._replace(**changed)


@pytest.mark.parametrize("change, named", [
    ({"sh_degree": 4}, "sh_degree"), ({"pair_capacity": -1}, "pair_capacity"),
    ({"lambda_dssim": float("nan")}, "lambda"), ({"lambda_dssim": 2.0}, "lambda_dssim"), ({"poser": None}, "meshes"),
    ({"store": torch.zeros(4)}, "store"),
    ({"terms": torch.zeros(3, 5)}, "terms"), ({"image": torch.zeros(9, 3, HEIGHT, WIDTH)}, "views")])  # fmt: skip
def test_tables_that_do_not_fit_are_refused(case: Case, change: dict[str, Any], named: str) -> None:
    on_device = {name: value.to(case.device) if isinstance(value, Tensor) else value for name, value in change.items()}
    step = TrainingStep(case.store)
    with pytest.raises(ValueError, match=named):
        step.bind(tables(case, case.state(), 2, **on_device))
    with pytest.raises(ValueError, match="nothing is bound"):
        ask(step, case, 1, (0, 1))


def test_a_person_of_the_cpu_kernels_is_refused(case: Case) -> None:
    """Its handle is another structure's."""
    with cpu_engine():
        poser = Poser(**case.person, parents=(-1, 0, 1, 1, 1), correctives=36)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="poser: is on cpu"):
        TrainingStep(case.store).bind(tables(case, case.state(), 2, poser=poser))


def test_requests_that_can_not_be_are_refused(case: Case) -> None:
    step = TrainingStep(case.store)
    step.bind(tables(case, case.state(), 2))
    for frames, offsets, rates, named in (
        ((0,), [0], RATES, "frames"), ((0, 9), [0, 0], RATES, "frame"), ((0, 1), [0, 10**6], RATES, "offsets"),
        ((0, 1), [0, 0], {**RATES, "means": float("nan")}, "means"),
        ((0, 1), [0, 0], {**RATES, "means": -1.0}, "means"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=named):
            step.enqueue(1, 1, frames, offsets, rates)
    with pytest.raises(ValueError, match="count from 1"):
        step.enqueue(0, 1, (0, 1), [0, 0], RATES)
