// What an instruction set has to offer. The layouts they agree on:
//
// matrix   int8, blocks of 16 rows; in a block, for every 4 inputs, 16 rows x 4 inputs (64 bytes). Rows are padded to
//          16, inputs to 4, with zeros. weight = value * scale[row].
// matrix in 4 bits   unsigned codes, blocks of 16 rows; in a block, for every 8 inputs, 16 rows x 4 bytes: the first four
//                    inputs in the low halves, the others in the high ones. Every 32 inputs of 16 rows have 16 scales
//                    in bf16 and 16 zero points: 8 bytes, the first eight rows in the low halves.
//                    weight = (code - zero) * scale[32 inputs] * scale[row].
// tokens   unsigned 8 bits, number = (value - 128) * scale[token]; the offset is taken back with the row sums.
// keys     bf16, blocks of 16 positions; in a block, for every 2 dimensions, 16 positions x 2.
// values   bf16, blocks of 16 positions; in a block, for every 16 dimensions, 8 pairs of positions x 16 dimensions x 2.
//
// keys in 8 bits     int8, blocks of 16 positions; in a block, for every 4 dimensions, 16 positions x 4.
// values in 8 bits   int8, blocks of 16 positions; in a block, for every 16 dimensions, 4 quarters of the positions x
//                    16 dimensions x 4 positions.
//                    number = value * scale[position], for both.
//
// A head is padded with zeros to a multiple of 16 dimensions (`width`), so a block of 16 positions of one head has
// 16 * width numbers in all these layouts.
#pragma once
#include <cstdint>
#include <vector>

// AMX: compilers since 2021 know it, and Linux gives it to processes that ask.
#if defined(__x86_64__) && defined(__linux__) && (__has_include(<amxint8intrin.h>) || __has_include(<amxintrin.h>))
#define WITH_TILES
#endif

