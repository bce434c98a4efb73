// Which kernels this processor can run.
#include <cstring>
#include <initializer_list>

#include "kernels.hpp"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace sprachbund {

extern const Kernels portable_kernels;
#if defined(__x86_64__)
extern const Kernels avx2_kernels, avx_vnni_kernels, avx512_vnni_kernels, avx512_kernels;
#elif defined(__aarch64__)
extern const Kernels arm_dot_kernels;
#endif

const char* const instruction_sets[6] = {"avx512", "avx512_vnni", "avx_vnni", "avx2", "arm_dot", "portable"};

#if defined(__x86_64__)
namespace {

// What the processor itself says; of the compilers' own checks, several say no to everything where their runtime library
// is not the one that they expect. Bits: Intel's manual, volume 2A, CPUID.
struct Leaf {
    unsigned a = 0, b = 0, c = 0, d = 0;

    Leaf(unsigned leaf, unsigned part) { __get_cpuid_count(leaf, part, &a, &b, &c, &d); }
};

bool all_of(unsigned word, std::initializer_list<int> bits) {
    for (int bit : bits)
        if (!(word >> bit & 1u)) return false;
    return true;
}

// Whether the operating system saves the registers with these bits of XCR0.
bool saves(std::initializer_list<int> registers) {
    if (!all_of(Leaf(1, 0).c, {27})) return false;  // OSXSAVE
    unsigned low = 0, high = 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return all_of(low, registers);
}

bool has_avx2() {
    return saves({1, 2}) && all_of(Leaf(1, 0).c, {12, 28, 29}) && all_of(Leaf(7, 0).b, {5});  // FMA, AVX, F16C; AVX2
}

bool has_avx512_vnni() {
    return has_avx2() && saves({5, 6, 7}) && all_of(Leaf(7, 0).b, {16, 17, 30, 31}) &&  // F, DQ, BW, VL
           all_of(Leaf(7, 0).c, {11});                                                  // VNNI
}

bool has_avx_vnni() {
    return has_avx2() && all_of(Leaf(7, 1).a, {4});
}

bool has_avx512() {
    return has_avx512_vnni() && all_of(Leaf(7, 1).a, {5});  // bf16
}

}  // namespace
#elif defined(__aarch64__)
namespace {

bool has_arm_dot() {
#if defined(__linux__)
    return getauxval(AT_HWCAP) >> 20 & 1u;  // HWCAP_ASIMDDP; headers of different ages may not know its name
#else
    return true;  // macOS runs on nothing older
#endif
}

}  // namespace
#endif

const Kernels* kernels(const char* name) {
    auto is = [name](const char* other) { return std::strcmp(name, other) == 0; };
#if defined(__x86_64__)
    if (is("avx512")) return has_avx512() ? &avx512_kernels : nullptr;
    if (is("avx512_vnni")) return has_avx512_vnni() ? &avx512_vnni_kernels : nullptr;
    if (is("avx_vnni")) return has_avx_vnni() ? &avx_vnni_kernels : nullptr;
    if (is("avx2")) return has_avx2() ? &avx2_kernels : nullptr;
#endif
#if defined(__aarch64__)
    if (is("arm_dot")) return has_arm_dot() ? &arm_dot_kernels : nullptr;
#endif
    return is("portable") ? &portable_kernels : nullptr;
}

}  // namespace sprachbund
