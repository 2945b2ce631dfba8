#include "inputs.h"
#include "native.h"

namespace fuzz {
namespace {

constexpr int kJoints = 5;

// Leaves one in so many groups of 16 values: directions move some blocks of
// vertices only, joints likewise.
void thin_out(const Array<float>& values, int period) {
    for (std::int64_t i = 0; i < values.size(); ++i)
        if (i / 16 % period != 0) values[i] = 0.0f;
}

struct Person {
    std::int64_t vertices, expressions, correctives;
    Array<float> rest, joints, basis, joint_basis, joint_regressor, weights;
    Array<std::int32_t> parents{kJoints};

    Person(Inputs& in, bool large)
        : vertices(large ? 3500 : in.between(1, 40)),
          expressions(large ? 20 : in.below(6)),
          correctives(large || in.in(6) ? 36 : 0),
          rest(in.floats(3 * vertices, -0.2f, 0.2f)),
          joints(in.floats(3 * kJoints, -0.1f, 0.1f)),
          basis(in.floats(3 * vertices * (correctives + expressions), -0.1f, 0.1f)),
          joint_basis(in.floats(3 * kJoints * expressions, -0.1f, 0.1f)),
          joint_regressor(in.floats(kJoints * vertices, 0, 1)),
          weights(in.floats(kJoints * vertices, 0, 1)) {
        if (in.flag()) thin_out(basis, in.between(1, 9));
        if (in.flag()) thin_out(weights, in.between(1, 4)), thin_out(joint_regressor, in.between(1, 9));
        for (int j = 0; j < kJoints; ++j) parents[j] = j == 0 ? -1 : in.below(j);
        if (in.in(32)) parents[in.below(kJoints)] = static_cast<std::int32_t>(in.wild_integer());
    }

    FlameArrays arrays(Inputs& in) const {
        const auto count = [&](std::int64_t right) { return in.in(64) ? refused(in) : right; };
        return {count(vertices),
                count(expressions),
                in.in(64) ? in.wild_integer() | 1 : correctives,
                in.forgotten(rest.get()),
                in.forgotten(joints.get()),
                in.forgotten(basis.get()),
                in.forgotten(joint_basis.get()),
                in.forgotten(joint_regressor.get()),
                in.forgotten(weights.get()),
                in.forgotten(parents.get())};
    }

    static std::int64_t refused(Inputs& in) { return in.flag() ? -1 - in.below(9) : INT64_MAX - in.below(9); }
};

struct Parameters {
    Array<float> expr, rotation, neck, jaw, eyes, translation, offset;

    Parameters(Inputs& in, std::int64_t n_expr, std::int64_t vertices)
        : expr(in.floats(n_expr, -2, 2)),
          rotation(in.floats(3, -4, 4)),
          neck(in.floats(3, -1, 1)),
          jaw(in.floats(3, -1, 1)),
          eyes(in.floats(6, -1, 1)),
          translation(in.floats(3, -1, 1)),
          offset(in.floats(3 * vertices, -0.01f, 0.01f)) {}

    FlamePose pose(Inputs& in) const {
        return {in.in(64) ? Person::refused(in) : expr.size(),
                in.forgotten(expr.get()),
                in.forgotten(rotation.get()),
                in.forgotten(neck.get()),
                in.forgotten(jaw.get()),
                in.forgotten(eyes.get()),
                in.forgotten(translation.get()),
                in.optional(offset.get())};
    }

    FlameGradients wanted(Inputs& in) const {
        return {in.optional(expr.get()),  in.optional(rotation.get()), in.optional(neck.get()),
                in.optional(jaw.get()),   in.optional(eyes.get()),     in.optional(translation.get()),
                in.optional(offset.get())};
    }
};

struct Handle {
    void* flame = nullptr;
    Handle() = default;
    Handle(const Handle&) = delete;
    ~Handle() { mien_flame_destroy(flame); }
};

// Forward, and back with the same parameters or others, into arrays of their
// own.
void moment(Inputs& in, void* flame, const Person& person, bool large) {
    const std::int64_t n_expr = in.below(large ? 25 : 8);
    const Parameters parameters(in, n_expr, person.vertices), gradients(in, n_expr, person.vertices);
    const FlamePose pose = parameters.pose(in);
    const Array<float> blended(mien_flame_blended(person.vertices)), vertices(3 * person.vertices);
    expect_refusal_or_success(mien_flame_pose(in.forgotten(flame), in.forgotten(&pose), in.threads(),
                                              in.forgotten(blended.get()), in.forgotten(vertices.get())),
                              mien_last_error());
    const Array<float> g_vertices = in.floats(3 * person.vertices, -1, 1);
    if (in.flag()) thin_out(g_vertices, in.between(1, 9));
    const FlamePose again = in.in(8) ? parameters.pose(in) : pose;
    const FlameGradients wanted = gradients.wanted(in);
    expect_refusal_or_success(
        mien_flame_pose_backward(in.forgotten(flame), in.forgotten(&again), in.forgotten(blended.get()),
                                 in.forgotten(g_vertices.get()), in.threads(), in.forgotten(&wanted)),
        mien_last_error());
}

}  // namespace

void flame(Inputs& in) {
    const bool large = in.large();
    const Person person(in, large);
    const FlameArrays arrays = person.arrays(in);
    Handle handle;
    expect_refusal_or_success(mien_flame_create(in.forgotten(&arrays), in.forgotten(&handle.flame)), mien_last_error());
    if (in.in(64) && mien_flame_blended(Person::refused(in)) != 0) __builtin_trap();
    for (int moments = in.between(1, 2); moments > 0; --moments) moment(in, handle.flame, person, large);
}

}  // namespace fuzz
