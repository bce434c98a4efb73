// What both AVX-512 files share.
#include "vector.hpp"

namespace {

constexpr int kTokens = 6, kBlocks = 4, kTokensFour = 12, kFew = 8, kSums = 16;

INLINE I16 to_nearest(F16 x) {
    return bits<I16>(_mm512_cvtps_epi32(bits<__m512>(x)));
}

typedef I16 Part;
constexpr int kParts = 1;

INLINE void add(Part (&sums)[kParts], int32_t four, const int8_t* weights) {
    __m512i before = bits<__m512i>(sums[0]);
    sums[0] = bits<I16>(_mm512_dpbusd_epi32(before, _mm512_set1_epi32(four), load<__m512i>(weights)));
}

INLINE void total(const Part (&sums)[kParts], int32_t* to) {
    store(to, sums[0]);
}

}  // namespace
