"""The mesh's flow against ray casting and homographies in float64; warps of known pictures; who gets gradients."""

from __future__ import annotations

import hashlib
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d, map_coordinates
from torch import Tensor

from tests.test_train import run
from tests.tiny import ellipsoid, write_tiny
from utils.contracts import Camera, Frame, Mesh, Neighbour, Rendered, Subject
from utils.engine.build import load_run
from utils.engine.neighbours import Neighbours
from utils.errors import InputError
from utils.flow_consistency import (
    CONTRAST_FLOOR,
    MeshFlow,
    OpticalFlowConsistency,
    TemporalFeatureStability,
    bilinear,
    local_contrast,
    mesh_flow,
    warp,
)
from utils.losses import LossContext, flow

pytest.importorskip("diff_gaussian_rasterization.mesh", reason="the native package is not installed")

WIDTH, HEIGHT = 44, 38
INTRINSICS = np.array([[90.0, 0, 19.3], [0, 96.0, 21.1], [0, 0, 1]])  # the principal point is off the centre


def camera(depth: float = 0.4, width: int = WIDTH, height: int = HEIGHT) -> Camera:
    """Looks along -z of the world at the origin, slightly turned, from about `depth` metres."""
    turn = rotation([0.1, -0.15, 0.05]) @ np.diag([1.0, -1.0, -1.0])
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = turn, [0.01, -0.01, depth]
    return Camera(torch.tensor(matrix).float(), torch.tensor(INTRINSICS).float(), width, height)


def rotation(vector: list[float]) -> np.ndarray:
    """Rodrigues' formula, float64."""
    angle = np.linalg.norm(vector)
    x, y, z = np.array(vector) / angle
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k


def mesh(vertices: np.ndarray, faces: np.ndarray) -> Mesh:
    return Mesh(torch.tensor(vertices, dtype=torch.float32), torch.tensor(faces, dtype=torch.int64))


def quad(centre: list[float], half: float) -> tuple[np.ndarray, np.ndarray]:
    """A square across the view of a camera at the origin that looks along +z."""
    corners = np.array([[-half, -half, 0], [half, -half, 0], [half, half, 0], [-half, half, 0]]) + centre
    return corners, np.array([[0, 1, 2], [0, 2, 3]])


def cast_rays(vertices: np.ndarray, moved: np.ndarray, faces: np.ndarray, c: Camera) -> np.ndarray:
    """Flow by intersecting every pixel's ray with every triangle (float64): [H, W, 2], NaN where nothing is hit."""
    pose, k = c.world_to_camera.double().numpy(), c.intrinsics.double().numpy()
    seen, then = (v @ pose[:3, :3].T + pose[:3, 3] for v in (vertices, moved))
    found = np.full((c.height, c.width, 2), np.nan)
    for row in range(c.height):
        for column in range(c.width):
            pixel = np.array([column + 0.5, row + 0.5])
            ray = np.linalg.solve(k, [*pixel, 1.0])
            # ray * t = a + u (b - a) + v (c - a) for every triangle
            a, b, d = seen[faces].transpose(1, 0, 2)
            system = np.stack([np.broadcast_to(ray, a.shape), a - b, a - d], -1)
            t, u, v = np.linalg.solve(system, a[..., None])[..., 0].T
            hit = (u >= 0) & (v >= 0) & (u + v <= 1) & (t > 0)
            if hit.any():
                face = np.flatnonzero(hit)[t[hit].argmin()]
                weights = np.array([1 - u[face] - v[face], u[face], v[face]])
                image = k @ (weights @ then[faces[face]])
                found[row, column] = image[:2] / image[2] - pixel
    return found


def test_flow_of_a_bending_head_equals_ray_casting() -> None:
    vertices, faces = ellipsoid()
    moved = vertices @ rotation([0.02, 0.1, -0.03]).T * [1.02, 1, 1] + [0.004, -0.003, 0.005]
    moved[:, 0] += 0.003 * np.sin(30 * vertices[:, 1])
    c = camera()
    expected = cast_rays(vertices, moved, faces, c)
    found = mesh_flow(mesh(vertices, faces), c, mesh(moved, faces), c, 1)
    seen = found.seen[0].numpy()
    assert seen.sum() > 300 and np.linalg.norm(expected[seen], axis=-1).max() > 3
    assert np.abs(found.offset.permute(1, 2, 0).numpy() - expected)[seen].max() < 1e-3
    assert not found.offset[:, ~found.seen[0]].any() and not seen[np.isnan(expected[..., 0])].any()


