#include "inputs.h"
#include "native.h"

namespace fuzz {
namespace {

// Memory that a test may have, or a size that is to be refused.
std::int64_t size_of_walk(Inputs& in) {
    if (!in.in(16)) return in.below(1 << 16);
    return in.flag() ? -1 - in.below(1000) : (std::int64_t{1} << 34) + 1 + in.below(1000);
}

// To measure takes milliseconds whatever the time asked for: seldom.
double seconds_of(Inputs& in) {
    const double refused[] = {-1.0, 61.0, 0.0 / 0.0, 1.0 / 0.0};
    return in.seldom(16) ? 0.0 : refused[in.below(4)];
}

}  // namespace

void calibrate(Inputs& in) {
    const int count = in.below(3);
    Array<std::int64_t> sizes(count);
    for (int i = 0; i < count; ++i) sizes[i] = size_of_walk(in);
    double instructions;
    const Array<double> reads(count), updates(count);
    const int refused[] = {0, -1, 257, INT32_MAX, INT32_MIN};
    const int threads = in.in(8) ? refused[in.below(5)] : in.between(1, 2);
    const int status =
        mien_calibrate(threads, seconds_of(in), in.forgotten(sizes.get()), in.in(16) ? -1 : count,
                       in.forgotten(&instructions), in.forgotten(reads.get()), in.forgotten(updates.get()));
    expect_refusal_or_success(status, mien_last_error());
}

}  // namespace fuzz
