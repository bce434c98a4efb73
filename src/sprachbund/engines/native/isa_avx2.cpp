// AVX2 and FMA, as in every x86 server and nearly every desktop since 2013.
#if defined(__x86_64__)
#include "target.hpp"

TARGET("avx2,fma,f16c")
#include "avx2.inl"

namespace {

constexpr int kTokens = 2, kBlocks = 1, kSums = 4;

// Inputs and weights are widened to 16 bits: the instruction that takes 8 would saturate.
typedef __m256i Part;
constexpr int kParts = 4;

INLINE void add(Part (&sums)[kParts], int32_t four, const int8_t* weights) {
    __m256i inputs = _mm256_broadcastq_epi64(_mm_cvtepu8_epi16(_mm_cvtsi32_si128(four)));
    UNROLL
    for (int i = 0; i < kParts; i++) {
        __m256i wide = _mm256_cvtepi8_epi16(load<__m128i>(weights + i * 16));
        sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(wide, inputs));
    }
}

// Every sum stands in two neighbouring lanes so far.
INLINE void total(const Part (&sums)[kParts], int32_t* to) {
    __m256i low = _mm256_hadd_epi32(sums[0], sums[1]), high = _mm256_hadd_epi32(sums[2], sums[3]);
    store(to, _mm256_permute4x64_epi64(low, 0xD8));
    store(to + 8, _mm256_permute4x64_epi64(high, 0xD8));
}

}  // namespace

#include "kernels.inl"

namespace sprachbund {
extern const Kernels avx2_kernels;
const Kernels avx2_kernels = table("avx2");
}  // namespace sprachbund

END_TARGET
#endif