def test_flow_of_a_plane_under_rigid_motion_is_a_homography() -> None:
    corners, faces = quad([0.0, 0.0, 0.0], 0.3)
    corners = corners @ rotation([0.4, -0.3, 0.1]).T + [0, 0, 1.0]
    turn, shift = rotation([0.03, -0.05, 0.02]), np.array([0.01, -0.02, 0.03])
    normal = np.cross(corners[1] - corners[0], corners[2] - corners[0])
    induced = turn + np.outer(shift, normal / (normal @ corners[0]))  # X' = R X + t with n X = n c
    homography = INTRINSICS @ induced @ np.linalg.inv(INTRINSICS)
    c = Camera(torch.eye(4), torch.tensor(INTRINSICS).float(), WIDTH, HEIGHT)
    found = mesh_flow(mesh(corners, faces), c, mesh(corners @ turn.T + shift, faces), c, 1)
    y, x = np.nonzero(found.seen[0].numpy())
    image = homography @ np.stack([x + 0.5, y + 0.5, np.ones(len(x))])
    expected = image[:2] / image[2] - [x + 0.5, y + 0.5]
    assert len(x) > 800 and np.abs(expected).max() > 2
    assert np.abs(found.offset[:, y, x].numpy() - expected).max() < 1e-3


def test_flow_between_cameras_follows_the_camera() -> None:
    vertices, faces = ellipsoid()
    head, other = mesh(vertices, faces), camera()
    other.intrinsics[0, 2] += 1.25
    other.intrinsics[1, 2] -= 2.5
    found = mesh_flow(head, camera(), head, other, 1)
    y, x = np.nonzero(found.seen[0].numpy())
    assert len(x) > 300
    torch.testing.assert_close(found.offset[:, y, x].T, torch.tensor([1.25, -2.5]).expand(len(x), 2), atol=2e-5, rtol=0)


def test_what_is_hidden_next_or_leaves_the_picture_is_not_seen() -> None:
    """A small square 10 cm before a large one moves 12 pixels to the right; the picture is 40 x 30."""
    c = Camera(torch.eye(4), torch.tensor([[40.0, 0, 20], [0, 40.0, 15], [0, 0, 1]]), 40, 30)
    wall, faces = quad([0.0, 0.0, 1.0], 2.0)
    patch, _ = quad([-0.2, 0.0, 0.8], 0.1)  # columns 5 to 15, rows 10 to 20
    both = np.concatenate([faces, faces + 4])
    found = mesh_flow(mesh(np.concatenate([wall, patch]), both), c,
                      mesh(np.concatenate([wall, patch + [0.24, 0, 0]]), both), c, 1)  # fmt: skip
    seen, offset = found.seen[0].numpy(), found.offset.numpy()
    y, x = np.mgrid[:30, :40] + 0.5
    was, becomes = (np.maximum(abs(x - at), abs(y - 15)) for at in (10, 22))
    assert offset[0][was < 4] == pytest.approx(12, abs=1e-4) and seen[was < 4].all()
    assert not seen[(becomes < 5) & (was > 5)].any()
    still = (was > 6.5) & (becomes > 6.5) & (x < 39) & (y < 29)
    assert seen[still].all() and not offset[:, still].any()
    beyond = mesh(np.concatenate([wall, patch - [0.24, 0, 0]]), both)  # 7 of its 10 columns leave on the left
    left = mesh_flow(mesh(np.concatenate([wall, patch]), both), c, beyond, c, 1).seen[0].numpy()
    assert not left[10:20, 5:12].any() and left[11:19, 13:14].all()
    aside = mesh(np.concatenate([wall, patch + [0.246, 0, 0]]), both)  # by 12.3 pixels: column 27 is wall again
    edge = mesh_flow(mesh(np.concatenate([wall, patch]), both), c, aside, c, 1).seen[0].numpy()
    assert edge[11:19, 13].all() and not edge[11:19, 14].any()