namespace sprachbund {

struct Four {
    const uint8_t* codes;
    const uint16_t* scale;
    const uint8_t* zero;
    const float* offset;  // per row: 128 * the sum of its (code - zero) * scale
};

struct Matrix {
    const int8_t* values;
    const float* scale;     // per row
    const int32_t* offset;  // per row: 128 * the sum of its values
    const float* bias;      // per row
    int64_t rows;           // without padding
    int64_t blocks;         // of 16 rows
    int64_t steps;          // of 4 inputs
    Four four;              // in place of values and offset, unless its codes are null; `steps` is even then
};

// A layer norm; for `quantize`, without a bias, RMSNorm (arXiv 1910.07467) too, which has an epsilon of its own.
struct Norm {
    const float* gain;
    const float* bias;
    float epsilon = 0;
};

struct Tokens {
    const uint8_t* values;
    int64_t stride;  // bytes from token to token
    const float* scale;
    int64_t count;
};

// Where the heads' queries, keys and values of a token go. The rows of the matrix are parts x heads x width.
struct Heads {
    const char* parts;  // of "q", "k", "v"
    int64_t heads;
    int64_t width;
    uint16_t* queries;        // tokens x heads x width
    uint16_t* keys;           // rows x heads x blocks x (16 * width)
    uint16_t* values;         // same
    int64_t blocks;           // of 16 positions in every row's keys
    const int64_t* row;       // of every token
    const int64_t* position;  // of every token in its row
    // Of attention by content and by distance, else null: a query has two forms, with a vector of each head added.
    uint16_t* by_distance = nullptr;         // tokens x heads x width; `queries` are those by content
    const float* content_bias = nullptr;     // heads x width
    const float* distance_bias = nullptr;    // heads x width
};

// `times` multiplies what is there already, as `add` adds to it.
enum class Then { keep, gelu, silu, relu, add, times, heads };

struct Sink {
    Then then;
    float* out;  // tokens x stride, but for heads
    int64_t stride;
    const Heads* heads;
    int64_t first_token;
    float factor = 1;  // of what is added
};

// Keys and values of one head in 8 bits.
struct Eight {
    const int8_t* keys;
    const int8_t* values;
    const float* key_scale;    // of every position
    const float* key_offset;   // 128 * the sum of its values
    const float* value_scale;  // of every position
};

// Queries of one head over one row of keys.
struct Attention {
    const uint16_t* queries;
    int64_t query_stride;
    const uint16_t* keys;
    const uint16_t* values;
    const int64_t* lengths;  // of every query: it sees the positions before
    int64_t count;
    int64_t width;
    float factor;  // of the scores
    float* out;
    int64_t out_stride;
    float* weights;  // null unless wanted: queries x weight_stride
    int64_t weight_stride;
    float* scratch;      // attention_scratch(longest) floats, 64 bytes aligned
    const Eight* eight;  // null, or in place of keys and values; `width` is then kWidestEight at most
    int64_t segments = 0;        // of `attend_segments`: runs of keys and values that lie one after another
    int64_t segment_stride = 0;  // numbers from one's keys to the next one's, and of values
    const float* bias = nullptr;  // of `attend` in bf16 and `attend_many`: added to the scores, without the factor
    int64_t bias_stride = 0;      // from query to query; every row can be read up to a multiple of 16 positions
};

// A convolution over time of every channel by itself; a norm, unless its gain is null, and SiLU follow it.
struct Depthwise {
    const float* taps;  // count x channels, padded to 16
    const float* bias;
    int64_t count;  // odd, but where the convolution is causal
    Norm norm;
};

// A convolution of 3 x 3 and stride 2 over time and bins.
struct Square {
    const float* taps;  // 9 x channels: three of each row
    const float* bias;
    int64_t channels;  // padded to 16
};

constexpr int64_t kQueriesAtOnce = 8;
constexpr int64_t kManyAtOnce = 96;
constexpr int64_t kWidestEight = 256;
constexpr int64_t kNormEpsilonInverse = 100000;  // torch's default epsilon, 1e-5

inline int64_t up(int64_t count, int64_t multiple) {
    return (count + multiple - 1) / multiple * multiple;
}
inline int64_t attention_scratch(int64_t longest) {
    return kQueriesAtOnce * up(longest, 16) * 2;
}

inline int64_t many_scratch(int64_t width) {
    return 2 * (64 + kManyAtOnce) * up(width, 16) + kManyAtOnce * (64 + 16 + 2 * 16);
}

struct Kernels {
    const char* name;
    // tokens x (stride of) `width` floats to 8 bits; `norm` may be null. Padding becomes zero. What is not
    // a number becomes zero too: no value of a model's files is one, nor of samples, which are checked when they are read.
    void (*quantize)(const float* x, int64_t stride, int64_t count, int64_t width, const Norm* norm, uint8_t* values,
                     int64_t value_stride, float* scale);
    void (*product)(const Tokens& tokens, const Matrix& matrix, int64_t first_block, int64_t last_block,
                    const Sink& sink);
    void (*attend)(const Attention& attention);
    // kManyAtOnce queries or fewer, best such as see about as many positions, in bf16, without weights; scratch of the
    // larger of many_scratch(width) and attention_scratch(longest).
    void (*attend_many)(const Attention& attention);
    // As attend_many, where all queries see the same positions from the first on. It may round to 16 bits what lies in
    // the same 64 positions, so results would depend on where a part of them begins.
    void (*attend_all)(const Attention& attention);
    // One softmax over the first positions of several segments, as many of each; one query at a time, without weights.
    void (*attend_segments)(const Attention& attention);
    // Scores alone, times the factor, of all positions in so many blocks of keys; out_stride is 16 times as many or more.
    // kManyAtOnce queries or fewer; scratch of many_scratch(width).
    void (*match)(const Attention& attention, int64_t blocks);
    // A key, or a value, of one head to 8 bits, as position `inside` of a block; returns its scale.
    float (*keep_key)(const float* x, int64_t width, int8_t* block, int64_t inside, float* offset);
    float (*keep_value)(const float* x, int64_t width, int8_t* block, int64_t inside);
    void (*normalise)(float* x, int64_t count, int64_t width, int64_t stride, const Norm& norm);
    // The first of the greatest of `count` logits, and its log-probability among them, unless that is null.
    int64_t (*likeliest)(const float* logits, int64_t count, float* log_prob);
    // The first half of every token times the sigmoid of the second; halves of `padded` numbers.
    void (*gate)(const float* halves, int64_t count, int64_t padded, float* out);
    // Of `count` frames of `padded` channels each; x begins with the frame under the first tap of the first one.
    void (*depthwise)(const float* x, int64_t count, int64_t width, int64_t padded, const Depthwise& d, float* out);
    // One row of outputs, `count` bins of all channels, from three rows of 1 + 2 * count bins: `spread` from single
    // numbers to channels, with ReLU, `shrink` every channel by itself.
    void (*spread)(const float* const* rows, int64_t count, const Square& square, float* out);
    void (*shrink)(const float* const* rows, int64_t count, const Square& square, float* out);
    // Tokens of all widths that stay in the cache next to the core while a layer's weights pass by, a multiple of `at_once`,
    // which is one of how many `product` takes together. The faster it is, the more there must be for each weight.
    int64_t chunk = 48, at_once = 12;
};

// Null when the processor or the build has not got it. Names: see `instruction_sets`.
const Kernels* kernels(const char* name);

// Those that may be there, best first, the last one always "portable".
std::vector<const char*> instruction_sets();

}  // namespace sprachbund
