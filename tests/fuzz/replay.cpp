// Runs the harness without libFuzzer: on files, or on COUNT pseudo-random inputs. For compilers other than clang, and
// for valgrind.
//
// Compilers evaluate arguments in orders of their own: a file that one program chokes on may be harmless to that of
// another.
//
//     replay --random COUNT [SEED [AREA]]        replay FILE...
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <random>
#include <vector>

#include "inputs.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

using Bytes = std::vector<std::uint8_t>;

// An exact copy on the heap, as libFuzzer makes one.
void run(const Bytes& bytes) {
    fuzz::Array<std::uint8_t> exact(static_cast<std::int64_t>(bytes.size()));
    if (!bytes.empty()) std::memcpy(exact.get(), bytes.data(), bytes.size());
    LLVMFuzzerTestOneInput(exact.get(), bytes.size());
}

// Every area in turn, or the one of that number.
void run_random(long count, unsigned long seed, long only) {
    const long areas = static_cast<long>(fuzz::areas.size());
    for (long i = 0; i < count; ++i) {
        std::mt19937_64 random(seed * 1000003 + static_cast<unsigned long>(i));
        Bytes bytes(random() % 400 + 1);
        for (std::uint8_t& byte : bytes) byte = static_cast<std::uint8_t>(random());
        bytes[0] = static_cast<std::uint8_t>(only >= 0 && only < areas ? only : i % areas);
        run(bytes);
    }
}

}  // namespace

int main(int argc, char** argv) {
    if (argc >= 3 && std::strcmp(argv[1], "--random") == 0) {
        const long count = std::atol(argv[2]), area = argc > 4 ? std::atol(argv[4]) : -1;
        run_random(count, argc > 3 ? std::strtoul(argv[3], nullptr, 10) : 0, area);
        std::printf("%ld inputs\n", count);
        return 0;
    }
    if (argc < 2) {
        std::fprintf(stderr, "error: replay: found no argument, expected --random COUNT [SEED [AREA]] or files\n");
        return 2;
    }
    for (int i = 1; i < argc; ++i) {
        std::ifstream file(argv[i], std::ios::binary);
        if (!file) {
            std::fprintf(stderr, "error: %s: cannot be read\n", argv[i]);
            return 2;
        }
        run(Bytes(std::istreambuf_iterator<char>(file), {}));
    }
    std::printf("%d files\n", argc - 1);
}