def test_what_goes_behind_the_camera_is_not_seen_even_if_something_takes_its_place() -> None:
    c = Camera(torch.eye(4), torch.tensor([[40.0, 0, 20], [0, 40.0, 15], [0, 0, 1]]), 40, 30)
    (patch, faces), back = quad([-0.2, 0.0, 0.8], 0.1), np.array([0, 0, 2.0])
    now, then = np.concatenate([patch, patch - back]), np.concatenate([patch - back, patch])
    both = np.concatenate([faces, faces + 4])
    assert not mesh_flow(mesh(now, both), c, mesh(then, both), c, 1).seen.any()
    assert mesh_flow(mesh(now, both), c, mesh(now, both), c, 1).seen.any()


def test_a_mesh_that_does_not_move_has_no_flow() -> None:
    head = mesh(*ellipsoid())
    found = mesh_flow(head, camera(), head, camera(), 1)
    assert found.seen.sum() > 300 and not found.offset.any()


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 9), (9, 1)])
def test_pictures_of_one_row_show_nothing_twice(width: int, height: int) -> None:
    head, c = mesh(*ellipsoid()), camera(width=width, height=height)
    assert mesh_flow(head, c, head, c, 1).seen.shape == (1, height, width)


def everywhere(x: float, y: float, height: int = HEIGHT, width: int = WIDTH) -> MeshFlow:
    offset = torch.tensor([x, y])[:, None, None].expand(2, height, width).clone()
    return MeshFlow(offset, torch.ones(1, height, width, dtype=torch.bool))


def test_warp_of_known_pictures() -> None:
    g = np.random.default_rng(0)
    picture = g.random((3, HEIGHT, WIDTH))
    field = torch.tensor(g.uniform(-4, 4, (2, HEIGHT, WIDTH)))
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    place = np.stack([y, x]) + field.numpy()[::-1]
    inside = (place[0] >= 0) & (place[0] <= HEIGHT - 1) & (place[1] >= 0) & (place[1] <= WIDTH - 1)
    warped = warp(torch.tensor(picture), MeshFlow(field, torch.tensor(inside)[None])).numpy()
    for channel, values in zip(warped, picture, strict=True):  # scipy's index (0, 0) is the centre of the first pixel
        expected = map_coordinates(values, place, order=1)
        np.testing.assert_allclose(channel[inside], expected[inside], atol=1e-12)
    assert not warped[:, ~inside].any()
    moved = warp(torch.tensor(picture), everywhere(3.0, -2.0))[:, 2:, :-3]
    torch.testing.assert_close(moved, torch.tensor(picture)[:, :-2, 3:])


def test_flow_of_reduced_pictures_is_the_mean_of_what_is_seen() -> None:
    full = everywhere(6.0, -3.0, 22, 29)
    full.seen[:, :4, :4] = torch.tensor([True, True, False, False])  # one cell half seen
    full.seen[:, 4:8, :4] = torch.tensor([True, False, False, False])  # and one a quarter
    full.offset[:, ~full.seen[0]] = 0
    quarter = full.at(5, 7)
    assert quarter.seen.shape == (1, 5, 7) and (~quarter.seen).nonzero().tolist() == [[0, 1, 0]]
    expected = torch.tensor([1.5, -0.75])[:, None].expand(2, 34)
    torch.testing.assert_close(quarter.offset[:, quarter.seen[0]], expected)
    assert full.at(22, 29) is full
    for k in range(5):  # also where what the halving leaves over is nearly a cell of its own
        reduced = everywhere(16.0, 32.0, 31, 47).at(31 >> k, 47 >> k)
        assert reduced.seen.all() and reduced.offset[:, 0, 0].tolist() == [16 / 2**k, 32 / 2**k]


def pictures(seed: int = 0, size: tuple[int, int] = (HEIGHT, WIDTH)) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.rand(3, *size, generator=g, dtype=torch.float64) for _ in range(4)]


def neighbour(photograph: Tensor, image: Tensor, head: Mesh | None = None, c: Camera | None = None) -> Neighbour:
    frame = Frame(c or camera(), photograph, None, torch.ones(3), 0, "0", "0")
    return Neighbour(frame, head or mesh(*ellipsoid()), image)


