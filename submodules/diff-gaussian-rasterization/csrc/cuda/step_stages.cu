// What a training step does beside the pieces: its begin, its verdict, and small sums over rows.
#include "cuda/step.h"

#include "core/ops.h"

namespace mien {
namespace cuda {
namespace {

constexpr int kThreads = 128;
constexpr float kOpaque = 1e-3f;  // least transparency in a division

// Element i of the views' cameras: 16 + 9 + 3 floats a view.
__device__ void take_camera(const StepTables& tables, std::int64_t frame, StepState* state, int i) {
    const int view = i / 28, place = i % 28;
    if (place < 16)
        state->world_to_camera[16 * view + place] = tables.world_to_camera[16 * frame + place];
    else if (place < 25)
        state->intrinsics[9 * view + place - 16] = tables.intrinsics[9 * frame + place - 16];
    else
        state->background[3 * view + place - 25] = tables.backgrounds[3 * frame + place - 25];
}

__global__ void begin(StepTables tables, StepInputs inputs, StepState* state) {
    const int views = static_cast<int>(tables.views), i = static_cast<int>(threadIdx.x);
    if (i == 0) {
        state->inputs = inputs;
        state->now = {0, 0, 0xffffffffu, 0, 0};
        state->bad_gradient = 0;
    }
    if (i < views) state->row[i] = tables.timestep[inputs.frame[i]];
    for (int k = i; k < 28 * views; k += kThreads) take_camera(tables, inputs.frame[k / 28], state, k);
}

__global__ void gather(const float* meshes, const StepState* state, std::int64_t floats, int views, float* vertices) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= floats * views) return;
    vertices[i] = meshes[state->row[i / floats] * floats + i % floats];
}

// The terms of one view, weighted; term k of weight 0 is 0. Returns bit k where term k is not finite.
__device__ unsigned make_terms(const StepTables& tables, const StepState* state, int view) {
    const double *sums = state->similarity + 2 * view, *limits = state->limits + 3 * view;
    const double values = 3.0 * static_cast<double>(tables.width) * static_cast<double>(tables.height);
    const double share = tables.lambda_dssim, drawn = limits[0] > 1.0 ? limits[0] : 1.0;
    float term[kTerms] = {};
    if (tables.lambda_dssim < 1.0f) term[0] = static_cast<float>((1.0 - share) * sums[0] / values);
    if (tables.lambda_dssim > 0.0f) term[1] = static_cast<float>(share * (1.0 - sums[1] / values));
    if (tables.weight_xyz != 0.0f) term[2] = static_cast<float>(tables.weight_xyz * (limits[1] / drawn));
    if (tables.weight_scale != 0.0f) term[3] = static_cast<float>(tables.weight_scale * (limits[2] / drawn));
    term[4] = (term[0] + term[1]) + (term[2] + term[3]);
    unsigned bad = 0;
    for (int k = 0; k < kTerms; ++k) {
        tables.terms[kTerms * view + k] = term[k];
        if (!(term[k] - term[k] == 0.0f)) bad |= 1u << k;
    }
    return bad;
}

// One warp, a lane a view.
__global__ void judge(StepTables tables, StepState* state) {
    const int lane = static_cast<int>(threadIdx.x);
    const unsigned mine = lane < tables.views ? make_terms(tables, state, lane) : 0;
    unsigned bad_terms = 0;
    for (int k = 0; k < kTerms; ++k)
        if (__any_sync(kAllLanes, (mine >> k & 1u) != 0)) bad_terms |= 1u << k;
    if (lane != 0) return;
    const Health now = state->now;
    Health run = state->run;
    const std::uint32_t reasons =
        now.stopped | (bad_terms != 0 ? kBadTerm : 0u) | (state->bad_gradient != 0 ? kBadGradient : 0u);
    if (now.pairs > run.pairs) run.pairs = now.pairs;
    if (run.stopped == 0 && reasons != 0) {
        run.stopped = reasons;
        run.step = state->inputs.step;
        run.bad_row = now.bad_row;
        run.bad_terms = bad_terms;
    }
    state->run = run;
}

__global__ void influence(const float* gradient, const float* logit, std::int64_t count, float* sum,
                          const Health* health) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count || health->stopped != 0) return;
    const float transparency = 1.0f / (1.0f + expf(logit[i]));
    sum[i] += fabsf(gradient[i]) / fmaxf(transparency, kOpaque);
}

__global__ void spread(const float* gradient, const StepState* state, std::int64_t rows, std::int64_t width, int views,
                       float* dense) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= rows * width) return;
    const std::int64_t row = i / width, place = i % width;
    float sum = 0.0f;
    for (int view = 0; view < views; ++view)
        if (state->row[view] == row) sum += gradient[view * width + place];
    dense[i] = sum;
}

}  // namespace

void begin_step(const StepTables& tables, const StepInputs& inputs, StepState* state, cudaStream_t stream) {
    launch(begin, 1, kThreads, stream, tables, inputs, state);
}

void take_meshes(const StepTables& tables, const StepState* state, std::int64_t floats, float* vertices,
                 cudaStream_t stream) {
    const int views = static_cast<int>(tables.views);
    launch(gather, blocks_for(floats * views, kThreads), kThreads, stream, tables.meshes, state, floats, views,
           vertices);
}

void judge_step(const StepTables& tables, StepState* state, cudaStream_t stream) {
    launch(judge, 1, kWarp, stream, tables, state);
}

void add_influence(const StepTables& tables, const Health* health, cudaStream_t stream) {
    const StepColumn& logits = tables.column[3];
    launch(influence, blocks_for(tables.count, kThreads), kThreads, stream, logits.gradient, logits.values,
           tables.count, tables.influence, health);
}

void spread_rows(const StepMotion& motion, const StepTables& tables, const StepState* state, cudaStream_t stream) {
    launch(spread, blocks_for(tables.timesteps * motion.width, kThreads), kThreads, stream, motion.gradient, state,
           tables.timesteps, motion.width, static_cast<int>(tables.views), motion.dense);
}

}  // namespace cuda
}  // namespace mien
