// AVX-512 with tiles of 8 bits (AMX), as in Intel's servers since 2023: products of several tokens go through tiles, all
// else is as in isa_avx512.cpp.
//
// A tile is 16 rows of 64 bytes. One of tokens holds 64 inputs of 16 tokens. One of weights holds 64 inputs of 16 rows of
// the matrix as they lie in memory, four inputs of a row together. Their product is added to 16 tokens x 16 rows of sums,
// which are exact: results are those of the other kernels, bit for bit.
//
// With SPRACHBUND_EMULATED_TILES, plain loops take the place of the instructions, for scripts/kernels_check.sh.
#include "kernels.hpp"
#if defined(WITH_TILES)
#include "target.hpp"
#include "tiles.hpp"

TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx2,fma,amx-tile,amx-int8")
#include "avx512.inl"
#include "dot_bf16.inl"
#include "kernels.inl"

namespace {

constexpr int64_t kTileRows = 16;           // rows of a tile
constexpr int64_t kStepsOfTile = 16;    // of four inputs
constexpr int64_t kFewestForTiles = 4;  // tokens; for fewer, vectors waste less

// Tiles 0 to 3 are sums: of `first` tokens with one block of rows and the next, and of `second` tokens likewise. 4 and 5
// are the tokens, 6 and 7 the weights.
INLINE void shape_tiles(int64_t first, int64_t second) {
    TileShapes shapes;
    shapes.rows[0] = shapes.rows[1] = shapes.rows[4] = static_cast<uint8_t>(first);
    shapes.rows[2] = shapes.rows[3] = shapes.rows[5] = static_cast<uint8_t>(second);
    settle(&shapes);
    _tile_loadconfig(&shapes);
}

// One step of 64 inputs.
template <bool TWO_GROUPS, bool TWO_BLOCKS>
INLINE void multiply(const uint8_t* tokens, int64_t stride, const int8_t* weights, int64_t block_stride) {
    _tile_loadd(4, tokens, stride);
    _tile_loadd(6, weights, 64);
    _tile_dpbusd(0, 4, 6);
    if constexpr (TWO_BLOCKS) {
        _tile_loadd(7, weights + block_stride, 64);
        _tile_dpbusd(1, 4, 7);
    }
    if constexpr (TWO_GROUPS) {
        _tile_loadd(5, tokens + kTileRows * stride, stride);
        _tile_dpbusd(2, 5, 6);
        if constexpr (TWO_BLOCKS) _tile_dpbusd(3, 5, 7);
    }
}

// `count` tokens, over 16 with TWO_GROUPS, times one block of rows or two.
template <bool TWO_GROUPS, bool TWO_BLOCKS>
INLINE void tiles(const Tokens& tokens, int64_t token, int64_t count, const Matrix& m, int64_t block, const Sink& sink) {
    constexpr int BLOCKS = TWO_BLOCKS ? 2 : 1;
    const uint8_t* inputs = tokens.values + token * tokens.stride;
    const int8_t* weights = m.values + block * m.steps * 64;
    const int64_t whole = m.steps / kStepsOfTile, rest = m.steps % kStepsOfTile;
    _tile_zero(0);
    if constexpr (TWO_BLOCKS) _tile_zero(1);
    if constexpr (TWO_GROUPS) _tile_zero(2);
    if constexpr (TWO_GROUPS && TWO_BLOCKS) _tile_zero(3);
    for (int64_t i = 0; i < whole; i++)
        multiply<TWO_GROUPS, TWO_BLOCKS>(inputs + i * 64, tokens.stride, weights + i * 1024, m.steps * 64);
    if (rest) {  // behind the last inputs of a token or of the matrix there may be no memory
        alignas(64) uint8_t last_inputs[2 * kTileRows][64] = {};
        alignas(64) int8_t last_weights[BLOCKS][kTileRows][64] = {};
        for (int64_t t = 0; t < count; t++)
            std::memcpy(last_inputs[t], inputs + t * tokens.stride + whole * 64, static_cast<size_t>(rest * 4));
        for (int b = 0; b < BLOCKS; b++)
            std::memcpy(last_weights[b], weights + (b * m.steps + whole * kStepsOfTile) * 64,
                        static_cast<size_t>(rest * 64));
        settle(last_inputs);
        settle(last_weights);
        multiply<TWO_GROUPS, TWO_BLOCKS>(last_inputs[0], 64, last_weights[0][0], kTileRows * 64);
    }
    alignas(64) int32_t totals[2][2][kTileRows][kTileRows];  // groups, blocks, tokens, rows
    _tile_stored(0, totals[0][0], 64);
    if constexpr (TWO_BLOCKS) _tile_stored(1, totals[0][1], 64);
    if constexpr (TWO_GROUPS) _tile_stored(2, totals[1][0], 64);
    if constexpr (TWO_GROUPS && TWO_BLOCKS) _tile_stored(3, totals[1][1], 64);
    settle(totals);
    for (int b = 0; b < BLOCKS; b++) {
        const Finish finish(m, block + b);
        for (int64_t t = 0; t < count; t++)
            finish(tokens, token + t, load<I16>(totals[t / kTileRows][b][t % kTileRows]), sink);
    }
}

// `count` tokens times the blocks of a panel.
INLINE void panel_by_tiles(const Tokens& tokens, int64_t token, int64_t count, const Matrix& m, int64_t begin,
                           int64_t end, const Sink& sink) {
    int64_t block = begin;
    for (; block + 2 <= end; block += 2) {
        if (count > kTileRows) tiles<true, true>(tokens, token, count, m, block, sink);
        if (count <= kTileRows) tiles<false, true>(tokens, token, count, m, block, sink);
    }
    if (block < end) {
        if (count > kTileRows) tiles<true, false>(tokens, token, count, m, block, sink);
        if (count <= kTileRows) tiles<false, false>(tokens, token, count, m, block, sink);
    }
}

void product_by_tiles(const Tokens& tokens, const Matrix& m, int64_t first_block, int64_t last_block,
                      const Sink& sink) {
    if (m.four.codes || tokens.count < kFewestForTiles) return product(tokens, m, first_block, last_block, sink);
    const int64_t whole = tokens.count / (2 * kTileRows) * (2 * kTileRows), rest = tokens.count - whole;
    for (int64_t begin = first_block; begin < last_block; begin += 4) {  // a panel stays in the cache
        const int64_t end = begin + 4 < last_block ? begin + 4 : last_block;
        if (whole) shape_tiles(kTileRows, kTileRows);
        for (int64_t token = 0; token < whole; token += 2 * kTileRows)
            panel_by_tiles(tokens, token, 2 * kTileRows, m, begin, end, sink);
        if (!rest) continue;
        shape_tiles(rest < kTileRows ? rest : kTileRows, rest > kTileRows ? rest - kTileRows : kTileRows);
        panel_by_tiles(tokens, whole, rest, m, begin, end, sink);
    }
    _tile_release();
}

}  // namespace

namespace sprachbund {
extern const Kernels amx_kernels;
const Kernels amx_kernels = table("amx", false, product_by_tiles);
}  // namespace sprachbund

END_TARGET
#endif
