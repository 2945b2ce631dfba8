#include <vector>

#include "inputs.h"
#include "native.h"

namespace fuzz {
namespace {

std::int64_t refused_count(Inputs& in) { return in.flag() ? -1 - in.below(1000) : INT64_MAX - in.below(1000); }

Array<std::int32_t> some_radii(Inputs& in, std::int64_t count) {
    return in.indices<std::int32_t>(count, in.in(8) ? 1 : 4);
}

void limits(Inputs& in) {
    const std::int64_t n = in.large() ? (1 << 17) + in.below(50) : in.below(100);
    const Array<float> means = in.floats(3 * n, -2, 2), scales = in.floats(3 * n, 0, 2), to_means(3 * n),
                       to_scales(3 * n);
    const Array<std::int32_t> radii = some_radii(in, n);
    const Array<double> values(2);
    const BindingLimits work = {in.optional(means.get()),
                                in.optional(scales.get()),
                                in.forgotten(radii.get()),
                                in.real(0, 2),
                                in.real(0, 2),
                                in.real(-1, 1),
                                in.real(-1, 1),
                                in.optional(to_means.get()),
                                in.optional(to_scales.get())};
    expect_refusal_or_success(mien_binding_limits(in.forgotten(&work), in.in(64) ? refused_count(in) : n, in.threads(),
                                                  in.forgotten(values.get())),
                              mien_last_error());
}

void add_view(Inputs& in) {
    const std::int64_t n = in.below(200);
    const Array<float> slopes = in.floats(2 * n, -1, 1), gradient = in.floats(n, 0, 1), seen = in.floats(n, 0, 9);
    const Array<float> radius = in.floats(n, 0, 9);
    const Array<std::int32_t> radii = some_radii(in, n);
    expect_refusal_or_success(
        mien_statistics_add_view(in.forgotten(slopes.get()), in.forgotten(radii.get()),
                                 in.in(64) ? refused_count(in) : n, in.real(0, 100), in.forgotten(gradient.get()),
                                 in.forgotten(seen.get()), in.forgotten(radius.get())),
        mien_last_error());
}

void squares_finite(Inputs& in) {
    const int n = in.below(6);
    const bool large = in.large();
    std::vector<Array<float>> kept;
    Array<const float*> arrays(n);
    Array<std::int64_t> counts(n);
    for (int i = 0; i < n; ++i) {
        const std::int64_t count = large && i == 0 ? (1 << 22) + 1 : in.below(100);
        kept.push_back(count > 100 ? Array<float>(count) : in.floats(count, -1, 1));
        arrays[i] = in.forgotten(kept.back().get());
        counts[i] = in.in(64) ? refused_count(in) : count;
    }
    int finite;
    expect_refusal_or_success(
        mien_statistics_squares_finite(in.forgotten(arrays.get()), in.forgotten(counts.get()),
                                       in.in(64) ? refused_count(in) : n, in.threads(), in.forgotten(&finite)),
        mien_last_error());
}

}  // namespace

// What a training step does with gradients besides Adam.
void training(Inputs& in) {
    switch (in.below(3)) {
        case 0: return limits(in);
        case 1: return add_view(in);
        default: return squares_finite(in);
    }
}

}  // namespace fuzz
