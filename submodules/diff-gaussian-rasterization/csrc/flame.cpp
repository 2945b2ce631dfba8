// FLAME posed: what is constant of a person, the few joints, and the C functions.
#include "flame.h"

#include <algorithm>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "api.h"
#include "buffer.h"
#include "flame_arrays.h"
#include "parallel.h"

#include "core/skeleton.h"

namespace mien {

// Parameters of a moment; `offset` may be null.
struct FlamePose {
    std::int64_t n_expr;  // fewer than E: the rest counts as zero; more: they do nothing
    const float *expr, *rotation, *neck, *jaw, *eyes, *translation;  // [n_expr], [3] ... eyes [6]
    const float* offset;                                             // [V, 3]
};

// Null: not wanted.
struct FlameGradients {
    float *expr, *rotation, *neck, *jaw, *eyes, *translation, *offset;
};

namespace {

using Vector = common::Vec3<double>;
using Matrix = common::Mat3<double>;
using Transform = common::Rigid<double>;
using Joints = common::Skeleton<double, kFlameJoints>;

constexpr std::int64_t kTask = 32;           // blocks that one task works on
constexpr std::size_t kOneThread = 1 << 19;  // up to so many floats, waking a thread costs more than it saves

// 16 values of a plane [V] from `first` on; zero beyond its end. Returns whether any isn't zero.
bool take_block(const float* plane, std::int64_t first, std::int64_t vertices, float* out) {
    bool any = false;
    for (std::int64_t i = 0; i < kFlameBlock; ++i) {
        out[i] = first + i < vertices ? plane[first + i] : 0.0f;
        any = any || out[i] != 0.0f;
    }
    return any;
}

struct RegressorEntry {
    int joint;
    std::int64_t vertex;
    double share;
};

// What the joints depend on.
struct JointConstants {
    explicit JointConstants(const FlameArrays& a)
        : expressions(a.expressions),
          correctives(static_cast<int>(a.correctives)),
          joints(a.joints, a.joints + 3 * kFlameJoints),
          joint_basis(a.joint_basis, a.joint_basis + 3 * kFlameJoints * a.expressions) {
        std::copy(a.parents, a.parents + kFlameJoints, parents);
        for (int j = 0; j < kFlameJoints; ++j)
            for (std::int64_t v = 0; v < a.vertices; ++v)
                if (const float share = a.joint_regressor[j * a.vertices + v]; share != 0.0f)
                    regressor.push_back({j, v, share});
    }

    const std::int64_t expressions;
    const int correctives;
    int parents[kFlameJoints];
    const std::vector<double> joints;
    const std::vector<float> joint_basis;
    std::vector<RegressorEntry> regressor;
};

// The joints at one moment: everything that isn't done once a vertex, in double.
struct Moment {
    const JointConstants& constant;
    std::int64_t n_expr, n_used;
    std::vector<common::AxisAngle<double>> turns;
    std::vector<float> coefficients;
    Joints joints;
    FlameTransforms transforms;

    Moment(const Moment&) = delete;
    Moment(const JointConstants& constants, const FlamePose& p)
        : constant(constants), n_expr(p.n_expr), n_used(std::min(p.n_expr, constants.expressions)) {
        for (const float* v : {p.rotation, p.neck, p.jaw, p.eyes, p.eyes + 3})
            turns.emplace_back(Vector{v[0], v[1], v[2]});
        rest_joints(p);
        coefficients.reserve(static_cast<std::size_t>(constant.correctives + n_used));
        for (int j = 0; j < kFlameJoints; ++j) {
            joints.rotation[j] = turns[static_cast<std::size_t>(j)].matrix();
            if (j == 0 || constant.correctives == 0) continue;
            for (int row = 0; row < 3; ++row) {
                const Vector& r = joints.rotation[j].row[row];
                coefficients.push_back(static_cast<float>(r.x - (row == 0)));
                coefficients.push_back(static_cast<float>(r.y - (row == 1)));
                coefficients.push_back(static_cast<float>(r.z - (row == 2)));
            }
        }
        coefficients.insert(coefficients.end(), p.expr, p.expr + n_used);
        transforms.coefficients = coefficients.data();
        transforms.n_coefficients = static_cast<int>(coefficients.size());
        transforms.offset = p.offset;
        std::copy(p.translation, p.translation + 3, transforms.translation);
        Transform posed[kFlameJoints];
        joints.pose(constant.parents, posed);
        for (int j = 0; j < kFlameJoints; ++j) store(posed[j], transforms.transforms + 12 * j);
    }

