// The kernels, written once over vectors of sixteen. The including file has chosen an instruction set and defined
//   Part, kParts   sixteen running integer sums are so many of these vectors
//   add, total     four inputs times 64 weights are added to the sums; what they come to
//   Sum, kSumParts     sixteen running bf16 sums are so many of these vectors
//   dot_pairs      adds two bf16 products to each of sixteen sums
//   to_nearest     sixteen floats to integers, ties to even
//   kTokens, kBlocks   how many tokens and row blocks of integer sums fit into the registers
//   kTokensFour    kTokens for weights in 4 bits, which are unpacked again for every group of tokens
//   kFew           up to so many tokens wait for weights alone; more than one was measured with AVX-512 only
//   kSums          how many vectors of sums fit there: 2, 4 or 16
#include "kernels.hpp"

namespace {

using namespace sprachbund;

// 1 / root mean square of `width` numbers, which zeros follow up to a multiple of 16.
INLINE float inverse_root(const float* x, int64_t width, float epsilon) {
    F16 squares{};
    for (int64_t i = 0; i < width; i += 16) {
        const F16 part = load<F16>(x + i);
        squares += part * part;
    }
    return 1.0f / __builtin_sqrtf(sum(squares) / width + epsilon);
}

// Mean and 1/deviation of `width` numbers; lanes beyond it are left out.
INLINE void moments(const float* x, int64_t width, float& mean, float& scale) {
    F16 total{};
    int64_t whole = width / 16 * 16;
    for (int64_t i = 0; i < whole; i += 16) total += load<F16>(x + i);
    float rest = 0;
    for (int64_t i = whole; i < width; i++) rest += x[i];
    mean = (sum(total) + rest) / width;
    F16 squares{};
    for (int64_t i = 0; i < whole; i += 16) {
        F16 d = load<F16>(x + i) - mean;
        squares += d * d;
    }
    rest = 0;
    for (int64_t i = whole; i < width; i++) rest += (x[i] - mean) * (x[i] - mean);
    scale = 1.0f / __builtin_sqrtf((sum(squares) + rest) / width + 1.0f / kNormEpsilonInverse);
}

INLINE F16 normed(const float* x, float mean, float scale, const Norm& norm, int64_t i) {
    return (load<F16>(x + i) - mean) * scale * load<F16>(norm.gain + i) + load<F16>(norm.bias + i);
}

enum class Normed { no, layer, root };

// Before it is quantized; decided when it is compiled, since in these loops a question costs as much as the answer.
template <Normed NORMED>
INLINE F16 prepared(const float* x, float mean, float scale, const Norm* norm, int64_t i) {
    if constexpr (NORMED == Normed::layer) return normed(x, mean, scale, *norm, i);
    if constexpr (NORMED == Normed::root) return load<F16>(x + i) * scale * load<F16>(norm->gain + i);
    return load<F16>(x + i);
}

template <Normed NORMED>
INLINE void quantize_as(const float* x, int64_t stride, int64_t count, int64_t width, const Norm* norm,
                        uint8_t* values, int64_t value_stride, float* scales) {
    for (int64_t t = 0; t < count; t++) {
        const float* row = x + t * stride;
        float mean = 0, scale = 1;
        if constexpr (NORMED == Normed::layer) moments(row, width, mean, scale);
        if constexpr (NORMED == Normed::root) scale = inverse_root(row, width, norm->epsilon);
        F16 most{};
        for (int64_t i = 0; i < width; i += 16)
            most = larger(most, magnitude(prepared<NORMED>(row, mean, scale, norm, i)));
        float peak = largest(most);
        float factor = peak > 0 ? 127.0f / peak : 0.0f;
        scales[t] = peak / 127.0f;
        for (int64_t i = 0; i < width; i += 16) {
            F16 y = prepared<NORMED>(row, mean, scale, norm, i);
            I16 q = to_nearest(y * factor) + 128;
            store(values + t * value_stride + i, __builtin_convertvector(q, Bytes16));
        }
    }
}

// Rows of x, gain and bias are padded with zeros to a multiple of 16.
void quantize(const float* x, int64_t stride, int64_t count, int64_t width, const Norm* norm, uint8_t* values,
              int64_t value_stride, float* scales) {
    if (!norm) return quantize_as<Normed::no>(x, stride, count, width, norm, values, value_stride, scales);
    if (norm->bias) return quantize_as<Normed::layer>(x, stride, count, width, norm, values, value_stride, scales);
    quantize_as<Normed::root>(x, stride, count, width, norm, values, value_stride, scales);
}

void normalise(float* x, int64_t count, int64_t width, int64_t stride, const Norm& norm) {
    for (int64_t t = 0; t < count; t++) {
        float* row = x + t * stride;
        float mean, scale;
        moments(row, width, mean, scale);
        for (int64_t i = 0; i < width; i += 16) store(row + i, normed(row, mean, scale, norm, i));
    }
}

// Lanes keep the first of their greatest; of equal lanes the first index counts.
int64_t likeliest(const float* logits, int64_t count, float* log_prob) {
    const F16 nothing = all(-__builtin_inff());
    const int64_t whole = count / 16 * 16;
    F16 most = nothing;
    I16 indices = lanes(), index = lanes();
    for (int64_t i = 0; i < whole; i += 16, index += 16) {
        const F16 x = load<F16>(logits + i);
        const I16 more = x > most;
        most = more ? x : most;
        indices = more ? index : indices;
    }
    float peak = most[0];
    int32_t best = indices[0];
    for (int lane = 1; lane < 16; lane++) {
        if (most[lane] > peak || (most[lane] == peak && indices[lane] < best)) peak = most[lane], best = indices[lane];
    }
    for (int64_t i = whole; i < count; i++) {
        if (logits[i] > peak) peak = logits[i], best = static_cast<int32_t>(i);
    }
    if (!log_prob) return best;
    F16 total{};
    for (int64_t i = 0; i < whole; i += 16) total += exponential(load<F16>(logits + i) - peak);
    F16 rest = nothing;
    for (int64_t i = whole; i < count; i++) rest[i - whole] = logits[i] - peak;
    if (count > whole) total += exponential(rest);
    *log_prob = -__builtin_logf(sum(total));
    return best;
}

void gate(const float* halves, int64_t count, int64_t padded, float* out) {
    for (int64_t t = 0; t < count; t++) {
        const float* row = halves + t * 2 * padded;
        for (int64_t i = 0; i < padded; i += 16)
            store(out + t * padded + i, load<F16>(row + i) * sigmoid(load<F16>(row + padded + i)));
    }
}

void depthwise(const float* x, int64_t count, int64_t width, int64_t padded, const Depthwise& d, float* out) {
    for (int64_t t = 0; t < count; t++) {
        float* row = out + t * padded;
        for (int64_t i = 0; i < padded; i += 16) {
            F16 y = load<F16>(d.bias + i);
            for (int64_t tap = 0; tap < d.count; tap++)
                y += load<F16>(x + (t + tap) * padded + i) * load<F16>(d.taps + tap * padded + i);
            store(row + i, y);
        }
        float mean = 0, scale = 1;
        if (d.norm.gain) moments(row, width, mean, scale);
        for (int64_t i = 0; i < padded; i += 16) {
            F16 y = d.norm.gain ? normed(row, mean, scale, d.norm, i) : load<F16>(row + i);
            store(row + i, y * sigmoid(y));
        }
    }
}

void spread(const float* const* rows, int64_t count, const Square& s, float* out) {
    for (int64_t i = 0; i < s.channels; i += 16) {
        F16 taps[9];
        for (int64_t tap = 0; tap < 9; tap++) taps[tap] = load<F16>(s.taps + tap * s.channels + i);
        const F16 bias = load<F16>(s.bias + i);
        for (int64_t bin = 0; bin < count; bin++) {
            F16 y = bias;
            UNROLL
            for (int tap = 0; tap < 9; tap++) y += taps[tap] * rows[tap / 3][2 * bin + tap % 3];
            store(out + bin * s.channels + i, larger(y, F16{}));
        }
    }
}

void shrink(const float* const* rows, int64_t count, const Square& s, float* out) {
    for (int64_t bin = 0; bin < count; bin++) {
        for (int64_t i = 0; i < s.channels; i += 16) {
            F16 y = load<F16>(s.bias + i);
            UNROLL
            for (int tap = 0; tap < 9; tap++)
                y += load<F16>(rows[tap / 3] + (2 * bin + tap % 3) * s.channels + i) *
                     load<F16>(s.taps + tap * s.channels + i);
            store(out + bin * s.channels + i, y);
        }
    }
}

// Sixteen consecutive rows of the product, which belong to one head, as heads are padded to 16.
struct HeadRows {
    char part;
    int64_t head, group;  // of 16 dimensions

