#include "cuda/refuse.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

namespace mien {
namespace cuda {

namespace {

std::vector<float> on_host(const float* values, std::int64_t count, cudaStream_t stream) {
    std::vector<float> copy(static_cast<std::size_t>(values == nullptr ? 0 : count));
    if (copy.empty()) return copy;
    check(cudaMemcpyAsync(copy.data(), values, copy.size() * sizeof(float), cudaMemcpyDeviceToHost, stream), "copying");
    check(cudaStreamSynchronize(stream), "copying");
    return copy;
}

// The first value that is not finite; -1: none.
std::int64_t first_bad(const std::vector<float>& values) {
    const auto bad = std::find_if(values.begin(), values.end(), [](float v) { return !std::isfinite(v); });
    return bad == values.end() ? -1 : bad - values.begin();
}

void refuse_camera(const Sizes& sizes, const CameraTables& cameras, cudaStream_t stream) {
    const struct {
        const char* name;
        const float* data;
        std::int64_t width;
    } tables[] = {{"world_to_camera", cameras.world_to_camera, 16},
                  {"intrinsics", cameras.intrinsics, 9},
                  {"background", cameras.background, 3},
                  {"camera centre", cameras.centre, 3}};
    for (const auto& table : tables)
        if (first_bad(on_host(table.data, sizes.views * table.width, stream)) >= 0)
            throw NotFinite(std::string(table.name) + " is not finite");
    const std::vector<float> k = on_host(cameras.intrinsics, std::int64_t(sizes.views) * 9, stream);
    for (std::size_t at = 0; at < k.size(); at += 9)
        require(k[at] > 0 && k[at + 4] > 0, "intrinsics: the focal lengths must be positive");
}

void refuse_rows(const char* name, const float* values, std::int64_t rows, std::int64_t width, cudaStream_t stream) {
    const std::int64_t at = first_bad(on_host(values, rows * width, stream));
    if (at >= 0) throw NotFinite(std::string(name) + ": row " + std::to_string(at / width) + " is not finite");
}

}  // namespace

void refuse_scene(const Sizes& sizes, const Scene& scene, const Health& health, cudaStream_t stream) {
    refuse_camera(sizes, scene.cameras, stream);
    if (scene.rig != nullptr && scene.rig->vertices > 0)
        for (std::int32_t v = 0; v < sizes.views; ++v)
            refuse_rows("vertices", scene.vertices + 3 * scene.rig->vertices * v, scene.rig->vertices, 3, stream);
    const SplatInputs& in = scene.splats;
    const int first = in.sh0 != nullptr ? 1 : 0;
    refuse_rows("means", in.means, in.count, 3, stream);
    refuse_rows("quats", in.quats, in.count, 4, stream);
    refuse_rows("scales", in.scales, in.count, 3, stream);
    refuse_rows("covariances", in.covariances, in.count, 6, stream);
    refuse_rows("opacities", in.opacities, in.count, 1, stream);
    refuse_rows("sh0", in.sh0, in.count, 3, stream);
    if (in.sh_coefficients > first)
        refuse_rows(first == 1 ? "shN" : "sh", in.sh, in.count, 3 * (in.sh_coefficients - first), stream);
    refuse_rows("colors", in.colors, in.count, 3, stream);
    refuse_rows("screen_offsets", in.screen_offsets, in.count, 2, stream);
    // On a mesh: every number is finite, but not what the activations make of one.
    throw NotFinite("scales or means: row " + std::to_string(health.bad_row) +
                    " leaves the range of numbers on its triangle");
}

}  // namespace cuda
}  // namespace mien
