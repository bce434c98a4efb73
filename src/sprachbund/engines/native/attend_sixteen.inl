// Products of attend_many.inl in 16 bits, for processors that have an instruction for these and none for bf16: it adds two
// products to each sum, where one in single precision adds one. Included after kernels.inl, by files that have defined
//   add_pairs      products of pairs of 16-bit integers are added to sums of 32 bits
//
// Every query, key and value is brought to integers by its own largest number, and the probabilities of a query in a
// tile, times the scales of the values, by theirs. So what a query gets depends only on what it sees. The largest integers
// are such that no sum overflows. As with single precision, a tile is converted once for all queries.
namespace {

typedef uint16_t Halves __attribute__((vector_size(sizeof(Part))));
typedef uint16_t Narrow __attribute__((vector_size(sizeof(Part) / 2)));

// Of probabilities, which are never negative, and of values: kTile products of both are below 2^31.
constexpr float kLargestProbability = 8191, kLargestValue = 4095;
constexpr float kSmallest = 1e-30f;  // numbers below it, whose inverse may be infinite, become zeros

// An integer in the low bits, rounded to nearest; for magnitudes below 2^22.
INLINE Words rounded(Lanes x) {
    return bits<Words>(x + 12582912.0f);  // 1.5 * 2^23
}

// A register of pairs of bf16: the first of each times `even`, the second times `odd`.
INLINE Words to_sixteen(Words pairs, Lanes even, Lanes odd) {
    const Lanes first = bits<Lanes>(pairs << 16), second = bits<Lanes>(pairs & 0xffff0000u);
    return (rounded(first * even) & 0xffffu) | (rounded(second * odd) << 16);
}

INLINE Halves larger_magnitudes(Halves most, const uint16_t* pairs) {
    const Halves sizes = load<Halves>(pairs) & static_cast<uint16_t>(0x7fff);
    return sizes > most ? sizes : most;
}

// What brings numbers up to `peak` to integers up to `largest`.
INLINE Lanes factor_of(Lanes peak, float largest) {
    return peak > kSmallest ? largest / peak : Lanes{};
}

// Of the even and of the odd numbers of a register of magnitudes.
INLINE void largest_pair(Halves magnitudes, float* even, float* odd) {
    uint16_t all[sizeof(Part) / 2];
    store(all, magnitudes);
    for (int half = sizeof(Part) / 4; half > 1; half /= 2)
        for (int i = 0; i < half; i++) all[i] = all[i] > all[i + half] ? all[i] : all[i + half];
    *even = bits<float>(static_cast<uint32_t>(all[0]) << 16);
    *odd = bits<float>(static_cast<uint32_t>(all[1]) << 16);
}

struct Sixteen {
    float largest;  // of queries and keys: `width` products of both are below 2^31

    INLINE explicit Sixteen(const Attention& a) {
        const double most = __builtin_sqrt(2147483647.0 / static_cast<double>(a.width));
        largest = static_cast<float>(static_cast<int32_t>(most));
    }

    // Integers take half the room of the floats in whose place they lie; scales are behind them.
    static INLINE int16_t* integers(float* memory) { return reinterpret_cast<int16_t*>(memory); }
    static INLINE float* query_scales(const Attention& a, const Many& m) {
        return m.queries + kManyAtOnce * a.width / 2;
    }
    static INLINE float* tile_scales(const Attention& a, float* tile) { return tile + a.width * kTile / 2; }

    INLINE void begin(const Attention& a, const Many& m) const {
        for (int64_t q = 0; q < a.count; q++) {
            const uint16_t* query = a.queries + q * a.query_stride;
            const auto wide = [query](int64_t i) {
                return bits<F16>(__builtin_convertvector(load<Halves16>(query + i), U16) << 16);
            };
            F16 most{};
            for (int64_t i = 0; i < a.width; i += 16) most = larger(most, magnitude(wide(i)));
            const float peak = ::largest(most), factor = peak > kSmallest ? largest / peak : 0.0f;
            query_scales(a, m)[q] = peak / largest * a.factor;
            int16_t* to = integers(m.queries) + q * a.width;
            for (int64_t i = 0; i < a.width; i += 16)
                store(to + i, __builtin_convertvector(to_nearest(wide(i) * factor), Halves16));
        }
    }

