// Which instruction set the kernels run with, and how common code reaches the kernels compiled for it.
//
// A kernel file csrc/kernels/NAME.cpp is compiled once per instruction set. It puts everything, helper headers
// included, inside `namespace mien::MIEN_ISA` and exports one constant table of function pointers:
//
//     // csrc/NAME.h, common:       struct NameKernels { void (*forward)(const float* in, float* out, int64_t n); };
//     //                            MIEN_DECLARE_KERNELS(NameKernels, name_kernels)
//     // csrc/kernels/NAME.cpp:     namespace mien::MIEN_ISA { ... extern const NameKernels name_kernels; const
//     NameKernels name_kernels = {forward}; }
//     // csrc/NAME.cpp, common:     MIEN_KERNELS(name_kernels).forward(in, out, n);
//
// Kernel files must not emit functions shared between instruction sets: no std containers, no std::function, no headers
// with out-of-line templates. The linker would keep one copy of such a function, maybe the one that needs AVX-512.
#pragma once

#include <string>

namespace mien {

enum class Isa { scalar, avx2, avx512 };

// The set chosen by CPUID, or by the environment variable MIEN_ISA. Throws InvalidArgument if that one is unknown or
// not available.
Isa active_isa();

// Switches at run time; not while a call is running, and not between a forward pass and its backward pass.
void select_isa(Isa isa);

// Throws InvalidArgument if there is no such set or this CPU lacks it.
Isa parse_isa(const std::string& name);

const char* isa_name(Isa isa);

#if defined(MIEN_HAVE_X86)
#define MIEN_DECLARE_KERNELS(Table, name) \
    namespace mien {                      \
    namespace scalar {                    \
    extern const Table name;              \
    }                                     \
    namespace avx2 {                      \
    extern const Table name;              \
    }                                     \
    namespace avx512 {                    \
    extern const Table name;              \
    }                                     \
    }
#define MIEN_KERNELS(name) (::mien::select_table(::mien::scalar::name, ::mien::avx2::name, ::mien::avx512::name))

template <class Table>
const Table& select_table(const Table& scalar, const Table& avx2, const Table& avx512) {
    switch (active_isa()) {
        case Isa::avx512: return avx512;
        case Isa::avx2: return avx2;
        default: return scalar;
    }
}
#else
#define MIEN_DECLARE_KERNELS(Table, name) \
    namespace mien {                      \
    namespace scalar {                    \
    extern const Table name;              \
    }                                     \
    }
#define MIEN_KERNELS(name) (::mien::scalar::name)
#endif

}  // namespace mien
