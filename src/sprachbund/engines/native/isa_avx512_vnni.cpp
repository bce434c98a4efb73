// AVX-512 with the 8-bit dot product but without bf16, as in Intel's servers from 2019 to 2022.
#if defined(__x86_64__)
#include "target.hpp"

TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")
#include "avx512.inl"
#include "dot_pairs.inl"
#include "kernels.inl"

namespace {

template <int VECTORS>
INLINE void add_pairs(Part (&sums)[VECTORS], const Part (&vectors)[VECTORS], int32_t two) {
    const __m512i pair = _mm512_set1_epi32(two);
    UNROLL
    for (int v = 0; v < VECTORS; v++)
        sums[v] = bits<Part>(_mm512_dpwssd_epi32(bits<__m512i>(sums[v]), bits<__m512i>(vectors[v]), pair));
}

}  // namespace

#include "attend_sixteen.inl"

namespace sprachbund {
extern const Kernels avx512_vnni_kernels;
const Kernels avx512_vnni_kernels =
    table("avx512_vnni", attend_many<Widened>, match_many, product, attend_many<Sixteen>);
}  // namespace sprachbund

END_TARGET
#endif