    void rest_joints(const FlamePose& p) {
        double rest[3 * kFlameJoints];
        std::copy(constant.joints.begin(), constant.joints.end(), rest);
        const float* column = constant.joint_basis.data();
        for (std::int64_t e = 0; e < n_used; ++e, column += 3 * kFlameJoints)
            for (int i = 0; i < 3 * kFlameJoints; ++i) rest[i] += double(p.expr[e]) * double(column[i]);
        if (p.offset != nullptr)
            for (const RegressorEntry& entry : constant.regressor)
                for (int axis = 0; axis < 3; ++axis)
                    rest[3 * entry.joint + axis] += entry.share * double(p.offset[3 * entry.vertex + axis]);
        for (int j = 0; j < kFlameJoints; ++j) joints.rest[j] = {rest[3 * j], rest[3 * j + 1], rest[3 * j + 2]};
    }

    // sums: gradients of the translation [3], the transforms [5, 12] and the coefficients.
    void vjp(const double* sums, const FlameGradients& out) const {
        Transform g[kFlameJoints];
        for (int j = 0; j < kFlameJoints; ++j) {
            const double* t = sums + 3 + 12 * j;
            g[j] = {{{{t[0], t[1], t[2]}, {t[4], t[5], t[6]}, {t[8], t[9], t[10]}}}, {t[3], t[7], t[11]}};
        }
        Matrix g_rotation[kFlameJoints];
        Vector g_rest[kFlameJoints];
        joints.vjp(constant.parents, g, g_rotation, g_rest);
        const double* of_coefficients = sums + kFlameSums;
        float* poses[] = {out.rotation, out.neck, out.jaw, out.eyes, out.eyes ? out.eyes + 3 : nullptr};
        for (int j = 0; j < kFlameJoints; ++j) {
            if (j > 0 && constant.correctives > 0) {
                const double* c = of_coefficients + 9 * (j - 1);
                g_rotation[j] = g_rotation[j] + Matrix{{{c[0], c[1], c[2]}, {c[3], c[4], c[5]}, {c[6], c[7], c[8]}}};
            }
            if (poses[j] == nullptr) continue;
            const Vector turn = turns[static_cast<std::size_t>(j)].vjp(g_rotation[j]);
            poses[j][0] = float(turn.x), poses[j][1] = float(turn.y), poses[j][2] = float(turn.z);
        }
        if (out.translation != nullptr)
            for (int axis = 0; axis < 3; ++axis) out.translation[axis] = static_cast<float>(sums[axis]);
        if (out.expr != nullptr) {
            expressions_vjp(of_coefficients + constant.correctives, g_rest, out.expr);
            std::fill(out.expr + n_used, out.expr + n_expr, 0.0f);
        }
        if (out.offset == nullptr) return;
        for (const RegressorEntry& entry : constant.regressor) {
            const Vector share = entry.share * g_rest[entry.joint];
            float* vertex = out.offset + 3 * entry.vertex;
            vertex[0] += float(share.x), vertex[1] += float(share.y), vertex[2] += float(share.z);
        }
    }

