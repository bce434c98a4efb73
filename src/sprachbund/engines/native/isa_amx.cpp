// AVX-512 with tiles (AMX), as in Intel's servers since 2023: products of many tokens go through tiles of 8 bits, attention of
// an encoder through tiles of bf16; all else is as in isa_avx512_vnni.cpp, or in isa_avx512.cpp where that is as fast.
//
// A tile is 16 rows of 64 bytes. One of tokens holds 64 inputs of 16 tokens. One of weights holds 64 inputs of 16 rows of
// the matrix as they lie in memory, four inputs of a row together. Their product is added to 16 tokens x 16 rows of sums,
// which are exact: results are those of the other kernels, bit for bit.
//
// In bf16, tiles of half the size hold 16 numbers of 16 queries, or 8 x 16 pairs. Blocks of keys are such pairs as they lie
// in memory, of 16 dimensions and 16 positions; blocks of values are too, of 16 positions and 16 dimensions.
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

constexpr int64_t kTileRows = 16;
constexpr int64_t kStepsOfTile = 16;         // of four inputs
constexpr int64_t kFewestForTiles = kFew + 1;  // tokens; fewer wait for weights, which vectors read faster
constexpr int64_t kAll = 2 * 2 * kTileRows;  // vectors of sums

// Tiles 0 to 3 are sums: of `first` tokens with one block of rows and the next, and of `second` tokens likewise. 4 and 5
// are the tokens, 6 and 7 the weights.
INLINE void shape_tiles(int64_t first, int64_t second) {
    TileShapes shapes;
    shapes.rows[0] = shapes.rows[1] = shapes.rows[4] = static_cast<uint8_t>(first);
    shapes.rows[2] = shapes.rows[3] = shapes.rows[5] = static_cast<uint8_t>(second);
    settle(&shapes);
    _tile_loadconfig(&shapes);
}

// Weights are read once by all tokens and come from far away: those of the next blocks are asked for line by line, while
// these are multiplied.
struct Ahead {
    const char* next;
    int64_t lines;  // in a step

    INLINE void fetch() {
        for (int64_t i = 0; i < lines; i++) __builtin_prefetch(next + i * 64, 0, 2);
        next += lines * 64;
    }
};

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

// Sums that have left the tiles: of up to 32 tokens and two blocks of rows. Vectors finish them, one after another, while the
// tiles multiply what comes next; in turn, for neither sees far enough ahead by itself.
struct Sums {
    alignas(64) int32_t of[2][2][kTileRows][kTileRows];  // groups, blocks, tokens, rows
    int64_t token = 0, count = 0, block = 0, blocks = 0;
    int64_t done_blocks = 0, done_tokens = 0;  // of the next block
};

// A product whose sums all go the same way, which is so decided when it is compiled. Where they go is copied, or the compiler
// would read it again behind each vector that it stores.
template <Then THEN>
struct ProductByTiles {
    const Tokens tokens;
    const Matrix m;
    const Heads heads;
    Sink sink;
    HeadRows rows;  // of the block that is being finished
    Sums sums[2];
    int which = 0;

    INLINE ProductByTiles(const Tokens& t, const Matrix& matrix, const Sink& s)
        : tokens(t), m(matrix), heads(s.heads ? *s.heads : Heads{"qkv", 1, 16}), sink(s), rows(heads, 0) {
        sink.then = THEN;
        sink.heads = &heads;
    }

    // So many vectors: a token's sums of one block.
    INLINE void finish(Sums& s, int64_t vectors) {
        while (vectors > 0 && s.done_blocks < s.blocks) {
            const int64_t b = s.done_blocks, first = s.done_tokens, block = s.block + b;
            const int64_t end = s.count - first < vectors ? s.count : first + vectors;
            if (THEN == Then::heads && first == 0) rows = HeadRows(heads, block);
            const Finish one(m, block);
            for (int64_t t = first; t < end; t++) {
                const F16 y = one.number(tokens, s.token + t, load<I16>(s.of[t / kTileRows][b][t % kTileRows]));
                if constexpr (THEN == Then::heads) to_heads(heads, s.token + t + sink.first_token, rows, y);
                if constexpr (THEN != Then::heads) emit(sink, s.token + t, block, m.rows, y);
            }
            vectors -= end - first;
            s.done_tokens = end < s.count ? end : 0;
            s.done_blocks += end == s.count;
        }
    }