    INLINE HeadRows(const Heads& h, int64_t block)
        : part(h.parts[block / (h.heads * (h.width / 16))]), head(block / (h.width / 16) % h.heads),
          group(block % (h.width / 16)) {}
};

INLINE void to_heads(const Heads& h, int64_t token, const HeadRows& rows, F16 y) {
    const int64_t head = rows.head, group = rows.group;
    if (rows.part == 'q') {
        const int64_t inside = head * h.width + group * 16, at = token * h.heads * h.width + inside;
        if (h.by_distance) {
            store(h.by_distance + at, to_bf16(y + load<F16>(h.distance_bias + inside)));
            y += load<F16>(h.content_bias + inside);
        }
        store(h.queries + at, to_bf16(y));
        return;
    }
    Halves16 halves = to_bf16(y);
    int64_t position = h.position[token], inside = position % 16;
    int64_t base = ((h.row[token] * h.heads + head) * h.blocks + position / 16) * 16 * h.width + group * 256;
    if (rows.part == 'k') {
        struct Pairs {
            uint32_t of[8];
        };
        Pairs pairs = bits<Pairs>(halves);
        for (int i = 0; i < 8; i++) store(h.keys + base + i * 32 + inside * 2, pairs.of[i]);
    } else {
        uint16_t* at = h.values + base + inside / 2 * 32 + inside % 2;
        for (int i = 0; i < 16; i++) at[i * 2] = halves[i];
    }
}

INLINE void emit(const Sink& sink, int64_t token, int64_t block, int64_t rows, F16 y) {
    if (sink.then == Then::heads) {
        to_heads(*sink.heads, token + sink.first_token, HeadRows(*sink.heads, block), y);
        return;
    }
    float* at = sink.out + token * sink.stride + block * 16;
    if (sink.then == Then::gelu) y = gelu(y);
    if (sink.then == Then::silu) y = y * sigmoid(y);
    if (sink.then == Then::relu) y = larger(y, F16{});
    if (block * 16 + 16 <= rows) {
        if (sink.then == Then::add) y = load<F16>(at) + y * sink.factor;
        if (sink.then == Then::times) y *= load<F16>(at);
        store(at, y);
        return;
    }
    for (int64_t i = 0; i < rows - block * 16; i++) {
        if (sink.then == Then::add) y[i] = at[i] + y[i] * sink.factor;
        if (sink.then == Then::times) y[i] *= at[i];
        at[i] = y[i];
    }
}

// What sums of a block come to, and where they go.
struct Finish {
    F16 scale, bias;
    I16 offset;
    int64_t block, rows;