    void expressions_vjp(const double* of_vertices, const Vector* g_rest, float* out) const {
        const float* column = constant.joint_basis.data();
        for (std::int64_t e = 0; e < n_used; ++e, column += 3 * kFlameJoints) {
            double sum = of_vertices[e];
            for (int j = 0; j < kFlameJoints; ++j) {
                const float* c = column + 3 * j;
                sum += dot(g_rest[j], Vector{c[0], c[1], c[2]});
            }
            out[e] = static_cast<float>(sum);
        }
    }

    static void store(const Transform& t, float* out) {
        const double shift[3] = {t.shift.x, t.shift.y, t.shift.z};
        for (int row = 0; row < 3; ++row) {
            const Vector& r = t.turn.row[row];
            const double values[4] = {r.x, r.y, r.z, shift[row]};
            for (int k = 0; k < 4; ++k) out[4 * row + k] = static_cast<float>(values[k]);
        }
    }
};

class Flame {
public:
    explicit Flame(const FlameArrays& a)
        : vertices_(a.vertices), blocks_((a.vertices + kFlameBlock - 1) / kFlameBlock), joints_(a) {
        fill_blocks(a);
    }

    void pose(const FlamePose& p, int threads, float* blended, float* vertices) const {
        check(p);
        const Moment moment(joints_, p);
        for_tasks(threads, [&](std::int64_t task) {
            MIEN_KERNELS(flame_kernels)
                .pose(constants(), moment.transforms, first(task), count(task), blended, vertices);
        });
    }

    void backward(const FlamePose& p, const float* blended, const float* g_vertices, int threads,
                  const FlameGradients& out) {
        check(p);
        const Moment moment(joints_, p);
        const int width = kFlameSums + moment.transforms.n_coefficients;
        const std::lock_guard<std::mutex> lock(scratch_);
        const std::int64_t stride = std::int64_t(width) * kFlameBlock;
        float* parts = parts_.reserve(tasks() * stride);
        for_tasks(threads, [&](std::int64_t task) {
            MIEN_KERNELS(flame_kernels)
                .pose_backward(constants(), moment.transforms, first(task), count(task), blended, g_vertices,
                               parts + task * stride, out.offset);
        });
        std::vector<double> sums(static_cast<std::size_t>(width));
        for (std::int64_t task = 0; task < tasks(); ++task)
            for (int i = 0; i < width; ++i) sums[static_cast<std::size_t>(i)] += double(parts[task * stride + i]);
        moment.vjp(sums.data(), out);
    }

private:
    void fill_blocks(const FlameArrays& a) {
        std::vector<float> rest, basis, weights;
        alignas(64) float row[kFlameRow];
        for (std::int64_t block = 0; block < blocks_; ++block) {
            const auto take = [&](const float* planes, int n) {
                bool any = false;
                for (int i = 0; i < n; ++i)
                    any |= take_block(planes + i * vertices_, kFlameBlock * block, vertices_, row + kFlameBlock * i);
                return any;
            };
            take(a.rest, 3);
            rest.insert(rest.end(), row, row + kFlameRow);
            direction_begin_.push_back(static_cast<std::int64_t>(directions_.size()));
            for (std::int64_t d = 0; d < a.correctives + a.expressions; ++d) {
                if (!take(a.basis + 3 * vertices_ * d, 3)) continue;
                directions_.push_back(static_cast<std::int32_t>(d));
                basis.insert(basis.end(), row, row + kFlameRow);
            }
            joint_begin_.push_back(static_cast<std::int64_t>(of_joint_.size()));
            for (int j = 0; j < kFlameJoints; ++j) {
                if (!take(a.weights + vertices_ * j, 1)) continue;
                of_joint_.push_back(j);
                weights.insert(weights.end(), row, row + kFlameBlock);
            }
        }
        direction_begin_.push_back(static_cast<std::int64_t>(directions_.size()));
        joint_begin_.push_back(static_cast<std::int64_t>(of_joint_.size()));
        keep(rest, rest_);
        keep(basis, basis_);
        keep(weights, weights_);
    }

