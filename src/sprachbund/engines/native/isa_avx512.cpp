// AVX-512 with dot products of 8 bits and of bf16, as in AMD's Zen 4 and 5 and Intel's servers since 2023.
#if defined(__x86_64__)
#include "target.hpp"

TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx2,fma")
#include "avx512.inl"

namespace {

typedef F16 Sum;
constexpr int kSumParts = 1;

INLINE void dot_pairs(Sum (&sums)[kSumParts], uint32_t two, const uint16_t* pairs) {
    __m512bh left = bits<__m512bh>(_mm512_set1_epi32(static_cast<int32_t>(two)));
    sums[0] = bits<F16>(_mm512_dpbf16_ps(bits<__m512>(sums[0]), left, bits<__m512bh>(load<__m512i>(pairs))));
}

}  // namespace

#include "kernels.inl"

namespace sprachbund {
extern const Kernels avx512_kernels;
const Kernels avx512_kernels = table("avx512", false);
}  // namespace sprachbund

END_TARGET
#endif