    // `count` tokens, over 16 with TWO_GROUPS, times one block of rows or two.
    template <bool TWO_GROUPS, bool TWO_BLOCKS>
    INLINE void tiles(int64_t token, int64_t count, int64_t block, Ahead& ahead) {
        constexpr int BLOCKS = TWO_BLOCKS ? 2 : 1;
        Sums &before = sums[which ^ 1], &now = sums[which];
        const uint8_t* inputs = tokens.values + token * tokens.stride;
        const int8_t* weights = m.values + block * m.steps * 64;
        const int64_t whole = m.steps / kStepsOfTile, rest = m.steps % kStepsOfTile;
        _tile_zero(0);
        if constexpr (TWO_BLOCKS) _tile_zero(1);
        if constexpr (TWO_GROUPS) _tile_zero(2);
        if constexpr (TWO_GROUPS && TWO_BLOCKS) _tile_zero(3);
        const int64_t vectors = whole ? (before.count * before.blocks + whole - 1) / whole : 0;
        for (int64_t i = 0; i < whole; i++) {
            multiply<TWO_GROUPS, TWO_BLOCKS>(inputs + i * 64, tokens.stride, weights + i * 1024, m.steps * 64);
            ahead.fetch();
            finish(before, vectors);
        }
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
        finish(before, kAll);
        _tile_stored(0, now.of[0][0], 64);
        if constexpr (TWO_BLOCKS) _tile_stored(1, now.of[0][1], 64);
        if constexpr (TWO_GROUPS) _tile_stored(2, now.of[1][0], 64);
        if constexpr (TWO_GROUPS && TWO_BLOCKS) _tile_stored(3, now.of[1][1], 64);
        settle(&now);
        now.token = token, now.count = count, now.block = block, now.blocks = BLOCKS;
        now.done_blocks = now.done_tokens = 0;
        which ^= 1;
    }

    // All tokens times one block of rows or two, whose weights stay in the cache.
    template <bool TWO_BLOCKS>
    INLINE void blocks(int64_t block, Ahead& ahead) {
        const int64_t whole = tokens.count / (2 * kTileRows) * (2 * kTileRows), rest = tokens.count - whole;
        const bool partly = rest % kTileRows != 0;  // else tiles stay as `run` has shaped them, which takes long
        if (whole && partly) shape_tiles(kTileRows, kTileRows);
        for (int64_t token = 0; token < whole; token += 2 * kTileRows)
            tiles<true, TWO_BLOCKS>(token, 2 * kTileRows, block, ahead);
        if (!rest) return;
        if (partly) shape_tiles(rest < kTileRows ? rest : kTileRows, rest > kTileRows ? rest - kTileRows : kTileRows);
        if (rest > kTileRows) tiles<true, TWO_BLOCKS>(whole, rest, block, ahead);
        if (rest <= kTileRows) tiles<false, TWO_BLOCKS>(whole, rest, block, ahead);
    }

    void run(int64_t first_block, int64_t last_block) {
        const int64_t groups = up(tokens.count, 2 * kTileRows) / (2 * kTileRows), lines = 2 * 1024 / 64;
        shape_tiles(kTileRows, kTileRows);
        for (int64_t block = first_block; block < last_block; block += 2) {
            Ahead ahead{reinterpret_cast<const char*>(m.values + (block + 2) * m.steps * 64),
                        (lines + groups - 1) / groups};
            if (block + 2 <= last_block) blocks<true>(block, ahead);
            if (block + 2 > last_block) blocks<false>(block, ahead);
        }
        finish(sums[which ^ 1], kAll);
        _tile_release();
    }
};

