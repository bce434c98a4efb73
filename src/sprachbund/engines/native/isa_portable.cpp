// Plain C++: the floor that every processor has.
#include "vector.hpp"

namespace {

constexpr int kTokens = 2, kBlocks = 1, kTokensFour = 2, kFew = 1, kSums = 2;

typedef I16 Part;
constexpr int kParts = 1;

INLINE void add(Part (&sums)[kParts], int32_t four, const int8_t* weights) {
    uint8_t inputs[4];
    store(inputs, four);
    for (int row = 0; row < 16; row++) {
        int32_t sum = 0;
        for (int i = 0; i < 4; i++) sum += inputs[i] * weights[row * 4 + i];
        sums[0][row] += sum;
    }
}

INLINE void total(const Part (&sums)[kParts], int32_t* to) {
    store(to, sums[0]);
}

INLINE I16 to_nearest(F16 x) {
    I16 out;
    for (int i = 0; i < 16; i++) out[i] = static_cast<int32_t>(__builtin_lrintf(x[i]));
    return out;
}

}  // namespace

#include "dot_pairs.inl"
#include "kernels.inl"

namespace sprachbund {
extern const Kernels portable_kernels;
const Kernels portable_kernels = table("portable");
}  // namespace sprachbund