MEASURES = [OpticalFlowConsistency, TemporalFeatureStability]


def test_the_change_of_the_error_equals_the_formula() -> None:
    image, photo, image_before, photo_before = pictures()
    found = everywhere(2.0, 1.0)
    found.seen[:, -1:], found.seen[:, :, -2:] = False, False
    error, before = (image - photo).numpy(), (image_before - photo_before).numpy()
    change = OpticalFlowConsistency()(image, photo, neighbour(photo_before, image_before), found)
    assert change.item() == pytest.approx(np.abs(error[:, :-1, :-2] - before[:, 1:, 2:]).mean(), abs=1e-12)


@pytest.mark.parametrize("measure", MEASURES)
def test_equal_frames_and_errors_that_move_with_the_surface_cost_nothing(measure: type) -> None:
    image, photo, other, _ = pictures(0, (72, 80))
    standing, head = everywhere(0.0, 0.0, 72, 80), neighbour(photo, image)
    assert measure()(image, photo, head, standing).item() < 1e-12
    moved = [picture.roll((4, 8), (1, 2)) for picture in (image, photo)]  # by what every level can represent
    along = everywhere(8.0, 4.0, 72, 80)
    along.seen[:] = False
    along.seen[:, 20:48, 20:52] = True  # further from the border than the windows of the smallest level
    assert measure()(image, photo, neighbour(moved[1], moved[0]), along).item() < 1e-12
    assert measure()(image, photo, neighbour(moved[1], moved[0]), standing).item() > 1e-3
    lit = neighbour(other, image - photo + other)  # another light on both, the same error
    if measure is OpticalFlowConsistency:
        assert measure()(image, photo, lit, standing).item() < 1e-12


@pytest.mark.parametrize("measure", MEASURES)
def test_gradients_in_both_frames_equal_finite_differences(measure: type) -> None:
    image, photo, image_before, photo_before = pictures(1, (9, 12))
    found = everywhere(0.7, -1.3, 9, 12)
    found.seen[:, :2], found.seen[:, 5, 6] = False, False
    loss = measure()

    def value(now: Tensor, before: Tensor) -> Tensor:
        return loss(now, photo, neighbour(photo_before, before), found)

    both = (image.requires_grad_(), image_before.requires_grad_())
    assert torch.autograd.gradcheck(value, both, fast_mode=True)
    value(*both).backward()
    assert image.grad is not None and image_before.grad is not None and image_before.grad.any()
    if measure is OpticalFlowConsistency:
        assert not image.grad[:, :2].any() and not image.grad[:, 5, 6].any()
        assert image.grad.sum().item() == pytest.approx(-image_before.grad.sum().item(), abs=1e-12)


@pytest.mark.parametrize("measure", MEASURES)
def test_nothing_seen_costs_nothing(measure: type) -> None:
    image, photo, image_before, photo_before = pictures()
    nothing = MeshFlow(torch.zeros(2, HEIGHT, WIDTH), torch.zeros(1, HEIGHT, WIDTH, dtype=torch.bool))
    value = measure()(image.requires_grad_(), photo, neighbour(photo_before, image_before), nothing)
    value.backward()
    assert value.item() == 0 and image.grad is not None and not image.grad.any()


def test_features_may_be_any_function_of_a_picture() -> None:
    image, photo, image_before, photo_before = pictures()

    def means(picture: Tensor) -> list[Tensor]:
        return [picture.mean(0, keepdim=True), torch.nn.functional.avg_pool2d(picture, 4)]

    head, standing = neighbour(photo_before, image_before), everywhere(0.0, 0.0)
    value = TemporalFeatureStability(means)(image, photo, head, standing)
    change = (image - photo - image_before + photo_before).numpy()
    pooled = change[:, :36, :44].reshape(3, 9, 4, 11, 4).mean((2, 4))
    assert value.item() == pytest.approx((np.abs(change.mean(0)).mean() + np.abs(pooled).mean()) / 2, abs=1e-9)


