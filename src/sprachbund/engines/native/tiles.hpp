// The shapes of tiles, for the files that use them.
#pragma once
#include <cstdint>
#if defined(SPRACHBUND_EMULATED_TILES)
#include "emulated_tiles.hpp"
#endif

namespace {

// As the processor reads it; at first all tiles are 16 rows of 64 bytes.
struct alignas(64) TileShapes {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// The compiler need not see that tiles read and write memory.
inline __attribute__((always_inline)) void settle(const void* memory) {
    __asm__ volatile("" : : "r"(memory) : "memory");
}

}  // namespace
