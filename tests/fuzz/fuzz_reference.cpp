#include "inputs.h"
#include "native.h"

namespace fuzz {

void reference(Inputs& in) {
    const int width = in.between(1, 12), height = in.between(1, 12), coefficients = in.between(1, 18);
    const std::int64_t pixels = std::int64_t{width} * height, n = in.below(12);
    const Array<double> means = in.doubles(3 * n, -1, 1), quats = in.doubles(4 * n, -1, 1);
    const Array<double> scales = in.doubles(3 * n, 0.001f, 0.5f), opacities = in.doubles(n, 0, 1);
    const Array<double> sh = in.doubles(3 * n * coefficients, -1, 1), offsets = in.doubles(2 * n, -0.1f, 0.1f);
    const Array<double> pose = in.doubles(16, -1, 1), intrinsics = in.doubles(9, 1, 10),
                        background = in.doubles(3, 0, 1);
    if (!in.in(8))
        for (int i = 0; i < 16; ++i) pose[i] = i % 5 == 0 ? 1 : i == 11 ? 2 : 0;
    const Array<double> g_image = in.doubles(3 * pixels, -1, 1), g_alpha = in.doubles(pixels, -1, 1);
    const Array<double> g_depth = in.doubles(pixels, -1, 1);
    const bool back = in.flag(), wild = in.in(32);
    const ReferenceScene scene = {in.in(64) ? -n : n,
                                  in.in(64) ? -width : width,
                                  in.in(64) ? -height : height,
                                  in.in(32) ? static_cast<int>(in.wild_integer()) : in.below(4),
                                  coefficients,
                                  wild ? in.wild_float() : 0.01,
                                  wild ? in.wild_float() : 100.0,
                                  wild ? in.wild_float() : 0.3,
                                  wild ? in.wild_float() : 0.99,
                                  wild ? in.wild_float() : 1e-4,
                                  in.forgotten(means.get()),
                                  in.forgotten(quats.get()),
                                  in.forgotten(scales.get()),
                                  in.forgotten(opacities.get()),
                                  in.forgotten(sh.get()),
                                  in.forgotten(offsets.get()),
                                  in.forgotten(pose.get()),
                                  in.forgotten(intrinsics.get()),
                                  in.forgotten(background.get()),
                                  back ? g_image.get() : nullptr,
                                  back ? in.forgotten(g_alpha.get()) : nullptr,
                                  back ? in.forgotten(g_depth.get()) : nullptr};
    const Array<double> image(3 * pixels), alpha(pixels), depth(pixels), to_means(3 * n), to_quats(4 * n),
        to_scales(3 * n);
    const Array<double> to_opacities(n), to_sh(3 * n * coefficients), to_offsets(2 * n), to_pose(16), to_intrinsics(9);
    const Array<double> to_background(3);
    ReferenceResult result = {
        in.forgotten(image.get()),        in.forgotten(alpha.get()),         in.forgotten(depth.get()),
        in.forgotten(to_means.get()),     in.forgotten(to_quats.get()),      in.forgotten(to_scales.get()),
        in.forgotten(to_opacities.get()), in.forgotten(to_sh.get()),         in.forgotten(to_offsets.get()),
        in.forgotten(to_pose.get()),      in.forgotten(to_intrinsics.get()), in.forgotten(to_background.get())};
    expect_refusal_or_success(mien_reference_render(in.forgotten(&scene), in.forgotten(&result)), mien_last_error());
}

}  // namespace fuzz
