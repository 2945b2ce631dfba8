// The maths core by its host instance: a table of functions that run a case on rows of numbers.
#include <cstdint>
#include <vector>

struct Entry {
    const char *name, *signature;
    int inputs, outputs;
    void (*in_double)(std::int64_t rows, const double* in, double* out);
    void (*in_float)(std::int64_t rows, const float* in, float* out);
};

static std::vector<Entry>& table() {
    static std::vector<Entry> entries;
    return entries;
}

template <class T>
static void run_rows(void (*row)(const T*, T*), std::int64_t rows, int inputs, const T* in, int outputs, T* out) {
    for (std::int64_t i = 0; i < rows; ++i) row(in + i * inputs, out + i * outputs);
}

#define EXPORT(name, signature, inputs, outputs)                                               \
    static const bool name##_listed =                                                          \
        (table().push_back({#name, signature, inputs, outputs,                                 \
                            [](std::int64_t rows, const double* in, double* out) {             \
                                run_rows(name##_case<double>, rows, inputs, in, outputs, out); \
                            },                                                                 \
                            [](std::int64_t rows, const float* in, float* out) {               \
                                run_rows(name##_case<float>, rows, inputs, in, outputs, out);  \
                            }}),                                                               \
         true);

#include "core_cases.h"

extern "C" {
int core_entries(const Entry** first) {
    *first = table().data();
    return static_cast<int>(table().size());
}
}
