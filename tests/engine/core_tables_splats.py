"""What the functions of core_cases.h must give: covariances, cameras, splats and their way back, Adam.

Adds to TABLE of core_tables_geometry.
"""

from __future__ import annotations

import numpy as np

from .core_host import Core, Rows, gradient
from .core_tables_geometry import (
    COUNT,
    TABLE,
    VJP_BOUND,
    Case,
    activated,
    beside,
    dice,
    frame,
    in_float,
    matrices,
    normal,
    placed,
    rotations,
    unit,
    value,
    vjp,
)

ROUNDED = 1e-7  # a constant is rounded to float in the double instance too
FLOOR = 2.5e-5  # of the compensation's square
EPS = float(np.float32(0.3))
FULL = [0, 1, 2, 1, 3, 4, 2, 4, 5]  # xx xy xz yy yz zz -> 3 x 3


def column(numbers: Rows | float, count: int = COUNT) -> Rows:
    """[count, 1]"""
    return np.broadcast_to(np.asarray(numbers, float).reshape(-1, 1), (count, 1)).copy()


def spread(low: float, high: float, columns: int, count: int = COUNT) -> Rows:
    """Random numbers between two, exact in float."""
    return in_float(dice.uniform(low, high, (count, columns)))


def symmetric(rows: Rows) -> Rows:
    """xx, xy, yy -> [N, 2, 2]"""
    return rows[:, [0, 1, 1, 2]].reshape(-1, 2, 2)


def upper(m: Rows) -> Rows:
    """And back."""
    return m.reshape(-1, 4)[:, [0, 1, 3]]


def forms(count: int = COUNT) -> Rows:
    """Positive definite xx, xy, yy."""
    m = normal(4, count).reshape(-1, 2, 2)
    return in_float(upper(m @ m.transpose(0, 2, 1) + 0.2 * np.eye(2)))


def conic(rows: Rows) -> Rows:
    """Covariance, eps -> inverse, filtered, determinant, determinant before the filter."""
    raw = symmetric(rows)
    filtered = raw + rows[:, 3, None, None] * np.eye(2)
    before = np.maximum(np.linalg.det(raw), 0)
    return beside(upper(np.linalg.inv(filtered)), upper(filtered), np.linalg.det(filtered), before)


def factor(rows: Rows) -> Rows:
    """Covariance, eps -> what antialiasing multiplies the opacity by."""
    c = conic(rows)
    return np.sqrt(np.maximum(c[:, 7:] / c[:, 6:7], FLOOR))


