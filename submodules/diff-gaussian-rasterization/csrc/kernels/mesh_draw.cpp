// The inner loop of the mesh rasteriser: coverage and depth test of several pixels of a row at once.
#include "mesh.h"

#include <cstring>

namespace mien {
namespace MIEN_ISA {
namespace {

#if defined(MIEN_ISA_avx512)
constexpr int kLanes = 8;
#elif defined(MIEN_ISA_avx2)
constexpr int kLanes = 4;
#else
constexpr int kLanes = 2;
#endif

typedef std::int64_t Long __attribute__((vector_size(8 * kLanes)));
typedef double Double __attribute__((vector_size(8 * kLanes)));
typedef float Float __attribute__((vector_size(4 * kLanes)));
typedef std::int32_t Int __attribute__((vector_size(4 * kLanes)));

template <class Vec, class T>
Vec load(const T* p) {
    Vec v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

// {0, step, 2 step, ...}; a 64-bit vector product would be many instructions.
Long multiples(std::int64_t step) {
    Long v = {};
    for (int bit = 1; bit < kLanes; bit *= 2) {
        Long mask = {};
        for (int i = 0; i < kLanes; ++i) mask[i] = i & bit ? -1 : 0;
        v += mask & (bit * step);
    }
    return v;
}

void draw(const MeshFace& face, std::ptrdiff_t stride, float* nearest, std::int32_t* ids) {
    const Double depth_lanes = __builtin_convertvector(multiples(1), Double) * face.inverse_along_x;
    const Long lanes[3] = {multiples(face.along_x[0]), multiples(face.along_x[1]), multiples(face.along_x[2])};
    const Float least = Float{} + face.least, greatest = Float{} + face.greatest;
    const Int id = Int{} + face.id;
    for (int y = 0; y < face.rows; ++y, nearest += stride, ids += stride) {
        Long a = face.edge[0] + y * face.along_y[0] + lanes[0], b = face.edge[1] + y * face.along_y[1] + lanes[1],
             c = face.edge[2] + y * face.along_y[2] + lanes[2];
        const double row_depth = face.inverse_depth + y * face.inverse_along_y;
        for (int x = 0; x < face.columns; x += kLanes) {
            const Int inside = __builtin_convertvector((a | b | c) >= 0, Int);
            Float depth = __builtin_convertvector(row_depth + x * face.inverse_along_x + depth_lanes, Float);
            depth = depth < least ? least : depth;
            depth = depth > greatest ? greatest : depth;
            const Float before = load<Float>(nearest + x);
            const Int seen = inside & (depth > before);
            const Float after = seen ? depth : before;
            const Int after_ids = seen ? id : load<Int>(ids + x);
            std::memcpy(nearest + x, &after, sizeof after);
            std::memcpy(ids + x, &after_ids, sizeof after_ids);
            a += kLanes * face.along_x[0];
            b += kLanes * face.along_x[1];
            c += kLanes * face.along_x[2];
        }
    }
}

}  // namespace

extern const MeshKernels mesh_kernels;
const MeshKernels mesh_kernels = {kLanes, draw};

}  // namespace MIEN_ISA
}  // namespace mien
