// Dot products of bf16 by the instruction that AVX-512 has for them.

namespace {

typedef F16 Sum;
constexpr int kSumParts = 1;

INLINE void dot_pairs(Sum (&sums)[kSumParts], uint32_t two, const uint16_t* pairs) {
    __m512bh left = bits<__m512bh>(_mm512_set1_epi32(static_cast<int32_t>(two)));
    sums[0] = bits<F16>(_mm512_dpbf16_ps(bits<__m512>(sums[0]), left, bits<__m512bh>(load<__m512i>(pairs))));
}

}  // namespace
