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
namespace {

constexpr int kWideTokens = 6;
constexpr int64_t kPanel = 4;         // blocks of 16 rows
constexpr int64_t kWideInputs = 768;  // at a time: widened ones, and a block of weights, stay in the cache next to the core

template <int TOKENS>
INLINE void widen_inputs(const Tokens& tokens, int64_t token, int64_t first, int64_t count, int16_t* to) {
    for (int t = 0; t < TOKENS; t++) {
        const uint8_t* from = tokens.values + (token + t) * tokens.stride + first;
        int64_t i = 0;
        for (; i + 16 <= count; i += 16) store(to + t * kWideInputs + i, _mm256_cvtepu8_epi16(load<__m128i>(from + i)));
        for (; i < count; i += 4) {
            const __m128i wide = _mm_cvtepu8_epi16(_mm_cvtsi32_si128(load<int32_t>(from + i)));
            store(to + t * kWideInputs + i, _mm_cvtsi128_si64(wide));
        }
    }
}

// A product and its sum side by side: GCC brings all products of a step together, and then has no registers for the sums.
INLINE void add_pairs(__m256i& sum, __m256i left, __m256i right) {
    __m256i product;
    __asm__("vpmaddwd %2, %3, %1\n\tvpaddd %1, %0, %0" : "+x"(sum), "=&x"(product) : "x"(left), "x"(right));
}

// Adds TOKENS x PARTS * 4 rows to the totals. Every sum stands in two neighbouring lanes until then.
template <int TOKENS, int PARTS>
INLINE void wide_tile(const int16_t* inputs, const int8_t* weights, int64_t steps, int32_t* totals) {
    __m256i sums[TOKENS][PARTS] = {};
    for (int64_t step = 0; step < steps; step++) {
        __m256i wide[PARTS];
        UNROLL
        for (int p = 0; p < PARTS; p++) wide[p] = _mm256_cvtepi8_epi16(load<__m128i>(weights + step * 64 + p * 16));
        UNROLL
        for (int t = 0; t < TOKENS; t++) {
            const __m256i four = _mm256_set1_epi64x(load<int64_t>(inputs + t * kWideInputs + step * 4));
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

// Tokens from `token` on, TOKENS at a time and the rest by fewer, over a panel of blocks.
template <int TOKENS>
INLINE void wide_panel(const Tokens& tokens, int64_t token, const Matrix& m, int64_t begin, int64_t end,
                       const Sink& sink) {
    constexpr int PARTS = TOKENS > 2 ? 2 : 4;
    for (; token + TOKENS <= tokens.count; token += TOKENS) {
        alignas(64) int16_t inputs[TOKENS * kWideInputs];
        alignas(64) int32_t totals[TOKENS][kPanel][16] = {};
        for (int64_t step = 0; step < m.steps; step += kWideInputs / 4) {
            const int64_t steps = m.steps - step < kWideInputs / 4 ? m.steps - step : kWideInputs / 4;
            widen_inputs<TOKENS>(tokens, token, step * 4, steps * 4, inputs);
            for (int64_t block = begin; block < end; block++) {
                const int8_t* weights = m.values + (block * m.steps + step) * 64;
                for (int p = 0; p < 4; p += PARTS)
                    wide_tile<TOKENS, PARTS>(inputs, weights + p * 16, steps, totals[0][block - begin] + p * 4);
            }
        }
        for (int64_t block = begin; block < end; block++) {
            const Finish finish(m, block);
            for (int t = 0; t < TOKENS; t++) finish(tokens, token + t, load<I16>(totals[t][block - begin]), sink);
        }
    }
    if constexpr (TOKENS > 1) wide_panel<fewer(TOKENS)>(tokens, token, m, begin, end, sink);
}

void wide_product(const Tokens& tokens, const Matrix& m, int64_t first_block, int64_t last_block, const Sink& sink) {
    if (m.four.codes) return product(tokens, m, first_block, last_block, sink);
    for (int64_t begin = first_block; begin < last_block; begin += kPanel)
        wide_panel<kWideTokens>(tokens, 0, m, begin, begin + kPanel < last_block ? begin + kPanel : last_block, sink);
}

}  // namespace

namespace sprachbund {
extern const Kernels avx2_kernels;
const Kernels avx2_kernels = table("avx2", attend_many<Widened>, match_many, wide_product);
}  // namespace sprachbund

END_TARGET
#endif