void product_by_tiles(const Tokens& tokens, const Matrix& m, int64_t first_block, int64_t last_block,
                      const Sink& sink) {
    if (m.four.codes || tokens.count < kFewestForTiles) return product(tokens, m, first_block, last_block, sink);
#define RUN(then) \
    case Then::then: return ProductByTiles<Then::then>(tokens, m, sink).run(first_block, last_block);
    switch (sink.then) {
        RUN(keep)
        RUN(gelu)
        RUN(silu)
        RUN(relu)
        RUN(add)
        RUN(times)
        RUN(heads)
    }
#undef RUN
}

INLINE uint16_t* halves(float* memory) {
    return reinterpret_cast<uint16_t*>(memory);
}

// 2^x within 3e-6 of itself, a thousandth of what rounding to bf16 changes. The polynomial is Taylor's, of degree five, over
// |f| <= 1/2; below -126 numbers become denormals and zeros.
INLINE __m512 power_of_two(__m512 x) {
    const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 f = _mm512_sub_ps(x, whole);
    __m512 p = _mm512_fmadd_ps(f, _mm512_set1_ps(1.3333558e-3f), _mm512_set1_ps(9.6181291e-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.5504109e-2f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.24022651f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.69314718f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, whole);
}

// Attention of up to 16 queries of one head, with an online softmax as in attend_many.inl. What is mixed stays in tiles 0 to
// 3, so that keys and values are all that moves, where a head has 64 dimensions or fewer; of wider ones it lies in memory.
// Tiles 4 and 5 are the scores of 16 positions each, 6 is 16 numbers of every query, and 7 eight pairs of these.
struct SixteenQueries {
    static constexpr int64_t kStages = 3;
    static constexpr float kLog2E = 1.44269504f;
    static constexpr float kHidden = -1e30f;  // the score of a position that a query does not see
    // A maximum counts only where it is above the last one by more: e^10 does not overflow, and what was mixed is rarely
    // brought to another one.
    static constexpr float kSlack = 10;

    const Attention& a;
    const int64_t first, rows, length, wide;  // queries of `a`; positions; dimensions in tiles at once
    float *scores, *mixed, *total, *most, *keep;
    uint16_t* queries;
    bool grown = false;  // a maximum, since what was mixed was brought to it

    INLINE SixteenQueries(const Attention& of, int64_t begin, int64_t count, int64_t longest)
        : a(of), first(begin), rows(count), length(longest), wide(of.width < 64 ? of.width : 64) {
        float* at = a.scratch;
        const auto take = [&at](int64_t floats) {
            float* taken = at;
            at += floats;
            return taken;
        };
        scores = take(kStages * kTileRows * kTile), mixed = take(kTileRows * a.width), total = take(kTileRows * 16);
        most = take(16), keep = take(16), queries = halves(take(kTileRows * a.width));
        for (int64_t q = 0; q < rows; q++) {
            std::memcpy(queries + q * a.width, a.queries + (first + q) * a.query_stride,
                        static_cast<size_t>(a.width * 2));
            store(total + q * 16, F16{});
            most[q] = kNothing;
        }
        std::memset(mixed, 0, static_cast<size_t>(kTileRows * a.width * 4));
        settle(mixed);
    }

    INLINE float* scores_of(int64_t tile) const { return scores + tile % kStages * kTileRows * kTile; }
    INLINE int64_t blocks_of(int64_t tile) const {
        const int64_t rest = up(length, 16) / 16 - tile * (kTile / 16);
        return rest < kTile / 16 ? rest : kTile / 16;
    }

    // Of the first `count` of tiles 0 to 3. None waits for another one's product. Compilers take the number of a tile as a
    // literal only.
#define SUMS(DO) DO(0) DO(1) DO(2) DO(3)
    INLINE void take_mixed(int64_t d, int64_t count) const {
        settle(mixed);
#define TAKE(n) \
    if (n < count) _tile_loadd(n, mixed + d + n * 16, a.width * 4);
        SUMS(TAKE)
#undef TAKE
    }
    INLINE void give_mixed(int64_t d, int64_t count) const {
#define GIVE(n) \
    if (n < count) _tile_stored(n, mixed + d + n * 16, a.width * 4);
        SUMS(GIVE)
#undef GIVE
        settle(mixed);
    }

    // Weights times values of 16 positions, added to `count` times 16 dimensions.
    INLINE void mix_block(const uint16_t* weights, const uint16_t* values, int64_t count) const {
        _tile_loadd(6, weights, 4 * kTile);
#define MIX(n)                                 \
    if (n < count) {                           \
        _tile_loadd(7, values + n * 256, 64);  \
        _tile_dpbf16ps(n, 6, 7);               \
    }
        SUMS(MIX)
#undef MIX
    }
#undef SUMS

    // Scores, without the factor, of two blocks of 16 positions, or of one.
    INLINE void score(int64_t tile, int64_t block) const {
        const bool two = block + 1 < blocks_of(tile);
        const uint16_t* keys = a.keys + (tile * kTile + block * 16) * a.width;
        float* to = scores_of(tile) + block * 16;
        _tile_zero(4);
        _tile_zero(5);
        for (int64_t d = 0; d < a.width; d += 16) {
            _tile_loadd(6, queries + d, a.width * 2);
            _tile_loadd(7, keys + d * 16, 64);
            _tile_dpbf16ps(4, 6, 7);
            if (!two) continue;
            _tile_loadd(7, keys + (a.width + d) * 16, 64);
            _tile_dpbf16ps(5, 6, 7);
        }
        _tile_stored(4, to, kTile * 4);
        if (two) _tile_stored(5, to + 16, kTile * 4);
        settle(to);
    }

    INLINE void mix(int64_t tile, int64_t block) const {
        const uint16_t* weights = halves(scores_of(tile)) + block * 16;
        const uint16_t* values = a.values + (tile * kTile + block * 16) * a.width;
        if (a.width == wide) return mix_block(weights, values, wide / 16);
        for (int64_t d = 0; d < a.width; d += 64) {
            const int64_t rest = (a.width - d) / 16, count = rest < 4 ? rest : 4;
            take_mixed(d, count);
            mix_block(weights, values + d * 16, count);
            give_mixed(d, count);
        }
    }

    // Scores of one query to exponentials in bf16.
    INLINE void soften(int64_t tile, int64_t q) {
        float* row = scores_of(tile) + q * kTile;
        const int64_t seen = a.lengths[first + q] - tile * kTile;
        for (int64_t i = seen > 0 ? seen : 0; i < kTile; i++) row[i] = kHidden;
        const __m512 x = load<__m512>(row), y = load<__m512>(row + 16);
        const __m512 z = load<__m512>(row + 32), w = load<__m512>(row + 48);
        const float peak = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_max_ps(x, y), _mm512_max_ps(z, w))) * a.factor;
        __m512 sums = load<__m512>(total + q * 16);
        keep[q] = 1.0f;
        if (peak > most[q] + kSlack) {
            keep[q] = exponential(all(most[q] - peak))[0];
            sums = _mm512_mul_ps(sums, _mm512_set1_ps(keep[q]));
            most[q] = peak;
            grown = true;
        }
        const __m512 scale = _mm512_set1_ps(a.factor * kLog2E), least = _mm512_set1_ps(-most[q] * kLog2E);
        const __m512 e = power_of_two(_mm512_fmadd_ps(x, scale, least));
        const __m512 f = power_of_two(_mm512_fmadd_ps(y, scale, least));
        const __m512 g = power_of_two(_mm512_fmadd_ps(z, scale, least));
        const __m512 h = power_of_two(_mm512_fmadd_ps(w, scale, least));
        sums = _mm512_add_ps(sums, _mm512_add_ps(_mm512_add_ps(e, f), _mm512_add_ps(g, h)));
        store(total + q * 16, sums);
        store(halves(row), _mm512_cvtne2ps_pbh(f, e));
        store(halves(row) + 32, _mm512_cvtne2ps_pbh(h, g));
    }

    // What has been mixed, brought to the maxima of what comes next.
    INLINE void rescale() {
        if (a.width == wide) give_mixed(0, wide / 16);
        for (int64_t q = 0; q < rows; q++)
            for (int64_t i = q * a.width; i < (q + 1) * a.width; i += 16)
                store(mixed + i, load<F16>(mixed + i) * keep[q]);
        if (a.width == wide) take_mixed(0, wide / 16);
        grown = false;
    }

    // Three tiles of positions are at work at once: the scores of one are multiplied and values of another mixed, while
    // vectors soften the scores of the one between. Tiles and vectors wait long for what the other has written, and see no
    // further ahead than a few hundred instructions; so they take turns query by query.
    INLINE void run() {
        const int64_t tiles = (length + kTile - 1) / kTile;
        if (a.width == wide) take_mixed(0, wide / 16);
        for (int64_t step = 0; step < tiles + 2; step++) {
            const int64_t scored = step < tiles ? (blocks_of(step) + 1) / 2 : 0;
            const int64_t mixes = step >= 2 ? blocks_of(step - 2) : 0, units = scored + mixes;
            const bool softens = step >= 1 && step <= tiles;
            for (int64_t unit = 0, q = 0; unit < units || (softens && q < rows);) {
                const int64_t due = units ? (unit + 1) * rows / units : rows;
                for (; softens && q < due; q++) soften(step - 1, q);
                if (unit < scored) score(step, unit * 2);
                if (unit >= scored && unit < units) mix(step - 2, unit - scored);
                unit++;
            }
            if (grown) rescale();
        }
        if (a.width == wide) give_mixed(0, wide / 16);
        for (int64_t q = 0; q < rows; q++) {
            const bool sees = a.lengths[first + q] > 0;  // else what is there may be no number
            const float factor = 1.0f / sum(load<F16>(total + q * 16));
            for (int64_t i = 0; i < a.width; i += 16)
                store(a.out + (first + q) * a.out_stride + i,
                      sees ? load<F16>(mixed + q * a.width + i) * factor : F16{});
        }
    }
};

