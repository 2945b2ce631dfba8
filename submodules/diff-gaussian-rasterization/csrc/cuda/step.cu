// The training step: its memory, the order of its stages, their recording, and the C functions.
#include "cuda/step.h"

#include <cmath>

namespace mien {
namespace cuda {
namespace {

// Adam's constants, as csrc/adam.cpp makes them.
AdamStep adam_step(double rate, double beta1, double beta2, double eps, double count) {
    return {static_cast<float>(1.0 - beta1),
            static_cast<float>(beta2),
            static_cast<float>(1.0 - beta2),
            static_cast<float>(rate / (1.0 - std::pow(beta1, count))),
            static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(beta2, count))),
            static_cast<float>(eps)};
}

void check_sizes(const StepTables& t) {
    require(t.views >= 1 && t.views <= kMostViews, "step: views must lie in 1 .. 8");
    require(t.width > 0 && t.height > 0 && t.width <= 65535 && t.height <= 65535,
            "width and height must lie in 1 .. 65535");
    require(t.count >= 0 && t.count * t.views < (std::int64_t(1) << 31), "the number of splats is out of range");
    require(t.frames >= 1 && t.timesteps >= 1, "step: there are no frames");
    require(t.pair_capacity >= 0 && t.pair_capacity < (std::int64_t(1) << 31), "step: pair_capacity is out of range");
    require(t.sh_degree >= 0 && t.sh_degree <= 3 && t.sh_coefficients >= (t.sh_degree + 1) * (t.sh_degree + 1),
            "sh_degree must lie in 0 .. 3 and sh must hold (sh_degree + 1)^2 coefficients");
    require(t.near_plane > 0 && t.far_plane > t.near_plane, "near must be positive and smaller than far");
    require(t.eps2d >= 0 && t.alpha_max > 0 && t.alpha_max < 1 && t.stop > 0, "the rules are out of range");
    require(t.lambda_dssim >= 0 && t.lambda_dssim <= 1, "step: lambda_dssim must lie in 0 .. 1");
}

void check_motion(const StepTables& t) {
    require((t.person == nullptr) != (t.meshes == nullptr), "step: give either a person or meshes");
    for (int k = 0; k < kFlameTables; ++k) {
        const StepMotion& m = t.motion[k];
        const bool offset = k == kFlameTables - 1;
        require(t.person == nullptr || offset || m.table != nullptr || m.width == 0, "step: a table is null");
        if (m.gradient == nullptr) continue;
        require(t.person != nullptr && m.table != nullptr, "step: motion is trained that is not there");
        require(m.mean != nullptr && m.mean_square != nullptr, "step: moments are null");
        require((m.steps == nullptr) != (m.dense == nullptr), "step: give either steps of rows or a dense gradient");
    }
}

void check_tables(const StepTables& t) {
    check_sizes(t);
    check_motion(t);
    for (const StepColumn& c : t.column)
        require(c.count == 0 ||
                    (c.values != nullptr && c.gradient != nullptr && c.mean != nullptr && c.mean_square != nullptr),
                "step: a column is null");
    require(t.mesh != nullptr && t.binding != nullptr, "step: a mesh or its binding is null");
    require(t.binding->count == t.count, "the binding is of another number of Gaussians");
    require_pointers("step", t.world_to_camera, t.intrinsics, t.backgrounds, t.timestep, t.store, t.image, t.terms);
    require((t.gradient == nullptr) == (t.seen == nullptr) && (t.seen == nullptr) == (t.radius == nullptr),
            "step: statistics come together");
}

}  // namespace

template <class Body>
void Recording::record(Body&& body) {
    forget();
    cudaStream_t stream = nullptr;
    // Apart from the default stream: what another thread launches there meanwhile would end the recording.
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "creating a stream");
    cudaGraph_t graph = nullptr;
    try {
        // Relaxed: a kernel's code may be loaded when it is first used, which takes memory.
        check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed), "recording the training step");
        body(stream);
        check(cudaStreamEndCapture(stream, &graph), "recording the training step");
        check(cudaGraphInstantiate(&ready_, graph, 0), "preparing the training step");
    } catch (...) {
        if (graph == nullptr) cudaStreamEndCapture(stream, &graph);
        if (graph != nullptr) cudaGraphDestroy(graph);
        cudaStreamDestroy(stream);
        cudaGetLastError();  // of ending a recording that had failed
        throw;
    }
    cudaGraphDestroy(graph);
    cudaStreamDestroy(stream);
}

void Recording::replay(cudaStream_t stream) const { check(cudaGraphLaunch(ready_, stream), "the training step"); }

