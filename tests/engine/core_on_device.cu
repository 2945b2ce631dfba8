// Compiled, not run: every function of the maths core as device code, in float and double.
#define MIEN_ISA device

#define EXPORT(name, signature, inputs, outputs)                                 \
    extern "C" __global__ void name##_double(const double* in, double* out) {    \
        name##_case(in + threadIdx.x * (inputs), out + threadIdx.x * (outputs)); \
    }                                                                            \
    extern "C" __global__ void name##_float(const float* in, float* out) {       \
        name##_case(in + threadIdx.x * (inputs), out + threadIdx.x * (outputs)); \
    }

#include "core_cases.h"
