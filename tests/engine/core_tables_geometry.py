"""What the functions of core_cases.h must give: algebra, rotations, triangle frames, joints, spherical harmonics.

Every case has rows of inputs and an expected result: an independent formula, or for a vjp the central differences of
the function that it belongs to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from utils.maths.rotations import matrix_to_quaternion
from utils.maths.sh import sh_basis

from .core_host import Core, Rows, gradient

COUNT = 64


@dataclass(frozen=True)
class Case:
    """A bound is relative to the largest number of a row."""

    rows: Rows
    expected: Callable[[Core, Rows], Rows]
    bound: float = 1e-12  # double instance and expected result
    float_bound: float = 2e-6  # float and double instance, on the same float inputs


TABLE: dict[str, Case] = {}
VJP_BOUND = 1e-8
dice = np.random.default_rng(20)


def value(name: str, rows: Rows, formula: Callable[[Rows], Rows], **bounds: float) -> None:
    """Adds a case whose formula is free of the core."""
    TABLE[name] = Case(rows, lambda _, at: formula(at).reshape(len(at), -1), **bounds)


def vjp(name: str, rows: Rows, of: str | Callable[[Core, Rows], Rows], inputs: int, **bounds: float) -> None:
    """Adds a case whose first `inputs` columns are those of the function `of`, and the last ones its dL/doutput."""

    def expected(core: Core, at: Rows) -> Rows:
        def call(x: Rows) -> Rows:
            return core(of, x) if isinstance(of, str) else of(core, x)

        return gradient(call, at[:, :inputs], at[:, inputs:])

    TABLE[name] = Case(rows, expected, **{"bound": VJP_BOUND, "float_bound": 1e-5, **bounds})


def in_float(rows: Rows) -> Rows:
    """Rounded to numbers that a float holds."""
    return rows.astype(np.float32).astype(np.float64)


def normal(columns: int, count: int = COUNT) -> Rows:
    """Random numbers, exact in float."""
    return in_float(dice.standard_normal((count, columns)))


def beside(*columns: Rows) -> Rows:
    """[N, sum of columns]"""
    return np.concatenate([c.reshape(len(c), -1) for c in columns], 1)


def unit(rows: Rows) -> Rows:
    """Rows of length 1."""
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def matrices(rows: Rows) -> Rows:
    """[N, 9] -> [N, 3, 3]"""
    return rows.reshape(-1, 3, 3)


def spinors(q: Rows) -> np.ndarray:
    """Quaternions as complex matrices [N, 2, 2], whose product is theirs."""
    w, x, y, z = q.T
    return np.stack([w + 1j * x, y + 1j * z, -y + 1j * z, w - 1j * x], 1).reshape(-1, 2, 2)


def from_spinors(s: np.ndarray) -> Rows:
    """And back."""
    first, second = s[:, 0, 0], s[:, 0, 1]
    return np.stack([np.real(first), np.imag(first), np.real(second), np.imag(second)], 1)


def product(p: Rows, q: Rows) -> Rows:
    """Hamilton product."""
    return from_spinors(spinors(p) @ spinors(q))


def rotations(q: Rows) -> Rows:
    """[N, 3, 3] of unit quaternions: column j is q e_j conj(q)."""
    conjugate = q * [1, -1, -1, -1]
    return np.stack([product(product(q, np.tile(np.eye(4)[j], (len(q), 1))), conjugate)[:, 1:] for j in (1, 2, 3)], 2)


def _scalars() -> None:
    pair, triple = normal(2), normal(3)
    pair[0], pair[1] = (0.0, -0.0), (2.0, 2.0)
    value("select", triple, lambda r: np.where(r[:, 0] > 0, r[:, 1], r[:, 2]))
    value("any", normal(1), lambda r: 1.0 * (r > 0))
    value("keep", pair, lambda r: np.where(r[:, 0] > 0, r[:, 1], 0))
    value("min", pair, lambda r: r.min(1))
    value("max", pair, lambda r: r.max(1))
    value("excess", pair, lambda r: np.maximum(r[:, 0] - r[:, 1], 0))
    positive = np.abs(normal(1)) + 1e-3
    value("sqrt", np.append(positive, [[0.0]], 0), lambda r: np.power(r, 0.5))
    value("log2", positive, lambda r: np.log(r) / np.log(2))
    value("exp", 5 * normal(1), lambda r: np.power(np.e, r))
    value("sigmoid", np.append(9 * normal(1), [[800.0], [-800.0], [0.0]], 0), lambda r: np.exp(-np.logaddexp(0, -r)))
    value("sinc", np.append(9 * normal(1), [[0.0], [1e-9], [np.pi]], 0), lambda r: np.sinc(r / np.pi), float_bound=1e-6)
    whole = np.append(9 * normal(1), [[3.0], [-3.0], [-0.5]], 0)
    value("floor", whole, lambda r: r // 1)
    value("ceil", whole, lambda r: -(-r // 1))
    value("fma", triple, lambda r: r[:, 0] * r[:, 1] + r[:, 2], float_bound=1e-4)  # cancel
    value("fnma", triple, lambda r: r[:, 2] - r[:, 0] * r[:, 1], float_bound=1e-4)


def _vectors() -> None:
    two, matrix_vector, two_matrices = normal(6), normal(12), normal(18)
    value("vec3_add", two, lambda r: r[:, :3] + r[:, 3:])
    value("vec3_subtract", two, lambda r: r[:, :3] - r[:, 3:])
    value("vec3_scale", normal(4), lambda r: r[:, :1] * r[:, 1:])
    value("dot", two, lambda r: (r[:, :3] * r[:, 3:]).sum(1), float_bound=1e-4)  # cancels
    value("cross", two, lambda r: np.cross(r[:, :3], r[:, 3:]))
    value("products", two, lambda r: r[:, :3] * r[:, 3:])
    value("outer", two, lambda r: np.einsum("ri,rj->rij", r[:, :3], r[:, 3:]))
    value("mat3_vec3", matrix_vector, lambda r: np.einsum("rij,rj->ri", matrices(r[:, :9]), r[:, 9:]))
    value("mat3_transposed_vec3", matrix_vector, lambda r: np.einsum("rji,rj->ri", matrices(r[:, :9]), r[:, 9:]))
    value("scale_columns", matrix_vector, lambda r: np.einsum("rij,rj->rij", matrices(r[:, :9]), r[:, 9:]))
    value("mat3_add", two_matrices, lambda r: r[:, :9] + r[:, 9:])
    for name, indices in (("", "rij,rjk"), ("_transposed", "rji,rjk")):
        pair = f"{indices}->rik"
        value(f"mat3{name}_mat3", two_matrices, lambda r, p=pair: np.einsum(p, matrices(r[:, :9]), matrices(r[:, 9:])))
    value("mat3_mat3_transposed", two_matrices, lambda r: matrices(r[:, :9]) @ matrices(r[:, 9:]).transpose(0, 2, 1))
    symmetric = [0, 1, 2, 1, 3, 4, 2, 4, 5]
    value("sym3_vec3", normal(9), lambda r: np.einsum("rij,rj->ri", matrices(r[:, symmetric]), r[:, 6:]))
    lengths = np.append(normal(3), [[0.0, 0.0, 0.0], [3.0, 0.0, 4.0]], 0)
    value("vec3_length", lengths, lambda r: np.maximum(np.linalg.norm(r, axis=1), np.float32(1e-20)))
    value("array_length", lengths, lambda r: np.linalg.norm(r, axis=1))


def _rotations() -> None:
    quat, pair = normal(4), normal(8)
    value("quat_add", pair, lambda r: r[:, :4] + r[:, 4:])
    value("quat_scale", normal(5), lambda r: r[:, :1] * r[:, 1:])
    value("quat_multiply", pair, lambda r: product(r[:, :4], r[:, 4:]))
    value("conjugate", quat, lambda r: r * [1, -1, -1, -1])
    value("inverse_length", quat, lambda r: 1 / np.linalg.norm(r, axis=1))
    vjp("normalise_vjp", pair, lambda _, q: unit(q), 4)
    value("rotation_matrix", unit(quat), rotations)
    vjp("rotation_matrix_vjp", beside(unit(quat), normal(9)), "rotation_matrix", 4)

    turns = normal(3)
    lengths = [0.0, 1e-9, 1e-6, 1e-3, 0.1, np.pi - 1e-6, np.pi, 2 * np.pi, 9.0]
    turns[: len(lengths)] = unit(turns[: len(lengths)]) * np.array(lengths)[:, None]

    def terms(p: Rows) -> Rows:
        t = np.linalg.norm(p, axis=1)
        half = np.sinc(t / (2 * np.pi))  # 2 sin^2(t / 2) = 1 - cos t
        return beside(p, *(c[:, None] for c in (t * t, np.cos(t), np.sinc(t / np.pi), half * half / 2)))

    def exponential(p: Rows) -> Rows:
        x, y, z = p.T
        zero = np.zeros_like(x)
        cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], 1).reshape(-1, 3, 3)
        return torch.linalg.matrix_exp(torch.from_numpy(cross)).numpy()

    value("axis_angle", turns, terms)
    value("axis_angle_matrix", turns, exponential)
    vjp("axis_angle_vjp", beside(turns, normal(9)), "axis_angle_matrix", 3, float_bound=1e-4)

    chain = [-1, 0, 1, 1, 3]

    def joints(rows: Rows) -> Rows:
        turn, rest = rows[:, :45].reshape(-1, 5, 3, 3), rows[:, 45:].reshape(-1, 5, 3)
        world, out = [], []
        for j, parent in enumerate(chain):
            local = np.zeros((len(rows), 4, 4))
            local[:, :3, :3], local[:, 3, 3] = turn[:, j], 1
            local[:, :3, 3] = rest[:, j] - (rest[:, parent] if parent >= 0 else 0)
            world.append(local if parent < 0 else world[parent] @ local)
            back = np.tile(np.eye(4), (len(rows), 1, 1))
            back[:, :3, 3] = -rest[:, j]
            moved = world[j] @ back
            out.append(beside(moved[:, :3, :3], moved[:, :3, 3]))
        return beside(*out)

    posed = beside(*(rotations(unit(normal(4))) for _ in range(5)), normal(15))
    value("skeleton", posed, joints, float_bound=1e-5)
    vjp("skeleton_vjp", beside(posed, normal(60)), "skeleton", 60)


def frame(corners: Rows) -> Rows:
    """Of triangles [N, 9]: a0, a1, quat, centre, base, height, along."""
    v0, v1, v2 = corners.reshape(-1, 3, 3).transpose(1, 0, 2)
    base = np.linalg.norm(v1 - v0, axis=1, keepdims=True)
    a0 = (v1 - v0) / base
    normals = np.cross(a0, v2 - v0)
    height = np.linalg.norm(normals, axis=1, keepdims=True)
    columns = np.stack([a0, normals / height, np.cross(a0, normals / height)], 2)
    quat = matrix_to_quaternion(torch.from_numpy(columns)).numpy()
    along = ((v2 - v0) * a0).sum(1, keepdims=True)
    return beside(a0, normals / height, quat, (v0 + v1 + v2) / 3, base, height, along)


def axes(frames: Rows) -> Rows:
    """Rotations [N, 3, 3] of frames [N, 16]."""
    return np.stack([frames[:, :3], frames[:, 3:6], np.cross(frames[:, :3], frames[:, 3:6])], 2)


def placed(frames: Rows, local: Rows) -> Rows:
    """mean = k R mu + T, scale = k s, rotation = R r."""
    k = frames[:, 13:15].mean(1, keepdims=True)
    mean = frames[:, 10:13] + k * np.einsum("rij,rj->ri", axes(frames), local[:, :3])
    return beside(mean, k * local[:, 3:6], product(frames[:, 6:10], local[:, 6:]))


def turned(frames: Rows, move: Rows) -> Rows:
    """Frames after a turn about their own axes, a shift of the centre and a change of scale, [N, 7]."""
    angle = np.linalg.norm(move[:, :3], axis=1, keepdims=True)
    quat = beside(np.cos(angle / 2), 0.5 * np.sinc(angle / (2 * np.pi)) * move[:, :3])
    columns = axes(frames) @ rotations(quat)
    sizes = frames[:, 13:15] + move[:, 6:]
    return beside(columns[:, :, 0], columns[:, :, 1], product(frames[:, 6:10], quat), frames[:, 10:13] + move[:, 3:6],
                  sizes, frames[:, 15:])  # fmt: skip


def _frames() -> None:
    for name in ("frame_of", "frame_columns"):
        value(name, normal(16), lambda r: r)
    value("frame_gradient_of", normal(7), lambda r: r)
    value("frame_gradient_columns", normal(7), lambda r: beside(r, 0 * r[:, :1]))
    value("scale_of", np.abs(normal(16)), lambda r: r[:, 13:15].mean(1))

    quats = np.append(unit(normal(4)), np.eye(4), 0)  # and half turns
    columns = rotations(quats).transpose(0, 2, 1).reshape(-1, 9)
    value("quaternion_of", columns, lambda r: matrix_to_quaternion(
        torch.from_numpy(r.reshape(-1, 3, 3).transpose(0, 2, 1).copy())).numpy())  # fmt: skip
    corners = normal(9)
    single = {"bound": 1e-7}  # a third is one in float
    value("triangle_frame", corners, frame, **single, float_bound=1e-5)

    # d loss = <A, a0> + <B, a1> + <D, centre> + E scale, whose torque is R^T (a0 x A + a1 x B)
    frames, g = frame(corners), normal(10)
    torque = np.cross(frames[:, :3], g[:, :3]) + np.cross(frames[:, 3:6], g[:, 3:6])
    torque = np.einsum("rji,rj->ri", axes(frames), torque)
    of = beside(g[:, :9], g[:, 9:] / 2, g[:, 9:] / 2)
    seen = [0, 1, 2, 3, 4, 5, 10, 11, 12, 13, 14]
    TABLE["triangle_frame_vjp"] = Case(
        beside(frames, torque, g[:, 6:]),
        lambda core, _: gradient(lambda x: core("triangle_frame", x)[:, seen], corners, of, step=1e-5),
        bound=1e-6,
        float_bound=1e-5,
    )

    local, g_world = beside(normal(3), np.abs(normal(3)), unit(normal(4))), normal(10)
    value("place", beside(frames, local), lambda r: placed(r[:, :16], r[:, 16:]))

    def place_gradients(core: Core, r: Rows) -> Rows:
        f, at, g = r[:, :16], r[:, 16:26], r[:, 26:]
        to_local = gradient(lambda x: core("place", np.repeat(f, len(x) // len(f), 0), x), at, g)

        def moved(x: Rows) -> Rows:
            each = len(x) // len(f)
            return core("place", turned(np.repeat(f, each, 0), x), np.repeat(at, each, 0))

        return beside(to_local, gradient(moved, np.zeros((len(f), 7)), g))

    TABLE["place_vjp"] = Case(beside(frames, local, g_world), place_gradients, VJP_BOUND, 1e-5)

    raw = normal(10)
    value("activate", raw, activated)
    TABLE["activate_vjp"] = Case(
        beside(activated(raw), g_world),
        lambda core, _: gradient(lambda x: core("activate", x)[:, :10], raw, g_world),
        VJP_BOUND,
        1e-5,
    )


def activated(raw: Rows) -> Rows:
    """mean, log scale, quat -> mean, scale, unit quat, inverse length of the quaternion."""
    length = np.linalg.norm(raw[:, 6:], axis=1, keepdims=True)
    return beside(raw[:, :3], np.exp(raw[:, 3:6]), raw[:, 6:] / length, 1 / length)


def _harmonics() -> None:
    value("sh_count", np.array([[0.0], [1.0], [2.0], [3.0]]), lambda r: np.array([1.0, 4.0, 9.0, 16.0]))
    points, g = normal(6), normal(3)
    value("direction", points, lambda r: beside(unit(r[:, 3:] - r[:, :3]), 1 / np.linalg.norm(
        r[:, 3:] - r[:, :3], axis=1, keepdims=True)))  # fmt: skip
    away = points[:, 3:] - points[:, :3]
    TABLE["direction_vjp"] = Case(
        beside(unit(away), 1 / np.linalg.norm(away, axis=1, keepdims=True), g),
        lambda core, _: gradient(lambda x: core("direction", 0 * x, x)[:, :3], away, g),
        1e-7,
        1e-5,
    )
    for degree, count in enumerate((1, 4, 9, 16)):

        def basis(d: Rows, degree: int = degree) -> Rows:
            return sh_basis(torch.from_numpy(d.copy()), degree).numpy()

        def values(b: Rows, sh: Rows, count: int = count) -> Rows:
            return 0.5 + np.einsum("rk,rkc->rc", b, sh.reshape(-1, count, 3))

        def colour(r: Rows, values: Callable = values, basis: Callable = basis) -> Rows:
            return values(basis(unit(r[:, 3:6] - r[:, :3])), r[:, 6:])

        directions = unit(normal(3))
        value(f"sh_basis_{degree}", directions, basis, float_bound=1e-6)
        weights = beside(directions, normal(count))
        if degree == 0:
            value("sh_basis_vjp_0", weights, lambda r: 0 * r[:, :3])
        else:
            vjp(f"sh_basis_vjp_{degree}", weights, f"sh_basis_{degree}", 3, float_bound=1e-4)
        value(f"sh_values_{degree}", normal(4 * count), lambda r, v=values, n=count: v(r[:, :n], r[:, n:]),
              float_bound=1e-5)  # fmt: skip
        seen = normal(6 + 3 * count, 4 * COUNT)
        clear = (np.abs(colour(seen)) > 0.05).all(1) & (np.linalg.norm(seen[:, 3:6] - seen[:, :3], axis=1) > 0.5)
        seen = seen[clear][:COUNT]
        value(f"sh_colour_{degree}", seen, lambda r, f=colour: np.maximum(f(r), 0), float_bound=1e-5)
        vjp(f"sh_colour_vjp_{degree}", beside(seen, normal(3, len(seen))), f"sh_colour_{degree}", 6 + 3 * count)


for _add in (_scalars, _vectors, _rotations, _frames, _harmonics):
    _add()
