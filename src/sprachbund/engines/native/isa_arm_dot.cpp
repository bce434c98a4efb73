// Arm with dot products of 8 bits, as in nearly all 64-bit processors of phones, servers and laptops since 2018.
#if defined(__aarch64__)
#include "target.hpp"

TARGET("arch=armv8.2-a+dotprod")
#include "arm.inl"

namespace {

constexpr int kTokens = 2, kBlocks = 1, kTokensFour = 2, kFew = 1, kSums = 4;

// The instruction takes signed inputs alone, so 128 is taken from them. What that takes from a sum is 128 times the sum
// of the weights, which the second half of the vectors counts.
typedef int32x4_t Part;
constexpr int kParts = 8;

INLINE void add(Part (&sums)[kParts], int32_t four, const int8_t* weights) {
    const int8x16_t inputs = vreinterpretq_s8_u32(vdupq_n_u32(static_cast<uint32_t>(four) ^ 0x80808080u));
    const int8x16_t ones = vdupq_n_s8(1);
    UNROLL
    for (int i = 0; i < 4; i++) {
        const int8x16_t rows = vld1q_s8(weights + i * 16);
        sums[i] = vdotq_s32(sums[i], rows, inputs);
        sums[i + 4] = vdotq_s32(sums[i + 4], rows, ones);
    }
}

INLINE void total(const Part (&sums)[kParts], int32_t* to) {
    for (int i = 0; i < 4; i++) vst1q_s32(to + i * 4, vaddq_s32(sums[i], vshlq_n_s32(sums[i + 4], 7)));
}

}  // namespace

#include "dot_pairs.inl"
#include "kernels.inl"

namespace sprachbund {
extern const Kernels arm_dot_kernels;
const Kernels arm_dot_kernels = table("arm_dot");
}  // namespace sprachbund

END_TARGET
#endif
