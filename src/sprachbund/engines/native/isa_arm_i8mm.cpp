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
#include "staged.inl"

namespace {

// In place of the next four inputs' where there are none: behind the last weights there may be no memory.
alignas(64) constexpr int8_t kNoWeights[64] = {};

struct Paired {
    typedef uint8_t Input;
    static constexpr int kTokens = 8, kFewest = 4;
    static constexpr int64_t kInputs = 1024;
    template <int TOKENS>
    static constexpr int kParts = TOKENS > 4 ? 2 : 4;

    // Eight inputs of every token, then the next eight. Where only four are left, zeros follow them.
    template <int TOKENS>
    static INLINE void stage(const Tokens& tokens, int64_t token, int64_t first, int64_t count, uint8_t* to) {
        for (int t = 0; t < TOKENS; t++) {
            const uint8_t* from = tokens.values + (token + t) * tokens.stride + first;
            uint8_t* at = to + t * 8;
            int64_t i = 0;
            for (; i + 8 <= count; i += 8, at += TOKENS * 8) store(at, load<uint64_t>(from + i));
            if (i < count) store(at, uint64_t{load<uint32_t>(from + i)});
        }
    }

    template <int TOKENS, int PARTS>
    static INLINE void tile(const uint8_t* inputs, const int8_t* weights, int64_t steps, int32_t* totals) {
        int32x4_t sums[TOKENS / 2][PARTS][2] = {};
        for (int64_t step = 0; step < steps; step += 2, inputs += TOKENS * 8) {
            const int8_t* four = weights + step * 64;
            const int8_t* next = step + 1 < steps ? four + 64 : kNoWeights;
            int8x16_t rows[PARTS][2];
            UNROLL
            for (int p = 0; p < PARTS; p++) {
                const int32x4_t left = load<int32x4_t>(four + p * 16), right = load<int32x4_t>(next + p * 16);
                rows[p][0] = vreinterpretq_s8_s32(vzip1q_s32(left, right));
                rows[p][1] = vreinterpretq_s8_s32(vzip2q_s32(left, right));
            }
            UNROLL
            for (int t = 0; t < TOKENS / 2; t++) {
                const uint8x16_t two = vld1q_u8(inputs + t * 16);
                UNROLL
                for (int p = 0; p < PARTS; p++) {
                    sums[t][p][0] = vusmmlaq_s32(sums[t][p][0], two, rows[p][0]);
                    sums[t][p][1] = vusmmlaq_s32(sums[t][p][1], two, rows[p][1]);
                }
            }
        }
        UNROLL
        for (int t = 0; t < TOKENS / 2; t++) {
            UNROLL
            for (int p = 0; p < PARTS; p++) {
                typedef int64x2_t Sums;  // of one token and two rows, then of the other token
                const Sums low = vreinterpretq_s64_s32(sums[t][p][0]), high = vreinterpretq_s64_s32(sums[t][p][1]);
                int32_t *first = totals + t * 2 * kPanel * 16 + p * 4, *second = first + kPanel * 16;
                vst1q_s32(first, vaddq_s32(vld1q_s32(first), vreinterpretq_s32_s64(vzip1q_s64(low, high))));
                vst1q_s32(second, vaddq_s32(vld1q_s32(second), vreinterpretq_s32_s64(vzip2q_s64(low, high))));
            }
        }
    }

    static INLINE void rest(const Tokens& tokens, int64_t token, const Matrix& m, int64_t begin, int64_t end,
                            const Sink& sink) {
        panel<2, false>(tokens, token, m, begin, end, sink);
    }
};

}  // namespace

namespace sprachbund {
extern const Kernels arm_i8mm_kernels;
const Kernels arm_i8mm_kernels = table("arm_i8mm", attend_many<Widened>, match_many, staged_product<Paired>);
}  // namespace sprachbund

END_TARGET
#endif
