#include <cmath>
#include <cstring>

#include "inputs.h"
#include "native.h"

namespace fuzz {
namespace {

struct Workspace {
    void* handle = mien_workspace_create();
    Workspace() = default;
    Workspace(const Workspace&) = delete;
    ~Workspace() { mien_workspace_destroy(handle); }
};

// A camera that looks at the origin from somewhere, most of the time.
struct Camera {
    Array<float> world_to_camera, intrinsics, background, centre;

    Camera(Inputs& in, int width, int height)
        : world_to_camera(in.floats(16, -1, 1)),
          intrinsics(in.floats(9, -1, 1)),
          background(in.floats(3, 0, 1)),
          centre(in.floats(3, -4, 4)) {
        if (in.in(8)) return;
        const float angle = in.real(-4, 4), c = std::cos(angle), s = std::sin(angle);
        const float pose[16] = {c, 0, s, 0, 0, 1, 0, 0, -s, 0, c, in.real(0.1f, 4), 0, 0, 0, 1};
        std::memcpy(world_to_camera.get(), pose, sizeof pose);
        const float focal = in.real(1, 100);
        const float k[9] = {focal, 0, 0.5f * static_cast<float>(width), 0, focal, 0.5f * static_cast<float>(height), 0,
                            0,     1};
        std::memcpy(intrinsics.get(), k, sizeof k);
    }
};

Settings settings(Inputs& in, const Camera& camera, int width, int height) {
    Settings s{};
    s.world_to_camera = in.forgotten(camera.world_to_camera.get());
    s.intrinsics = in.forgotten(camera.intrinsics.get());
    s.background = in.forgotten(camera.background.get());
    s.centre = in.optional(camera.centre.get());
    const bool wild = in.in(16);
    s.near_plane = wild ? in.wild_float() : 0.01f, s.far_plane = wild ? in.wild_float() : 100.0f;
    s.eps2d = wild ? in.wild_float() : in.real(0, 1);
    s.alpha_max = wild ? in.wild_float() : in.real(0.5f, 0.999f);
    s.stop = wild ? in.wild_float() : in.real(1e-5f, 0.1f);
    s.width = width, s.height = height;
    s.normalise_quats = in.flag(), s.square_extent = in.flag(), s.clamp_passes_gradient = in.flag();
    s.antialias = in.flag(), s.symmetric_clamp = in.flag();
    return s;
}

// A mesh and Gaussians on it; now and then a binding that is of another number of Gaussians, or of faces.
struct Mount {
    std::int64_t n_vertices, n_faces;
    Array<float> vertices;
    void *mesh = nullptr, *binding = nullptr;

    Mount(Inputs& in, std::int64_t count)
        : n_vertices(in.between(1, 12)), n_faces(in.between(1, 20)), vertices(in.floats(3 * n_vertices, -1, 1)) {
        const Array<std::int64_t> corners = in.indices<std::int64_t>(3 * n_faces, n_vertices);
        const std::int64_t bound = in.in(32) ? in.below(40) : count, bins = n_faces + (in.in(32) ? 1 : 0);
        const Array<std::int64_t> face_of = in.indices<std::int64_t>(bound, bins);
        expect_refusal_or_success(mien_rig_mesh_create(corners.get(), n_faces, n_vertices, &mesh), mien_last_error());
        expect_refusal_or_success(mien_rig_binding_create(face_of.get(), bound, bins, &binding), mien_last_error());
    }
    Mount(const Mount&) = delete;
    ~Mount() {
        mien_rig_mesh_destroy(mesh);
        mien_rig_binding_destroy(binding);
    }
};

struct Cloud {
    std::int64_t count;
    int coefficients;
    Array<float> means, quats, scales, covariances, opacities, sh, colors, offsets, sh0;
    Mount mount;

    Cloud(Inputs& in, std::int64_t n, int k)
        : count(n),
          coefficients(k),
          means(in.floats(3 * n, -1, 1)),
          quats(in.floats(4 * n, -1, 1)),
          scales(in.floats(3 * n, 0.001f, 0.5f)),
          covariances(in.floats(6 * n, 0, 0.1f)),
          opacities(in.floats(n, 0, 1)),
          sh(in.floats(3 * n * k, -1, 1)),
          colors(in.floats(3 * n, 0, 1)),
          offsets(in.floats(2 * n, -0.1f, 0.1f)),
          sh0(in.floats(3 * n, -1, 1)),
          mount(in, n) {}

