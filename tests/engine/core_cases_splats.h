// Cases of core_cases.h, continued: covariances, cameras, splats, Adam.
#pragma once

CASE(root_covariance_2d, "covariance_2d(Vec3, Vec3, Mat3)", 15, 3) {
    const Vec3<T> row0 = VEC3, row1 = VEC3;
    put(out, covariance_2d(row0, row1, MAT3));
}
CASE(root_covariance_2d_vjp, "covariance_2d_vjp(Vec3, Vec3, Mat3, Sym2, Vec3, Vec3, Mat3)", 18, 15) {
    const Vec3<T> row0 = VEC3, row1 = VEC3;
    const Mat3<T> root = MAT3;
    Vec3<T> g_row0, g_row1;
    Mat3<T> g_root;
    covariance_2d_vjp(row0, row1, root, SYM2, g_row0, g_row1, g_root);
    put(out, g_row0), put(out, g_row1), put(out, g_root);
}
CASE(given_covariance_2d, "covariance_2d(Vec3, Vec3, Sym3)", 12, 3) {
    const Vec3<T> row0 = VEC3, row1 = VEC3;
    put(out, covariance_2d(row0, row1, SYM3));
}
CASE(given_covariance_2d_vjp, "covariance_2d_vjp(Vec3, Vec3, Sym3, Sym2, Vec3, Vec3, Sym3)", 15, 12) {
    const Vec3<T> row0 = VEC3, row1 = VEC3;
    const Sym3<T> s = SYM3;
    Vec3<T> g_row0, g_row1;
    Sym3<T> g_s;
    covariance_2d_vjp(row0, row1, s, SYM2, g_row0, g_row1, g_s);
    put(out, g_row0), put(out, g_row1), put(out, g_s);
}
CASE(make_conic, "make_conic(Sym2, T)", 4, 8) {
    const Sym2<T> s = SYM2;
    put(out, make_conic(s, *in));
}
CASE(make_conic_vjp, "make_conic_vjp(Conic, Sym2)", 7, 3) {
    const Sym2<T> s = SYM2;
    const Conic<T> conic = make_conic(s, *in++);
    put(out, make_conic_vjp(conic, SYM2));
}
CASE(compensation, "compensation(Conic)", 4, 1) {
    const Sym2<T> s = SYM2;
    put(out, compensation(make_conic(s, *in)));
}
CASE(compensation_vjp, "compensation_vjp(Sym2, Conic, T)", 5, 3) {
    const Sym2<T> s = SYM2;
    const Conic<T> conic = make_conic(s, *in++);
    put(out, compensation_vjp(s, conic, *in));
}
CASE(project, "project(Pinhole, Vec3)", 26, 16) {
    const Pinhole<T> camera = take<Pinhole<T>>(in);
    put(out, project(camera, VEC3));
}
CASE(project_vjp, "project_vjp(Pinhole, Vec3, Projection, ProjectionGradient, PinholeGradient)", 35, 26) {
    const Pinhole<T> camera = take<Pinhole<T>>(in);
    const Vec3<T> mean = VEC3;
    PinholeGradient<T> g_camera = {};
    const Vec3<T> g_mean = project_vjp(camera, mean, project(camera, mean), take<ProjectionGradient<T>>(in), g_camera);
    put(out, g_camera), put(out, g_mean);
}
CASE(exponent, "exponent(T, T, T, T, T, T)", 6, 1) { put(out, exponent(in[0], in[1], in[2], in[3], in[4], in[5])); }
CASE(reach_of, "reach_of(T)", 1, 1) { put(out, reach_of(in[0])); }
CASE(reaches_rectangle, "reaches_rectangle(T, T, T, T, T, T, T, T, T, T)", 8, 1) {  // slopes from the form
    const T slope_x = -in[5] / (T(2) * in[4]), slope_y = -in[5] / (T(2) * in[6]);
    out[0] = T(reaches_rectangle(in[0], in[1], in[2], in[3], in[4], in[5], in[6], slope_x, slope_y, in[7]));
}
CASE(sub_tile_mask, "sub_tile_mask(SplatRecord, int, int)", 8, 1) {  // x, y, a, b, c, log2_opacity, tile
    SplatRecord r = {};
    r.x = float(in[0]), r.y = float(in[1]), r.a = float(in[2]), r.b = float(in[3]), r.c = float(in[4]);
    r.log2_opacity = float(in[5]);
    r.slope_x = -r.b / (2 * r.a), r.slope_y = -r.b / (2 * r.c);
    out[0] = T(cuda::sub_tile_mask(r, int(in[6]), int(in[7])));
}