    INLINE Finish(const Matrix& m, int64_t of)
        : scale(load<F16>(m.scale + of * 16)), bias(load<F16>(m.bias + of * 16)), offset(load<I16>(m.offset + of * 16)),
          block(of), rows(m.rows) {}

    INLINE F16 number(const Tokens& tokens, int64_t token, I16 sums) const {
        const F16 exact = __builtin_convertvector(sums - offset, F16);
        return exact * (scale * tokens.scale[token]) + bias;
    }
    INLINE void operator()(const Tokens& tokens, int64_t token, I16 sums, const Sink& sink) const {
        emit(sink, token, block, rows, number(tokens, token, sums));
    }
};

// As a `tile` of one block, for few tokens. Several sums of each token, so that none waits for its predecessor.
template <int TOKENS>
INLINE void tile_in_order(const Tokens& tokens, int64_t token, const Matrix& m, int64_t block, const Sink& sink) {
    constexpr int kChains = TOKENS * kParts > 4 ? 1 : TOKENS * kParts > 2 ? 2 : 4;
    Part sums[TOKENS][kChains][kParts] = {};
    const uint8_t* inputs = tokens.values + token * tokens.stride;
    const int8_t* weights = m.values + block * m.steps * 64;
    int64_t step = 0;
    for (; step + kChains <= m.steps; step += kChains) {
        UNROLL
        for (int c = 0; c < kChains; c++) {
            UNROLL
            for (int t = 0; t < TOKENS; t++)
                add(sums[t][c], load<int32_t>(inputs + t * tokens.stride + (step + c) * 4), weights + (step + c) * 64);
        }
    }
    for (; step < m.steps; step++) {
        UNROLL
        for (int t = 0; t < TOKENS; t++)
            add(sums[t][0], load<int32_t>(inputs + t * tokens.stride + step * 4), weights + step * 64);
    }
    alignas(64) int32_t totals[TOKENS][kChains][16];
    UNROLL
    for (int t = 0; t < TOKENS; t++) {
        UNROLL
        for (int c = 0; c < kChains; c++) total(sums[t][c], totals[t][c]);
    }
    const Finish finish(m, block);
    for (int t = 0; t < TOKENS; t++) {
        I16 together{};
        for (int c = 0; c < kChains; c++) together += load<I16>(totals[t][c]);
        finish(tokens, token + t, together, sink);
    }
}

// The sums of TOKENS x BLOCKS x 16, of every `apart`th block from `block` on. The loops are unrolled and the sums leave
// through a copy, so that they stay in registers.
template <int BLOCKS, int TOKENS>
INLINE void tile(const Tokens& tokens, int64_t token, const Matrix& m, int64_t block, const Sink& sink,
                 int64_t apart = 1) {
    Part sums[TOKENS][BLOCKS][kParts] = {};
    const uint8_t* inputs = tokens.values + token * tokens.stride;
    const int8_t* weights = m.values + block * m.steps * 64;
    for (int64_t step = 0; step < m.steps; step++) {
        UNROLL
        for (int t = 0; t < TOKENS; t++) {
            int32_t four = load<int32_t>(inputs + t * tokens.stride + step * 4);
            UNROLL
            for (int b = 0; b < BLOCKS; b++) add(sums[t][b], four, weights + (b * apart * m.steps + step) * 64);
        }
    }
    alignas(64) int32_t totals[TOKENS][BLOCKS][16];
    UNROLL
    for (int t = 0; t < TOKENS; t++) {
        UNROLL
        for (int b = 0; b < BLOCKS; b++) total(sums[t][b], totals[t][b]);
    }
    for (int b = 0; b < BLOCKS; b++) {
        const Finish finish(m, block + b * apart);
        for (int t = 0; t < TOKENS; t++) finish(tokens, token + t, load<I16>(totals[t][b]), sink);
    }
}

constexpr int blocks_for(int tokens) {
    return kTokens * kBlocks / tokens >= 4 ? 4 : kTokens * kBlocks / tokens >= 2 ? 2 : 1;
}
// How many of the tokens that are left, fewer than before, are computed together; the same for queries. All of them where
// they are few, since each group reads the weights, or keys and values, again.
constexpr int fewer(int tokens) {
    return tokens > 8 ? 8 : tokens <= kFew ? tokens - 1 : tokens > 4 ? 4 : tokens > 2 ? 2 : 1;
}

}  // namespace

