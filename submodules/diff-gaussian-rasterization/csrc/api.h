// The C door of the library: export macro, status codes, and the guard that keeps C++ exceptions inside.
//
// Every exported function returns one of these codes. A code other than kOk comes with a one-line message
// (mien_last_error, per thread), and the outputs are then unspecified.
#pragma once

#include <cstdint>
#include <exception>
#include <new>
#include <stdexcept>
#include <string>

#if defined(_WIN32)
#define MIEN_API extern "C" __declspec(dllexport)
#else
#define MIEN_API extern "C" __attribute__((visibility("default")))
#endif

namespace mien {

enum Status : int {
    kOk = 0,
    kInvalidArgument = 1,  // the caller's mistake: a null pointer, a size, an option out of range
    kOutOfMemory = 2,
    kInternal = 3,
    kNotFinite = 4,  // an input tensor holds NaN or infinity
    kDevice = 5,     // the GPU or its driver refused
};

// Refuses a call; the text becomes mien_last_error().
struct InvalidArgument : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Refuses an input tensor that holds NaN or infinity.
struct NotFinite : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// A GPU, or its driver, refuses.
struct DeviceError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// The text says how much was asked for.
struct OutOfDeviceMemory : std::runtime_error {
    using std::runtime_error::runtime_error;
};

void set_last_error(const char* text) noexcept;

inline void require(bool condition, const char* message) {
    if (!condition) throw InvalidArgument(message);
}

// Refuses a call that lacks something it needs.
template <class... Pointers>
void require_pointers(const char* what, const Pointers*... pointers) {
    if (((pointers == nullptr) || ...)) throw InvalidArgument(std::string(what) + ": a pointer is null");
}

// Runs the body of an exported function and turns exceptions into status codes.
template <class Body>
int guarded(Body&& body) {
    try {
        body();
        return kOk;
    } catch (const InvalidArgument& error) {
        set_last_error(error.what());
        return kInvalidArgument;
    } catch (const NotFinite& error) {
        set_last_error(error.what());
        return kNotFinite;
    } catch (const OutOfDeviceMemory& error) {
        set_last_error(error.what());
        return kOutOfMemory;
    } catch (const DeviceError& error) {
        set_last_error(error.what());
        return kDevice;
    } catch (const std::bad_alloc&) {
        set_last_error("not enough memory");
        return kOutOfMemory;
    } catch (const std::exception& error) {
        set_last_error(error.what());
        return kInternal;
    } catch (...) {
        set_last_error("unknown error");
        return kInternal;
    }
}

}  // namespace mien