void Recording::forget() {
    if (ready_ != nullptr) cudaGraphExecDestroy(ready_);
    ready_ = nullptr;
}

TrainingStep::TrainingStep(const Queue& queue) {
    state_.reserve(1);
    try {
        void* memory = nullptr;
        check(cudaMallocHost(&memory, sizeof(Health)), "allocating pinned memory");
        found_ = static_cast<Health*>(memory);
        clear(queue);
    } catch (...) {
        cudaFreeHost(found_);
        throw;
    }
}

TrainingStep::~TrainingStep() { cudaFreeHost(found_); }

void TrainingStep::clear(const Queue& queue) {
    check(cudaMemsetAsync(&state()->run, 0, sizeof(Health), queue.stream), "clearing the step's health");
}

bool TrainingStep::moves() const {
    for (const StepMotion& motion : tables_.motion)
        if (motion.gradient != nullptr) return true;
    return false;
}

void TrainingStep::bind(const StepTables& tables, const Queue& queue) {
    check(cudaStreamSynchronize(queue.stream), "waiting for the last step");
    recording_.forget();
    check_tables(tables);
    tables_ = tables;
    reserve(queue);
    recording_.record([&](cudaStream_t stream) { run(stream); });
}

void TrainingStep::reserve(const Queue& queue) {
    const StepTables& t = tables_;
    rig_ = rig_tables(t.mesh, t.binding, queue);
    sizes_ = make_sizes(static_cast<std::int32_t>(t.views), t.count, static_cast<std::int32_t>(t.width),
                        static_cast<std::int32_t>(t.height), t.pair_capacity);
    workspace_.reserve(sizes_, &rig_, true);
    vertices_.reserve(t.views * 3 * rig_.vertices);
    g_image_.reserve(t.views * 3 * sizes_.pixels());
    alpha_.reserve(t.views * sizes_.pixels());
    radii_.reserve(sizes_.rows());
    screen_.reserve(t.gradient != nullptr ? 2 * sizes_.rows() : 0);
    ssim_scratch_.reserve(l1_ssim_scratch(similarity()));
    binding_scratch_.reserve(binds() ? binding_scratch(t.count, sizes_.views) : 0);
    if (t.person == nullptr) return;
    flame_.reserve(t.views * flame_state(*t.person));
    g_vertices_.reserve(moves() ? t.views * 3 * rig_.vertices : 0);
    flame_scratch_.reserve(moves() ? t.views * flame_backward_scratch(*t.person) : 0);
}

Scene TrainingStep::scene() const {
    const StepTables& t = tables_;
    Scene scene;
    scene.cameras = {};
    scene.cameras.world_to_camera = state()->world_to_camera;
    scene.cameras.intrinsics = state()->intrinsics;
    scene.cameras.background = state()->background;
    scene.cameras.near_plane = t.near_plane, scene.cameras.far_plane = t.far_plane;
    scene.cameras.eps2d = t.eps2d, scene.cameras.alpha_max = t.alpha_max, scene.cameras.stop = t.stop;
    scene.cameras.normalise_quats = 1;
    scene.splats = {};
    scene.splats.count = t.count;
    scene.splats.sh_coefficients = static_cast<std::int32_t>(t.sh_coefficients);
    scene.splats.sh_degree = static_cast<std::int32_t>(t.sh_degree);
    scene.splats.means = t.column[0].values, scene.splats.quats = t.column[1].values;
    scene.splats.scales = t.column[2].values, scene.splats.opacities = t.column[3].values;
    scene.splats.sh0 = t.column[4].values, scene.splats.sh = t.column[5].values;
    scene.rig = &rig_;
    scene.vertices = vertices_.data();
    return scene;
}

FlameMoments TrainingStep::moments() const {
    FlameMoments moments = {};
    moments.views = sizes_.views;
    moments.rows = state()->row;
    for (int k = 0; k < kFlameTables; ++k) moments.table[k] = tables_.motion[k].table;
    moments.n_expr = tables_.n_expr;
    moments.state = flame_.data();
    moments.vertices = vertices_.data();
    return moments;
}

SsimTables TrainingStep::similarity() const {
    const StepTables& t = tables_;
    const double values = 3.0 * static_cast<double>(t.views) * static_cast<double>(sizes_.pixels());
    SsimTables tables = {};
    tables.views = sizes_.views, tables.channels = 3, tables.height = sizes_.height, tables.width = sizes_.width;
    tables.images = t.image;
    tables.store = t.store;
    tables.offset = state()->inputs.offset;
    tables.l1_scale = static_cast<float>((1.0 - double(t.lambda_dssim)) / values);
    tables.ssim_scale = static_cast<float>(-double(t.lambda_dssim) / values);
    tables.gradients = g_image_.data();
    tables.scratch = ssim_scratch_.data();
    tables.sums = state()->similarity;
    return tables;
}

