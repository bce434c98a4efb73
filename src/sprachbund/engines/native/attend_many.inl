// Attention of many queries to about the same positions, in single precision with an online softmax (Milakov and Gimelshein,
// arXiv 1805.02867); a part of kernels.inl, which includes it.
//
// Per tile of positions and query: scores, their maximum so far, exponentials, and what was mixed before times
// e^(old maximum - new maximum). Who multiplies is a parameter.
//
// Widened, below, is for processors without products of bf16: there, widening keys and values costs as much as
// multiplying them, so a tile of both is widened once, stays in the cache next to the core, and is used by all queries.
// Sixteen, in attend_sixteen.inl, does the same with integers of 16 bits. ByTiles, in isa_amx.cpp, multiplies keys and
// values as they lie in the cache.
namespace {

constexpr int kTile = 64;  // positions
// One register: compilers move wider vectors through memory.
constexpr int kLanes = sizeof(Part) / 4;
typedef float Lanes __attribute__((vector_size(sizeof(Part))));
typedef int32_t Indices __attribute__((vector_size(sizeof(Part))));
typedef Unsigned<sizeof(Part)>::type Words;
// Sums that fit into the registers beside what is multiplied: so many queries, so many registers.
constexpr int kManyQueries = kSums == 2 ? 2 : 6, kManyVectors = kSums == 2 ? 1 : sizeof(Part) == 32 ? 2 : 4;
constexpr float kNothing = -3.0e38f;  // the score of a position that is not there
constexpr int kManyWide = kManyVectors * kLanes;  // a divisor of kTile, and 16 or more

// One tile, and the state of the queries; each part 64 bytes aligned. Keys, values and queries are for who multiplies.
struct Many {
    float *keys, *values;          // width x kTile, kTile x width
    float *queries, *mixed;        // kManyAtOnce x width
    float *scores;                 // kManyAtOnce x kTile: then their exponentials
    float *total;                  // kManyAtOnce x 16: sums of the exponentials, lane by lane
    float *most, *keep;            // kManyAtOnce: maximum so far; what becomes of the mixed values
};

// Sixteen pairs.
INLINE void widen(const uint16_t* pairs, float* even, float* odd) {
    UNROLL
    for (int i = 0; i < 16; i += kLanes) {
        const Words both = load<Words>(pairs + 2 * i);
        store(even + i, bits<Lanes>(both << 16));
        store(odd + i, bits<Lanes>(both & 0xffff0000u));
    }
}

// Blocks of 16 positions as kernels.hpp describes; `blocks` of them are in the tile.
INLINE void widen_keys(const Attention& a, int64_t first, int64_t blocks, float* out) {
    for (int64_t block = 0; block < blocks; block++) {
        const uint16_t* keys = a.keys + (first + block) * 16 * a.width;
        for (int64_t pair = 0; pair < a.width / 2; pair++) {
            float* to = out + pair * 2 * kTile + block * 16;
            widen(keys + pair * 32, to, to + kTile);
        }
    }
}

INLINE void widen_values(const Attention& a, int64_t first, int64_t blocks, const Many& m) {
    for (int64_t block = 0; block < blocks; block++) {
        const uint16_t* values = a.values + (first + block) * 16 * a.width;
        for (int64_t group = 0; group < a.width / 16; group++) {
            for (int64_t pair = 0; pair < 8; pair++) {
                float* to = m.values + (block * 16 + pair * 2) * a.width + group * 16;
                widen(values + group * 256 + pair * 32, to, to + a.width);
            }
        }
    }
}

// A query at a time: with the factors of all queries in registers at once, there are none left for some of the sums.
template <int VECTORS>
INLINE void add_products(Lanes (&sums)[VECTORS], const Lanes (&vectors)[VECTORS], float factor) {
    UNROLL
    for (int v = 0; v < VECTORS; v++) sums[v] += vectors[v] * factor;
}

template <int QUERIES, int VECTORS>
INLINE void many_scores(const float* queries, const float* keys, int64_t width, float* out, int64_t out_stride) {
    Lanes sums[QUERIES][VECTORS] = {};
    for (int64_t d = 0; d < width; d++) {
        Lanes key[VECTORS];
        UNROLL
        for (int v = 0; v < VECTORS; v++) key[v] = load<Lanes>(keys + d * kTile + v * kLanes);
        UNROLL
        for (int q = 0; q < QUERIES; q++) add_products(sums[q], key, queries[q * width + d]);
    }
    UNROLL
    for (int q = 0; q < QUERIES; q++) {
        UNROLL
        for (int v = 0; v < VECTORS; v++) store(out + q * out_stride + v * kLanes, sums[q][v]);
    }
}

constexpr int32_t kIndices[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

INLINE float largest_lane(Lanes x) {
    F16 all = F16{} + kNothing;
    std::memcpy(&all, &x, sizeof(x));
    return largest(all);
}

// Scores of the first `count` positions to exponentials, and zeros up to `padded`, a multiple of 16. WHOLE is for a tile
// that the query sees all of; a bias may hide positions.
template <bool WHOLE>
INLINE void soften_tile(const Many& m, int64_t query, int64_t count, int64_t padded) {
    float* scores = m.scores + query * kTile;
    if constexpr (WHOLE) {
        padded = kTile;
    } else {
        for (int64_t i = count / kLanes * kLanes; i < padded; i += kLanes) {
            const Lanes x = load<Lanes>(scores + i);
            store(scores + i, load<Indices>(kIndices) < static_cast<int32_t>(count - i) ? x : Lanes{} + kNothing);
        }
    }
    Lanes greatest = Lanes{} + kNothing;
    for (int64_t i = 0; i < padded; i += kLanes) {
        const Lanes x = load<Lanes>(scores + i);
        greatest = x > greatest ? x : greatest;
    }
    const float before = m.most[query], peak = largest_lane(greatest), now = peak > before ? peak : before;
    m.keep[query] = now > before ? exponential(Lanes{} + (before - now))[0] : 1.0f;
    m.most[query] = now;
    Lanes total = load<Lanes>(m.total + query * 16) * m.keep[query];
    for (int64_t i = 0; i < padded; i += kLanes) {
        const Lanes x = load<Lanes>(scores + i), p = exponential(x - now);
        Lanes kept = p;
        if constexpr (!WHOLE) kept = x > kNothing ? p : Lanes{};
        total += kept;
        store(scores + i, kept);
    }
    store(m.total + query * 16, total);
}

// `queries` of them from `query` on, in the tile from position `first` on, which holds `count`.
INLINE void soften_some(const Attention& a, const Many& m, int64_t query, int64_t queries, int64_t first,
                        int64_t count) {
    const int64_t padded = up(count, 16);
    for (int64_t q = query; q < query + queries; q++) {
        if (a.bias) add_bias(m.scores + q * kTile, a.bias + q * a.bias_stride + first, padded);
        const int64_t rest = a.lengths[q] - first, seen = rest < count ? rest : count;
        if (seen == kTile && !a.bias) {
            soften_tile<true>(m, q, seen, padded);
        } else {
            soften_tile<false>(m, q, seen > 0 ? seen : 0, padded);
        }
    }
}

// Of VECTORS registers of dimensions from `at` on.
template <int QUERIES, int VECTORS>
INLINE void many_mix(const Many& m, int64_t query, int64_t at, int64_t positions, int64_t width) {
    Lanes sums[QUERIES][VECTORS];
    const float* p = m.scores + query * kTile;
    float* mixed = m.mixed + query * width + at;
    UNROLL
    for (int q = 0; q < QUERIES; q++) {
        UNROLL
        for (int v = 0; v < VECTORS; v++)
            sums[q][v] = load<Lanes>(mixed + q * width + v * kLanes) * m.keep[query + q];
    }
    for (int64_t i = 0; i < positions; i++) {
        Lanes value[VECTORS];
        UNROLL
        for (int v = 0; v < VECTORS; v++) value[v] = load<Lanes>(m.values + i * width + at + v * kLanes);
        UNROLL
        for (int q = 0; q < QUERIES; q++) add_products(sums[q], value, p[q * kTile + i]);
    }
    UNROLL
    for (int q = 0; q < QUERIES; q++) {
        UNROLL
        for (int v = 0; v < VECTORS; v++) store(mixed + q * width + v * kLanes, sums[q][v]);
    }
}

// Of the tile from position `first` on, which holds `count`.
template <int QUERIES>
INLINE void many_from(const Attention& a, const Many& m, int64_t query, int64_t first, int64_t count) {
    constexpr int V = kManyVectors, W = kManyWide;
    const int64_t padded = up(count, 16);
    for (; query + QUERIES <= a.count; query += QUERIES) {
        const float* queries = m.queries + query * a.width;
        float* scores = m.scores + query * kTile;
        int64_t at = 0;
        for (; at + W <= padded; at += W) many_scores<QUERIES, V>(queries, m.keys + at, a.width, scores + at, kTile);
        for (; at < padded; at += kLanes) many_scores<QUERIES, 1>(queries, m.keys + at, a.width, scores + at, kTile);
        soften_some(a, m, query, QUERIES, first, count);
        for (at = 0; at + W <= a.width; at += W) many_mix<QUERIES, V>(m, query, at, count, a.width);
        for (; at < a.width; at += kLanes) many_mix<QUERIES, 1>(m, query, at, count, a.width);
    }
    if constexpr (QUERIES > 1) many_from<(QUERIES + 1) / 2>(a, m, query, first, count);
}

// Of a query, times the factor.
INLINE void widen_query(const Attention& a, int64_t query, float* to) {
    for (int64_t i = 0; i < a.width; i += 16) {
        const U16 wide = __builtin_convertvector(load<Halves16>(a.queries + query * a.query_stride + i), U16) << 16;
        store(to + i, bits<F16>(wide) * a.factor);
    }
}

// Products in single precision.
struct Widened {
    INLINE explicit Widened(const Attention&) {}

    INLINE void begin(const Attention& a, const Many& m) const {
        for (int64_t q = 0; q < a.count; q++) widen_query(a, q, m.queries + q * a.width);
    }

    // All queries, in the tile from position `first` on, which holds `count`.
    INLINE void tile(const Attention& a, const Many& m, int64_t first, int64_t count) const {
        const int64_t blocks = up(count, 16) / 16;
        widen_keys(a, first / 16, blocks, m.keys);
        widen_values(a, first / 16, blocks, m);
        many_from<kManyQueries>(a, m, 0, first, count);
    }
};

template <class Products>
void attend_many(const Attention& a) {
    const Products products(a);
    int64_t length = 0;
    for (int64_t q = 0; q < a.count; q++) length = a.lengths[q] > length ? a.lengths[q] : length;
    float* at = a.scratch;
    const auto take = [&at](int64_t floats) {
        float* taken = at;
        at += up(floats, 16);
        return taken;
    };
    const Many m{take(a.width * kTile),       take(kTile * a.width),       take(kManyAtOnce * a.width),
                 take(kManyAtOnce * a.width), take(kManyAtOnce * kTile),   take(kManyAtOnce * 16),
                 take(kManyAtOnce),           take(kManyAtOnce)};
    products.begin(a, m);
    for (int64_t q = 0; q < a.count; q++) {
        for (int64_t i = 0; i < a.width; i += 16) store(m.mixed + q * a.width + i, F16{});
        store(m.total + q * 16, F16{});
        m.most[q] = kNothing;
    }
    for (int64_t first = 0; first < length; first += kTile)
        products.tile(a, m, first, length - first < kTile ? length - first : kTile);
    for (int64_t q = 0; q < a.count; q++) {
        const float total = sum(load<F16>(m.total + q * 16)), factor = total > 0 ? 1.0f / total : 0.0f;
        for (int64_t i = 0; i < a.width; i += 16)
            store(a.out + q * a.out_stride + i, load<F16>(m.mixed + q * a.width + i) * factor);
    }
}

// Of one tile from position `first` on, which holds `count`, a multiple of 16.
template <int QUERIES>
INLINE void match_many_from(const Attention& a, const float* queries, const float* keys, int64_t query, int64_t first,
                            int64_t count) {
    constexpr int V = kManyVectors, W = kManyWide;
    for (; query + QUERIES <= a.count; query += QUERIES) {
        const float* own = queries + query * a.width;
        float* out = a.out + query * a.out_stride + first;
        int64_t at = 0;
        for (; at + W <= count; at += W) many_scores<QUERIES, V>(own, keys + at, a.width, out + at, a.out_stride);
        for (; at < count; at += kLanes) many_scores<QUERIES, 1>(own, keys + at, a.width, out + at, a.out_stride);
    }
    if constexpr (QUERIES > 1) match_many_from<(QUERIES + 1) / 2>(a, queries, keys, query, first, count);
}

// Sets with products of bf16 take `match`.
[[maybe_unused]] void match_many(const Attention& a, int64_t blocks) {
    float *keys = a.scratch, *queries = keys + a.width * kTile;
    for (int64_t q = 0; q < a.count; q++) widen_query(a, q, queries + q * a.width);
    for (int64_t block = 0; block < blocks; block += kTile / 16) {
        const int64_t count = blocks - block < kTile / 16 ? blocks - block : kTile / 16;
        widen_keys(a, block, count, keys);
        match_many_from<kManyQueries>(a, queries, keys, 0, block * 16, count * 16);
    }
}

}  // namespace
