// A chain of rigid joints: local rotations and rest positions -> one transform a joint, and the derivative.
#pragma once

#include "core/axis_angle.h"

namespace mien {
namespace MIEN_ISA {

template <class T>
MIEN_HD inline Mat3<T> operator+(const Mat3<T>& a, const Mat3<T>& b) {
    return {{a.row[0] + b.row[0], a.row[1] + b.row[1], a.row[2] + b.row[2]}};
}
template <class T>
MIEN_HD inline Mat3<T> operator*(const Mat3<T>& a, const Mat3<T>& b) {
    return {{transposed_times(b, a.row[0]), transposed_times(b, a.row[1]), transposed_times(b, a.row[2])}};
}
// a^T b
template <class T>
MIEN_HD inline Mat3<T> transposed_times(const Mat3<T>& a, const Mat3<T>& b) {
    return outer(a.row[0], b.row[0]) + outer(a.row[1], b.row[1]) + outer(a.row[2], b.row[2]);
}
// a b^T
template <class T>
MIEN_HD inline Mat3<T> times_transposed(const Mat3<T>& a, const Mat3<T>& b) {
    return {{b * a.row[0], b * a.row[1], b * a.row[2]}};
}

// x -> turn x + shift
template <class T>
struct Rigid {
    Mat3<T> turn;
    Vec3<T> shift;
};

// Joint j turns by rotation[j] about its place rest[j], then follows its parent. The root, whose parent is -1, comes
// first; a parent comes before its children.
template <class T, int joints>
struct Skeleton {
    Mat3<T> rotation[joints];
    Vec3<T> rest[joints];
    Rigid<T> world[joints];  // of the joints' own axes

    // out[j] takes a rest point that follows joint j to its place.
    MIEN_HD void pose(const int* parents, Rigid<T>* out) {
        for (int j = 0; j < joints; ++j) {
            if (parents[j] < 0) {
                world[j] = {rotation[j], rest[j]};
            } else {
                const Rigid<T>& parent = world[parents[j]];
                world[j] = {parent.turn * rotation[j], parent.turn * (rest[j] - rest[parents[j]]) + parent.shift};
            }
            out[j] = {world[j].turn, world[j].shift - world[j].turn * rest[j]};
        }
    }

    // Gradients of rotation and rest from g = dL/d out, after `pose`.
    MIEN_HD void vjp(const int* parents, const Rigid<T>* g, Mat3<T>* g_rotation, Vec3<T>* g_rest) const {
        Rigid<T> g_world[joints];
        for (int j = 0; j < joints; ++j) {
            g_world[j] = {g[j].turn + outer(T(-1) * g[j].shift, rest[j]), g[j].shift};
            g_rest[j] = T(-1) * transposed_times(world[j].turn, g[j].shift);
        }
        for (int j = joints - 1; j >= 0; --j) {  // children before parents
            const int p = parents[j];
            if (p < 0) {
                g_rotation[j] = g_world[j].turn;
                g_rest[j] = g_rest[j] + g_world[j].shift;
                continue;
            }
            g_rotation[j] = transposed_times(world[p].turn, g_world[j].turn);
            const Vec3<T> g_step = transposed_times(world[p].turn, g_world[j].shift);
            g_rest[j] = g_rest[j] + g_step;
            g_rest[p] = g_rest[p] - g_step;
            const Mat3<T> g_turn = times_transposed(g_world[j].turn, rotation[j]);
            g_world[p].turn = g_world[p].turn + g_turn + outer(g_world[j].shift, rest[j] - rest[p]);
            g_world[p].shift = g_world[p].shift + g_world[j].shift;
        }
    }
};

}  // namespace MIEN_ISA
}  // namespace mien
