// The instructions of tiles as plain loops, by Intel's manual (volume 2, TILELOADD, TDPBUSD, TDPBF16PS, TILESTORED):
// for tests of kernels that no processor at hand can run. A shape, a row or an alignment that the processor would
// refuse ends the program.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace {

struct EmulatedTiles {
    bool shaped = false;
    uint16_t bytes[8];
    uint8_t rows[8];
    uint8_t of[8][16][64];
};

thread_local EmulatedTiles emulated;

inline void refuse(bool wrong) {
    if (wrong) std::abort();
}

inline void emulated_loadconfig(const void* shapes) {
    uint8_t raw[64];
    std::memcpy(raw, shapes, 64);
    refuse(raw[0] != 1);
    emulated.shaped = true;
    std::memset(emulated.of, 0, sizeof emulated.of);
    for (int n = 0; n < 8; n++) {
        std::memcpy(&emulated.bytes[n], raw + 16 + 2 * n, 2);
        emulated.rows[n] = raw[48 + n];
        refuse(emulated.bytes[n] > 64 || emulated.rows[n] > 16);
    }
}

inline void emulated_release() {
    emulated.shaped = false;
}

inline void check_tile(int n) {
    refuse(!emulated.shaped || !emulated.bytes[n] || !emulated.rows[n]);
}

inline void emulated_zero(int n) {
    check_tile(n);
    std::memset(emulated.of[n], 0, sizeof emulated.of[n]);
}

inline void emulated_loadd(int n, const void* from, int64_t stride) {
    emulated_zero(n);
    for (int row = 0; row < emulated.rows[n]; row++)
        std::memcpy(emulated.of[n][row], static_cast<const uint8_t*>(from) + row * stride, emulated.bytes[n]);
}

inline void emulated_stored(int n, void* to, int64_t stride) {
    check_tile(n);
    for (int row = 0; row < emulated.rows[n]; row++)
        std::memcpy(static_cast<uint8_t*>(to) + row * stride, emulated.of[n][row], emulated.bytes[n]);
}

inline void check_product(int sums, int left, int right) {
    check_tile(sums), check_tile(left), check_tile(right);
    refuse(sums == left || sums == right || left == right || emulated.rows[sums] != emulated.rows[left] ||
           emulated.bytes[sums] != emulated.bytes[right] || emulated.bytes[left] / 4 != emulated.rows[right]);
}

inline void emulated_dpbusd(int sums, int left, int right) {
    check_product(sums, left, right);
    for (int m = 0; m < emulated.rows[sums]; m++)
        for (int k = 0; k < emulated.bytes[left] / 4; k++)
            for (int n = 0; n < emulated.bytes[sums] / 4; n++) {
                int32_t sum;
                std::memcpy(&sum, emulated.of[sums][m] + 4 * n, 4);
                for (int i = 0; i < 4; i++)
                    sum += emulated.of[left][m][4 * k + i] * static_cast<int8_t>(emulated.of[right][k][4 * n + i]);
                std::memcpy(emulated.of[sums][m] + 4 * n, &sum, 4);
            }
}

// Denormals count as zeros, as what is read and as what is written.
inline float flushed(float x) {
    return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x;
}

// The bf16 number at `index` of a row.
inline float emulated_half(int n, int row, int index) {
    uint16_t upper;
    std::memcpy(&upper, emulated.of[n][row] + 2 * index, 2);
    const uint32_t raw = static_cast<uint32_t>(upper) << 16;
    float x;
    std::memcpy(&x, &raw, 4);
    return flushed(x);
}

// The first numbers of all pairs are summed by themselves, and so are the second ones. A product and its sum are
// rounded once. Then both sums are added, and go to what was there before.
inline void emulated_dpbf16ps(int sums, int left, int right) {
    check_product(sums, left, right);
    for (int m = 0; m < emulated.rows[sums]; m++) {
        float halves[16][2] = {};
        for (int k = 0; k < emulated.bytes[left] / 4; k++)
            for (int n = 0; n < emulated.bytes[sums] / 4; n++)
                for (int i = 0; i < 2; i++)
                    halves[n][i] = flushed(
                        std::fma(emulated_half(left, m, 2 * k + i), emulated_half(right, k, 2 * n + i), halves[n][i]));
        for (int n = 0; n < emulated.bytes[sums] / 4; n++) {
            float sum;
            std::memcpy(&sum, emulated.of[sums][m] + 4 * n, 4);
            sum = flushed(flushed(sum) + flushed(halves[n][0] + halves[n][1]));
            std::memcpy(emulated.of[sums][m] + 4 * n, &sum, 4);
        }
    }
}

}  // namespace

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbusd
#undef _tile_dpbf16ps
#define _tile_loadconfig emulated_loadconfig
#define _tile_release emulated_release
#define _tile_loadd emulated_loadd
#define _tile_stored emulated_stored
#define _tile_zero emulated_zero
#define _tile_dpbusd emulated_dpbusd
#define _tile_dpbf16ps emulated_dpbf16ps
