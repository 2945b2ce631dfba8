#include "inputs.h"
#include "native.h"

namespace fuzz {
namespace {

struct Mesh {
    void* handle = nullptr;
    ~Mesh() { mien_rig_mesh_destroy(handle); }
};

struct Binding {
    void* handle = nullptr;
    ~Binding() { mien_rig_binding_destroy(handle); }
};

// Negative, or more than 32-bit indices reach.
std::int64_t refused_count(Inputs& in) {
    return in.flag() ? -1 - in.below(1000) : INT64_MAX - in.below(1000) * 1000000;
}

}  // namespace

void rig(Inputs& in) {
    const bool large = in.large();
    const std::int64_t vertices = in.below(20), n = large ? 5000 : in.below(60);
    const std::int64_t faces = vertices == 0 ? 0 : in.below(30), bound = faces == 0 ? 0 : n;
    const Array<std::int64_t> corners = in.indices<std::int64_t>(3 * faces, vertices);
    const Array<std::int64_t> face_of = in.indices<std::int64_t>(bound, faces);
    Mesh mesh;
    Binding binding;
    expect_refusal_or_success(
        mien_rig_mesh_create(in.forgotten(corners.get()), faces, in.in(64) ? refused_count(in) : vertices,
                             in.forgotten(&mesh.handle)),
        mien_last_error());
    expect_refusal_or_success(
        mien_rig_binding_create(in.forgotten(face_of.get()), bound, in.in(64) ? refused_count(in) : faces,
                                in.forgotten(&binding.handle)),
        mien_last_error());
    const Array<float> positions = in.floats(3 * vertices, -1, 1), means = in.floats(3 * bound, -1, 1);
    const Array<float> quats = in.floats(4 * bound, -1, 1), log_scales = in.floats(3 * bound, -8, 1);
    const Array<float> logits = in.floats(bound, -5, 5);
    const RigColumns columns = {in.forgotten(means.get()), in.forgotten(quats.get()), in.forgotten(log_scales.get()),
                                in.forgotten(logits.get())};
    const Array<float> frames(16 * faces), out_means(3 * bound), out_quats(4 * bound), out_scales(3 * bound);
    const Array<float> out_opacities(bound);
    const RigPlaced placed = {in.forgotten(out_means.get()), in.forgotten(out_quats.get()),
                              in.forgotten(out_scales.get()), in.forgotten(out_opacities.get())};
    const int status =
        mien_rig_place(in.forgotten(mesh.handle), in.forgotten(binding.handle), in.forgotten(positions.get()),
                       in.forgotten(&columns), in.threads(), in.forgotten(frames.get()), in.forgotten(&placed));
    expect_refusal_or_success(status, mien_last_error());
    const Array<float> g_means = in.floats(3 * bound, -1, 1), g_quats = in.floats(4 * bound, -1, 1);
    const Array<float> g_scales = in.floats(3 * bound, -1, 1), g_opacities = in.floats(bound, -1, 1);
    const RigPlacedGradients gradients = {in.optional(g_means.get()), in.optional(g_quats.get()),
                                          in.optional(g_scales.get()), in.optional(g_opacities.get())};
    const Array<float> to_means(3 * bound), to_quats(4 * bound), to_scales(3 * bound), to_logits(bound);
    const Array<float> to_vertices(3 * vertices);
    const RigColumnGradients wanted = {in.optional(to_means.get()), in.optional(to_quats.get()),
                                       in.optional(to_scales.get()), in.optional(to_logits.get())};
    expect_refusal_or_success(
        mien_rig_place_backward(in.forgotten(mesh.handle), in.forgotten(binding.handle), in.forgotten(&columns),
                                in.forgotten(out_opacities.get()), in.forgotten(frames.get()), in.forgotten(&gradients),
                                in.threads(), in.forgotten(&wanted), in.optional(to_vertices.get())),
        mien_last_error());
}

}  // namespace fuzz
