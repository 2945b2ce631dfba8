// Fused Adam: the C function.
#include "adam.h"

#include <algorithm>
#include <vector>

#include "api.h"
#include "core/adam_update.h"
#include "parallel.h"

namespace mien {

namespace {

constexpr std::int64_t kBlock = 1 << 14;

constexpr std::int64_t kMost = std::int64_t{1} << 48;

struct Block {
    const AdamColumn* column;
    AdamStep constants;
    std::int64_t first;
};

void update(const Block& block) {
    const AdamColumn& column = *block.column;
    const std::int64_t first = block.first;
    MIEN_KERNELS(adam_kernels)
        .step(block.constants, std::min(kBlock, column.count - first), column.gradient + first,
              column.parameter + first, column.mean + first, column.mean_square + first);
}

// Two threads may not update one row, and no order would be the right one.
void check_rows(const std::int64_t* rows, std::int64_t count, std::int64_t table_rows) {
    for (std::int64_t i = 0; i < count; ++i)
        require(rows[i] >= 0 && rows[i] < table_rows, "adam_rows: a row is not in the table");
    std::vector<std::int64_t> sorted(rows, rows + count);
    std::sort(sorted.begin(), sorted.end());
    require(std::adjacent_find(sorted.begin(), sorted.end()) == sorted.end(), "adam_rows: a row is there twice");
}

}  // namespace
}  // namespace mien

// One step, number `step` counted from 1, in place on parameter, mean and mean_square of every column. All columns are
// cut into blocks of one size, so that threads share small and large ones evenly.
MIEN_API int mien_adam_step(const mien::AdamColumn* columns, int64_t count, double beta1, double beta2, double eps,
                            int64_t step, int threads) {
    return mien::guarded([&] {
        mien::require(step >= 1, "adam_step: step counts from 1");
        mien::require(count >= 0 && count <= mien::kMost, "adam_step: the number of columns is out of range");
        mien::require(count == 0 || columns != nullptr, "adam_step: columns is null");
        std::vector<mien::Block> blocks;
        for (const mien::AdamColumn* column = columns; column != columns + count; ++column) {
            mien::require(column->count >= 0 && column->count <= mien::kMost,
                          "adam_step: the number of elements is out of range");
            mien::require(column->count == 0 || (column->gradient != nullptr && column->parameter != nullptr &&
                                                 column->mean != nullptr && column->mean_square != nullptr),
                          "adam_step: a column is null");
            const mien::AdamStep constants =
                mien::common::adam_constants(column->lr, beta1, beta2, eps, static_cast<double>(step));
            for (std::int64_t first = 0; first < column->count; first += mien::kBlock)
                blocks.push_back({column, constants, first});
        }
        mien::parallel_for(mien::checked_threads(threads), static_cast<std::int64_t>(blocks.size()),
                           [&](std::int64_t block, int) { mien::update(blocks[static_cast<std::size_t>(block)]); });
    });
}

// One step of single rows of a table [T, width]: gradient [count, width] belongs to the rows `rows` [count], each in
// [0, table_rows) and there once; null: to rows 0 to count - 1. A row whose gradient is zero is left alone; the others
// count their own steps, in steps [T].
MIEN_API int mien_adam_rows(const float* gradient, const int64_t* rows, int64_t count, int64_t table_rows,
                            int64_t width, double lr, double beta1, double beta2, double eps, int threads, float* steps,
                            float* parameter, float* mean, float* mean_square) {
    return mien::guarded([&] {
        mien::require(count >= 0 && count <= table_rows && table_rows <= mien::kMost && width >= 0 &&
                          width <= mien::kMost / (table_rows + 1),
                      "adam_rows: a wrong number of rows");
        mien::require(count == 0 || (steps != nullptr && gradient != nullptr && parameter != nullptr &&
                                     mean != nullptr && mean_square != nullptr),
                      "adam_rows: a null pointer");
        if (rows != nullptr) mien::check_rows(rows, count, table_rows);
        mien::parallel_for(count * width > mien::kBlock ? mien::checked_threads(threads) : 1, count,
                           [&](std::int64_t i, int) {
                               const float* slope = gradient + i * width;
                               if (std::all_of(slope, slope + width, [](float g) { return g == 0.0f; })) return;
                               const std::int64_t row = rows != nullptr ? rows[i] : i, first = row * width;
                               steps[row] += 1.0f;
                               MIEN_KERNELS(adam_kernels)
                                   .step(mien::common::adam_constants(lr, beta1, beta2, eps, steps[row]), width, slope,
                                         parameter + first, mean + first, mean_square + first);
                           });
    });
}
