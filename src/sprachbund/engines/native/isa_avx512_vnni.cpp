// AVX-512 with the 8-bit dot product but without bf16, as in Intel's servers from 2019 to 2022.
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")
#endif
#include "target_avx512.hpp"
#include "dot_pairs.inl"
#include "kernels.inl"

namespace sprachbund {
extern const Kernels avx512_vnni_kernels;
const Kernels avx512_vnni_kernels = table("avx512_vnni");
}  // namespace sprachbund
#endif
