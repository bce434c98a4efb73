// What both AVX2 files share.
#include "vector.hpp"

namespace {

INLINE I16 to_nearest(F16 x) {
    struct Floats {
        __m256 low, high;
    };
    struct Integers {
        __m256i low, high;
    };
    Floats f = bits<Floats>(x);
    return bits<I16>(Integers{_mm256_cvtps_epi32(f.low), _mm256_cvtps_epi32(f.high)});
}

typedef __m256 Sum;
constexpr int kSumParts = 2;

// There is no instruction for bf16 products; a bf16 number is the upper half of a float.
INLINE void dot_pairs(Sum (&sums)[kSumParts], uint32_t two, const uint16_t* pairs) {
    const __m256i upper = _mm256_set1_epi32(static_cast<int32_t>(0xffff0000u));
    __m256i left = _mm256_set1_epi32(static_cast<int32_t>(two));
    UNROLL
    for (int i = 0; i < kSumParts; i++) {
        __m256i right = load<__m256i>(pairs + i * 16);
        sums[i] = _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_slli_epi32(left, 16)),
                                  _mm256_castsi256_ps(_mm256_slli_epi32(right, 16)), sums[i]);
        sums[i] = _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_and_si256(left, upper)),
                                  _mm256_castsi256_ps(_mm256_and_si256(right, upper)), sums[i]);
    }
}

}  // namespace
