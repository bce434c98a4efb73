// AVX2 with the 8-bit dot product, as in Intel's desktops since 2021 and AMD's Zen 5.
#if defined(__x86_64__)
#include "target.hpp"

TARGET("avx2,fma,f16c,avxvnni")
#include "avx2.inl"

namespace {

constexpr int kTokens = 4, kBlocks = 1, kTokensFour = 4, kFew = 1, kSums = 4;

typedef __m256i Part;
constexpr int kParts = 2;

INLINE void add(Part (&sums)[kParts], int32_t four, const int8_t* weights) {
    __m256i inputs = _mm256_set1_epi32(four);
    sums[0] = _mm256_dpbusd_avx_epi32(sums[0], inputs, load<__m256i>(weights));
    sums[1] = _mm256_dpbusd_avx_epi32(sums[1], inputs, load<__m256i>(weights + 32));
}

INLINE void total(const Part (&sums)[kParts], int32_t* to) {
    store(to, sums[0]);
    store(to + 8, sums[1]);
}

}  // namespace

#include "kernels.inl"

namespace {

template <int VECTORS>
INLINE void add_pairs(Part (&sums)[VECTORS], const Part (&vectors)[VECTORS], int32_t two) {
    UNROLL
    for (int v = 0; v < VECTORS; v++) sums[v] = _mm256_dpwssd_avx_epi32(sums[v], vectors[v], _mm256_set1_epi32(two));
}

}  // namespace

#include "attend_sixteen.inl"

namespace sprachbund {
extern const Kernels avx_vnni_kernels;
const Kernels avx_vnni_kernels =
    table("avx_vnni", attend_many<Widened>, match_many, product, attend_many<Sixteen>);
}  // namespace sprachbund

END_TARGET
#endif