def _covariances() -> None:
    root, given = normal(15), normal(12)

    def flat(jw: Rows, world: Rows) -> Rows:
        rows = jw.reshape(-1, 2, 3)
        return upper(rows @ world @ rows.transpose(0, 2, 1))

    def squared(m: Rows) -> Rows:
        return m @ m.transpose(0, 2, 1)

    value("root_covariance_2d", root, lambda r: flat(r[:, :6], squared(matrices(r[:, 6:]))), float_bound=1e-5)
    vjp("root_covariance_2d_vjp", beside(root, normal(3)), "root_covariance_2d", 15)
    value("given_covariance_2d", given, lambda r: flat(r[:, :6], matrices(r[:, 6:][:, FULL])), float_bound=1e-5)
    vjp("given_covariance_2d_vjp", beside(given, normal(3)), "given_covariance_2d", 12)

    s, eps = forms(), column(EPS)
    value("make_conic", beside(s, eps), conic, float_bound=1e-4)
    TABLE["make_conic_vjp"] = Case(
        beside(s, eps, g := normal(3)),
        lambda core, _: gradient(lambda x: core("make_conic", x, column(EPS, len(x)))[:, :3], s, g),
        VJP_BOUND,
        1e-4,
    )
    thin = s.copy()
    thin[: COUNT // 2, 0] = thin[: COUNT // 2, 1] ** 2 / thin[: COUNT // 2, 2] * (1 + 1e-7)  # below the floor
    value("compensation", beside(thin, eps), factor, bound=ROUNDED, float_bound=1e-4)
    TABLE["compensation_vjp"] = Case(
        beside(thin, eps, weight := normal(1)),
        lambda core, _: gradient(lambda x: core("compensation", x, column(EPS, len(x))), thin, weight, step=1e-6)
        * (np.arange(COUNT) >= COUNT // 2)[:, None] + np.zeros((COUNT, 3)),
        1e-6,
        1e-4,
    )  # fmt: skip


def cameras(count: int = COUNT) -> Rows:
    """Pinhole: rotation, translation, centre, focal lengths, principal point, limits of x/z and y/z."""
    turn = rotations(unit(normal(4, count)))
    lens = beside(spread(50, 90, 2, count), spread(20, 40, 2, count))
    limits = beside(-spread(0.5, 0.7, 1, count), spread(0.5, 0.7, 1, count), -spread(0.5, 0.7, 1, count),
                    spread(0.5, 0.7, 1, count))  # fmt: skip
    return in_float(beside(turn, normal(3, count), normal(3, count), lens, limits))


def before(camera: Rows, u: Rows, v: Rows, z: Rows) -> Rows:
    """The points in the world that a camera sees at x/z = u, y/z = v."""
    inside = beside(u * z, v * z, z) - camera[:, 9:12]
    return in_float(np.linalg.solve(matrices(camera[:, :9]), inside[:, :, None])[:, :, 0])


def seen_points(camera: Rows) -> Rows:
    """Some in the picture, others beyond each of the limits, none near one."""
    count = len(camera)
    u, v = spread(-0.45, 0.45, 2, count).T[:, :, None]
    u[::3] = np.where(u[::3] > 0, 0.75 + u[::3], u[::3] - 0.75)
    v[::4] = np.where(v[::4] > 0, 0.75 + v[::4], v[::4] - 0.75)
    return before(camera, u, v, spread(1.5, 4, 1, count))


def projected(rows: Rows) -> Rows:
    """Camera, mean -> the fields of Projection; the rows of J W by the Jacobian at the clamped point."""
    c, turn = rows[:, :23], matrices(rows[:, :9])
    point = np.einsum("rij,rj->ri", turn, rows[:, 23:26]) + c[:, 9:12]
    z = point[:, 2:]
    slopes = point[:, :2] / z
    clamped = np.clip(slopes, c[:, [19, 21]], c[:, [20, 22]])
    zero = np.zeros_like(z)
    jacobian = beside(
        c[:, 15:16], zero, -c[:, 15:16] * clamped[:, :1], zero, c[:, 16:17], -c[:, 16:17] * clamped[:, 1:]
    )
    rows_of_jw = (jacobian / z).reshape(-1, 2, 3) @ turn
    return beside(point, 1 / z, slopes, clamped, c[:, 15:17] * slopes + c[:, 17:19], rows_of_jw)


PICTURE_PARTS = [8, 9, 2, 10, 11, 12, 13, 14, 15]  # of Projection: what ProjectionGradient is towards


def _cameras() -> None:
    camera = cameras()
    rows = beside(camera, seen_points(camera))
    value("pinhole", camera, lambda r: r)
    value("project", rows, projected, float_bound=1e-5)
    vjp("project_vjp", beside(rows, normal(9)), lambda core, x: core("project", x)[:, PICTURE_PARTS], 26)

    own = (np.arange(COUNT) % 2).astype(float)[:, None]
    size = np.tile([[70.0, 37.0], [16.0, 33.0]], (COUNT // 2, 1))
    pose = np.concatenate([camera[:, :9].reshape(-1, 3, 3), camera[:, 9:12, None]], 2).reshape(-1, 12)
    pose = beside(pose, np.tile([[0.0, 0, 0, 1]], (COUNT, 1)))
    zero = np.zeros((COUNT, 1))
    lens = beside(
        camera[:, 15:16], zero, camera[:, 17:18], zero, camera[:, 16:17], camera[:, 18:19], zero, zero, zero + 1
    )
    symmetric_clamp = (np.arange(COUNT) // 2 % 2).astype(float)[:, None]
    arrays = beside(pose, lens, spread(0, 1, 3), normal(3), own, symmetric_clamp, size)
    value("make_view", arrays, view, bound=1e-6)

    g = normal(23)
    moving = [*range(12), 16, 18, 20, 21]  # of world_to_camera [4, 4] and intrinsics [3, 3]: what a View depends on

    def spread_back(_: Core, r: Rows) -> Rows:
        def call(x: Rows) -> Rows:
            whole = np.repeat(r[:, :35], len(x) // len(r), 0)
            whole[:, moving] = x
            return pinhole_of(whole)

        g_view = beside(g[:, :12], np.where(r[:, 31:32] > 0, g[:, 12:15], 0), g[:, 15:])
        out = np.zeros((len(r), 25))
        out[:, moving] = gradient(call, r[:, moving], g_view, step=1e-3)
        return out

    TABLE["spread_camera"] = Case(beside(arrays, g), spread_back, 1e-6)


def pinhole_of(r: Rows) -> Rows:
    """make_view's camera: rotation, translation, centre, fx, fy, cx, cy, limits."""
    pose, k = r[:, :16].reshape(-1, 4, 4), r[:, 16:25]
    turn, shift = pose[:, :3, :3], pose[:, :3, 3]
    own, symmetric_clamp, w, h = r[:, 31:35].T[:, :, None]
    centre = np.where(own > 0, -np.einsum("rji,rj->ri", turn, shift), r[:, 28:31])
    fx, cx, fy, cy = k[:, 0:1], k[:, 2:3], k[:, 4:5], k[:, 5:6]
    mx, my = np.where(symmetric_clamp > 0, w / 2, cx), np.where(symmetric_clamp > 0, h / 2, cy)
    limits = beside(-(mx + 0.15 * w) / fx, (1.15 * w - mx) / fx, -(my + 0.15 * h) / fy, (1.15 * h - my) / fy)
    return beside(turn, shift, centre, fx, fy, cx, cy, limits)


def view(r: Rows) -> Rows:
    """Camera and rules as View has them."""
    w, h = r[:, 33:34], r[:, 34:35]
    rules = np.tile([[0.01, 1e4, 0.3, 0.99, 1e-4]], (len(r), 1))
    flags = np.tile([[1.0, 0, 1, 0]], (len(r), 1))
    return beside(pinhole_of(r), rules, r[:, 25:28], w, h, np.ceil(w / 16), np.ceil(h / 16), flags)


def splat_rows(given: bool, antialias: bool, moved: bool = True, normalise: bool = False) -> Rows:
    """What read_splat of core_cases.h reads."""
    camera = cameras()
    s = 0.3 * normal(9).reshape(-1, 3, 3)
    covariance = (s @ s.transpose(0, 2, 1)).reshape(-1, 9)[:, [0, 1, 2, 4, 5, 8]]
    flags = [EPS, 70.0, 37.0, float(antialias), float(normalise), 0.0]
    rows = beside(np.tile([flags], (COUNT, 1)), camera, column(float(given)), column(float(moved)), seen_points(camera),
                  normal(4), spread(0.05, 0.4, 3), covariance, 0.1 * normal(2))  # fmt: skip
    rows = in_float(rows)
    if not normalise:
        rows[:, QUAT] = unit(rows[:, QUAT])
    return rows


QUAT, SCALE, COVARIANCE = slice(34, 38), slice(38, 41), slice(41, 47)


def splat(r: Rows) -> Rows:
    """x, y, z, raw covariance, conic, opacity factor, x/z, y/z, inverse length of the quaternion."""
    p = projected(beside(r[:, 6:29], r[:, 31:34]))
    length = np.linalg.norm(r[:, QUAT], axis=1, keepdims=True)
    normalise = (r[:, 4:5] > 0) & (r[:, 29:30] == 0)
    root = rotations(np.where(normalise, r[:, QUAT] / length, r[:, QUAT])) * r[:, None, SCALE]
    given = matrices(r[:, COVARIANCE][:, FULL])
    world = np.where(r[:, 29, None, None] > 0, given, root @ root.transpose(0, 2, 1))
    jw = p[:, 10:].reshape(-1, 2, 3)
    raw = beside(upper(jw @ world @ jw.transpose(0, 2, 1)), r[:, :1])
    offset = np.where(r[:, 30:31] > 0, r[:, 47:] * r[:, 1:3] / 2, 0)
    factors = np.where(r[:, 3:4] > 0, factor(raw), 1)
    return beside(p[:, 8:10] + offset, p[:, 2], raw[:, :3], conic(raw), factors, p[:, 4:6], normalise / length)


def _splats() -> None:
    frames = frame(normal(9))
    raw, logit = normal(10), normal(1)

    def on_the_mesh(r: Rows) -> Rows:
        local = activated(r[:, 16:26])
        return beside(local[:, :10], placed(r[:, :16], local[:, :10]), local[:, 10:], 1 / (1 + np.exp(-r[:, 26:])))

    value("place_columns", beside(frames, raw, logit), on_the_mesh, float_bound=1e-5)
    flags = beside(column(EPS), column(16), column(16), column(0), np.arange(COUNT)[:, None] % 2, column(0))
    value("take_columns", beside(flags, normal(4), np.abs(normal(3))), lambda r: beside(
        r[:, 10:], np.where(r[:, 4:5] > 0, unit(r[:, 6:10]), r[:, 6:10])))  # fmt: skip
    kinds = [
        splat_rows(False, False, False, normalise=True),
        splat_rows(False, True, True),
        splat_rows(True, False, True),
        splat_rows(True, True, False),
    ]
    value("project_splat", np.concatenate(kinds), splat, bound=1e-10, float_bound=1e-4)

    value("log2_opacity_of", np.append(spread(0.01, 1, 2), [[0.0, 1.0], [0.5, 0.0]], 0),
          lambda r: np.log2(r.prod(1), where=r.prod(1) > 0, out=np.full(len(r), -100.0)), float_bound=1e-5)  # fmt: skip
    log2e = np.log2(np.e)
    value("record_fields", beside(normal(3), forms(), normal(4)), lambda r: beside(
        r[:, :2], upper(np.linalg.inv(symmetric(r[:, 3:6]))) * log2e * [0.5, 1, 0.5], r[:, 6:], r[:, 2:3],
        r[:, 4:5] / r[:, 5:6], r[:, 4:5] / r[:, 3:4]), bound=ROUNDED, float_bound=1e-4)  # fmt: skip
    value("make_rect", np.array([[1.0, 2, 3, 4], [0, 0, 65535, 1], [3, 0, 3, 5], [3, 0, 2, 5], [0, 5, 1, 5]]),
          lambda r: np.array([[1.0, 2, 3, 4], [0, 0, 65535, 1], [0] * 4, [0] * 4, [0] * 4]))  # fmt: skip


def log_alpha(raw: Rows, sums: Rows, antialias: bool) -> Rows:
    """sum of h ln(alpha) over pixels, by the sums of h, h dx dx, h dx dy, h dy dy."""
    at = beside(raw, column(EPS, len(raw)))
    c = conic(at)
    shape = c[:, :1] * sums[:, 3:4] + 2 * c[:, 1:2] * sums[:, 4:5] + c[:, 2:3] * sums[:, 5:6]
    return (sums[:, :1] * np.log(factor(at)) if antialias else 0) - shape / 2


def pixel_sums() -> Rows:
    """Order of enum SplatSum, of five pixels each."""
    h, dx, dy = dice.standard_normal((3, COUNT, 5))
    return beside(*(t.sum(1)[:, None] for t in (h, h * dx, h * dy, h * dx * dx, h * dx * dy, h * dy * dy)), normal(4))


def g_covariance(raw: Rows, sums: Rows, antialias: bool) -> Rows:
    """dL/d(2D covariance) by differences."""

    def call(x: Rows) -> Rows:
        return log_alpha(x, np.repeat(sums, len(x) // len(sums), 0), antialias)

    return gradient(call, raw, np.ones((len(raw), 1)), step=1e-4)


def g_rows(r: Rows, g: Rows) -> Rows:
    """dL/d(rows of J W) of rows S rows^T."""
    root = rotations(r[:, QUAT]) * r[:, None, SCALE]
    world = np.where(r[:, 29, None, None] > 0, matrices(r[:, COVARIANCE][:, FULL]), root @ root.transpose(0, 2, 1))
    jw = projected(beside(r[:, 6:29], r[:, 31:34]))[:, 10:].reshape(-1, 2, 3)
    off = g[:, 1] / 2
    full = np.stack([g[:, 0], off, off, g[:, 2]], 1).reshape(-1, 2, 2)
    return (2 * full @ jw @ world).reshape(-1, 6)


def g_shape(core: Core, r: Rows, g: Rows) -> Rows:
    """dL/d(quat, scale, covariance) by differences of project_splat."""

    def call(x: Rows) -> Rows:
        whole = np.repeat(r[:, :49], len(x) // len(r), 0)
        whole[:, 34:47] = x
        return core("project_splat", whole)[:, 3:6]

    return gradient(call, r[:, 34:47], g)


def _back() -> None:
    both = np.concatenate([beside(column(antialias), forms(), pixel_sums()) for antialias in (0.0, 1.0)])
    value("conic_backward", both, lambda r: np.concatenate(
        [g_covariance(half[:, 1:4], half[:, 4:], half[0, 0] > 0) for half in (r[:COUNT], r[COUNT:])]),
        bound=VJP_BOUND, float_bound=1e-4)  # fmt: skip

    for name, given, columns in (("shape_vjp", False, slice(0, 7)), ("given_shape_vjp", True, slice(7, 13))):

        def shape(core: Core, r: Rows, columns: slice = columns) -> Rows:
            return beside(g_rows(r, r[:, 49:]), g_shape(core, r, r[:, 49:])[:, columns])

        TABLE[name] = Case(beside(splat_rows(given, False), normal(3)), shape, VJP_BOUND, 1e-5)

    kinds = [splat_rows(given, antialias) for given in (False, True) for antialias in (False, True)]
    pictures = beside(np.concatenate(kinds), np.concatenate([pixel_sums() for _ in kinds]))

    def picture(r: Rows) -> Rows:
        seen, sums = splat(r[:, :49]), r[:, 49:]
        parts = [slice(i, i + COUNT) for i in range(0, len(r), COUNT)]
        g_raw = [g_covariance(seen[part, 3:6], sums[part], r[part.start, 3] > 0) for part in parts]
        g_xy = np.einsum("rij,rj->ri", symmetric(seen[:, 6:9]), sums[:, 1:3])
        return beside(g_xy, sums[:, 9:], np.concatenate(g_raw), sums[:, :1], sums[:, 6:9])

    value("picture_vjp", pictures, picture, bound=VJP_BOUND, float_bound=1e-4)

    def to_camera(core: Core, r: Rows) -> Rows:
        at = beside(r[:, 6:29], r[:, 31:34])
        return gradient(lambda x: core("project", x)[:, PICTURE_PARTS], at, r[:, 49:])

    TABLE["projection_vjp"] = Case(beside(splat_rows(False, False), normal(9)), to_camera, VJP_BOUND, 1e-5)


def least(r: Rows) -> Rows:
    """The smallest a x x + b x y + c y y over a rectangle x, y, side_x, side_y: inside, or on one of the four edges."""
    x, y, side_x, side_y, a, b, c = r.T
    best = np.where((x <= 0) & (x + side_x >= 0) & (y <= 0) & (y + side_y >= 0), 0.0, np.inf)
    for px in (x, x + side_x):
        py = np.clip(-b * px / (2 * c), y, y + side_y)
        best = np.minimum(best, a * px * px + b * px * py + c * py * py)
    for py in (y, y + side_y):
        px = np.clip(-b * py / (2 * a), x, x + side_x)
        best = np.minimum(best, a * px * px + b * px * py + c * py * py)
    return best


def sub_tiles(r: Rows) -> list[Rows]:
    """By how much the exponent drops at least within each 8 x 4 part of a tile, by reach."""
    reach = np.log2(255) + r[:, 5] + 4e-3
    first = 16 * r[:, 6:8] + 0.5 - r[:, :2]
    ones = np.ones((len(r), 1))
    return [least(beside(first + [8 * (s % 2), 4 * (s // 2)], 7 * ones, 3 * ones, r[:, 2:5])) / reach for s in range(8)]


def _reach() -> None:
    value("exponent", normal(6), lambda r: r[:, 5] - (r[:, 2] * r[:, 0] ** 2 + r[:, 3] * r[:, 0] * r[:, 1]
          + r[:, 4] * r[:, 1] ** 2), bound=1e-11, float_bound=1e-4)  # fmt: skip
    opacity = np.log2(spread(0.01, 1, 1))
    value("reach_of", opacity, lambda r: r + np.log2(255) + 4e-3, bound=ROUNDED, float_bound=1e-5)
    form = np.linalg.inv(symmetric(forms(900))).reshape(-1, 4)[:, [0, 1, 3]] * [0.5, 1, 0.5]
    rows = beside(10 * normal(2, 900), spread(0, 15, 2, 900), form, spread(1, 8, 1, 900))
    rows = rows[np.abs(least(rows[:, :7]) / rows[:, 7] - 1) > 1e-3]
    value("reaches_rectangle", rows, lambda r: 1.0 * (least(r[:, :7]) <= r[:, 7]))
    tiles = dice.integers(0, 3, (900, 2)).astype(float)
    masks = beside(spread(0, 48, 2, 900), form / 20, np.log2(spread(0.02, 1, 1, 900)), tiles)
    clear = np.all([np.abs(part - 1) > 1e-3 for part in sub_tiles(masks)], axis=0)
    value("sub_tile_mask", masks[clear], lambda r: (np.stack(sub_tiles(r), 1) <= 1) @ 2.0 ** np.arange(8))
    value("extent", extents(), extent, float_bound=1e-6)


def extents() -> Rows:
    """View, x, y, z, covariance, log2 of the opacity; some outside of the picture, some behind, some faint."""
    count = 600
    square = np.arange(count)[:, None] % 2
    flags = beside(*(column(v, count) for v in (EPS, 70, 37, 0, 0)), square)
    where = beside(spread(-40, 110, 1, count), spread(-40, 80, 1, count), spread(0.5, 5, 1, count))
    where[::20, 2] = [-1.0, 0.0, 0.01, 2e4, 0.005] * (count // 100)
    rows = beside(flags, where, 12 * forms(count), np.log2(spread(0.002, 1, 1, count)))
    return in_float(rows)


def extent(r: Rows) -> Rows:
    """Tiles of the pixels whose centres lie within the box of the ellipse alpha = 1/255, radius, drawn."""
    variance = r[:, [9, 11]] + r[:, :1]
    reach = 2 * np.log(2) * np.maximum(r[:, 12] + np.log2(255) + 4e-3, 0)
    half = np.sqrt(reach[:, None] * variance)
    middle, spread_of = variance.mean(1), np.prod(variance, 1) - r[:, 10] ** 2
    radius = np.ceil(3 * np.sqrt(middle + np.sqrt(np.maximum(middle**2 - spread_of, 0.1))))
    boxes, square = [], []
    drawn = (reach > 0) & (spread_of > 0) & (r[:, 8] > np.float32(0.01)) & (r[:, 8] < 1e4)
    on_screen = np.ones(len(r), bool)
    for axis, size in ((0, 70), (1, 37)):
        pixels = np.arange(size) + 0.5
        within = np.abs(pixels - r[:, 6 + axis, None]) <= half[:, axis, None]
        on_screen &= within.any(1)
        boxes += [within.argmax(1) // 16, (size - 1 - within[:, ::-1].argmax(1)) // 16 + 1]
        corner = r[:, 6 + axis] - 0.5  # the square counts from pixel centres
        square += [(corner - radius) // 16, (corner + radius + 15) // 16]
    x0, x1, y0, y1 = (np.float64(b) for b in boxes)
    cut = [np.maximum(x0, square[0]), np.maximum(y0, square[2]), np.minimum(x1, square[1]), np.minimum(y1, square[3])]
    rule = r[:, 5] > 0
    touched = (square[1] > 0) & (square[0] < 5) & (square[3] > 0) & (square[2] < 3)
    tiles = [np.where(rule, c, b) for c, b in zip(cut, (x0, y0, x1, y1), strict=True)]
    shown = drawn & np.where(rule, touched, on_screen)
    tiles = [np.where(shown & on_screen, t, 0) for t in tiles]
    return np.stack([*tiles, np.where(shown, radius, 0), shown], 1)


def _adam() -> None:
    constants = beside(spread(1e-4, 1e-2, 1), column(0.9), column(0.999), column(1e-8), np.arange(COUNT)[:, None] + 1)

    def of_step(r: Rows) -> Rows:
        lr, beta1, beta2, eps, count = r[:, :5].T
        return np.stack([1 - beta1, beta2, 1 - beta2, lr / (1 - beta1**count), (1 - beta2**count) ** -0.5, eps], 1)

    value("adam_constants", constants, of_step, bound=ROUNDED, float_bound=1e-3)  # 1 - 0.999 of a float 0.999

    def adam(r: Rows) -> Rows:
        lr, beta1, beta2, eps, count, g, x, m, v = r.T
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        return np.stack([x - lr * (m / (1 - beta1**count)) / (np.sqrt(v / (1 - beta2**count)) + eps), m, v], 1)

    rows = beside(constants, normal(3), np.abs(normal(1)))
    rows[0, 5:] = [0, 1, 0, 0]
    value("adam_update", rows, adam, bound=1e-6, float_bound=1e-4)


for _add in (_covariances, _cameras, _splats, _back, _reach, _adam):
    _add()