    // A block of 16 positions; both forms have the same order. The positions of keys lie side by side.
    INLINE void convert_keys(const uint16_t* keys, int64_t width, int16_t* to, float* scales) const {
        for (int64_t i = 0; i < 16; i += kLanes) {
            Halves most{};
            for (int64_t pair = 0; pair < width / 2; pair++) most = larger_magnitudes(most, keys + pair * 32 + 2 * i);
            const Words both = bits<Words>(most), even = both & 0xffffu, odd = both >> 16;
            const Lanes peak = bits<Lanes>((even > odd ? even : odd) << 16), factor = factor_of(peak, largest);
            store(scales + i, peak * (1 / largest));
            for (int64_t pair = 0; pair < width / 2; pair++) {
                const int64_t at = pair * 32 + 2 * i;
                store(to + at, to_sixteen(load<Words>(keys + at), factor, factor));
            }
        }
    }

    // The dimensions of values lie side by side, those of two positions in turn.
    INLINE void convert_values(const uint16_t* values, int64_t width, int16_t* to, float* scales) const {
        for (int64_t pair = 0; pair < 8; pair++) {
            Halves most{};
            for (int64_t at = pair * 32; at < width * 16; at += 256)
                for (int64_t i = 0; i < 32; i += 2 * kLanes) most = larger_magnitudes(most, values + at + i);
            float* peaks = scales + 2 * pair;
            largest_pair(most, peaks, peaks + 1);
            const Lanes even = factor_of(Lanes{} + peaks[0], kLargestValue);
            const Lanes odd = factor_of(Lanes{} + peaks[1], kLargestValue);
            for (int64_t at = pair * 32; at < width * 16; at += 256)
                for (int64_t i = at; i < at + 32; i += 2 * kLanes)
                    store(to + i, to_sixteen(load<Words>(values + i), even, odd));
        }
        for (int64_t i = 0; i < 16; i += kLanes) store(scales + i, load<Lanes>(scales + i) * (1 / kLargestValue));
    }

    // The first pairs of the lanes from `lane` on; sixteen lanes' pairs are `block` numbers from those of the next sixteen.
    static INLINE const int16_t* of_lane(const float* tile, int64_t lane, int64_t block) {
        return reinterpret_cast<const int16_t*>(tile) + lane / 16 * block + lane % 16 * 2;
    }

    template <int QUERIES, int VECTORS>
    INLINE void scores(const Attention& a, const Many& m, int64_t query, int64_t at) const {
        Part sums[QUERIES][VECTORS] = {};
        const int16_t *queries = integers(m.queries) + query * a.width, *from[VECTORS];
        UNROLL
        for (int v = 0; v < VECTORS; v++) from[v] = of_lane(m.keys, at + v * kLanes, 16 * a.width);
        for (int64_t pair = 0; pair < a.width / 2; pair++) {
            Part keys[VECTORS];
            UNROLL
            for (int v = 0; v < VECTORS; v++) keys[v] = load<Part>(from[v] + pair * 32);
            UNROLL
            for (int q = 0; q < QUERIES; q++) add_pairs(sums[q], keys, load<int32_t>(queries + q * a.width + pair * 2));
        }
        const float *scales = tile_scales(a, m.keys) + at, *own = query_scales(a, m) + query;
        UNROLL
        for (int q = 0; q < QUERIES; q++) {
            float* to = m.scores + (query + q) * kTile + at;
            UNROLL
            for (int v = 0; v < VECTORS; v++) {
                const Lanes exact = __builtin_convertvector(bits<Indices>(sums[q][v]), Lanes);
                store(to + v * kLanes, exact * (load<Lanes>(scales + v * kLanes) * own[q]));
            }
        }
    }