void TrainingStep::run(cudaStream_t stream) {
    draw_and_compare(stream);
    propagate(stream);
    if (binds()) limit(stream);
    judge_step(tables_, state(), stream);
    update(stream);
}

void TrainingStep::draw_and_compare(cudaStream_t stream) {
    if (tables_.person != nullptr)
        flame_pose(*tables_.person, moments(), stream);
    else
        take_meshes(tables_, state(), 3 * rig_.vertices, vertices_.data(), stream);
    workspace_.forward(sizes_, scene(), {tables_.image, alpha_.data(), nullptr}, radii_.data(), true, &state()->now,
                       stream);
    l1_ssim(similarity(), stream);
}

void TrainingStep::propagate(cudaStream_t stream) {
    SceneGradients out;
    out.means = tables_.column[0].gradient, out.quats = tables_.column[1].gradient;
    out.scales = tables_.column[2].gradient, out.opacities = tables_.column[3].gradient;
    out.sh0 = tables_.column[4].gradient, out.sh = tables_.column[5].gradient;
    out.screen_offsets = tables_.gradient != nullptr ? screen_.data() : nullptr;
    out.vertices = moves() ? g_vertices_.data() : nullptr;
    workspace_.backward(sizes_, scene(), {g_image_.data(), nullptr, nullptr, tables_.image, nullptr}, out,
                        &state()->now, stream);
    if (!moves()) return;
    FlameMomentGradients motion = {};
    motion.g_vertices = g_vertices_.data();
    for (int k = 0; k < kFlameTables; ++k) motion.table[k] = tables_.motion[k].gradient;
    motion.scratch = flame_scratch_.data();
    motion.health = &state()->now;
    flame_pose_backward(*tables_.person, moments(), motion, stream);
}

// The limits' gradients join those of the pictures.
void TrainingStep::limit(cudaStream_t stream) {
    const StepTables& t = tables_;
    const float share = 1.0f / static_cast<float>(t.views);
    LimitTables work = {};
    if (t.weight_xyz != 0.0f) work.limits.means = t.column[0].values, work.limits.g_means = t.column[0].gradient;
    if (t.weight_scale != 0.0f) work.limits.scales = t.column[2].values, work.limits.g_scales = t.column[2].gradient;
    work.limits.threshold_xyz = t.threshold_xyz, work.limits.threshold_scale = t.threshold_scale;
    work.limits.weight_xyz = t.weight_xyz * share, work.limits.weight_scale = t.weight_scale * share;
    work.count = t.count;
    work.logarithmic = work.accumulate = true;
    work.scratch = binding_scratch_.data();
    work.views = sizes_.views;
    work.limits.radii = radii_.data();
    work.sums = state()->limits;
    binding_limits(work, stream);
    const StepColumn &means = t.column[0], &scales = t.column[2];
    squares_finite(Arrays{2, {means.gradient, scales.gradient}, {means.count, scales.count}}, &state()->bad_gradient,
                   stream);
}

// Everything here leaves its arrays alone once the run has stopped.
void TrainingStep::update(cudaStream_t stream) {
    const StepTables& t = tables_;
    const Health* health = &state()->run;
    if (t.gradient != nullptr)
        add_view(screen_.data(), radii_.data(), static_cast<float>(t.views), t.count, {t.gradient, t.seen, t.radius},
                 health, stream, sizes_.views);
    if (t.influence != nullptr) add_influence(t, health, stream);
    AdamColumns columns = {};
    columns.constants = state()->inputs.adam, columns.health = health;
    for (const StepColumn& c : t.column)
        columns.column[columns.count++] = {c.gradient, c.values, c.mean, c.mean_square, c.count, {}};
    adam_columns(columns, stream);
    update_motion(stream);
}

