#include <vector>

#include "inputs.h"
#include "native.h"

namespace fuzz {
namespace {

// A decay rate, now and then not one.
double decay(Inputs& in) { return in.in(16) ? double{in.wild_float()} : double{in.real(0, 0.9999f)}; }

std::int64_t refused_count(Inputs& in) { return in.flag() ? -1 - in.below(1000) : INT64_MAX - in.below(1000); }

struct Tensors {
    Array<float> gradient, parameter, mean, mean_square;

    Tensors(Inputs& in, std::int64_t n)
        : gradient(in.floats(n, -1, 1)),
          parameter(in.floats(n, -1, 1)),
          mean(in.floats(n, -1, 1)),
          mean_square(in.floats(n, 0, 1)) {}
};

void step(Inputs& in) {
    const int count = in.below(5);
    const bool large = in.large();
    std::vector<Tensors> tensors;
    Array<AdamColumn> columns(count);
    for (int i = 0; i < count; ++i) {
        const std::int64_t n = large && i == 0 ? 20000 : in.below(80);
        const Tensors& t = tensors.emplace_back(in, n);
        columns[i] = {in.forgotten(t.gradient.get()),    in.forgotten(t.parameter.get()),   in.forgotten(t.mean.get()),
                      in.forgotten(t.mean_square.get()), in.in(64) ? refused_count(in) : n, in.real(0, 1)};
    }
    const double beta1 = decay(in), beta2 = decay(in), eps = in.real(0, 1e-8f);
    expect_refusal_or_success(
        mien_adam_step(in.forgotten(columns.get()), in.in(64) ? refused_count(in) : count, beta1, beta2, eps,
                       in.in(16) ? in.wild_integer() : in.between(1, 1000), in.threads()),
        mien_last_error());
}

// `count` rows of a table, each once.
Array<std::int64_t> some_rows(Inputs& in, std::int64_t count, std::int64_t table) {
    Array<std::int64_t> rows(count);
    const std::int64_t shift = in.below(100);
    for (std::int64_t i = 0; i < count; ++i) rows[i] = (i + shift) % table;
    if (count > 0 && in.in(16)) rows[in.below(static_cast<int>(count))] = in.wild_integer();
    return rows;
}

void rows(Inputs& in) {
    const bool large = in.large();
    const std::int64_t table = large ? 500 : in.below(12), count = in.below(static_cast<int>(table) + 1);
    const std::int64_t width = large ? 60 : in.below(40);
    const Tensors tensors(in, table * width);
    const Array<float> gradient = in.floats(count * width, -1, 1), steps = in.floats(table, 0, 10);
    const Array<std::int64_t> chosen = some_rows(in, count, table);
    const double lr = in.real(0, 1), beta1 = decay(in), beta2 = decay(in), eps = in.real(0, 1e-8f);
    expect_refusal_or_success(
        mien_adam_rows(in.forgotten(gradient.get()), in.optional(chosen.get()), in.in(64) ? refused_count(in) : count,
                       in.in(64) ? -1 - table : table, in.in(64) ? refused_count(in) : width, lr, beta1, beta2, eps,
                       in.threads(), in.forgotten(steps.get()), in.forgotten(tensors.parameter.get()),
                       in.forgotten(tensors.mean.get()), in.forgotten(tensors.mean_square.get())),
        mien_last_error());
}

}  // namespace

void adam(Inputs& in) {
    if (in.flag())
        step(in);
    else
        rows(in);
}

}  // namespace fuzz
