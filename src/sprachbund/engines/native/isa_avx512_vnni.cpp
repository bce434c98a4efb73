// AVX-512 with the 8-bit dot product but without bf16, as in Intel's servers from 2019 to 2022.
#if defined(__x86_64__)
#include "target.hpp"

TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")
#include "avx512.inl"
#include "dot_pairs.inl"
#include "kernels.inl"

namespace sprachbund {
extern const Kernels avx512_vnni_kernels;
const Kernels avx512_vnni_kernels = table("avx512_vnni");
}  // namespace sprachbund

END_TARGET
#endif
