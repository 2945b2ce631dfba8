// A grow-only, uninitialised, cache-line aligned array: scratch memory that survives from picture to picture.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace mien {

template <class T>
class Buffer {
public:
    Buffer() = default;
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    ~Buffer() { release(); }

    // Makes room for `count` elements and returns the array; its content is lost if it had to grow.
    T* reserve(int64_t count) {
        if (count > capacity_) {
            release();
            const int64_t wanted = count + count / 4 + 16;
            const size_t bytes = static_cast<size_t>(wanted) * sizeof(T);
            alignment_ = bytes >= kHugePage ? kHugePage : 64;
            data_ = static_cast<T*>(::operator new(bytes, std::align_val_t(alignment_)));
            capacity_ = wanted;
#if defined(__linux__)
            // The arrays are read in depth order, that is all over the place: with small pages address translation
            // costs more than the data.
            if (alignment_ == kHugePage) madvise(data_, bytes, MADV_HUGEPAGE);
#endif
        }
        return data_;
    }
    T* data() const { return data_; }
    T& operator[](int64_t i) const { return data_[i]; }

private:
    void release() {
        if (data_ != nullptr) ::operator delete(data_, std::align_val_t(alignment_));
        data_ = nullptr;
        capacity_ = 0;
    }

    static constexpr size_t kHugePage = size_t(1) << 21;

    T* data_ = nullptr;
    size_t alignment_ = 64;
    int64_t capacity_ = 0;
};

}  // namespace mien
