#include <string>

#include "inputs.h"
#include "native.h"

namespace fuzz {

void isa(Inputs& in) {
    expect_refusal_or_success(mien_initialise(), mien_last_error());
    const std::string before = mien_isa_name();
    std::string name(static_cast<std::size_t>(in.below(300)), ' ');
    for (char& c : name) c = static_cast<char>(in.byte());
    expect_refusal_or_success(mien_select_isa(in.forgotten(name.c_str())), mien_last_error());
    expect_refusal_or_success(mien_select_isa(before.c_str()), mien_last_error());
    if (before != mien_isa_name() || mien_abi_version() < 1 || mien_usable_cpus() < 1) __builtin_trap();
}

}  // namespace fuzz