// eps2d, width, height, antialias, normalise_quats, square_extent
template <class T>
MIEN_HD inline View read_view(const T*& in) {
    View v = {};
    v.eps2d = float(in[0]), v.width = int(in[1]), v.height = int(in[2]);
    v.antialias = in[3] > T(0), v.normalise_quats = in[4] > T(0), v.square_extent = in[5] > T(0);
    v.tiles_x = (v.width + kTile - 1) / kTile, v.tiles_y = (v.height + kTile - 1) / kTile;
    v.near_plane = 0.01f, v.far_plane = 1e4f;
    in += 6;
    return v;
}
constexpr int kSplatInputs = 49;  // view 6, camera 23, given_covariance, has_offset, what `read_splat` reads
template <class T>
struct Seen {
    View view;
    Pinhole<T> camera;
    bool given;
    Splat<T> splat;
};
template <class T>
MIEN_HD inline Seen<T> read_splat(const T*& in) {
    Seen<T> s = {};
    s.view = read_view(in);
    s.camera = take<Pinhole<T>>(in);
    s.given = FLAG;
    const bool moved = FLAG;
    s.splat.world.mean = VEC3;
    const Quat<T> quat = QUAT;
    const Vec3<T> scale = VEC3;
    if (!s.given) take_columns(s.view, quat, scale, s.splat);
    s.splat.covariance = SYM3;
    const T* offset = moved ? in : nullptr;
    in += 2;
    project_splat(s.view, s.camera, s.given, offset, s.splat);
    return s;
}
CASE(pinhole, "pinhole(View)", 23, 23) {
    View v = {};
    float* const to[] = {v.rotation, v.translation, v.centre,  &v.fx,    &v.fy,    &v.cx,
                         &v.cy,      &v.x_low,      &v.x_high, &v.y_low, &v.y_high};
    for (int k = 0; k < 11; ++k)
        for (int i = 0, n = k == 0 ? 9 : k < 3 ? 3 : 1; i < n; ++i) to[k][i] = float(*in++);
    put(out, pinhole<T>(v));
}
CASE(place_columns, "place_columns(Vec3, Quat, Vec3, T, Splat)", 27, 22) {
    Splat<T> s = {};
    s.frame = take<TriangleFrame<T>>(in);
    const Vec3<T> mean = VEC3, log_scale = VEC3;
    const Quat<T> quat = QUAT;
    place_columns(mean, quat, log_scale, *in, s);
    put(out, s.local), put(out, s.world), put(out, s.inverse_length), put(out, s.opacity);
}
CASE(take_columns, "take_columns(View, Quat, Vec3, Splat)", 13, 7) {
    const View view = read_view(in);
    const Quat<T> quat = QUAT;
    Splat<T> s = {};
    take_columns(view, quat, VEC3, s);
    put(out, s.world.scale), put(out, s.world.quat);
}
CASE(project_splat, "project_splat(View, Pinhole, bool, T*, Splat)", kSplatInputs, 18) {
    const Splat<T> s = read_splat(in).splat;
    put(out, s.projection.x), put(out, s.projection.y), put(out, s.projection.point.z);
    put(out, s.raw), put(out, s.conic), put(out, s.opacity_factor);
    put(out, s.projection.u), put(out, s.projection.v), put(out, s.inverse_length);
}
CASE(conic_backward, "conic_backward(View, Splat, T*)", 4 + kSplatSums, 3) {  // antialias, raw covariance, sums
    View view = {};
    view.antialias = FLAG;
    Splat<T> s = {};
    s.raw = SYM2;
    s.conic = make_conic(s.raw, T(0.3f));
    s.opacity_factor = view.antialias ? compensation(s.conic) : T(1);
    put(out, conic_backward(view, s, in));
}
CASE(picture_vjp, "picture_vjp(View, Splat, T*, SplatGradient)", kSplatInputs + kSplatSums, 10) {
    const Seen<T> seen = read_splat(in);
    SplatGradient<T> g = {};
    const Sym2<T> g_raw = picture_vjp(seen.view, seen.splat, in, g);
    put(out, g.projection.x), put(out, g.projection.y), put(out, g.projection.z);
    put(out, g_raw), put(out, g.log_opacity), put(out, g.rgb);
}
CASE(shape_vjp, "shape_vjp(Splat, Sym2, SplatGradient)", kSplatInputs + 3, 13) {
    const Seen<T> seen = read_splat(in);
    SplatGradient<T> g = {};
    shape_vjp(seen.splat, SYM2, g);
    put(out, g.projection.row0), put(out, g.projection.row1), put(out, g.world.quat), put(out, g.world.scale);
}
CASE(given_shape_vjp, "shape_vjp(Splat, Sym2, SplatGradient, Sym3)", kSplatInputs + 3, 12) {
    const Seen<T> seen = read_splat(in);
    SplatGradient<T> g = {};
    Sym3<T> g_covariance;
    shape_vjp(seen.splat, SYM2, g, g_covariance);
    put(out, g.projection.row0), put(out, g.projection.row1), put(out, g_covariance);
}
CASE(projection_vjp, "projection_vjp(Pinhole, Splat, SplatGradient)", kSplatInputs + 9, 26) {
    const Seen<T> seen = read_splat(in);
    SplatGradient<T> g = {};
    g.projection = take<ProjectionGradient<T>>(in);
    projection_vjp(seen.camera, seen.splat, g);
    put(out, g.camera), put(out, g.world.mean);
}
CASE(log2_opacity_of, "log2_opacity_of(Splat)", 2, 1) {
    Splat<T> s = {};
    s.opacity = in[0], s.opacity_factor = in[1];
    put(out, log2_opacity_of(s));
}
CASE(extent, "extent(View, Splat, T)", 13, 6) {  // view, x, y, z, raw covariance, log2_opacity
    const View view = read_view(in);
    Splat<T> s = {};
    s.projection.x = in[0], s.projection.y = in[1], s.projection.point.z = in[2];
    in += 3;
    s.raw = SYM2;
    s.conic = make_conic(s.raw, T(view.eps2d));
    const Extent<T> e = extent(view, s, *in);
    put(out, e.x0), put(out, e.y0), put(out, e.x1), put(out, e.y1), put(out, e.radius), put(out, T(e.drawn));
}
CASE(make_rect, "make_rect(int, int, int, int)", 4, 4) {
    const TileRect r = make_rect(int(in[0]), int(in[1]), int(in[2]), int(in[3]));
    put(out, T(r.x0)), put(out, T(r.y0)), put(out, T(r.x1)), put(out, T(r.y1));
}
CASE(record_fields, "record_fields(Splat, T, T*, T*)", 10, kRecordFields) {  // x, y, z, covariance, log2_opacity, rgb
    Splat<T> s = {};
    s.projection.x = in[0], s.projection.y = in[1], s.projection.point.z = in[2];
    in += 3;
    s.conic = make_conic(SYM2, T(0));
    record_fields(s, in[0], in + 1, out);
}

