// Turns the bytes of a fuzzer into the arguments of a C function: sizes are true, everything else may be hostile.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace fuzz {

// An array with nothing before it and nothing behind it: what reads or writes one element too many is found out.
template <class T>
class Array {
public:
    Array() = default;
    explicit Array(std::int64_t count) : count_(count), data_(new T[static_cast<std::size_t>(count)]()) {}

    std::int64_t size() const { return count_; }
    T* get() const { return data_.get(); }
    T& operator[](std::int64_t i) const { return data_.get()[i]; }

private:
    std::int64_t count_ = 0;
    std::unique_ptr<T[]> data_;
};

class Inputs {
public:
    // Past the end of the data come pseudo-random bytes: short inputs reach as deep as long ones.
    Inputs(const std::uint8_t* data, std::size_t size) : data_(data), size_(size) {}

    std::uint8_t byte();
    int below(int n) {  // n <= 65536
        const int high = byte();
        return (high << 8 | byte()) % n;
    }
    int between(int low, int high) { return low + below(high - low + 1); }
    bool in(int n) { return byte() % n == 0; }  // once in n times, n <= 256
    bool flag() { return in(2); }
    // Once in n times, for what is slow, such as sizes at which several threads have work. Depends on all bytes to
    // come, so that a fuzzer which has found it can't keep it.
    bool seldom(int n) const;
    bool large() const { return seldom(512); }

    // A number that somebody forgot to check.
    std::int64_t wild_integer();
    float wild_float();  // any bits
    int threads();

    // `count` numbers from [low, high], most of the time: else zeros, equal ones, of every magnitude, not finite.
    Array<float> floats(std::int64_t count, float low, float high);
    float real(float low, float high) { return floats(1, low, high)[0]; }
    // The same in double, of the same values.
    Array<double> doubles(std::int64_t count, float low, float high);
    // Indices in [0, bins), most of the time.
    template <class Int>
    Array<Int> indices(std::int64_t count, std::int64_t bins) {
        Array<Int> values(count);
        const bool wrong = in(32);
        for (std::int64_t i = 0; i < count; ++i) {
            values[i] = bins > 0 ? static_cast<Int>(random() % static_cast<std::uint64_t>(bins)) : Int{0};
            if (wrong && random() % 8 == 0) values[i] = static_cast<Int>(wild_integer());
        }
        return values;
    }

    // The pointer, or once in a while null where the function wants something.
    template <class T>
    T* forgotten(T* pointer) {
        return in(128) ? nullptr : pointer;
    }
    // The pointer or null, where both are allowed.
    template <class T>
    T* optional(T* pointer) {
        return flag() ? pointer : nullptr;
    }

private:
    std::uint64_t random();
    void spoil(const Array<float>& values, int kind, float low);

    const std::uint8_t* data_;
    std::size_t size_;
    std::uint64_t state_ = 0x9e3779b97f4a7c15;
};

// Ends the process unless a status is one that bad arguments may bring about: success, a refusal, or NaN refused. All
// sizes here are small, so lack of memory is a fault as well.
void expect_refusal_or_success(int status, const char* error);

// The instruction set of this input; none is chosen if the environment variable MIEN_ISA did.
void choose_isa(Inputs& in);

using Area = void (*)(Inputs&);
struct Entry {
    const char* name;
    Area run;
};
extern const std::vector<Entry> areas;

}  // namespace fuzz
