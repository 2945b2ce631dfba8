// The stages of a training step beside the rasteriser. Arrays lie on the device; rules as in stages.h. What changes
// from step to step (rates, counts, rows) is read from device memory where a pointer is given, so that a captured graph
// need not change.
#pragma once

#include "adam.h"
#include "binding.h"
#include "cuda/stages.h"
#include "statistics.h"

namespace mien {
namespace cuda {

// --- image.cu

// B pictures and their photographs. Photographs are floats [B, C, H, W], or bytes (level / 255): picture b begins at
// store + offset[b].
struct SsimTables {
    int views, channels, height, width;
    const float *images, *targets;
    const std::uint8_t* store;     // used if `targets` is null
    const std::int64_t* offset;    // [B]
    float l1_scale, ssim_scale;    // gradient = l1_scale * d sum|.| + ssim_scale * d sum(ssim)
    float* gradients;              // [B, C, H, W]; null: not wanted
    float* scratch;                // 16 byte aligned
    double* sums;                  // [B, 2] sum |image - target|, sum of ssim; null: not wanted
    float* means[2] = {};          // one number each: means of both over all pictures; null: not wanted
    const float* factors[2] = {};  // one number each, times l1_scale and ssim_scale; null: 1
    bool derivatives = false;      // l1_ssim leaves in `scratch` what l1_ssim_gradient needs, if `gradients` is null
};
std::int64_t l1_ssim_scratch(const SsimTables& tables);                // floats
void l1_ssim(const SsimTables& tables, cudaStream_t stream);           // sums, means and gradients
void l1_ssim_gradient(const SsimTables& tables, cudaStream_t stream);  // gradients alone, later
void bytes_to_float(const std::uint8_t* bytes, std::int64_t count, float* out, cudaStream_t stream);

// --- adam.cu

constexpr int kMostColumns = 8;
struct AdamColumns {
    int count;
    struct Column {
        const float* gradient;
        float *parameter, *mean, *mean_square;
        std::int64_t count;
        AdamStep constants;
    } column[kMostColumns];
    const AdamStep* constants;              // [columns] on the device; null: those of the columns
    const Health* health;                   // null: always; else not once it has stopped
    const std::uint8_t* allowed = nullptr;  // null: always; else nothing is done if it is 0
};
void adam_columns(const AdamColumns& columns, cudaStream_t stream);

// Gradients [count, width] of the rows `rows` [count]; null: rows 0 to count - 1. A row that is there more than once
// gets the sum, in order. A row whose gradient is zero is left alone; the others count their own steps. What is said of
// rows that the table does not have is ignored.
struct AdamRows {
    const float* gradient;
    const std::int64_t* rows;
    std::int64_t count, table_rows, width;
    float *steps, *parameter, *mean, *mean_square;
    double lr, beta1, beta2, eps;
    const float* rate;  // lr on the device; null: `lr`
    const Health* health;
    const std::uint8_t* allowed = nullptr;
};
constexpr int kMostRowTables = 8;
struct AdamTables {
    int count = 0;
    AdamRows table[kMostRowTables] = {};
};
void adam_rows(const AdamTables& tables, cudaStream_t stream);  // all in one launch
inline void adam_rows(const AdamRows& table, cudaStream_t stream) { adam_rows(AdamTables{1, {table}}, stream); }

// --- statistics.cu

// Adds views to rows [0, count), one after the other, as StatisticsKernels::add_view does: screen_gradients [views,
// count, 2], radii [views, count].
void add_view(const float* screen_gradients, const std::int32_t* radii, float factor, std::int64_t count,
              const ScreenStatistics& out, const Health* health, cudaStream_t stream, int views = 1);

constexpr int kMostArrays = 16;
struct Arrays {
    int count;
    const float* values[kMostArrays];
    std::int64_t size[kMostArrays];
};
// Sets *bad (not cleared before) if the square of any value is not finite.
void squares_finite(const Arrays& arrays, std::uint32_t* bad, cudaStream_t stream);
inline void squares_finite(const float* values, std::int64_t count, std::uint32_t* bad, cudaStream_t stream) {
    squares_finite(Arrays{1, {values}, {count}}, bad, stream);
}

// --- binding.cu

struct LimitTables {
    BindingLimits limits;  // weights: of the mean over drawn Gaussians, not yet divided by their number
    std::int64_t count;
    bool logarithmic;       // scales are logarithms, and so is their gradient
    bool accumulate;        // gradients are added to what is there
    float* scratch;         // 16 byte aligned
    double* sums;           // [views, 3]: drawn Gaussians, sum of the xyz excess, of the scale excess; null: not wanted
    int views = 1;          // limits.radii [views, N]; gradients are the sum over views
    float* values[2] = {};  // one number each: weight times mean excess, summed over views; null: not wanted
    const float* factors[2] = {};  // one number each, times the gradients; null: 1
};
std::int64_t binding_scratch(std::int64_t count, int views = 1);         // floats
void binding_limits(const LimitTables& tables, cudaStream_t stream);     // sums, values and gradients
void binding_gradients(const LimitTables& tables, cudaStream_t stream);  // gradients alone, later, from `scratch`

// --- flame.cu

struct FlameDevice;  // a person's constants on the device

constexpr int kFlameTables = 7;  // expr, rotation, neck, jaw, eyes, translation, offset [V, 3] (may be null)
struct FlameMoments {
    int views;
    const std::int64_t* rows;          // [B] which row of the tables; null: row 0 for all
    const float* table[kFlameTables];  // [T, width]
    std::int64_t n_expr;
    float* state;     // [B, flame_state()] kept for the way back
    float* vertices;  // [B, V, 3]
};
struct FlameMomentGradients {
    const float* g_vertices;     // [B, V, 3]
    float* table[kFlameTables];  // [B, width] one row a view; null: not wanted
    float* scratch;              // [B, flame_backward_scratch()]
    Health* health;              // may be null
};
std::int64_t flame_state(const FlameDevice& person);
std::int64_t flame_backward_scratch(const FlameDevice& person);
void flame_pose(const FlameDevice& person, const FlameMoments& moments, cudaStream_t stream);
void flame_pose_backward(const FlameDevice& person, const FlameMoments& moments, const FlameMomentGradients& gradients,
                         cudaStream_t stream);

}  // namespace cuda
}  // namespace mien