void attend_by_tiles(const Attention& a) {
    static_assert(kTile == 4 * 16);
    const int64_t parts = up(a.count, kTileRows) / kTileRows, rows = parts ? (a.count + parts - 1) / parts : 1;
    TileShapes shapes;
    for (int64_t n = 0; n < 7; n++) shapes.rows[n] = static_cast<uint8_t>(rows);
    shapes.bytes[6] = 32;
    shapes.rows[7] = 8;
    settle(&shapes);
    _tile_loadconfig(&shapes);
    for (int64_t begin = 0; begin < a.count; begin += rows) {
        const int64_t count = a.count - begin < rows ? a.count - begin : rows;
        int64_t longest = 0;
        for (int64_t q = begin; q < begin + count; q++) longest = a.lengths[q] > longest ? a.lengths[q] : longest;
        SixteenQueries(a, begin, count, longest).run();
    }
    _tile_release();
}

}  // namespace

namespace sprachbund {
extern const Kernels amx_kernels, amx_int8_kernels;
constexpr Kernels with_larger_chunks(Kernels kernels) {
    kernels.chunk = 192;
    kernels.at_once = kTileRows;
    return kernels;
}
const Kernels amx_kernels =
    with_larger_chunks(table("amx", attend_many<Widened>, match_many, product_by_tiles, attend_by_tiles));
// Without tiles of bf16.
const Kernels amx_int8_kernels = with_larger_chunks(table("amx", attend_many<Widened>, match_many, product_by_tiles, attend));
}  // namespace sprachbund

END_TARGET
#endif
