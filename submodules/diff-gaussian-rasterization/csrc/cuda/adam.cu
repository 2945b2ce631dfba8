// Adam on a GPU: all columns in one launch, and single rows of a table. The numbers are those of the CPU kernels.
#include "core/adam_update.h"
#include "cuda/pieces.h"

namespace mien {
namespace cuda {
namespace {

using namespace mien::device;

constexpr int kThreads = 256, kFour = 4;

__device__ bool forbidden(const Health* health, const std::uint8_t* allowed) {
    return (health != nullptr && health->stopped != 0) || (allowed != nullptr && *allowed == 0);
}

// Which blocks work on which column: those of column c begin at begin[c].
struct Shares {
    unsigned begin[kMostColumns + 1];
    bool aligned[kMostColumns];
};

bool is_aligned(const AdamColumns::Column& c) {
    const void* all[] = {c.gradient, c.parameter, c.mean, c.mean_square};
    for (const void* each : all)
        if (reinterpret_cast<std::uintptr_t>(each) % alignof(float4) != 0) return false;
    return true;
}

__global__ void __launch_bounds__(kThreads) step_columns(AdamColumns columns, Shares shares) {
    if (forbidden(columns.health, columns.allowed)) return;
    int which = 0;
    unsigned begin = 0;
    bool aligned = shares.aligned[0];
#pragma unroll
    for (int c = 1; c < kMostColumns; ++c) {
        if (c >= columns.count || blockIdx.x < shares.begin[c]) break;
        which = c;
        begin = shares.begin[c];
        aligned = shares.aligned[c];
    }
    const AdamColumns::Column& c = columns.column[which];
    const AdamStep constants = columns.constants != nullptr ? columns.constants[which] : c.constants;
    const std::int64_t block = blockIdx.x - begin;
    const std::int64_t first = (block * kThreads + threadIdx.x) * kFour;
    if (aligned && first + kFour <= c.count) {
        const float4 g = *reinterpret_cast<const float4*>(c.gradient + first);
        float4 p = *reinterpret_cast<const float4*>(c.parameter + first);
        float4 m = *reinterpret_cast<const float4*>(c.mean + first);
        float4 v = *reinterpret_cast<const float4*>(c.mean_square + first);
        adam_update(constants, g.x, p.x, m.x, v.x);
        adam_update(constants, g.y, p.y, m.y, v.y);
        adam_update(constants, g.z, p.z, m.z, v.z);
        adam_update(constants, g.w, p.w, m.w, v.w);
        *reinterpret_cast<float4*>(c.parameter + first) = p;
        *reinterpret_cast<float4*>(c.mean + first) = m;
        *reinterpret_cast<float4*>(c.mean_square + first) = v;
        return;
    }
    // Of a block, neighbouring threads take neighbours.
    for (int k = 0; k < kFour; ++k) {
        const std::int64_t i =
            aligned ? first + k : (block * kFour + k) * kThreads + static_cast<std::int64_t>(threadIdx.x);
        if (i < c.count) adam_update(constants, c.gradient[i], c.parameter[i], c.mean[i], c.mean_square[i]);
    }
}

// Sum of the gradients that element `column` of row `row` gets, in order; they begin at `first`.
__device__ float row_gradient(const AdamRows& t, std::int64_t first, std::int64_t row, std::int64_t column,
                              bool repeated) {
    float sum = t.gradient[first * t.width + column];
    if (repeated)
        for (std::int64_t i = first + 1; i < t.count; ++i)
            if (t.rows[i] == row) sum += t.gradient[i * t.width + column];
    return sum;
}

// One block for each gradient of each table (blockIdx.y); the first of a row does the work of all.
__global__ void __launch_bounds__(kThreads) step_rows(AdamTables tables) {
    __shared__ AdamStep constants;
    const AdamRows& t = tables.table[blockIdx.y];
    if (blockIdx.x >= t.count || forbidden(t.health, t.allowed)) return;
    const std::int64_t mine = blockIdx.x, row = t.rows != nullptr ? t.rows[mine] : mine;
    if (row < 0 || row >= t.table_rows) return;
    bool before = false, behind = false;
    if (t.rows != nullptr)
        for (std::int64_t i = threadIdx.x; i < t.count; i += kThreads)
            if (i != mine && t.rows[i] == row) (i < mine ? before : behind) = true;
    if (__syncthreads_or(before)) return;
    const bool repeated = __syncthreads_or(behind);
    bool moved = false;
    for (std::int64_t i = threadIdx.x; i < t.width; i += kThreads)
        moved = moved || !(row_gradient(t, mine, row, i, repeated) == 0.0f);
    if (!__syncthreads_or(moved)) return;
    if (threadIdx.x == 0) {
        const float count = t.steps[row] + 1.0f;
        t.steps[row] = count;
        const double lr = t.rate != nullptr ? static_cast<double>(*t.rate) : t.lr;
        constants = adam_constants(lr, t.beta1, t.beta2, t.eps, count);
    }
    __syncthreads();
    const std::int64_t first = row * t.width;
    for (std::int64_t i = threadIdx.x; i < t.width; i += kThreads)
        adam_update(constants, row_gradient(t, mine, row, i, repeated), t.parameter[first + i], t.mean[first + i],
                    t.mean_square[first + i]);
}

}  // namespace

void adam_columns(const AdamColumns& columns, cudaStream_t stream) {
    Shares shares{};
    for (int c = 0; c < columns.count; ++c) {
        shares.aligned[c] = is_aligned(columns.column[c]);
        shares.begin[c + 1] = shares.begin[c] + blocks_for(columns.column[c].count, kThreads * kFour);
    }
    launch(step_columns, dim3(shares.begin[columns.count]), dim3(kThreads), stream, columns, shares);
}

void adam_rows(const AdamTables& tables, cudaStream_t stream) {
    std::int64_t most = 0;
    for (int k = 0; k < tables.count; ++k) most = tables.table[k].count > most ? tables.table[k].count : most;
    launch(step_rows, dim3(static_cast<unsigned>(most), static_cast<unsigned>(tables.count)), dim3(kThreads), stream,
           tables);
}

}  // namespace cuda
}  // namespace mien