def test_local_contrast_equals_the_formula() -> None:
    image = pictures(2, (13, 18))[0]
    levels = local_contrast(image)

    def blur(grey: np.ndarray) -> np.ndarray:
        taps = np.array([0.25, 0.5, 0.25])
        return correlate1d(correlate1d(grey, taps, axis=0, mode="nearest"), taps, axis=1, mode="nearest")

    grey = image.numpy().mean(0)
    for level in levels:
        band = grey - blur(grey)
        expected = band / np.sqrt(blur(blur(band**2)) + CONTRAST_FLOOR**2)
        np.testing.assert_allclose(level.numpy()[0], expected, atol=1e-12)
        height, width = grey.shape[0] // 2, grey.shape[1] // 2
        grey = grey[: 2 * height, : 2 * width].reshape(height, 2, width, 2).mean((1, 3))
    assert [tuple(level.shape) for level in levels] == [(1, 13, 18), (1, 6, 9), (1, 3, 4)]
    assert all(level.abs().max() < 1e-6 for level in local_contrast(torch.full((3, 8, 8), 0.4)))


def context(step: int, looked: list[int], known: set[int], bound: bool = True) -> LossContext:
    """A step whose neighbours at the offsets `known` exist; what is asked for is noted in `looked`."""
    vertices, faces = ellipsoid()
    image, photo, image_before, photo_before = (picture.float() for picture in pictures())

    def look(timesteps: int, gradients: bool = False) -> Neighbour | None:
        looked.append(timesteps)
        moved = mesh(vertices + [0.002 * timesteps, 0, 0], faces)
        return (
            neighbour(photo_before, image_before.clone().requires_grad_(gradients), moved)
            if timesteps in known
            else None
        )

    frame = Frame(camera(), photo, None, torch.ones(3), 0, "0", "0")
    rendered = Rendered(image.requires_grad_(), image, None, torch.ones(1), torch.zeros(1, 2))
    empty = torch.zeros(0, 3)
    head, binding = mesh(vertices, faces), torch.zeros(0, dtype=torch.int64)
    return LossContext(step, frame, rendered, empty, empty, head, binding, bound, look=look)


