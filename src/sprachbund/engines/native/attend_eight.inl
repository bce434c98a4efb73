// Attention with keys and values in 8 bits; a part of kernels.inl, which includes it.
//
// A query is quantized as the tokens of a product are. Probabilities, which are never negative, take all eight bits,
// and every 64 positions have a scale of their own: otherwise a peak would leave nothing of a long tail.
namespace {

constexpr int kQueriesEight = kSums < 16 ? 1 : 4;
constexpr int kChains = kSums < 2 * kParts * kQueriesEight ? 1 : kSums / (kParts * kQueriesEight);
constexpr int64_t kTogether = 64;

template <int QUERIES, int BLOCKS>
INLINE void scores_eight(const Attention& a, int64_t block, const uint8_t* queries, const float* scale, float* out,
                         int64_t out_stride) {
    Part sums[QUERIES][BLOCKS][kParts] = {};
    for (int64_t i = 0; i < a.width; i += 4) {
        UNROLL
        for (int b = 0; b < BLOCKS; b++) {
            UNROLL
            for (int q = 0; q < QUERIES; q++)
                add(sums[q][b], load<int32_t>(queries + q * a.width + i),
                    a.eight->keys + (block + b) * 16 * a.width + i * 16);
        }
    }
    for (int b = 0; b < BLOCKS; b++) {
        const int64_t at = (block + b) * 16;
        F16 keys = load<F16>(a.eight->key_scale + at), offset = load<F16>(a.eight->key_offset + at);
        for (int q = 0; q < QUERIES; q++) {
            int32_t totals[16];
            total(sums[q][b], totals);
            F16 exact = __builtin_convertvector(load<I16>(totals), F16) - offset;
            store(out + q * out_stride + at, exact * (keys * (scale[q] * a.factor)));
        }
    }
}

// Probabilities times the scales of the values, to 8 bits; in place of the bf16 ones.
INLINE void to_eight(const float* probabilities, const float* value_scale, int64_t padded, uint8_t* to, float* scale) {
    for (int64_t begin = 0; begin < padded; begin += kTogether) {
        const int64_t end = begin + kTogether < padded ? begin + kTogether : padded;
        F16 most{};
        for (int64_t i = begin; i < end; i += 16)
            most = larger(most, load<F16>(probabilities + i) * load<F16>(value_scale + i));
        const float peak = largest(most), factor = peak > 0 ? 255.0f / peak : 0.0f;
        scale[begin / kTogether] = peak / 255.0f;
        for (int64_t i = begin; i < end; i += 16) {
            F16 y = load<F16>(probabilities + i) * load<F16>(value_scale + i);
            store(to + i, __builtin_convertvector(to_nearest(y * factor), Bytes16));
        }
    }
}

template <int QUERIES, int GROUPS>
INLINE void mix_eight(const Attention& a, int64_t query, int64_t group, const uint8_t* eighths, const float* scale,
                      int64_t padded, const float* factor) {
    const int64_t parts = up(padded, kTogether) / kTogether;
    F16 mixed[QUERIES][GROUPS] = {};
    for (int64_t part = 0; part < parts; part++) {
        Part sums[QUERIES][GROUPS][kParts] = {};
        const int64_t end = (part + 1) * kTogether < padded ? (part + 1) * kTogether : padded;
        for (int64_t at = part * kTogether; at < end; at += 4) {
            const int8_t* values = a.eight->values + at / 16 * 16 * a.width + group * 256 + at % 16 * 16;
            UNROLL
            for (int g = 0; g < GROUPS; g++) {
                UNROLL
                for (int q = 0; q < QUERIES; q++)
                    add(sums[q][g], load<int32_t>(eighths + q * padded + at), values + g * 256);
            }
        }
        for (int q = 0; q < QUERIES; q++) {
            for (int g = 0; g < GROUPS; g++) {
                int32_t totals[16];
                total(sums[q][g], totals);
                mixed[q][g] += __builtin_convertvector(load<I16>(totals), F16) * scale[q * parts + part];
            }
        }
    }
    for (int q = 0; q < QUERIES; q++) {
        for (int g = 0; g < GROUPS; g++)
            store(a.out + (query + q) * a.out_stride + (group + g) * 16, mixed[q][g] * factor[q]);
    }
}

INLINE float query_to_eight(const uint16_t* query, int64_t width, uint8_t* to) {
    float wide[kWidestEight], scale;
    for (int64_t i = 0; i < width; i += 16)
        store(wide + i, bits<F16>(__builtin_convertvector(load<Halves16>(query + i), U16) << 16));
    quantize(wide, width, 1, width, nullptr, to, width, &scale);
    return scale;
}

template <int QUERIES>
INLINE void attend_eight(const Attention& a, int64_t query) {
    int64_t longest = 0;
    for (int q = 0; q < QUERIES; q++) longest = a.lengths[query + q] > longest ? a.lengths[query + q] : longest;
    const int64_t padded = up(longest, 16), parts = up(padded, kTogether) / kTogether;
    float* probabilities = a.scratch;
    uint16_t* halves = reinterpret_cast<uint16_t*>(a.scratch + QUERIES * padded);
    uint8_t queries[QUERIES * kWidestEight];
    float scale[QUERIES], factor[QUERIES];
    for (int q = 0; q < QUERIES; q++)
        scale[q] = query_to_eight(a.queries + (query + q) * a.query_stride, a.width, queries + q * a.width);
    int64_t block = 0;
    for (; block + kChains <= padded / 16; block += kChains)
        scores_eight<QUERIES, kChains>(a, block, queries, scale, probabilities, padded);
    for (; block < padded / 16; block++) scores_eight<QUERIES, 1>(a, block, queries, scale, probabilities, padded);
    for (int q = 0; q < QUERIES; q++) {
        factor[q] = soften(probabilities + q * padded, halves, a.lengths[query + q], padded);
        give_weights(a, query + q, probabilities + q * padded, padded, factor[q]);
    }
    uint8_t* eighths = reinterpret_cast<uint8_t*>(halves);
    float* part_scale = a.scratch + QUERIES * padded + QUERIES * padded / 4;
    for (int q = 0; q < QUERIES; q++)
        to_eight(probabilities + q * padded, a.eight->value_scale, padded, eighths + q * padded,
                 part_scale + q * parts);
    int64_t group = 0;
    for (; group + kChains <= a.width / 16; group += kChains)
        mix_eight<QUERIES, kChains>(a, query, group, eighths, part_scale, padded, factor);
    for (; group < a.width / 16; group++)
        mix_eight<QUERIES, 1>(a, query, group, eighths, part_scale, padded, factor);
}

template <int QUERIES>
INLINE void attend_eight_from(const Attention& a, int64_t query) {
    for (; query + QUERIES <= a.count; query += QUERIES) attend_eight<QUERIES>(a, query);
    if constexpr (QUERIES > 1) attend_eight_from<fewer(QUERIES)>(a, query);
}

struct Signed {
    float scale;
    int32_t sum;
};

INLINE Signed to_signed(const float* x, int64_t width, int8_t* to) {
    F16 most{};
    for (int64_t i = 0; i < width; i += 16) most = larger(most, magnitude(load<F16>(x + i)));
    const float peak = largest(most), factor = peak > 0 ? 127.0f / peak : 0.0f;
    int32_t sum = 0;
    for (int64_t i = 0; i < width; i += 16) {
        I16 q = to_nearest(load<F16>(x + i) * factor);
        for (int lane = 0; lane < 16; lane++) sum += q[lane];
        store(to + i, __builtin_convertvector(q, Bytes16));
    }
    return {peak / 127.0f, sum};
}

float keep_key(const float* x, int64_t width, int8_t* block, int64_t inside, float* offset) {
    int8_t eight[kWidestEight];
    const Signed kept = to_signed(x, width, eight);
    *offset = 128.0f * static_cast<float>(kept.sum);
    for (int64_t i = 0; i < width; i += 4) store(block + i * 16 + inside * 4, load<int32_t>(eight + i));
    return kept.scale;
}

float keep_value(const float* x, int64_t width, int8_t* block, int64_t inside) {
    int8_t eight[kWidestEight];
    const Signed kept = to_signed(x, width, eight);
    for (int64_t i = 0; i < width; i++)
        block[i / 16 * 256 + inside / 4 * 64 + i % 16 * 4 + inside % 4] = eight[i];
    return kept.scale;
}

}  // namespace
