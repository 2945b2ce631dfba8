#include "inputs.h"
#include "native.h"

namespace fuzz {
namespace {

int refused_side(Inputs& in) { return in.flag() ? -in.below(3) : INT32_MAX - in.below(3); }

void ssim(Inputs& in) {
    int channels = in.between(1, 3), height = in.seldom(32) ? in.between(1, 150) : in.between(1, 22),
        width = in.seldom(32) ? in.between(1, 150) : in.between(1, 22);
    const std::int64_t pixels = std::int64_t{channels} * height * width;
    const Array<float> image = in.floats(pixels, 0, 1), target = in.floats(pixels, 0, 1), gradient(pixels);
    const Array<double> sums(2);
    if (in.in(64)) channels = refused_side(in);
    if (in.in(64)) height = refused_side(in);
    if (in.in(64)) width = refused_side(in);
    const float l1 = in.real(-1, 1), scale = in.real(-1, 1);
    expect_refusal_or_success(
        mien_image_l1_ssim(in.forgotten(image.get()), in.forgotten(target.get()), channels, height, width, l1, scale,
                           in.threads(), in.optional(gradient.get()), in.forgotten(sums.get())),
        mien_last_error());
}

void bytes(Inputs& in) {
    const std::int64_t count = in.large() ? (1 << 20) + in.below(200) : in.below(900);
    const Array<std::uint8_t> levels(count);
    for (std::int64_t i = 0; i < count && i < 64; ++i) levels[i] = in.byte();
    const Array<float> floats(count);
    expect_refusal_or_success(mien_image_to_float(in.forgotten(levels.get()), in.in(64) ? -1 - count : count,
                                                  in.threads(), in.forgotten(floats.get())),
                              mien_last_error());
}

}  // namespace

void image(Inputs& in) {
    if (in.in(4))
        bytes(in);
    else
        ssim(in);
}

}  // namespace fuzz