def test_due_steps_borders_and_weights() -> None:
    options = flow.FlowOptions(lambda_flow=0.5, lambda_feature_stability=0.25, flow_interval=4)
    loss, looked = flow.build(options, 1), list[int]()
    assert loss(context(7, looked, {-1})) == {} and loss(context(8, looked, {-1}, bound=False)) == {} and looked == []
    assert flow.build(flow.FlowOptions(), 1)(context(10, looked, {-1})) == {} and looked == []
    assert loss(context(8, looked, set())) == {} and looked == [-1, 1]
    looked.clear()
    due = context(8, looked, {-1, 1})
    terms = loss(due)
    assert looked == [-1] and set(terms) == {"flow", "feature_stability"}
    before = due.look(-1)
    assert before is not None
    found = mesh_flow(due.mesh, due.frame.camera, before.mesh, before.frame.camera, 1)
    image, photo = due.rendered.image, due.frame.image
    assert terms["flow"].item() == pytest.approx(2 * OpticalFlowConsistency()(image, photo, before, found).item())
    stability = TemporalFeatureStability()(image, photo, before, found)
    assert terms["feature_stability"].item() == pytest.approx(stability.item())
    looked.clear()
    first = loss(context(8, looked, {1}))  # the first frame of a recording looks ahead
    assert looked == [-1, 1] and first["flow"].item() != pytest.approx(terms["flow"].item())
    only = flow.build(flow.FlowOptions(lambda_flow=0.5), 1)(context(10, [], {-1}))
    assert set(only) == {"flow"} and only["flow"].requires_grad


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"lambda_flow": -1.0}, "--lambda_flow: is -1.0, expected a finite number of at least 0"),
        ({"lambda_feature_stability": float("nan")}, "--lambda_feature_stability: is nan"),
        ({"flow_interval": 0}, "--flow_interval: is 0, expected at least 1"),
    ],
)
def test_options_out_of_range_are_named(value: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        flow.FlowOptions(**value)  # type: ignore[arg-type]


@pytest.mark.parametrize("sequence", [[0], [-1, -1, -1], [0, -1, 0], [0, 1, 2]])
def test_wanted_where_no_frames_follow_each_other(sequence: list[int]) -> None:
    with pytest.raises(InputError, match="--lambda_flow: found no two consecutive training timesteps"):
        flow.build(flow.FlowOptions(lambda_flow=1.0), 1, Subject(sequence=torch.tensor(sequence)))
    flow.build(flow.FlowOptions(), 1, Subject(sequence=torch.tensor(sequence)))
    flow.build(flow.FlowOptions(lambda_flow=1.0), 1, Subject(sequence=torch.tensor([-1, 0, 0])))


def test_what_the_run_log_says() -> None:
    assert flow.describe(flow.FlowOptions()) == ""
    assert "every 10 steps" in flow.describe(flow.FlowOptions(lambda_flow=0.1))


def test_neighbours_end_with_the_recording_and_carry_gradients_if_asked(tmp_path: Path) -> None:
    assert run(tmp_path / "run", [*write_tiny(tmp_path / "data"), "--iterations", "1"]) == 0
    loaded = load_run(tmp_path / "run")
    frames = loaded.dataset.train
    middle = next(frames[i] for i, view in enumerate(frames.views) if view.timestep == 1)
    for column in loaded.avatar.columns.values():
        column.requires_grad_()
    one, two = torch.tensor([0, 0, 0, -1]), torch.tensor([0, 0, 1, -1])
    look = partial(Neighbours(frames, loaded.avatar, loaded.render, one).look, middle)
    before, after = look(-1), look(+1, True)
    assert before is not None and after is not None and look(2) is None and look(-2) is None
    assert (before.frame.timestep, after.frame.timestep) == (0, 2) and before.frame.camera_id == middle.camera_id
    assert not before.image.requires_grad and after.image.requires_grad
    after.image.sum().backward()
    gradient = loaded.avatar.columns["sh0"].grad
    assert gradient is not None and gradient.any()
    assert Neighbours(frames, loaded.avatar, loaded.render, two).look(middle, +1) is None
    assert Neighbours(frames, loaded.avatar, loaded.render, two).look(middle, -1) is not None


def test_trained_and_resumed_without_state_of_its_own(tmp_path: Path) -> None:
    flags = [*write_tiny(tmp_path / "data"), "--iterations", "8", "--checkpoint_iterations", "4"]
    weights = ["--lambda_flow", "1", "--lambda_feature_stability", "1", "--flow_interval", "2"]

    def avatar(name: str) -> str:
        return hashlib.sha256((tmp_path / name / "point_cloud/iteration_8/point_cloud.ply").read_bytes()).hexdigest()

    assert run(tmp_path / "off", flags) == 0 and run(tmp_path / "run", [*flags, *weights]) == 0
    rows = (tmp_path / "run/log.csv").read_text().splitlines()
    assert {"8,train,flow", "8,train,feature_stability"} <= {row.rsplit(",", 1)[0] for row in rows}
    whole = avatar("run")
    shutil.rmtree(tmp_path / "run/point_cloud")
    assert run(tmp_path / "run", [*flags, *weights, "--resume", str(tmp_path / "run/checkpoints/step_0000004")]) == 0
    assert avatar("run") == whole != avatar("off")


def test_fetching_without_grid_sample_is_the_same() -> None:
    """What a GPU does instead, for the sake of its gradients' order: same pictures, same gradients."""
    random = torch.Generator().manual_seed(3)
    image = torch.rand(3, 7, 5, generator=random, dtype=torch.float64).requires_grad_()
    x, y = (14 * torch.rand(6, 4, generator=random, dtype=torch.float64) - 4 for _ in range(2))  # beyond the border too
    grid = torch.stack([2 * (x + 0.5) / 5 - 1, 2 * (y + 0.5) / 7 - 1], -1)
    expected = torch.nn.functional.grid_sample(
        image[None], grid[None], mode="bilinear", padding_mode="border", align_corners=False
    )[0]
    gradient = torch.rand(3, 6, 4, generator=random, dtype=torch.float64)
    found = bilinear(image, x, y)
    assert torch.allclose(found, expected, atol=1e-12)
    pairs = [torch.autograd.grad(picture, image, gradient)[0] for picture in (found, expected)]
    assert torch.allclose(*pairs, atol=1e-12)
