#include "depth_sort.h"

#include <algorithm>

namespace mien {

namespace {

constexpr int kDigitBits = 11;
constexpr int kBins = 1 << kDigitBits;

void sort_digit(const uint64_t* in, uint64_t* out, int64_t count, uint32_t lowest, int shift,
                const uint32_t* histogram) {
    uint32_t next[kBins];
    uint32_t total = 0;
    for (int b = 0; b < kBins; ++b) {
        next[b] = total;
        total += histogram[b];
    }
    for (int64_t i = 0; i < count; ++i) {
        const uint32_t key = static_cast<uint32_t>(in[i] >> 32) - lowest;
        out[next[key >> shift & (kBins - 1)]++] = in[i];
    }
}

}  // namespace

const uint64_t* sort_keys(uint64_t* keys, uint64_t* other, int64_t count) {
    uint32_t lowest = ~0u, highest = 0;
    for (int64_t i = 0; i < count; ++i) {
        const uint32_t key = static_cast<uint32_t>(keys[i] >> 32);
        lowest = std::min(lowest, key);
        highest = std::max(highest, key);
    }
    if (count == 0) return keys;
    const uint32_t range = highest - lowest;
    const int digits = range == 0 ? 0 : range < (1u << kDigitBits) ? 1 : range < (1u << 2 * kDigitBits) ? 2 : 3;
    uint32_t histogram[3][kBins] = {};
    for (int64_t i = 0; i < count; ++i) {
        const uint32_t key = static_cast<uint32_t>(keys[i] >> 32) - lowest;
        for (int d = 0; d < digits; ++d) ++histogram[d][key >> d * kDigitBits & (kBins - 1)];
    }
    for (int d = 0; d < digits; ++d) {
        sort_digit(keys, other, count, lowest, d * kDigitBits, histogram[d]);
        std::swap(keys, other);
    }
    return keys;
}

}  // namespace mien
