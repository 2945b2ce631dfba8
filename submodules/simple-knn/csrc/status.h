// What the C functions answer with: status codes, the last error's text, and the guard that keeps exceptions inside.
#pragma once

#include <cstdint>
#include <exception>
#include <new>
#include <stdexcept>

#include "neighbours.h"

#if defined(_WIN32)
#define KNN_API extern "C" __declspec(dllexport)
#else
#define KNN_API extern "C" __attribute__((visibility("default")))
#endif

namespace knn {

enum Status : int { kOk = 0, kInvalidArgument = 1, kOutOfMemory = 2, kInternal = 3, kNotFinite = 4, kDevice = 5 };

struct NotFinite : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// A GPU, or its driver, refuses.
struct DeviceError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

void set_last_error(const char* text) noexcept;

template <class Body>
int guarded(const Body& body) {
    try {
        body();
        return kOk;
    } catch (const InvalidArgument& error) {
        set_last_error(error.what());
        return kInvalidArgument;
    } catch (const NotFinite& error) {
        set_last_error(error.what());
        return kNotFinite;
    } catch (const DeviceError& error) {
        set_last_error(error.what());
        return kDevice;
    } catch (const std::bad_alloc&) {
        set_last_error("not enough memory");
        return kOutOfMemory;
    } catch (const std::exception& error) {
        set_last_error(error.what());
        return kInternal;
    }
}

}  // namespace knn