#include "product_four.inl"

namespace {

// Tokens from `token` on, TOKENS at a time and the rest by fewer, over a panel of blocks.
template <int TOKENS, bool FOUR>
INLINE void panel(const Tokens& tokens, int64_t token, const Matrix& m, int64_t begin, int64_t end, const Sink& sink) {
    constexpr int BLOCKS = blocks_for(TOKENS);
    for (; token + TOKENS <= tokens.count; token += TOKENS) {
        int64_t block = begin;
        for (; block + BLOCKS <= end; block += BLOCKS) {
            if constexpr (FOUR) tile_four<BLOCKS, TOKENS>(tokens, token, m, block, sink);
            if constexpr (!FOUR) tile<BLOCKS, TOKENS>(tokens, token, m, block, sink);
        }
        for (; block < end; block++) {
            if constexpr (FOUR) tile_four<1, TOKENS>(tokens, token, m, block, sink);
            if constexpr (!FOUR) tile<1, TOKENS>(tokens, token, m, block, sink);
        }
    }
    if constexpr (TOKENS > 1) panel<fewer(TOKENS), FOUR>(tokens, token, m, begin, end, sink);
}

// Up to so many bytes of inputs, few tokens read weights in the order of addresses (measured on Zen 4).
constexpr int64_t kInOrderBytes = 5120;

// TOKENS tokens or fewer, all of them together, for they wait for memory. It is read fastest in the order of addresses: the
// processor sees less of where several short streams lead. But then every block reads all inputs again; where these are
// many, several blocks share what is read of them, and lie so far apart that each begins one of a few long streams.
template <int TOKENS>
INLINE void few(const Tokens& tokens, const Matrix& m, int64_t begin, int64_t end, const Sink& sink) {
    if (tokens.count < TOKENS) {
        if constexpr (TOKENS > 1) few<TOKENS - 1>(tokens, m, begin, end, sink);
        return;
    }
    if (TOKENS * m.steps * 4 <= kInOrderBytes) {
        for (int64_t block = begin; block < end; block++) tile_in_order<TOKENS>(tokens, 0, m, block, sink);
        return;
    }
    constexpr int BLOCKS = kTokens * kBlocks / TOKENS < 4 ? kTokens * kBlocks / TOKENS : 4;
    const int64_t apart = (end - begin) / BLOCKS;
    for (int64_t i = 0; i < apart; i++) tile<BLOCKS, TOKENS>(tokens, 0, m, begin + i, sink, apart);
    for (int64_t block = begin + BLOCKS * apart; block < end; block++) tile<1, TOKENS>(tokens, 0, m, block, sink);
}

void product(const Tokens& tokens, const Matrix& m, int64_t first_block, int64_t last_block, const Sink& sink) {
    if (tokens.count <= kFew && !m.four.codes) return few<kFew>(tokens, m, first_block, last_block, sink);
    for (int64_t begin = first_block; begin < last_block; begin += 4) {
        const int64_t end = begin + 4 < last_block ? begin + 4 : last_block;
        if (m.four.codes)
            panel<kTokensFour, true>(tokens, 0, m, begin, end, sink);
        else
            panel<kTokens, false>(tokens, 0, m, begin, end, sink);
    }
}

INLINE void leave(const Sum (&sums)[kSumParts], float* to, float factor) {
    UNROLL
    for (int i = 0; i < kSumParts; i++) store(to + i * 16 / kSumParts, sums[i] * factor);
}

// Attention goes through several blocks at once, which the processor takes for many short streams. So what comes next is
// fetched by request, in the order of addresses; the last request of a head reaches into the next one.
constexpr int64_t kFetched = 8192;  // bytes ahead: with 4096 and 16384 a token takes as long

INLINE void fetch_line(const uint16_t* from, int64_t line) {
    __builtin_prefetch(reinterpret_cast<const char*>(from) + kFetched + line * 64);
}

// Scores of QUERIES queries against BLOCKS blocks of keys from `block` on.
template <int QUERIES, int BLOCKS>
INLINE void scores(const Attention& a, int64_t query, int64_t block, float* out, int64_t out_stride) {
    Sum sums[QUERIES][BLOCKS][kSumParts] = {};
    for (int64_t pair = 0; pair < a.width / 2; pair++) {
        UNROLL
        for (int b = 0; b < BLOCKS; b++) {
            const uint16_t* keys = a.keys + (block + b) * 16 * a.width + pair * 32;
            fetch_line(a.keys + block * 16 * a.width, pair * BLOCKS + b);
            UNROLL
            for (int q = 0; q < QUERIES; q++) {
                uint32_t two = load<uint32_t>(a.queries + (query + q) * a.query_stride + pair * 2);
                dot_pairs(sums[q][b], two, keys);
            }
        }
    }
    UNROLL
    for (int q = 0; q < QUERIES; q++) {
        UNROLL
        for (int b = 0; b < BLOCKS; b++) leave(sums[q][b], out + q * out_stride + (block + b) * 16, a.factor);
    }
}

// Scores and what is added to them, of `count` positions, a multiple of 16.
INLINE void add_bias(float* scores, const float* bias, int64_t count) {
    for (int64_t i = 0; i < count; i += 16) store(scores + i, load<F16>(scores + i) + load<F16>(bias + i));
}

// Exponentials of `length` of the scores and zeros up to `padded`, in bf16 too; returns 1 / their sum.
INLINE float soften(float* scores, uint16_t* halves, int64_t length, int64_t padded) {
    F16 most = all(-3.0e38f);
    int64_t whole = length / 16 * 16;
    for (int64_t i = 0; i < whole; i += 16) most = larger(most, load<F16>(scores + i));
    float peak = largest(most);
    for (int64_t i = whole; i < length; i++) peak = scores[i] > peak ? scores[i] : peak;
    F16 total{};
    for (int64_t i = 0; i < padded; i += 16) {
        F16 p = i < length ? exponential(load<F16>(scores + i) - peak) : F16{};
        if (i + 16 > length) p = first(p, static_cast<int>(length - i));
        total += p;
        store(scores + i, p);
        store(halves + i, to_bf16(p));
    }
    float s = sum(total);
    return s > 0 ? 1.0f / s : 0.0f;
}

// Sums over positions of probability times value, for BLOCKS times 16 dimensions from `group` * 16 on.
template <int QUERIES, int BLOCKS>
INLINE void mix(const Attention& a, int64_t query, int64_t group, const uint16_t* halves, int64_t padded,
                const float* factor) {
    Sum sums[QUERIES][BLOCKS][kSumParts] = {};
    for (int64_t pair = 0; pair < padded / 2; pair++) {
        const uint16_t* block = a.values + pair / 8 * 16 * a.width + group * 256;
        const uint16_t* values = block + pair % 8 * 32;
        UNROLL
        for (int b = 0; b < BLOCKS; b++) {
            fetch_line(block, pair % 8 * BLOCKS + b);
            UNROLL
            for (int q = 0; q < QUERIES; q++) {
                uint32_t two = load<uint32_t>(halves + q * padded + pair * 2);
                dot_pairs(sums[q][b], two, values + b * 256);
            }
        }
    }
    UNROLL
    for (int q = 0; q < QUERIES; q++) {
        UNROLL
        for (int b = 0; b < BLOCKS; b++)
            leave(sums[q][b], a.out + (query + q) * a.out_stride + (group + b) * 16, factor[q]);
    }
}

// The weights of a query, if they are wanted.
INLINE void give_weights(const Attention& a, int64_t query, const float* probabilities, int64_t padded, float factor) {
    if (!a.weights) return;
    float* out = a.weights + query * a.weight_stride;
    for (int64_t i = 0; i < a.weight_stride; i++) out[i] = i < padded ? probabilities[i] * factor : 0.0f;
}

template <int QUERIES>
INLINE void attend_some(const Attention& a, int64_t query) {
    constexpr int BLOCKS = kSums / QUERIES < 4 ? kSums / QUERIES : 4;
    int64_t longest = 0;
    for (int q = 0; q < QUERIES; q++) longest = a.lengths[query + q] > longest ? a.lengths[query + q] : longest;
    int64_t padded = up(longest, 16), block = 0;
    float* probabilities = a.scratch;
    uint16_t* halves = reinterpret_cast<uint16_t*>(a.scratch + QUERIES * padded);
    constexpr int KEYS = QUERIES == 1 ? 1 : BLOCKS;  // for one query in the order of memory; it waits for nothing else
    for (; block + KEYS <= padded / 16; block += KEYS)
        scores<QUERIES, KEYS>(a, query, block, probabilities, padded);
    for (; block < padded / 16; block++) scores<QUERIES, 1>(a, query, block, probabilities, padded);
    float factor[QUERIES];
    for (int q = 0; q < QUERIES; q++) {
        if (a.bias) add_bias(probabilities + q * padded, a.bias + (query + q) * a.bias_stride, padded);
        factor[q] = soften(probabilities + q * padded, halves + q * padded, a.lengths[query + q], padded);
        give_weights(a, query + q, probabilities + q * padded, padded, factor[q]);
    }
    int64_t group = 0;
    for (; group + BLOCKS <= a.width / 16; group += BLOCKS)
        mix<QUERIES, BLOCKS>(a, query, group, halves, padded, factor);
    for (; group < a.width / 16; group++) mix<QUERIES, 1>(a, query, group, halves, padded, factor);
}

template <int QUERIES>
INLINE void attend_from(const Attention& a, int64_t query) {
    for (; query + QUERIES <= a.count; query += QUERIES) attend_some<QUERIES>(a, query);
    if constexpr (QUERIES > 1) attend_from<fewer(QUERIES)>(a, query);
}

template <int QUERIES>
INLINE void match_from(const Attention& a, int64_t query, int64_t blocks) {
    constexpr int BLOCKS = kSums / QUERIES < 4 ? kSums / QUERIES : 4;
    for (; query + QUERIES <= a.count; query += QUERIES) {
        int64_t block = 0;
        float* out = a.out + query * a.out_stride;
        for (; block + BLOCKS <= blocks; block += BLOCKS) scores<QUERIES, BLOCKS>(a, query, block, out, a.out_stride);
        for (; block < blocks; block++) scores<QUERIES, 1>(a, query, block, out, a.out_stride);
    }
    if constexpr (QUERIES > 1) match_from<fewer(QUERIES)>(a, query, blocks);
}

// Sets without products of bf16 take `match_many`.
[[maybe_unused]] void match(const Attention& a, int64_t blocks) {
    match_from<(kSums < 16 ? kSums / 2 : kQueriesAtOnce)>(a, 0, blocks);
}

// As `mix`, over all segments.
template <int BLOCKS>
INLINE void mix_segments(const Attention& a, int64_t query, int64_t group, const uint16_t* halves, int64_t padded,
                         float factor) {
    Sum sums[1][BLOCKS][kSumParts] = {};
    for (int64_t segment = 0; segment < a.segments; segment++) {
        const uint16_t* own = a.values + segment * a.segment_stride + group * 256;
        for (int64_t pair = 0; pair < padded / 2; pair++) {
            uint32_t two = load<uint32_t>(halves + segment * padded + pair * 2);
            UNROLL
            for (int b = 0; b < BLOCKS; b++)
                dot_pairs(sums[0][b], two, own + pair / 8 * 16 * a.width + pair % 8 * 32 + b * 256);
        }
    }
    UNROLL
    for (int b = 0; b < BLOCKS; b++) leave(sums[0][b], a.out + query * a.out_stride + (group + b) * 16, factor);
}

void attend_segments(const Attention& a) {
    for (int64_t query = 0; query < a.count; query++) {
        const int64_t length = a.lengths[query], padded = up(length, 16);
        float* probabilities = a.scratch;
        uint16_t* halves = reinterpret_cast<uint16_t*>(a.scratch + a.segments * padded);
        Attention one = a;
        for (int64_t segment = 0; segment < a.segments; segment++, one.keys += a.segment_stride) {
            float* own = probabilities + segment * padded;
            for (int64_t block = 0; block < padded / 16; block++) scores<1, 1>(one, query, block, own, padded);
            for (int64_t i = length; i < padded; i++) own[i] = -3.0e38f;
        }
        const float factor = soften(probabilities, halves, a.segments * padded, a.segments * padded);
        int64_t group = 0;
        for (; group + 2 <= a.width / 16; group += 2) mix_segments<2>(a, query, group, halves, padded, factor);
        for (; group < a.width / 16; group++) mix_segments<1>(a, query, group, halves, padded, factor);
    }
}

}  // namespace

#include "attend_eight.inl"

namespace {

void attend(const Attention& a) {
    if (a.eight) return attend_eight_from<kQueriesEight>(a, 0);
    attend_from<(kSums < 16 ? kSums / 2 : kQueriesAtOnce)>(a, 0);
}

}  // namespace

#include "attend_many.inl"

namespace {

// Vectors with products of bf16 take `attend` and `match` for many queries too: eight at once are faster than widening.
constexpr Kernels table(const char* name, decltype(Kernels::attend_many) many = attend_many<Widened>,
                        decltype(Kernels::match) matches = match_many, decltype(Kernels::product) multiplies = product,
                        decltype(Kernels::attend_all) all = nullptr) {
    return {name, quantize, multiplies, attend, many, all ? all : many, attend_segments, matches,
            keep_key, keep_value, normalise, likeliest, gate, depthwise, spread, shrink};
}

}  // namespace
