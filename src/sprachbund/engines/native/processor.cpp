// Which kernels this processor can run.
#include <cstring>

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

// Leaf 7.1 of cpuid; compilers of different ages know its bits by different names.
bool extended(unsigned bit) {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> bit & 1u);
}

// The compiler's own checks ask the operating system too whether it saves the wide registers.
bool has_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

bool has_avx512_vnni() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
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
    __builtin_cpu_init();
    if (is("avx512")) return has_avx512_vnni() && extended(5) ? &avx512_kernels : nullptr;
    if (is("avx512_vnni")) return has_avx512_vnni() ? &avx512_vnni_kernels : nullptr;
    if (is("avx_vnni")) return has_avx2() && extended(4) ? &avx_vnni_kernels : nullptr;
    if (is("avx2")) return has_avx2() ? &avx2_kernels : nullptr;
#endif
#if defined(__aarch64__)
    if (is("arm_dot")) return has_arm_dot() ? &arm_dot_kernels : nullptr;
#endif
    return is("portable") ? &portable_kernels : nullptr;
}

}  // namespace sprachbund
