// AVX-512 with tiles (AMX), as in Intel's servers since 2023: products of several tokens go through tiles of 8 bits,
// attention of many queries through tiles of bf16; all else is as in isa_avx512.cpp.
//
// A tile is 16 rows of 64 bytes. One of tokens holds 64 inputs of 16 tokens. One of weights holds 64 inputs of 16 rows of
// the matrix as they lie in memory, four inputs of a row together. Their product is added to 16 tokens x 16 rows of sums,
// which are exact: results are those of the other kernels, bit for bit.
//
// In bf16 a tile holds 32 numbers of 16 queries, or 16 x 16 pairs. Blocks of keys are such pairs as they lie in memory:
// 32 dimensions of 16 positions. Blocks of values are too, with 16 positions of 16 dimensions: half a tile.
//
// With SPRACHBUND_EMULATED_TILES, plain loops take the place of the instructions, for scripts/kernels_check.sh.
#include "kernels.hpp"
#if defined(WITH_TILES)
#include "target.hpp"
#include "tiles.hpp"

TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx2,fma,amx-tile,amx-int8,amx-bf16")
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

// What follows is done to the first `count` of four sums, tiles 0 to 3. None waits for another one's product. Compilers
// take the number of a tile as a literal only.
#define SUMS(DO) DO(0) DO(1) DO(2) DO(3)

INLINE void clear_sums(int64_t count) {
#define CLEAR(n) \
    if (n < count) _tile_zero(n);
    SUMS(CLEAR)
#undef CLEAR
}

// Sixteen floats of every row for each; `stride` floats from row to row.
INLINE void take_sums(const float* from, int64_t stride, int64_t count) {
    settle(from);
#define TAKE(n) \
    if (n < count) _tile_loadd(n, from + n * 16, stride * 4);
    SUMS(TAKE)
#undef TAKE
}

INLINE void give_sums(float* to, int64_t stride, int64_t count) {
#define GIVE(n) \
    if (n < count) _tile_stored(n, to + n * 16, stride * 4);
    SUMS(GIVE)
#undef GIVE
    settle(to);
}

// Adds rows of 32 bf16 numbers, or of 16 unless WHOLE, times a tile of pairs for each; these lie `apart` numbers from
// each other.
template <bool WHOLE>
INLINE void add_products(const uint16_t* left, int64_t stride, const uint16_t* right, int64_t apart, int64_t count) {
    if constexpr (WHOLE) _tile_loadd(4, left, stride * 2);
    if constexpr (!WHOLE) _tile_loadd(6, left, stride * 2);
#define ADD(n)                                     \
    if (n < count) {                               \
        if constexpr (WHOLE) {                     \
            _tile_loadd(5, right + n * apart, 64); \
            _tile_dpbf16ps(n, 4, 5);               \
        } else {                                   \
            _tile_loadd(7, right + n * apart, 64); \
            _tile_dpbf16ps(n, 6, 7);               \
        }                                          \
    }
    SUMS(ADD)
#undef ADD
}

#undef SUMS

INLINE uint16_t* halves(float* memory) {
    return reinterpret_cast<uint16_t*>(memory);
}

// The products of attend_many.inl, `rows` queries at a time. The last ones may be fewer; then other rows of a tile hold
// whatever there was, which no row but their own gets to see. Tiles 4 and 6 are 32 and 16 numbers of every query, 5 and
// 7 the pairs of these.
struct ByTiles {
    int64_t rows;

    INLINE explicit ByTiles(const Attention& a) {
        const int64_t parts = up(a.count, kTileRows) / kTileRows;
        rows = parts ? (a.count + parts - 1) / parts : 1;
        TileShapes shapes;
        for (int64_t n = 0; n < 7; n++)
            if (n != 5) shapes.rows[n] = static_cast<uint8_t>(rows);
        shapes.bytes[6] = 32;
        shapes.rows[7] = 8;
        settle(&shapes);
        _tile_loadconfig(&shapes);
    }
    INLINE ~ByTiles() { _tile_release(); }

    INLINE void begin(const Attention& a, const Many& m) const {
        for (int64_t q = 0; q < a.count; q++)
            std::memcpy(halves(m.queries) + q * a.width, a.queries + q * a.query_stride,
                        static_cast<size_t>(a.width * 2));
    }

    INLINE void scores(const Attention& a, const uint16_t* queries, const uint16_t* keys, int64_t blocks,
                       float* to) const {
        const int64_t whole = a.width / 32 * 32, block = a.width * 16;
        settle(queries);
        clear_sums(blocks);
        for (int64_t d = 0; d < whole; d += 32) add_products<true>(queries + d, a.width, keys + d * 16, block, blocks);
        if (whole < a.width) add_products<false>(queries + whole, a.width, keys + whole * 16, block, blocks);
        give_sums(to, kTile, blocks);
    }

    INLINE void mix(const Attention& a, const uint16_t* weights, const uint16_t* values, int64_t blocks,
                    float* mixed) const {
        for (int64_t d = 0; d < a.width; d += 64) {
            const int64_t rest = (a.width - d) / 16, groups = rest < 4 ? rest : 4;
            take_sums(mixed + d, a.width, groups);
            for (int64_t block = 0; block < blocks; block++)
                add_products<false>(weights + block * 16, 2 * kTile, values + block * a.width * 16 + d * 16, 256,
                                    groups);
            give_sums(mixed + d, a.width, groups);
        }
    }

    INLINE void tile(const Attention& a, const Many& m, int64_t first, int64_t count) const {
        static_assert(kTile == 4 * 16);  // positions of four sums
        const int64_t padded = up(count, 16), blocks = padded / 16;
        for (int64_t begin = 0; begin < a.count; begin += rows) {
            const int64_t end = begin + rows < a.count ? begin + rows : a.count;
            float *weights = m.scores + begin * kTile, *mixed = m.mixed + begin * a.width;
            scores(a, halves(m.queries) + begin * a.width, a.keys + first * a.width, blocks, weights);
            for (int64_t q = begin; q < end; q++)
                for (int64_t i = q * kTile; i < q * kTile + padded; i += 16)
                    store(m.scores + i, load<F16>(m.scores + i) * a.factor);
            soften_some(a, m, begin, end - begin, first, count);
            for (int64_t q = begin; q < end; q++) {
                const float* row = m.scores + q * kTile;
                for (int64_t i = 0; i < padded; i += 16)  // in place: what is written was read before
                    store(halves(m.scores + q * kTile) + i, to_bf16(load<F16>(row + i)));
                for (int64_t i = q * a.width; i < (q + 1) * a.width; i += 16)
                    store(m.mixed + i, load<F16>(m.mixed + i) * m.keep[q]);
            }
            mix(a, halves(weights), a.values + first * a.width, blocks, mixed);
        }
    }
};

}  // namespace

namespace sprachbund {
extern const Kernels amx_kernels, amx_int8_kernels;
const Kernels amx_kernels = table("amx", attend_many<ByTiles>, match, product_by_tiles);
const Kernels amx_int8_kernels = table("amx", attend, match, product_by_tiles);  // without tiles of bf16
}  // namespace sprachbund

END_TARGET
#endif