    static void keep(const std::vector<float>& values, Buffer<float>& aligned) {
        std::copy(values.begin(), values.end(), aligned.reserve(static_cast<std::int64_t>(values.size())));
    }

    void check(const FlamePose& p) const {
        require(p.n_expr >= 0 && p.n_expr <= kFlameMost, "flame: a wrong number of expressions");
        require_finite("expr", p.expr, p.n_expr);
        require_finite("rotation", p.rotation, 3);
        require_finite("neck_pose", p.neck, 3);
        require_finite("jaw_pose", p.jaw, 3);
        require_finite("eyes_pose", p.eyes, 6);
        require_finite("translation", p.translation, 3);
        if (p.offset != nullptr) require_finite("dynamic_offset", p.offset, 3 * vertices_);
    }

    FlameConstants constants() const {
        return {vertices_,     rest_.data(),        direction_begin_.data(), directions_.data(),
                basis_.data(), joint_begin_.data(), of_joint_.data(),        weights_.data()};
    }

    std::int64_t tasks() const { return (blocks_ + kTask - 1) / kTask; }
    std::int64_t first(std::int64_t task) const { return task * kTask; }
    std::int64_t count(std::int64_t task) const { return std::min(kTask, blocks_ - task * kTask); }

    template <class Body>
    void for_tasks(int threads, Body&& body) const {
        const bool alone = directions_.size() * kFlameRow <= kOneThread;
        parallel_for(alone ? 1 : checked_threads(threads), tasks(), [&](std::int64_t task, int) { body(task); });
    }

    const std::int64_t vertices_, blocks_;
    const JointConstants joints_;
    Buffer<float> rest_, basis_, weights_;
    std::vector<std::int64_t> direction_begin_, joint_begin_;
    std::vector<std::int32_t> directions_, of_joint_;
    std::mutex scratch_;  // of the buffer, which backward passes share
    Buffer<float> parts_;
};

}  // namespace

}  // namespace mien

// What is constant of a person, copied; checked here and nowhere else.
MIEN_API int mien_flame_create(const mien::FlameArrays* arrays, void** flame) {
    return mien::guarded([&] {
        mien::require(arrays != nullptr && flame != nullptr, "flame: a null pointer");
        mien::check_arrays(*arrays);
        *flame = new mien::Flame(*arrays);
    });
}

MIEN_API void mien_flame_destroy(void* flame) { delete static_cast<mien::Flame*>(flame); }

// How many floats of `blended` the passes share; 0 for a number of vertices that no person has.
MIEN_API int64_t mien_flame_blended(int64_t vertices) {
    if (vertices < 1 || vertices > mien::kFlameMost) return 0;
    return (vertices + mien::kFlameBlock - 1) / mien::kFlameBlock * mien::kFlameRow;
}

// Vertices [V, 3]; `blended` is kept for the backward pass.
MIEN_API int mien_flame_pose(const void* flame, const mien::FlamePose* pose, int threads, float* blended,
                             float* vertices) {
    return mien::guarded([&] {
        mien::require(flame != nullptr && pose != nullptr && blended != nullptr && vertices != nullptr,
                      "flame: a null pointer");
        static_cast<const mien::Flame*>(flame)->pose(*pose, threads, blended, vertices);
    });
}

// The way back, with the pose and `blended` of the forward pass; g_vertices [V, 3].
MIEN_API int mien_flame_pose_backward(void* flame, const mien::FlamePose* pose, const float* blended,
                                      const float* g_vertices, int threads, const mien::FlameGradients* out) {
    return mien::guarded([&] {
        mien::require(
            flame != nullptr && pose != nullptr && blended != nullptr && g_vertices != nullptr && out != nullptr,
            "flame: a null pointer");
        static_cast<mien::Flame*>(flame)->backward(*pose, blended, g_vertices, threads, *out);
    });
}