    PictureSource inputs(Inputs& in) const {
        PictureSource s{};
        s.count = in.in(128) ? -1 - in.below(3) : count;
        s.sh_coefficients = coefficients;
        s.sh_degree = in.in(32) ? static_cast<int>(in.wild_integer()) : in.below(4);
        s.means = in.forgotten(means.get()), s.opacities = in.forgotten(opacities.get());
        const bool rigged = in.flag(), plain = rigged && !in.in(16);  // on a mesh: quats, scales and sh
        const bool ready = !plain && in.in(3), coloured = !plain && in.in(3), both = in.in(64);
        if (!ready || both) s.quats = in.forgotten(quats.get()), s.scales = in.forgotten(scales.get());
        if (ready || both) s.covariances = in.forgotten(covariances.get());
        if (!coloured || both) s.sh = in.forgotten(sh.get());
        if (coloured || both) s.colors = in.forgotten(colors.get());
        s.screen_offsets = in.optional(offsets.get());
        if (!coloured || in.in(64)) s.sh0 = in.optional(sh0.get());
        if (rigged) {
            s.mesh = in.forgotten(mount.mesh);
            s.binding = in.forgotten(mount.binding), s.vertices = in.forgotten(mount.vertices.get());
        }
        return s;
    }
};

struct Gradients {
    Array<float> means, quats, scales, covariances, opacities, sh, colors, offsets, sh0, vertices;
    Array<float> world_to_camera{16}, intrinsics{9}, background{3};

    explicit Gradients(const Cloud& c)
        : means(3 * c.count),
          quats(4 * c.count),
          scales(3 * c.count),
          covariances(6 * c.count),
          opacities(c.count),
          sh(3 * c.count * c.coefficients),
          colors(3 * c.count),
          offsets(2 * c.count),
          sh0(3 * c.count),
          vertices(3 * c.mount.n_vertices) {}

    AllGradients wanted(Inputs& in) const {
        const bool camera = in.flag();
        return {in.optional(means.get()),
                in.optional(quats.get()),
                in.optional(scales.get()),
                in.optional(covariances.get()),
                in.optional(opacities.get()),
                in.optional(sh.get()),
                in.optional(colors.get()),
                in.optional(offsets.get()),
                in.optional(sh0.get()),
                in.optional(vertices.get()),
                camera ? in.forgotten(world_to_camera.get()) : nullptr,
                camera ? in.forgotten(intrinsics.get()) : nullptr,
                in.optional(background.get())};
    }
};

int side(Inputs& in) {
    if (in.seldom(256)) return static_cast<int>(in.wild_integer());
    return in.between(1, in.seldom(32) ? 100 : in.seldom(4) ? 20 : 9);
}

// Pixels to make room for: none for a picture that has to be refused.
std::int64_t room(int width, int height) {
    const bool drawable = width > 0 && height > 0 && width <= 65535 && height <= 65535;
    return drawable ? std::int64_t{width} * height : 1;
}

// Draws, and most of the time goes back; now and then with other values than it drew.
void picture(Inputs& in, void* workspace) {
    int width = side(in), height = side(in);
    if (room(width, height) > 70000) height = 1;
    const std::int64_t pixels = room(width, height),
                       n = in.seldom(64) ? in.between(500, 1100) : in.below(in.seldom(4) ? 40 : 12);
    const Camera camera(in, width, height), other(in, width, height);
    const Cloud cloud(in, n, in.between(1, 18));
    const Settings s = settings(in, camera, width, height);
    const PictureSource splats = cloud.inputs(in);
    const Array<float> image(3 * pixels), alpha(pixels), depth(pixels);
    const Array<std::int32_t> radii(n);
    float* const depth_plane = in.optional(depth.get());
    const PictureOutputs out = {in.forgotten(image.get()), in.forgotten(alpha.get()), depth_plane,
                                in.forgotten(radii.get())};
    const int threads = in.threads();
    expect_refusal_or_success(mien_rasterize_forward(in.forgotten(workspace), in.forgotten(&s), in.forgotten(&splats),
                                                     in.forgotten(&out), threads),
                              mien_last_error());
    std::int64_t pairs, blocks;
    expect_refusal_or_success(mien_workspace_work(in.forgotten(workspace), in.forgotten(&pairs), in.forgotten(&blocks)),
                              mien_last_error());
    if (in.in(6)) return;
    const Array<float> g_image = in.floats(3 * pixels, -1, 1), g_alpha = in.floats(pixels, -1, 1);
    const Array<float> g_depth = in.floats(pixels, -1, 1);
    const PictureInputs gradients = {in.forgotten(g_image.get()), in.forgotten(g_alpha.get()),
                                     in.optional(g_depth.get()), in.forgotten(image.get()), in.forgotten(depth.get())};
    const Gradients result(cloud);
    const AllGradients wanted = result.wanted(in);
    const Settings changed = settings(in, other, width, height);
    const PictureSource changed_splats = cloud.inputs(in);
    const bool same = !in.in(8);
    expect_refusal_or_success(
        mien_rasterize_backward(in.forgotten(workspace), in.forgotten(same ? &s : &changed),
                                in.forgotten(same ? &splats : &changed_splats), in.forgotten(&gradients),
                                in.forgotten(&wanted), same ? threads : in.threads()),
        mien_last_error());
}

}  // namespace

void rasterizer(Inputs& in) {
    const Workspace workspace;
    for (int pictures = in.between(1, 2); pictures > 0; --pictures) picture(in, workspace.handle);
}

}  // namespace fuzz
