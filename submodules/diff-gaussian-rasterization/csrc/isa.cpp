#include "isa.h"

#include <atomic>
#include <cstdlib>

#include "api.h"

namespace mien {

namespace {

bool available(Isa isa) {
#if defined(MIEN_HAVE_X86)
    const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                    __builtin_cpu_supports("bmi2");
    const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512vl");
    return isa == Isa::scalar || (isa == Isa::avx2 && v3) || (isa == Isa::avx512 && v4);
#else
    return isa == Isa::scalar;
#endif
}

Isa best() {
    for (Isa isa : {Isa::avx512, Isa::avx2})
        if (available(isa)) return isa;
    return Isa::scalar;
}

Isa from_environment() {
    const char* wanted = std::getenv("MIEN_ISA");
    return wanted == nullptr || *wanted == '\0' ? best() : parse_isa(wanted);
}

std::atomic<Isa>& chosen() {
    static std::atomic<Isa> isa{from_environment()};
    return isa;
}

}  // namespace

Isa parse_isa(const std::string& name) {
    for (Isa isa : {Isa::avx512, Isa::avx2, Isa::scalar}) {
        if (name != isa_name(isa)) continue;
        if (!available(isa))
            throw InvalidArgument("MIEN_ISA=" + name + " is not available on this CPU or in this build");
        return isa;
    }
    throw InvalidArgument("MIEN_ISA must be avx512, avx2 or scalar, got " + name);
}

Isa active_isa() { return chosen().load(std::memory_order_relaxed); }

void select_isa(Isa isa) { chosen().store(isa, std::memory_order_relaxed); }

const char* isa_name(Isa isa) {
    switch (isa) {
        case Isa::avx512: return "avx512";
        case Isa::avx2: return "avx2";
        default: return "scalar";
    }
}

}  // namespace mien
