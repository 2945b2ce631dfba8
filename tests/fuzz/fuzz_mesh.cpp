#include "inputs.h"
#include "native.h"

namespace fuzz {

void mesh(Inputs& in) {
    const std::int64_t vertex_count = in.below(20), face_count = in.seldom(128) ? 5000 : in.below(30);
    int width = in.between(1, 40), height = in.between(1, 60);
    const std::int64_t pixels = std::int64_t{width} * height;
    const Array<float> vertices = in.floats(3 * vertex_count, -20, 60);
    const Array<std::int32_t> faces = in.indices<std::int32_t>(3 * face_count, vertex_count);
    const float far_out = in.in(6) ? 17000.0f : 1.0f;  // just within what fixed point can hold
    for (std::int64_t i = 0; i < vertices.size(); ++i)
        if (i % 3 != 2) vertices[i] *= far_out;
    const Array<std::int32_t> face_id(pixels);
    const Array<float> barycentrics(3 * pixels), depth(pixels);
    if (in.in(64)) width = static_cast<int>(in.wild_integer() % 2 * 20000);
    if (in.in(64)) height = -in.below(2);
    expect_refusal_or_success(
        mien_mesh_rasterize(in.forgotten(vertices.get()), in.in(64) ? -vertex_count : vertex_count,
                            in.forgotten(faces.get()), in.in(64) ? -face_count : face_count, width, height,
                            in.real(0, 1), in.threads(), in.forgotten(face_id.get()), in.forgotten(barycentrics.get()),
                            in.forgotten(depth.get())),
        mien_last_error());
}

}  // namespace fuzz