void TrainingStep::update_motion(cudaStream_t stream) {
    const StepTables& t = tables_;
    const Health* health = &state()->run;
    AdamColumns dense = {};
    AdamTables rows = {};
    dense.health = health, dense.count = 1;
    for (int k = 0; k < kFlameTables; ++k) {
        const StepMotion& m = t.motion[k];
        if (m.gradient == nullptr) continue;
        if (m.dense != nullptr) {
            spread_rows(m, t, state(), stream);
            dense.constants = state()->inputs.adam + kColumns + k;
            dense.column[0] = {m.dense, m.table, m.mean, m.mean_square, t.timesteps * m.width, {}};
            adam_columns(dense, stream);
        } else {
            rows.table[rows.count++] = {m.gradient, state()->row, t.views, t.timesteps,   m.width,
                                        m.steps,    m.table,      m.mean,  m.mean_square, m.rate,
                                        t.beta1,    t.beta2,      t.eps,   nullptr,       health};
        }
    }
    adam_rows(rows, stream);
}

void TrainingStep::enqueue(const StepRequest& request, const Queue& queue) {
    require(!recording_.empty(), "step: nothing is bound");
    require(request.step >= 1 && request.step < (std::int64_t(1) << 32) && request.count >= 1,
            "step: numbers count from 1");
    StepInputs inputs = {};
    inputs.step = static_cast<std::uint32_t>(request.step);
    for (std::int64_t view = 0; view < tables_.views; ++view) {
        require(request.frame[view] >= 0 && request.frame[view] < tables_.frames, "step: there is no such frame");
        inputs.frame[view] = static_cast<std::int32_t>(request.frame[view]);
        inputs.offset[view] = request.offset[view];
    }
    const auto count = static_cast<double>(request.count);
    for (int k = 0; k < kColumns + kFlameTables; ++k) {
        const double rate = k < kColumns ? request.rate[k] : tables_.motion[k - kColumns].rate;
        inputs.adam[k] = adam_step(rate, tables_.beta1, tables_.beta2, tables_.eps, count);
    }
    begin_step(tables_, inputs, state(), queue.stream);
    recording_.replay(queue.stream);
}

Health TrainingStep::poll(const Queue& queue) {
    check(cudaMemcpyAsync(found_, &state()->run, sizeof(Health), cudaMemcpyDeviceToHost, queue.stream),
          "looking at the step's health");
    check(cudaStreamSynchronize(queue.stream), "waiting for the last steps");
    return *found_;
}

std::int64_t TrainingStep::bytes() const {
    return workspace_.bytes() + state_.bytes() + vertices_.bytes() + g_vertices_.bytes() + flame_.bytes() +
           flame_scratch_.bytes() + g_image_.bytes() + alpha_.bytes() + ssim_scratch_.bytes() +
           binding_scratch_.bytes() + screen_.bytes() + radii_.bytes();
}

}  // namespace cuda
}  // namespace mien

using mien::cuda::Queue;
using mien::cuda::TrainingStep;

MIEN_API int mien_cuda_step_create(void** step, const Queue* queue) {
    return mien::guarded([&] {
        mien::require_pointers("cuda_step", step, queue);
        const mien::cuda::DeviceGuard guard(*queue);
        *step = new TrainingStep(*queue);
    });
}

MIEN_API void mien_cuda_step_destroy(void* step) { delete static_cast<TrainingStep*>(step); }

// Makes room and records the step; what it took, in bytes.
MIEN_API int mien_cuda_step_bind(void* step, const mien::cuda::StepTables* tables, int64_t* bytes, const Queue* queue) {
    return mien::guarded([&] {
        mien::require_pointers("cuda_step", step, tables, bytes, queue);
        const mien::cuda::DeviceGuard guard(*queue);
        static_cast<TrainingStep*>(step)->bind(*tables, *queue);
        *bytes = static_cast<TrainingStep*>(step)->bytes();
    });
}

MIEN_API int mien_cuda_step_enqueue(void* step, const mien::cuda::StepRequest* request, const Queue* queue) {
    return mien::guarded([&] {
        mien::require_pointers("cuda_step", step, request, queue);
        const mien::cuda::DeviceGuard guard(*queue);
        static_cast<TrainingStep*>(step)->enqueue(*request, *queue);
    });
}

// Waits for the device: `health` of all steps since the last clear.
MIEN_API int mien_cuda_step_poll(void* step, mien::cuda::Health* health, const Queue* queue) {
    return mien::guarded([&] {
        mien::require_pointers("cuda_step", step, health, queue);
        const mien::cuda::DeviceGuard guard(*queue);
        *health = static_cast<TrainingStep*>(step)->poll(*queue);
    });
}

// Forgets what went wrong: steps enqueued from now on change things again.
MIEN_API int mien_cuda_step_clear(void* step, const Queue* queue) {
    return mien::guarded([&] {
        mien::require_pointers("cuda_step", step, queue);
        const mien::cuda::DeviceGuard guard(*queue);
        static_cast<TrainingStep*>(step)->clear(*queue);
    });
}
