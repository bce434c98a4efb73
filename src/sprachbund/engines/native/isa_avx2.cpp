// AVX2 and FMA, as in every x86 server and nearly every desktop since 2013.
#if defined(__x86_64__)
#include "target.hpp"

TARGET("avx2,fma,f16c")
#include "avx2.inl"

namespace {

constexpr int kTokens = 2, kBlocks = 1, kTokensFour = 2, kFew = 1, kSums = 4;

// Inputs and weights are widened to 16 bits: the instruction that takes 8 would saturate. With weights in 4 bits these two
// are used; see below for 8.
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

// Products with weights in 8 bits. Widening costs as much as multiplying, so the inputs of some tokens are widened once for
// 64 rows, and every four inputs of eight rows once for up to six tokens: twelve registers of sums, two of weights, one of
// inputs and one of products.
#include "staged.inl"

namespace {

// A product and its sum side by side: GCC brings all products of a step together, and then has no registers for the sums.
INLINE void add_pairs(__m256i& sum, __m256i left, __m256i right) {
    __m256i product;
    __asm__("vpmaddwd %2, %3, %1\n\tvpaddd %1, %0, %0" : "+x"(sum), "=&x"(product) : "x"(left), "x"(right));
}

struct Wide {
    typedef int16_t Input;
    static constexpr int kTokens = 6, kFewest = 1;
    static constexpr int64_t kInputs = 768;
    template <int TOKENS>
    static constexpr int kParts = TOKENS > 2 ? 2 : 4;

    template <int TOKENS>
    static INLINE void stage(const Tokens& tokens, int64_t token, int64_t first, int64_t count, int16_t* to) {
        for (int t = 0; t < TOKENS; t++, to += kInputs) {
            const uint8_t* from = tokens.values + (token + t) * tokens.stride + first;
            int64_t i = 0;
            for (; i + 16 <= count; i += 16) store(to + i, _mm256_cvtepu8_epi16(load<__m128i>(from + i)));
            for (; i < count; i += 4) {
                const __m128i wide = _mm_cvtepu8_epi16(_mm_cvtsi32_si128(load<int32_t>(from + i)));
                store(to + i, _mm_cvtsi128_si64(wide));
            }
        }
    }

    // Every sum stands in two neighbouring lanes until the end.
    template <int TOKENS, int PARTS>
    static INLINE void tile(const int16_t* inputs, const int8_t* weights, int64_t steps, int32_t* totals) {
        __m256i sums[TOKENS][PARTS] = {};
        for (int64_t step = 0; step < steps; step++) {
            __m256i wide[PARTS];
            UNROLL
            for (int p = 0; p < PARTS; p++) wide[p] = _mm256_cvtepi8_epi16(load<__m128i>(weights + step * 64 + p * 16));
            UNROLL
            for (int t = 0; t < TOKENS; t++) {
                const __m256i four = _mm256_set1_epi64x(load<int64_t>(inputs + t * kInputs + step * 4));
                UNROLL
                for (int p = 0; p < PARTS; p++)
                    add_pairs(sums[t][p], wide[p], four);
            }
        }
        UNROLL
        for (int t = 0; t < TOKENS; t++) {
            UNROLL
            for (int p = 0; p < PARTS; p += 2) {
                int32_t* to = totals + t * kPanel * 16 + p * 4;
                const __m256i rows = _mm256_permute4x64_epi64(_mm256_hadd_epi32(sums[t][p], sums[t][p + 1]), 0xD8);
                store(to, _mm256_add_epi32(load<__m256i>(to), rows));
            }
        }
    }

    static INLINE void rest(const Tokens&, int64_t, const Matrix&, int64_t, int64_t, const Sink&) {}
};

}  // namespace

namespace sprachbund {
extern const Kernels avx2_kernels;
const Kernels avx2_kernels = table("avx2", attend_many<Widened>, match_many, staged_product<Wide>);
}  // namespace sprachbund

END_TARGET
#endif
