// To put a function under test: declare it in native.h, call it from a file fuzz_AREA.cpp, name the area here.
#include "inputs.h"

namespace fuzz {

void rasterizer(Inputs&);
void rig(Inputs&);
void image(Inputs&);
void adam(Inputs&);
void mesh(Inputs&);
void reference(Inputs&);
void knn(Inputs&);
void isa(Inputs&);
void calibrate(Inputs&);
void flame(Inputs&);
void training(Inputs&);

const std::vector<Entry> areas = {
    {"rasterizer", rasterizer}, {"rig", rig}, {"image", image}, {"adam", adam},   {"mesh", mesh},
    {"reference", reference},   {"knn", knn}, {"isa", isa},     {"flame", flame}, {"training", training},
    {"calibrate", calibrate}};

}  // namespace fuzz

// The first byte names the area, the second the instruction set.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    fuzz::Inputs in(data, size);
    const std::size_t area = in.byte() % fuzz::areas.size();
    fuzz::choose_isa(in);
    fuzz::areas[area].run(in);
    return 0;
}
