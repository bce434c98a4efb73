// AVX-512 with dot products of 8 bits and of bf16, as in AMD's Zen 4 and 5 and Intel's servers since 2023.
#if defined(__x86_64__)
#include "target.hpp"

TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx2,fma")
#include "avx512.inl"
#include "dot_bf16.inl"
#include "kernels.inl"

namespace sprachbund {
extern const Kernels avx512_kernels;
const Kernels avx512_kernels = table("avx512", attend, match);
}  // namespace sprachbund

END_TARGET
#endif