    // Probabilities times the scales of the values, in place; returns the scale of the products.
    INLINE float convert_probabilities(const Many& m, int64_t query, const float* scales, int64_t padded) const {
        float* row = m.scores + query * kTile;
        Lanes most{};
        for (int64_t i = 0; i < padded; i += kLanes) {
            const Lanes x = load<Lanes>(row + i) * load<Lanes>(scales + i);
            most = x > most ? x : most;
            store(row + i, x);
        }
        const float peak = largest_lane(most), factor = peak > kSmallest ? kLargestProbability / peak : 0.0f;
        for (int64_t i = 0; i < padded; i += kLanes)  // what is written was read before
            store(integers(row) + i, __builtin_convertvector(rounded(load<Lanes>(row + i) * factor), Narrow));
        return peak / kLargestProbability;
    }

    template <int QUERIES, int VECTORS>
    INLINE void mix(const Attention& a, const Many& m, int64_t query, int64_t at, int64_t padded,
                    const float* scales) const {
        Part sums[QUERIES][VECTORS] = {};
        const int16_t *p = integers(m.scores + query * kTile), *from[VECTORS];
        UNROLL
        for (int v = 0; v < VECTORS; v++) from[v] = of_lane(m.values, at + v * kLanes, 256);
        for (int64_t block = 0; block < padded / 16; block++) {
            for (int64_t pair = 0; pair < 8; pair++) {
                Part values[VECTORS];
                UNROLL
                for (int v = 0; v < VECTORS; v++) values[v] = load<Part>(from[v] + block * 16 * a.width + pair * 32);
                UNROLL
                for (int q = 0; q < QUERIES; q++)
                    add_pairs(sums[q], values, load<int32_t>(p + q * 2 * kTile + block * 16 + pair * 2));
            }
        }
        UNROLL
        for (int q = 0; q < QUERIES; q++) {
            float* mixed = m.mixed + (query + q) * a.width + at;
            UNROLL
            for (int v = 0; v < VECTORS; v++) {
                const Lanes exact = __builtin_convertvector(bits<Indices>(sums[q][v]), Lanes);
                store(mixed + v * kLanes, load<Lanes>(mixed + v * kLanes) * m.keep[query + q] + exact * scales[q]);
            }
        }
    }

    template <int QUERIES>
    INLINE void from(const Attention& a, const Many& m, int64_t query, int64_t first, int64_t count) const {
        constexpr int V = kManyVectors, W = kManyWide;
        const int64_t padded = up(count, 16);
        for (; query + QUERIES <= a.count; query += QUERIES) {
            int64_t at = 0;
            for (; at + W <= padded; at += W) scores<QUERIES, V>(a, m, query, at);
            for (; at < padded; at += kLanes) scores<QUERIES, 1>(a, m, query, at);
            soften_some(a, m, query, QUERIES, first, count);
            float scales[QUERIES];
            for (int q = 0; q < QUERIES; q++)
                scales[q] = convert_probabilities(m, query + q, tile_scales(a, m.values), padded);
            for (at = 0; at + W <= a.width; at += W) mix<QUERIES, V>(a, m, query, at, padded, scales);
            for (; at < a.width; at += kLanes) mix<QUERIES, 1>(a, m, query, at, padded, scales);
        }
        if constexpr (QUERIES > 1) from<(QUERIES + 1) / 2>(a, m, query, first, count);
    }

    // All queries, in the tile from position `first` on, which holds `count`.
    INLINE void tile(const Attention& a, const Many& m, int64_t first, int64_t count) const {
        for (int64_t at = 0; at < count; at += 16) {
            const int64_t there = (first + at) * a.width, here = at * a.width;
            convert_keys(a.keys + there, a.width, integers(m.keys) + here, tile_scales(a, m.keys) + at);
            convert_values(a.values + there, a.width, integers(m.values) + here, tile_scales(a, m.values) + at);
        }
        from<kManyQueries>(a, m, 0, first, count);
    }
};

}  // namespace
