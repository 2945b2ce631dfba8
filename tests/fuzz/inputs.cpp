#include "inputs.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "native.h"

namespace fuzz {

std::uint8_t Inputs::byte() {
    if (size_ == 0) return static_cast<std::uint8_t>(random());
    --size_;
    return *data_++;
}

// splitmix64: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014.
std::uint64_t Inputs::random() {
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
}

// FNV-1a: Fowler, Noll, Vo; see draft-eastlake-fnv.
bool Inputs::seldom(int n) const {
    std::uint32_t hash = 2166136261u;
    for (std::size_t i = 0; i < size_; ++i) hash = (hash ^ data_[i]) * 16777619u;
    return (hash >> 8) % static_cast<std::uint32_t>(n) == 1;
}

std::int64_t Inputs::wild_integer() {
    constexpr std::int64_t values[] = {0,          1,         -1,        2,         255,       256,
                                       65535,      65536,     INT32_MAX, INT32_MIN, INT64_MAX, INT64_MIN,
                                       UINT32_MAX, 715827882, 715827883, -2,        1 << 20,   std::int64_t{1} << 31,
                                       100,        1000};
    return values[below(static_cast<int>(std::size(values)))];
}

float Inputs::wild_float() {
    const std::uint32_t bits = static_cast<std::uint32_t>(random());
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

int Inputs::threads() {
    const int kind = byte();
    if (kind < 240) return 1;
    if (kind < 252) return 2 + kind % 3;
    // Hundreds of threads are slow: seldom.
    return in(16) ? static_cast<int>(wild_integer()) : -below(2);
}

Array<float> Inputs::floats(std::int64_t count, float low, float high) {
    Array<float> values(count);
    const int kind = byte();
    state_ ^= static_cast<std::uint64_t>(byte()) << 32;  // so that the fuzzer can change all of them
    const float step = (high - low) * 0x1p-24f;
    float* const first = values.get();
    for (std::int64_t i = 0; i < count; i += 2) {
        const std::uint64_t bits = random();
        first[i] = low + step * static_cast<float>(bits >> 40);
        if (i + 1 < count) first[i + 1] = low + step * static_cast<float>(bits & 0xffffff);
    }
    if (kind >= 208) spoil(values, kind, low);
    return values;
}

void Inputs::spoil(const Array<float>& values, int kind, float low) {
    using Limits = std::numeric_limits<float>;
    constexpr float special[] = {Limits::quiet_NaN(),
                                 Limits::infinity(),
                                 -Limits::infinity(),
                                 Limits::max(),
                                 Limits::lowest(),
                                 Limits::min(),
                                 -0.0f,
                                 0.0f,
                                 Limits::denorm_min(),
                                 1e-20f,
                                 1e20f,
                                 -1e10f};
    const float scale = std::ldexp(1.0f, static_cast<int>(random() % 60) - 30);
    for (std::int64_t i = 0; i < values.size(); ++i) {
        float& value = values[i];
        if (kind < 220) {
            value *= scale;
        } else if (kind < 230) {
            value = kind < 226 ? low : 0.0f;
        } else if (kind < 236) {
            value = std::ldexp(value, static_cast<int>(random() % 250) - 125);
        } else if (kind < 240) {
            value = wild_float();
            if (!std::isfinite(value)) value = 0.0f;
        } else if (kind < 254) {
            if (random() % 8 == 0) value = kind < 250 ? special[3 + random() % 9] : special[random() % 12];
        } else {
            value = wild_float();
        }
    }
}

Array<double> Inputs::doubles(std::int64_t count, float low, float high) {
    const Array<float> values = floats(count, low, high);
    Array<double> wide(count);
    for (std::int64_t i = 0; i < count; ++i) wide[i] = values[i];
    return wide;
}

void expect_refusal_or_success(int status, const char* error) {
    if (status == 0 || status == 1 || status == 4) return;
    std::fprintf(stderr, "a C function returned status %d: %s\n", status, error);
    std::abort();
}

void choose_isa(Inputs& in) {
    const char* const names[] = {"scalar", "avx2", "avx512"};
    static const bool given = std::getenv("MIEN_ISA") != nullptr;
    const char* name = names[in.below(3)];
    if (given || mien_initialise() != 0) return;
    if (mien_select_isa(name) != 0) mien_select_isa(name = "scalar");
    setenv("MIEN_ISA", name, 1);  // simple_knn looks at every call
}

}  // namespace fuzz
