// Mesh rasteriser kernels, common side.
#pragma once

#include <cstddef>
#include <cstdint>

#include "isa.h"

namespace mien {

// A face set up for drawing into some rows of a band. Everything is taken at the centre of pixel (first_column, first
// row).
struct MeshFace {
    std::int64_t edge[3];     // edge functions; the pixel is covered where none is negative
    std::int64_t along_x[3];  // their change per column
    std::int64_t along_y[3];  // and per row
    double inverse_depth, inverse_along_x, inverse_along_y;
    float least, greatest;  // of the corners' inverse depths; keeps rounding in slivers within bounds
    std::int32_t id;
    int columns, rows;  // size of the bounding box in the band
};

struct MeshKernels {
    int lanes;  // `draw` reads and rewrites up to this many values behind the last column
    // Where the face is covered and nearer than `nearest` (1/z), writes 1/z and id. Rows are `stride` values apart.
    void (*draw)(const MeshFace& face, std::ptrdiff_t stride, float* nearest, std::int32_t* ids);
};

}  // namespace mien

MIEN_DECLARE_KERNELS(MeshKernels, mesh_kernels)
