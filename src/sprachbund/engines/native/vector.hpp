// Sixteen numbers at a time, whatever the processor. The compiler lowers these vectors to what the including file's
// instruction set has (one, two or four registers), so that all of them share one source.
//
// Included once by every isa_*.cpp, after its choice of instruction set. Everything lies in an unnamed namespace: were
// two files to share a function of one name, the linker would keep either and might run it on the wrong processor.
#pragma once
#include <cstdint>
#include <cstring>

#define INLINE inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

namespace {

typedef float F16 __attribute__((vector_size(64)));
typedef int32_t I16 __attribute__((vector_size(64)));
typedef uint32_t U16 __attribute__((vector_size(64)));
typedef uint8_t Bytes16 __attribute__((vector_size(16)));
typedef uint16_t Halves16 __attribute__((vector_size(32)));

template <int BYTES>
struct Unsigned {
    typedef uint32_t type __attribute__((vector_size(BYTES)));
};

template <class To, class From>
INLINE To bits(const From& value) {
    static_assert(sizeof(To) == sizeof(From));
    To out;
    std::memcpy(&out, &value, sizeof(To));
    return out;
}

template <class V>
INLINE V load(const void* at) {
    V out;
    std::memcpy(&out, at, sizeof(V));
    return out;
}

template <class V>
INLINE void store(void* at, const V& value) {
    std::memcpy(at, &value, sizeof(V));
}

INLINE F16 all(float value) {
    return F16{} + value;
}
INLINE I16 lanes() {
    return I16{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
}
INLINE F16 larger(F16 a, F16 b) {
    return a > b ? a : b;
}
INLINE F16 magnitude(F16 a) {
    return bits<F16>(bits<I16>(a) & 0x7fffffff);
}

// The first `count` lanes of a, zero in the others.
INLINE F16 first(F16 a, int count) {
    return bits<F16>(bits<I16>(a) & (lanes() < count));
}

INLINE float sum(F16 a) {
    float half[8], total[4];
    for (int i = 0; i < 8; i++) half[i] = a[i] + a[i + 8];
    for (int i = 0; i < 4; i++) total[i] = half[i] + half[i + 4];
    return (total[0] + total[2]) + (total[1] + total[3]);
}

INLINE float largest(F16 a) {
    float half[8], total[4];
    for (int i = 0; i < 8; i++) half[i] = a[i] > a[i + 8] ? a[i] : a[i + 8];
    for (int i = 0; i < 4; i++) total[i] = half[i] > half[i + 4] ? half[i] : half[i + 4];
    const float even = total[0] > total[2] ? total[0] : total[2], odd = total[1] > total[3] ? total[1] : total[3];
    return even > odd ? even : odd;
}

// e^x for x <= 0 within 2 ulp; arguments below -87 give e^-87. Degree-6 Taylor polynomial over |f| <= ln 2 / 2. For vectors
// of any length.
template <class F>
INLINE F exponential(F x) {
    x = x > -87.0f ? x : F{} - 87.0f;
    const float shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
    F shifted = x * 1.44269504f + shift;
    F n = shifted - shift;
    F f = x - n * 0.693359375f + n * 2.12194440e-4f;
    F p = f * 1.3888889e-3f + 8.3333333e-3f;
    p = p * f + 4.1666667e-2f;
    p = p * f + 0.16666667f;
    p = p * f + 0.5f;
    p = p * f + 1.0f;
    p = p * f + 1.0f;
    typedef typename Unsigned<sizeof(F)>::type Words;
    Words exponent = bits<Words>(shifted) - 0x4B400000u;  // unsigned: negative ones and those of NaN wrap around
    return bits<F>(bits<Words>(p) + (exponent << 23));
}

// x * Phi(x), the exact GELU; erf within 1.5e-7 by Abramowitz and Stegun, 7.1.26.
INLINE F16 gelu(F16 x) {
    F16 z = magnitude(x) * 0.70710678f;
    F16 t = 1.0f / (z * 0.3275911f + 1.0f);
    F16 p = t * 1.061405429f - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    F16 tail = p * t * exponential(-z * z) * 0.5f;  // 1 - Phi(|x|)
    return x * (x < 0.0f ? tail : 1.0f - tail);
}

// 1 / (1 + e^-x), from the side where the exponential is at most one.
INLINE F16 sigmoid(F16 x) {
    F16 e = exponential(-magnitude(x));
    return (x < 0.0f ? e : all(1.0f)) / (e + 1.0f);
}

// Sixteen bf16 numbers, rounded to nearest even.
INLINE Halves16 to_bf16(F16 x) {
    U16 u = bits<U16>(x);
    u = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    return __builtin_convertvector(u, Halves16);
}

}  // namespace
