#include "api.h"

#include <cstdio>

#include "isa.h"

namespace mien {

namespace {
thread_local char last_error[512];
}

// Without memory of its own: the failure may be that there is none.
void set_last_error(const char* text) noexcept { std::snprintf(last_error, sizeof last_error, "%s", text); }

}  // namespace mien

// One-line description of this thread's last failure. The pointer lives until this thread's next failure.
MIEN_API const char* mien_last_error() { return mien::last_error; }

// Version of the C interface; it changes whenever a signature does.
MIEN_API int mien_abi_version() { return 4; }

// Chooses the instruction set. To be called once after loading; fails if MIEN_ISA asks for what this CPU lacks.
MIEN_API int mien_initialise() {
    return mien::guarded([] { mien::active_isa(); });
}

// Name of the instruction set in use: "scalar", "avx2" or "avx512".
MIEN_API const char* mien_isa_name() { return mien::isa_name(mien::active_isa()); }

// Uses the instruction set of that name from now on; for tests and benchmarks.
MIEN_API int mien_select_isa(const char* name) {
    return mien::guarded([&] {
        mien::require(name != nullptr, "name is null");
        mien::select_isa(mien::parse_isa(name));
    });
}