struct PictureRules {
    float near_plane, far_plane, eps2d, alpha_max, stop;
    std::int32_t normalise_quats, square_extent, clamp_passes_gradient, antialias, symmetric_clamp;
};
// world_to_camera [16], intrinsics [9], background [3], centre [3], own centre?, symmetric clamp?, width, height
template <class T>
MIEN_HD inline View read_camera(const T*& in, bool& own_centre, bool& symmetric) {
    float numbers[31];
    for (float& number : numbers) number = float(*in++);
    own_centre = FLAG;
    symmetric = FLAG;
    const PictureRules rules = {0.01f, 1e4f, 0.3f, 0.99f, 1e-4f, 1, 0, 1, 0, symmetric};
    const CameraArrays arrays = {numbers, numbers + 16, numbers + 25, own_centre ? nullptr : numbers + 28};
    const View v = make_view(arrays, rules, static_cast<std::int32_t>(in[0]), static_cast<std::int32_t>(in[1]));
    in += 2;
    return v;
}
CASE(make_view, "make_view(CameraArrays, Rules, std::int32_t, std::int32_t)", 35, 39) {
    bool own_centre, symmetric;
    const View v = read_camera(in, own_centre, symmetric);
    float numbers[31];
    std::int32_t counts[8];
    static_assert(sizeof v == sizeof numbers + sizeof counts, "View is 31 floats, then 8 integers");
    memcpy(numbers, &v, sizeof numbers);
    memcpy(counts, &v.width, sizeof counts);
    for (const float number : numbers) put(out, T(number));
    for (const std::int32_t count : counts) put(out, T(count));
}
CASE(spread_camera, "spread_camera(View, bool, bool, T*, T*, T*)", 35 + kPinholeGradientSize, 25) {
    bool own_centre, symmetric;
    const View v = read_camera(in, own_centre, symmetric);
    float g[kPinholeGradientSize], to[25];
    for (float& number : g) number = float(*in++);
    spread_camera(v, own_centre, symmetric, g, to, to + 16);
    for (const float number : to) put(out, T(number));
}

CASE(adam_constants, "adam_constants(T, T, T, T, T)", 5, 6) {
    const AdamStep step = adam_constants(double(in[0]), double(in[1]), double(in[2]), double(in[3]), double(in[4]));
    float numbers[6];
    memcpy(numbers, &step, sizeof numbers);
    for (const float number : numbers) put(out, T(number));
}
CASE(adam_update, "adam_update(AdamStep, T, T, T, T)", 9, 3) {  // constants, gradient, parameter, moments
    const AdamStep step = adam_constants(double(in[0]), double(in[1]), double(in[2]), double(in[3]), double(in[4]));
    float parameter = float(in[6]), mean = float(in[7]), mean_square = float(in[8]);
    adam_update(step, float(in[5]), parameter, mean, mean_square);
    put(out, T(parameter)), put(out, T(mean)), put(out, T(mean_square));
}
