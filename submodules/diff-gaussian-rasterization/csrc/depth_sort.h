// Stable radix sort of 64-bit keys by their upper 32 bits.
#pragma once

#include <cstdint>

namespace mien {

// Sorts `keys` (`other` is scratch of the same size); returns whichever of the two holds the result. Keys with equal
// upper halves keep their order. Only the digits in which the keys differ are sorted.
const uint64_t* sort_keys(uint64_t* keys, uint64_t* other, int64_t count);

}  // namespace mien
