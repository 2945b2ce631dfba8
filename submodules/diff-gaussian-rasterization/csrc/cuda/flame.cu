// FLAME posed for several views at once, forward and backward: the maths of csrc/flame.cpp and csrc/kernels/flame.cpp.
//
// The joints are a matter of a few hundred operations in double: one block a view. The vertices are a matter of reading
// the basis: a block of 32 of them is worked on by 8 warps, each of which takes every eighth of the block's directions
// for up to 4 views, so that the basis is read once for these. Sums go up in fixed trees: over the lanes, then, in
// double, over the blocks.
#include "cuda/flame_person.h"

namespace mien {
namespace cuda {
namespace {

using namespace mien::device;

using Joints = Skeleton<double, kFlameJoints>;
static_assert(sizeof(Joints) == FlamePerson::kTurns * sizeof(float), "the layout of the state");

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kTogether = 4;  // views that share a read of the basis
constexpr int kAtOnce = 4;    // entries that a warp reads at a time on the way back

enum Table { kExpr, kRotation, kNeck, kJaw, kEyes, kTranslation, kOffset };

template <class T>
__device__ T warp_sum(T value) {
    for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) value += __shfl_xor_sync(kAllLanes, value, lanes);
    return value;
}

__device__ bool finite(float x) { return x - x == 0.0f; }

__device__ void mark(Health* health, std::uint32_t reason, bool fine) {
    if (health != nullptr && !fine) atomicOr(&health->stopped, reason);
}

// Writes a gradient, and tells of one that an optimiser could not square.
__device__ void give(float* place, float gradient, Health* health) {
    *place = gradient;
    mark(health, kBadGradient, finite(gradient * gradient));
}

__device__ std::int64_t row_of(const FlameMoments& moments, int view) {
    return moments.rows == nullptr ? 0 : moments.rows[view];
}

// A joint's three floats among tables of which `row` counts; null: there is no such table.
template <class T>
__device__ T* turn_of(T* const (&table)[kFlameTables], int joint, std::int64_t row) {
    T* start = joint == 0 ? table[kRotation] : joint == 1 ? table[kNeck] : joint == 2 ? table[kJaw] : table[kEyes];
    if (start == nullptr) return nullptr;
    return joint < 3 ? start + 3 * row : start + 6 * row + 3 * (joint - 3);
}

__device__ double& coordinate(Vec3<double>* vectors, int i) {
    Vec3<double>& v = vectors[i / 3];
    return i % 3 == 0 ? v.x : i % 3 == 1 ? v.y : v.z;
}

// Copies the joints between shared memory and the state, all threads together.
__device__ void copy_joints(const void* from, void* to) {
    constexpr int doubles = sizeof(Joints) / sizeof(double);
    for (int i = threadIdx.x; i < doubles; i += kThreads)
        static_cast<double*>(to)[i] = static_cast<const double*>(from)[i];
}

// Places of the joints before they turn: expressions and the dynamic offset move them. All threads together; `out` can
// be read after the next barrier.
__device__ void rest_joints(const FlamePerson& person, const float* expr, int used, const float* offset,
                            Vec3<double>* out) {
    __shared__ double parts[kWarps][kFlameCoordinates];
    const int thread = threadIdx.x, lane = thread % kWarp, warp = thread / kWarp;
    double sum[kFlameCoordinates] = {};
    for (int e = thread; e < used; e += kThreads) {
        const double coefficient = expr[e];
        const float* column = person.joint_basis + std::int64_t(kFlameCoordinates) * e;
        for (int i = 0; i < kFlameCoordinates; ++i) sum[i] += coefficient * double(column[i]);
    }
    if (offset != nullptr) {
        for (int r = thread; r < person.regressed; r += kThreads) {
            const float* at = offset + 3 * std::int64_t(person.regressed_vertex[r]);
            const float* share = person.regressed_share + std::int64_t(kFlameJoints) * r;
            for (int i = 0; i < kFlameCoordinates; ++i) sum[i] += double(share[i / 3]) * double(at[i % 3]);
        }
    }
    for (int i = 0; i < kFlameCoordinates; ++i) {
        const double total = warp_sum(sum[i]);
        if (lane == 0) parts[warp][i] = total;
    }
    __syncthreads();
    if (thread < kFlameCoordinates) {
        double total = person.joints[thread];
        for (int w = 0; w < kWarps; ++w) total += parts[w][thread];
        coordinate(out, thread) = total;
    }
}

// One block a view: the joints' transforms, and the coefficients of all directions.
__global__ void __launch_bounds__(kThreads) pose_joints(FlamePerson person, FlameMoments moments) {
    __shared__ Joints joints;
    const int thread = threadIdx.x, view = blockIdx.x;
    const std::int64_t row = row_of(moments, view);
    float* state = moments.state + view * person.state();
    float* coefficients = state + FlamePerson::kCoefficients;
    const float* expr = moments.table[kExpr] + row * moments.n_expr;
    const int used = moments.n_expr < person.expressions ? static_cast<int>(moments.n_expr) : person.expressions;
    const float* offset = moments.table[kOffset];
    if (offset != nullptr) offset += row * 3 * person.vertices;
    rest_joints(person, expr, used, offset, joints.rest);
    for (int e = thread; e < person.expressions; e += kThreads)
        coefficients[person.correctives + e] = e < used ? expr[e] : 0.0f;
    if (thread < 3) state[FlamePerson::kTranslation + thread] = moments.table[kTranslation][3 * row + thread];
    if (thread < kFlameJoints) {
        const float* turn = turn_of(moments.table, thread, row);
        for (int i = 0; i < 3; ++i) state[FlamePerson::kTurns + 3 * thread + i] = turn[i];
        const Mat3<double> rotation = AxisAngle<double>(Vec3<double>{turn[0], turn[1], turn[2]}).matrix();
        joints.rotation[thread] = rotation;
        if (thread > 0 && person.correctives > 0) {
            for (int r = 0; r < 3; ++r) {
                float* entry = coefficients + 9 * (thread - 1) + 3 * r;
                entry[0] = static_cast<float>(rotation.row[r].x - (r == 0));
                entry[1] = static_cast<float>(rotation.row[r].y - (r == 1));
                entry[2] = static_cast<float>(rotation.row[r].z - (r == 2));
            }
        }
    }
    __syncthreads();
    if (thread == 0) {
        Rigid<double> posed[kFlameJoints];
        joints.pose(person.parents, posed);
        float* out = state + FlamePerson::kTransforms;
        for (int j = 0; j < kFlameJoints; ++j) {
            const double shift[3] = {posed[j].shift.x, posed[j].shift.y, posed[j].shift.z};
            for (int r = 0; r < 3; ++r, out += 4) {
                const Vec3<double>& turned = posed[j].turn.row[r];
                out[0] = static_cast<float>(turned.x), out[1] = static_cast<float>(turned.y);
                out[2] = static_cast<float>(turned.z), out[3] = static_cast<float>(shift[r]);
            }
        }
    }
    __syncthreads();
    copy_joints(&joints, state);
}

// One vertex skinned, before the translation is added.
__device__ void skin(const float* transforms, const float* weights, const float* rest, float* out) {
    for (int j = 0; j < kFlameJoints; ++j) {
        const float weight = weights[kWarp * j];
        for (int axis = 0; axis < 3; ++axis) {
            const float* t = transforms + 12 * j + 4 * axis;
            const float moved = fma(t[2], rest[2], fma(t[1], rest[1], fma(t[0], rest[0], t[3])));
            out[axis] = fma(weight, moved, out[axis]);
        }
    }
}

// A lane's vertex, after blending, skinned and written; `staged` [96] of the warp makes the writing coalesced.
__device__ void finish_vertex(const FlamePerson& person, const FlameMoments& moments, int view, const float* blended,
                              float* staged) {
    const int lane = threadIdx.x % kWarp, block = blockIdx.x;
    const float* state = moments.state + view * person.state();
    const float* translation = state + FlamePerson::kTranslation;
    float out[3] = {translation[0], translation[1], translation[2]};
    skin(state + FlamePerson::kTransforms, person.weights + std::int64_t(kFlameJoints) * kWarp * block + lane, blended,
         out);
    __syncwarp();
    for (int axis = 0; axis < 3; ++axis) staged[3 * lane + axis] = out[axis];
    __syncwarp();
    const std::int64_t first = std::int64_t(kFlameBlockFloats) * block, end = 3 * std::int64_t(person.vertices);
    float* vertices = moments.vertices + view * end;
    for (std::int64_t i = lane; i < kFlameBlockFloats; i += kWarp)
        if (first + i < end) vertices[first + i] = staged[i];
}

// blockIdx.x: 32 vertices; blockIdx.y: kViews views.
template <int kViews>
__global__ void __launch_bounds__(kThreads) pose_vertices(FlamePerson person, FlameMoments moments) {
    __shared__ float parts[kWarps][kViews][kFlameBlockFloats];
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, block = blockIdx.x;
    const int first_view = kViews * blockIdx.y, views = moments.views - first_view;  // those left
    float sum[kViews][3] = {};
    for (int i = person.entry_begin[block] + warp; i < person.entry_begin[block + 1]; i += kWarps) {
        const float* basis = person.basis + std::int64_t(kFlameBlockFloats) * i + lane;
        const float along[3] = {basis[0], basis[kWarp], basis[2 * kWarp]};
        const float* coefficient =
            moments.state + first_view * person.state() + FlamePerson::kCoefficients + person.entry_direction[i];
        for (int v = 0; v < kViews; ++v, coefficient += person.state())
            if (v < views)
                for (int axis = 0; axis < 3; ++axis) sum[v][axis] = fma(*coefficient, along[axis], sum[v][axis]);
    }
    for (int v = 0; v < kViews; ++v)
        for (int axis = 0; axis < 3; ++axis) parts[warp][v][kWarp * axis + lane] = sum[v][axis];
    __syncthreads();
    if (warp >= kViews || warp >= views) return;
    const int view = first_view + warp;
    const float* offset = moments.table[kOffset];
    if (offset != nullptr) offset += row_of(moments, view) * 3 * person.vertices;
    const std::int64_t vertex = std::int64_t(kWarp) * block + lane, at = std::int64_t(kFlameBlockFloats) * block + lane;
    float* kept = moments.state + view * person.state() + person.blended_at() + at;
    float blended[3];
    for (int axis = 0; axis < 3; ++axis) {
        blended[axis] = person.rest[at + kWarp * axis];
        if (offset != nullptr && vertex < person.vertices) blended[axis] += offset[3 * vertex + axis];
        for (int w = 0; w < kWarps; ++w) blended[axis] += parts[w][warp][kWarp * axis + lane];
        kept[kWarp * axis] = blended[axis];
    }
    finish_vertex(person, moments, view, blended, parts[0][warp]);
}

// What the way back knows of a block's vertices in one view; [3][32] each.
struct BlockGradients {
    float g[kFlameBlockFloats], blended[kFlameBlockFloats], g_blended[kFlameBlockFloats];
};

// A lane's vertex: loads, and the gradient before skinning, which is that of the dynamic offset as well (but for the
// joints' share).
__device__ void load_vertex(const FlamePerson& person, const FlameMoments& moments,
                            const FlameMomentGradients& gradients, int view, BlockGradients& out) {
    const int lane = threadIdx.x % kWarp, block = blockIdx.x;
    const std::int64_t vertex = std::int64_t(kWarp) * block + lane, floats = 3 * std::int64_t(person.vertices);
    const float* state = moments.state + view * person.state();
    const float* kept = state + person.blended_at() + std::int64_t(kFlameBlockFloats) * block + lane;
    const float* transforms = state + FlamePerson::kTransforms;
    const float* weights = person.weights + std::int64_t(kFlameJoints) * kWarp * block + lane;
    const bool there = vertex < person.vertices;
    float g[3], g_blended[3] = {0.0f, 0.0f, 0.0f};
    bool fine = true;
    for (int axis = 0; axis < 3; ++axis) {
        g[axis] = there ? gradients.g_vertices[view * floats + 3 * vertex + axis] : 0.0f;
        const float blended = kept[kWarp * axis];
        fine = fine && finite(blended);
        out.g[kWarp * axis + lane] = g[axis];
        out.blended[kWarp * axis + lane] = blended;
    }
    mark(gradients.health, kBadInput, fine);
    for (int j = 0; j < kFlameJoints; ++j) {
        const float weight = weights[kWarp * j];
        for (int axis = 0; axis < 3; ++axis) {
            const float* t = transforms + 12 * j + 4 * axis;
            const float share = weight * g[axis];
            for (int k = 0; k < 3; ++k) g_blended[k] = fma(t[k], share, g_blended[k]);
        }
    }
    float* offset = gradients.table[kOffset];
    for (int axis = 0; axis < 3; ++axis) {
        out.g_blended[kWarp * axis + lane] = g_blended[axis];
        if (offset != nullptr && there)
            give(offset + view * floats + 3 * vertex + axis, g_blended[axis], gradients.health);
    }
}

// A lane's share of sum `s`: the translation's three, then 3 x 4 of each joint.
__device__ float turn_term(const FlamePerson& person, const BlockGradients& in, int s) {
    const int lane = threadIdx.x % kWarp;
    if (s < 3) return in.g[kWarp * s + lane];
    const int joint = (s - 3) / 12, axis = (s - 3) % 12 / 4, k = (s - 3) % 4;
    const float weight = person.weights[kWarp * (std::int64_t(kFlameJoints) * blockIdx.x + joint) + lane];
    const float share = weight * in.g[kWarp * axis + lane];
    return k == 3 ? share : share * in.blended[kWarp * k + lane];
}

// Parts of the coefficients' sums: those of kAtOnce entries, every kWarps-th from `first` on, so that their reads of
// the basis go on together.
template <int kViews>
__device__ void entries_backward(const FlamePerson& person, const BlockGradients* shared, int first, int views,
                                 float* parts) {
    const int lane = threadIdx.x % kWarp, end = person.entry_begin[blockIdx.x + 1];
    float along[kAtOnce][3];
    int place[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
        const int i = first + kWarps * k < end ? first + kWarps * k : first;
        const float* basis = person.basis + std::int64_t(kFlameBlockFloats) * i + lane;
        for (int axis = 0; axis < 3; ++axis) along[k][axis] = basis[kWarp * axis];
        place[k] = person.entry_place[i];
    }
    for (int v = 0; v < kViews; ++v) {
        if (v >= views) break;
        const float* g = shared[v].g_blended + lane;
        const float x = g[0], y = g[kWarp], z = g[2 * kWarp];
#pragma unroll
        for (int k = 0; k < kAtOnce; ++k) {
            const float total = warp_sum(fma(along[k][2], z, fma(along[k][1], y, along[k][0] * x)));
            if (lane == 0) parts[v * person.scratch() + place[k]] = total;
        }
    }
}

// blockIdx as in pose_vertices. Writes the parts of all sums that these vertices have.
template <int kViews>
__global__ void __launch_bounds__(kThreads)
    vertices_backward(FlamePerson person, FlameMoments moments, FlameMomentGradients gradients) {
    __shared__ BlockGradients shared[kViews];
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, block = blockIdx.x;
    const int first_view = kViews * blockIdx.y, views = moments.views - first_view;  // those left
    if (warp < kViews && warp < views) load_vertex(person, moments, gradients, first_view + warp, shared[warp]);
    __syncthreads();
    float* parts = gradients.scratch + first_view * person.scratch() + person.parts_at();
    for (int v = 0; v < kViews; ++v) {
        if (v >= views) break;
        for (int s = warp; s < kFlameTurnSums; s += kWarps) {
            const float total = warp_sum(turn_term(person, shared[v], s));
            if (lane == 0) parts[v * person.scratch() + std::int64_t(person.blocks) * s + block] = total;
        }
    }
    parts += std::int64_t(person.blocks) * kFlameTurnSums;
    for (int first = person.entry_begin[block] + warp; first < person.entry_begin[block + 1]; first += kWarps * kAtOnce)
        entries_backward<kViews>(person, shared, first, views, parts);
}

// One warp a sum and a view (blockIdx.y): over the blocks, in double.
__global__ void __launch_bounds__(kThreads) sum_parts(FlamePerson person, float* scratch) {
    const int lane = threadIdx.x % kWarp, s = kWarps * blockIdx.x + threadIdx.x / kWarp;
    if (s >= person.sums()) return;
    float* row = scratch + blockIdx.y * person.scratch();
    std::int64_t begin = std::int64_t(person.blocks) * s, end = begin + person.blocks;
    if (s >= kFlameTurnSums) {
        const std::int64_t start = std::int64_t(person.blocks) * kFlameTurnSums;
        begin = start + person.place_begin[s - kFlameTurnSums];
        end = start + person.place_begin[s - kFlameTurnSums + 1];
    }
    const float* parts = row + person.parts_at();
    double sum = 0.0;
    for (std::int64_t i = begin + lane; i < end; i += kWarp) sum += double(parts[i]);
    sum = warp_sum(sum);
    if (lane == 0) reinterpret_cast<double*>(row)[s] = sum;
}

// Gradients of the joints' turns and rest places from those of their transforms; by one thread.
__device__ void joints_vjp(const FlamePerson& person, const Joints& joints, const double* sums,
                           Mat3<double>* g_rotation, Vec3<double>* g_rest) {
    Rigid<double> g[kFlameJoints];
    for (int j = 0; j < kFlameJoints; ++j) {
        const double* t = sums + 3 + 12 * j;
        g[j] = {{{{t[0], t[1], t[2]}, {t[4], t[5], t[6]}, {t[8], t[9], t[10]}}}, {t[3], t[7], t[11]}};
    }
    joints.vjp(person.parents, g, g_rotation, g_rest);
}

// A lane's joint: the gradient of its axis-angle vector.
__device__ void turn_backward(const FlamePerson& person, const FlameMomentGradients& gradients, const float* state,
                              const double* of_coefficients, Mat3<double> g_rotation, int view) {
    const int joint = threadIdx.x;
    const float* p = state + FlamePerson::kTurns + 3 * joint;
    mark(gradients.health, kBadInput, finite(p[0]) && finite(p[1]) && finite(p[2]));
    float* out = turn_of(gradients.table, joint, view);
    if (out == nullptr) return;
    if (joint > 0 && person.correctives > 0) {
        const double* c = of_coefficients + 9 * (joint - 1);
        g_rotation = g_rotation + Mat3<double>{{{c[0], c[1], c[2]}, {c[3], c[4], c[5]}, {c[6], c[7], c[8]}}};
    }
    const Vec3<double> turn = AxisAngle<double>(Vec3<double>{p[0], p[1], p[2]}).vjp(g_rotation);
    give(out, static_cast<float>(turn.x), gradients.health);
    give(out + 1, static_cast<float>(turn.y), gradients.health);
    give(out + 2, static_cast<float>(turn.z), gradients.health);
}

__device__ void expressions_backward(const FlamePerson& person, const FlameMoments& moments,
                                     const FlameMomentGradients& gradients, const double* of_expressions,
                                     const Vec3<double>* g_rest, int view) {
    const float* expr = moments.state + view * person.state() + FlamePerson::kCoefficients + person.correctives;
    for (int e = threadIdx.x; e < person.expressions; e += kThreads) mark(gradients.health, kBadInput, finite(expr[e]));
    if (gradients.table[kExpr] == nullptr) return;
    float* out = gradients.table[kExpr] + view * moments.n_expr;
    for (std::int64_t e = threadIdx.x; e < moments.n_expr; e += kThreads) {
        double sum = 0.0;
        if (e < person.expressions) {
            const float* column = person.joint_basis + kFlameCoordinates * e;
            sum = of_expressions[e];
            for (int j = 0; j < kFlameJoints; ++j)
                sum += dot(g_rest[j], Vec3<double>{column[3 * j], column[3 * j + 1], column[3 * j + 2]});
        }
        give(out + e, static_cast<float>(sum), gradients.health);
    }
}

// The joints follow the dynamic offset: the regressor's share is added to what the vertices gave.
__device__ void offset_backward(const FlamePerson& person, const FlameMomentGradients& gradients,
                                const Vec3<double>* g_rest, int view) {
    for (int r = threadIdx.x; r < person.regressed; r += kThreads) {
        const float* share = person.regressed_share + std::int64_t(kFlameJoints) * r;
        Vec3<double> sum = {0.0, 0.0, 0.0};
        for (int j = 0; j < kFlameJoints; ++j) sum = sum + double(share[j]) * g_rest[j];
        float* out = gradients.table[kOffset] + 3 * (std::int64_t(view) * person.vertices + person.regressed_vertex[r]);
        give(out, out[0] + static_cast<float>(sum.x), gradients.health);
        give(out + 1, out[1] + static_cast<float>(sum.y), gradients.health);
        give(out + 2, out[2] + static_cast<float>(sum.z), gradients.health);
    }
}

// One block a view: from the sums to the parameters.
__global__ void __launch_bounds__(kThreads)
    joints_backward(FlamePerson person, FlameMoments moments, FlameMomentGradients gradients) {
    __shared__ Joints joints;
    __shared__ Mat3<double> g_rotation[kFlameJoints];
    __shared__ Vec3<double> g_rest[kFlameJoints];
    const int thread = threadIdx.x, view = blockIdx.x;
    const float* state = moments.state + view * person.state();
    const double* sums = reinterpret_cast<const double*>(gradients.scratch + view * person.scratch());
    const double* of_coefficients = sums + kFlameTurnSums;
    copy_joints(state, &joints);
    __syncthreads();
    if (thread == 0) joints_vjp(person, joints, sums, g_rotation, g_rest);
    __syncthreads();
    if (thread < kFlameJoints) turn_backward(person, gradients, state, of_coefficients, g_rotation[thread], view);
    if (thread < 3) {
        mark(gradients.health, kBadInput, finite(state[FlamePerson::kTranslation + thread]));
        if (gradients.table[kTranslation] != nullptr)
            give(gradients.table[kTranslation] + 3 * view + thread, static_cast<float>(sums[thread]), gradients.health);
    }
    expressions_backward(person, moments, gradients, of_coefficients + person.correctives, g_rest, view);
    if (gradients.table[kOffset] != nullptr) offset_backward(person, gradients, g_rest, view);
}

}  // namespace

void flame_pose(const FlameDevice& device, const FlameMoments& moments, cudaStream_t stream) {
    const FlamePerson& person = device.person;
    const unsigned views = static_cast<unsigned>(moments.views), blocks = static_cast<unsigned>(person.blocks);
    launch(pose_joints, views, kThreads, stream, person, moments);
    if (views == 1)
        launch(pose_vertices<1>, blocks, kThreads, stream, person, moments);
    else
        launch(pose_vertices<kTogether>, dim3(blocks, blocks_for(views, kTogether)), kThreads, stream, person, moments);
}

void flame_pose_backward(const FlameDevice& device, const FlameMoments& moments, const FlameMomentGradients& gradients,
                         cudaStream_t stream) {
    const FlamePerson& person = device.person;
    const unsigned views = static_cast<unsigned>(moments.views), blocks = static_cast<unsigned>(person.blocks);
    if (views == 1)
        launch(vertices_backward<1>, blocks, kThreads, stream, person, moments, gradients);
    else
        launch(vertices_backward<kTogether>, dim3(blocks, blocks_for(views, kTogether)), kThreads, stream, person,
               moments, gradients);
    launch(sum_parts, dim3(blocks_for(person.sums(), kWarps), views), kThreads, stream, person, gradients.scratch);
    launch(joints_backward, views, kThreads, stream, person, moments, gradients);
}

}  // namespace cuda
}  // namespace mien
