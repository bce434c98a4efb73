// Arm with products of 8-bit matrices, as in servers since Graviton 3 and in Apple's processors since M2.
#if defined(__aarch64__)
#include "target.hpp"

TARGET("arch=armv8.2-a+i8mm")
#include "arm.inl"

namespace {

constexpr int kTokens = 4, kBlocks = 1, kTokensFour = 4, kFew = 1, kSums = 4;

// The extension has a dot product of unsigned and signed numbers too. It serves up to three tokens, weights in 4 bits and
// attention in 8 bits; see below for the rest.
typedef int32x4_t Part;
constexpr int kParts = 4;

INLINE void add(Part (&sums)[kParts], int32_t four, const int8_t* weights) {
    const uint8x16_t inputs = vreinterpretq_u8_s32(vdupq_n_s32(four));
    UNROLL
    for (int i = 0; i < kParts; i++) sums[i] = vusdotq_s32(sums[i], inputs, vld1q_s8(weights + i * 16));
}

INLINE void total(const Part (&sums)[kParts], int32_t* to) {
    for (int i = 0; i < kParts; i++) vst1q_s32(to + i * 4, sums[i]);
}

}  // namespace

#include "dot_pairs.inl"
#include "kernels.inl"

// Products of four tokens and more with weights in 8 bits. An instruction multiplies eight inputs of two tokens by the
// weights of two rows and adds to four sums.
//
// Inputs of two tokens are brought side by side in memory, once for 64 rows. Weights stay as all sets have them: from a
// vector with four inputs of four rows, and one with the next four, come two with eight inputs of two rows, once for all
// tokens of a tile. With two tokens that costs as much as the instruction saves, so dot products take them. Eight tokens
// times eight rows have 16 registers of sums, four of weights and four of inputs; with twelve tokens GCC runs out of them.
namespace {

constexpr int kPairedTokens = 8;
constexpr int64_t kPanel = 4;            // blocks of 16 rows
constexpr int64_t kPairedInputs = 1024;  // at a time: these, and a block of weights, stay in the cache next to the core

// Eight inputs of every token, then the next eight. Where only four are left, zeros follow them.
template <int TOKENS>
INLINE void pair_inputs(const Tokens& tokens, int64_t token, int64_t first, int64_t count, uint8_t* to) {
    for (int t = 0; t < TOKENS; t++) {
        const uint8_t* from = tokens.values + (token + t) * tokens.stride + first;
        uint8_t* at = to + t * 8;
        int64_t i = 0;
        for (; i + 8 <= count; i += 8, at += TOKENS * 8) store(at, load<uint64_t>(from + i));
        if (i < count) store(at, uint64_t{load<uint32_t>(from + i)});
    }
}

// In place of the next four inputs' where there are none: behind the last weights there may be no memory.
alignas(64) constexpr int8_t kNoWeights[64] = {};

// Adds TOKENS x FOURS * 4 rows to the totals.
template <int TOKENS, int FOURS>
INLINE void paired_tile(const uint8_t* inputs, const int8_t* weights, int64_t steps, int32_t* totals) {
    int32x4_t sums[TOKENS / 2][FOURS][2] = {};
    for (int64_t step = 0; step < steps; step += 2, inputs += TOKENS * 8) {
        const int8_t* four = weights + step * 64;
        const int8_t* next = step + 1 < steps ? four + 64 : kNoWeights;
        int8x16_t rows[FOURS][2];
        UNROLL
        for (int f = 0; f < FOURS; f++) {
            const int32x4_t left = load<int32x4_t>(four + f * 16), right = load<int32x4_t>(next + f * 16);
            rows[f][0] = vreinterpretq_s8_s32(vzip1q_s32(left, right));
            rows[f][1] = vreinterpretq_s8_s32(vzip2q_s32(left, right));
        }
        UNROLL
        for (int t = 0; t < TOKENS / 2; t++) {
            const uint8x16_t two = vld1q_u8(inputs + t * 16);
            UNROLL
            for (int f = 0; f < FOURS; f++) {
                sums[t][f][0] = vusmmlaq_s32(sums[t][f][0], two, rows[f][0]);
                sums[t][f][1] = vusmmlaq_s32(sums[t][f][1], two, rows[f][1]);
            }
        }
    }
    UNROLL
    for (int t = 0; t < TOKENS / 2; t++) {
        UNROLL
        for (int f = 0; f < FOURS; f++) {
            typedef int64x2_t Sums;  // of one token and two rows, then of the other token
            const Sums low = vreinterpretq_s64_s32(sums[t][f][0]), high = vreinterpretq_s64_s32(sums[t][f][1]);
            int32_t *first = totals + t * 2 * kPanel * 16 + f * 4, *second = first + kPanel * 16;
            vst1q_s32(first, vaddq_s32(vld1q_s32(first), vreinterpretq_s32_s64(vzip1q_s64(low, high))));
            vst1q_s32(second, vaddq_s32(vld1q_s32(second), vreinterpretq_s32_s64(vzip2q_s64(low, high))));
        }
    }
}

// Tokens from `token` on, TOKENS at a time and the rest by fewer, over a panel of blocks.
template <int TOKENS>
INLINE void paired_panel(const Tokens& tokens, int64_t token, const Matrix& m, int64_t begin, int64_t end,
                         const Sink& sink) {
    constexpr int FOURS = TOKENS > 4 ? 2 : 4;
    for (; token + TOKENS <= tokens.count; token += TOKENS) {
        alignas(64) uint8_t inputs[TOKENS * kPairedInputs];
        alignas(64) int32_t totals[TOKENS][kPanel][16] = {};
        for (int64_t step = 0; step < m.steps; step += kPairedInputs / 4) {
            const int64_t steps = m.steps - step < kPairedInputs / 4 ? m.steps - step : kPairedInputs / 4;
            pair_inputs<TOKENS>(tokens, token, step * 4, steps * 4, inputs);
            for (int64_t block = begin; block < end; block++) {
                const int8_t* weights = m.values + (block * m.steps + step) * 64;
                for (int f = 0; f < 4; f += FOURS)
                    paired_tile<TOKENS, FOURS>(inputs, weights + f * 16, steps, totals[0][block - begin] + f * 4);
            }
        }
        for (int64_t block = begin; block < end; block++) {
            const Finish finish(m, block);
            for (int t = 0; t < TOKENS; t++) finish(tokens, token + t, load<I16>(totals[t][block - begin]), sink);
        }
    }
    if constexpr (TOKENS > 4) paired_panel<4>(tokens, token, m, begin, end, sink);
    if constexpr (TOKENS == 4) panel<2, false>(tokens, token, m, begin, end, sink);
}

void paired_product(const Tokens& tokens, const Matrix& m, int64_t first_block, int64_t last_block, const Sink& sink) {
    if (tokens.count < 4 || m.four.codes) return product(tokens, m, first_block, last_block, sink);
    for (int64_t begin = first_block; begin < last_block; begin += kPanel)
        paired_panel<kPairedTokens>(tokens, 0, m, begin, begin + kPanel < last_block ? begin + kPanel : last_block,
                                    sink);
}

}  // namespace

namespace sprachbund {
extern const Kernels arm_i8mm_kernels;
const Kernels arm_i8mm_kernels = table("arm_i8mm", attend_many<Widened>, match_many, paired_product);
}  // namespace sprachbund

END_TARGET
#endif
