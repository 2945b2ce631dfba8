// The exported C functions of both native packages, declared once more: as a caller in another language has to.
#pragma once

#include <cstdint>

extern "C" {

// diff_gaussian_rasterization: csrc/api.cpp, csrc/parallel.cpp
const char* mien_last_error();
int mien_abi_version();
int mien_initialise();
const char* mien_isa_name();
int mien_select_isa(const char* name);
int mien_usable_cpus();

// csrc/rasterizer_api.cpp
struct Settings {
    const float *world_to_camera, *intrinsics, *background, *centre;
    float near_plane, far_plane, eps2d, alpha_max, stop;
    std::int32_t width, height;
    std::int32_t normalise_quats, square_extent, clamp_passes_gradient, antialias, symmetric_clamp;
};
struct SplatInputs {
    std::int64_t count;
    std::int32_t sh_coefficients, sh_degree;
    const float *means, *quats, *scales, *covariances, *opacities, *sh, *colors, *screen_offsets, *sh0;
};
struct PictureSource : SplatInputs {
    const void *mesh, *binding;
    const float* vertices;
};
struct PictureOutputs {
    float *image, *alpha, *depth;
    std::int32_t* radii;
};
struct PictureInputs {
    const float *g_image, *g_alpha, *g_depth, *image, *depth;
};
struct AllGradients {
    float *means, *quats, *scales, *covariances, *opacities, *sh, *colors, *screen_offsets, *sh0, *vertices;
    float *world_to_camera, *intrinsics, *background;
};
void* mien_workspace_create();
void mien_workspace_destroy(void* workspace);
int mien_rasterize_forward(void* workspace, const Settings*, const PictureSource*, const PictureOutputs*, int threads);
int mien_rasterize_backward(void* workspace, const Settings*, const PictureSource*, const PictureInputs*,
                            const AllGradients*, int threads);
int mien_workspace_work(const void* workspace, std::int64_t* pairs, std::int64_t* blocks);

// csrc/rig.cpp, csrc/rig.h
struct RigColumns {
    const float *means, *quats, *log_scales, *opacity_logits;
};
struct RigPlaced {
    float *means, *quats, *scales, *opacities;
};
struct RigPlacedGradients {
    const float *means, *quats, *scales, *opacities;
};
struct RigColumnGradients {
    float *means, *quats, *log_scales, *opacity_logits;
};
int mien_rig_mesh_create(const std::int64_t* faces, std::int64_t n_faces, std::int64_t n_vertices, void** mesh);
void mien_rig_mesh_destroy(void* mesh);
int mien_rig_binding_create(const std::int64_t* faces, std::int64_t count, std::int64_t n_faces, void** binding);
void mien_rig_binding_destroy(void* binding);
int mien_rig_place(const void* mesh, const void* binding, const float* vertices, const RigColumns*, int threads,
                   float* frames, const RigPlaced*);
int mien_rig_place_backward(void* mesh, const void* binding, const RigColumns*, const float* opacities,
                            const float* frames, const RigPlacedGradients*, int threads, const RigColumnGradients*,
                            float* g_vertices);

// csrc/image.cpp
int mien_image_l1_ssim(const float* image, const float* target, int channels, int height, int width, float l1_scale,
                       float ssim_scale, int threads, float* gradient, double* sums);
int mien_image_to_float(const std::uint8_t* bytes, std::int64_t count, int threads, float* out);

// csrc/binding.cpp
struct BindingLimits {
    const float *means, *scales;
    const std::int32_t* radii;
    float threshold_xyz, threshold_scale, weight_xyz, weight_scale;
    float *g_means, *g_scales;
};
int mien_binding_limits(const BindingLimits*, std::int64_t count, int threads, double* values);

// csrc/statistics.cpp
int mien_statistics_add_view(const float* screen_gradients, const std::int32_t* radii, std::int64_t count, float factor,
                             float* gradient, float* seen, float* radius);
int mien_statistics_squares_finite(const float* const* arrays, const std::int64_t* counts, std::int64_t n, int threads,
                                   int* finite);

// csrc/adam.cpp
struct AdamColumn {
    const float* gradient;
    float *parameter, *mean, *mean_square;
    std::int64_t count;
    double lr;
};
int mien_adam_step(const AdamColumn* columns, std::int64_t count, double beta1, double beta2, double eps,
                   std::int64_t step, int threads);
int mien_adam_rows(const float* gradient, const std::int64_t* rows, std::int64_t count, std::int64_t table_rows,
                   std::int64_t width, double lr, double beta1, double beta2, double eps, int threads, float* steps,
                   float* parameter, float* mean, float* mean_square);

// csrc/flame.cpp
struct FlameArrays {
    std::int64_t vertices, expressions, correctives;
    const float *rest, *joints, *basis, *joint_basis, *joint_regressor, *weights;
    const std::int32_t* parents;
};
struct FlamePose {
    std::int64_t n_expr;
    const float *expr, *rotation, *neck, *jaw, *eyes, *translation, *offset;
};
struct FlameGradients {
    float *expr, *rotation, *neck, *jaw, *eyes, *translation, *offset;
};
int mien_flame_create(const FlameArrays*, void** flame);
void mien_flame_destroy(void* flame);
std::int64_t mien_flame_blended(std::int64_t vertices);
int mien_flame_pose(const void* flame, const FlamePose*, int threads, float* blended, float* vertices);
int mien_flame_pose_backward(void* flame, const FlamePose*, const float* blended, const float* g_vertices, int threads,
                             const FlameGradients*);

// csrc/mesh.cpp
int mien_mesh_rasterize(const float* vertices, std::int64_t vertex_count, const std::int32_t* faces,
                        std::int64_t face_count, int width, int height, float near_depth, int threads,
                        std::int32_t* face_id, float* barycentrics, float* depth);

// csrc/reference.cpp
struct ReferenceScene {
    std::int64_t count;
    std::int32_t width, height, sh_degree, sh_coefficients;
    double near_plane, far_plane, eps2d, alpha_max, stop;
    const double *means, *quats, *scales, *opacities, *sh, *screen_offsets;
    const double *world_to_camera, *intrinsics, *background;
    const double *g_image, *g_alpha, *g_depth;
};
struct ReferenceResult {
    double *image, *alpha, *depth;
    double *means, *quats, *scales, *opacities, *sh, *screen_offsets, *world_to_camera, *intrinsics, *background;
};
int mien_reference_render(const ReferenceScene*, ReferenceResult*);

// csrc/calibrate.cpp
int mien_calibrate(int threads, double seconds, const std::int64_t* sizes, int count, double* instructions,
                   double* reads, double* updates);

// simple_knn: csrc/api.cpp
const char* knn_last_error();
int knn_abi_version();
int knn_mean_squared_distances(const float* points, std::int64_t count, int threads, float* means);
}
