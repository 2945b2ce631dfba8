// A whole training step on the device: from the cameras of some frames to the parameters after Adam, recorded once in a
// CUDA graph and launched again and again. Nothing is read back: what changes from step to step (frames, rates) comes
// in a small struct, what goes wrong is kept in a Health that is looked at every so often.
//
// A step that goes wrong, and every step behind it, changes no parameter, moment or statistic.
#pragma once

#include "cuda/pieces.h"
#include "cuda/rasterizer.h"
#include "cuda/rig_device.h"

namespace mien {
namespace cuda {

constexpr int kMostViews = 8;
constexpr int kColumns = 6;  // means, quats, scales, opacities, sh0, shN
constexpr int kTerms = 5;    // l1, ssim, xyz, scale, and their sum

// One column of the Gaussians: [N, ...], `count` floats each.
struct StepColumn {
    float *values, *gradient, *mean, *mean_square;
    std::int64_t count;
};

// One table of the motion, [T, width]. The gradient has a row a view, [B, width].
struct StepMotion {
    float* table;                          // null: there is none (the offset)
    float *gradient, *mean, *mean_square;  // null: not trained
    float* steps;                          // [T] of --flame_update rows
    float* dense;                          // [T, width] of --flame_update dense; exactly one of the two
    std::int64_t width;
    double rate;
};

// Everything that a step works on; mirrors diff_gaussian_rasterization/training.py. Arrays lie on the device and must
// stay where they are until the next bind.
struct StepTables {
    std::int64_t views, frames, timesteps, width, height, count, sh_degree, sh_coefficients, pair_capacity;
    StepColumn column[kColumns];
    const DeviceMesh* mesh;
    const DeviceBinding* binding;
    const FlameDevice* person;  // null: the mesh comes from `meshes`
    std::int64_t n_expr;
    StepMotion motion[kFlameTables];                          // in the order of FlameMoments
    const float* meshes;                                      // [timesteps, V, 3]
    const float *world_to_camera, *intrinsics, *backgrounds;  // [frames, 4, 4], [frames, 3, 3], [frames, 3]
    const std::int64_t* timestep;                             // [frames]
    const std::uint8_t* store;                                // photographs, planes of bytes
    float *gradient, *seen, *radius;  // [N] statistics of the screen gradients; null: not gathered
    float* influence;                 // [N] sum of |opacity * dL/dopacity|; null: not gathered
    float *image, *terms;             // [B, 3, H, W], [B, kTerms] of the last step
    float near_plane, far_plane, eps2d, alpha_max, stop;
    float lambda_dssim, threshold_xyz, threshold_scale, weight_xyz, weight_scale;
    double beta1, beta2, eps;
};

// What a step is asked to do; mirrors the same file.
struct StepRequest {
    std::int64_t step, count;  // number of the step, and of Adam's, both from 1
    std::int64_t frame[kMostViews];
    std::int64_t offset[kMostViews];  // where in `store` the frame's photograph begins
    double rate[kColumns];
};

// The same as kernels read it.
struct StepInputs {
    std::uint32_t step;
    std::int32_t frame[kMostViews];
    std::int64_t offset[kMostViews];
    AdamStep adam[kColumns + kFlameTables];
};

// What lives on the device from step to step.
struct StepState {
    StepInputs inputs;
    Health now, run;  // of this step, and of all
    std::uint32_t bad_gradient;
    std::int64_t row[kMostViews];  // timesteps of the views
    float world_to_camera[kMostViews * 16], intrinsics[kMostViews * 9], background[kMostViews * 3];
    double similarity[kMostViews * 2], limits[kMostViews * 3];  // sums of l1_ssim and of binding_limits
};

// --- step_stages.cu: what a step does beside the pieces

// Begins a step: what it is asked to do, its Health, and the rows of cameras and motion that its frames name. Not
// recorded: the inputs come with the launch, which spares a copy from the host before each step.
void begin_step(const StepTables& tables, const StepInputs& inputs, StepState* state, cudaStream_t stream);
// The meshes [B, V, 3] of the views' timesteps.
void take_meshes(const StepTables& tables, const StepState* state, std::int64_t floats, float* vertices,
                 cudaStream_t stream);
// Makes the loss terms from their sums, and says whether the step may change anything.
void judge_step(const StepTables& tables, StepState* state, cudaStream_t stream);
// influence += |g| / (1 - opacity), g = dL/dlogit.
void add_influence(const StepTables& tables, const Health* health, cudaStream_t stream);
// dense [T, width] = the views' rows of a gradient, zero elsewhere.
void spread_rows(const StepMotion& motion, const StepTables& tables, const StepState* state, cudaStream_t stream);

// --- step.cu

// A recorded stream of work.
class Recording {
public:
    Recording() = default;
    Recording(const Recording&) = delete;
    Recording& operator=(const Recording&) = delete;
    ~Recording() { forget(); }

    // Records what `body` launches into the stream that it is given.
    template <class Body>
    void record(Body&& body);
    void replay(cudaStream_t stream) const;
    bool empty() const { return ready_ == nullptr; }
    void forget();

private:
    cudaGraphExec_t ready_ = nullptr;
};

static_assert(kFlameTables <= kMostRowTables, "the motion's tables are updated in one launch");

class TrainingStep {
public:
    explicit TrainingStep(const Queue& queue);
    TrainingStep(const TrainingStep&) = delete;
    TrainingStep& operator=(const TrainingStep&) = delete;
    ~TrainingStep();

    // Makes room for these tables and records the step. Waits for the device. After a failure nothing is bound.
    void bind(const StepTables& tables, const Queue& queue);
    void enqueue(const StepRequest& request, const Queue& queue);
    // Waits for the device.
    Health poll(const Queue& queue);
    // Forgets what went wrong.
    void clear(const Queue& queue);

    std::int64_t bytes() const;

private:
    void reserve(const Queue& queue);
    void run(cudaStream_t stream);
    void draw_and_compare(cudaStream_t stream);
    void propagate(cudaStream_t stream);
    void limit(cudaStream_t stream);
    void update(cudaStream_t stream);
    void update_motion(cudaStream_t stream);

    Scene scene() const;
    FlameMoments moments() const;
    SsimTables similarity() const;
    StepState* state() const { return state_.data(); }
    bool moves() const;  // whether any of the motion is trained
    bool binds() const { return tables_.weight_xyz != 0.0f || tables_.weight_scale != 0.0f; }

    StepTables tables_ = {};
    RigTables rig_ = {};
    Sizes sizes_ = {};
    DeviceWorkspace workspace_;
    DeviceBuffer<StepState> state_;
    DeviceBuffer<float> vertices_, g_vertices_, flame_, flame_scratch_, g_image_, alpha_, ssim_scratch_,
        binding_scratch_, screen_;
    DeviceBuffer<std::int32_t> radii_;
    Recording recording_;
    Health* found_ = nullptr;  // pinned
};

}  // namespace cuda
}  // namespace mien
