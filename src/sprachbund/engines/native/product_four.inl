// Products with weights in 4 bits; a part of kernels.inl, which includes it.
//
// Code minus zero point is made in registers, for eight inputs of 16 rows at once, and goes into the same dot products as
// a weight in 8 bits. Every 32 inputs have sums of their own, which their scales bring together. All is done in pieces
// of one register: compilers move wider vectors through memory.
namespace {

constexpr int kRows = sizeof(Part) / 4, kPieces = 16 / kRows;  // rows of a piece, pieces of 16 rows
typedef uint8_t RowBytes __attribute__((vector_size(kRows)));
typedef uint16_t RowHalves __attribute__((vector_size(2 * kRows)));
typedef uint32_t RowWords __attribute__((vector_size(4 * kRows)));
typedef int32_t RowInts __attribute__((vector_size(4 * kRows)));
typedef float RowFloats __attribute__((vector_size(4 * kRows)));
typedef uint8_t FourBytes __attribute__((vector_size(4 * kRows)));  // of every row

// So many row blocks are taken one after another: what comes behind them is fetched from memory meanwhile, since the
// rows of a block are too short for the processor to see where they lead.
constexpr int64_t kAhead = 4;

INLINE void fetch(const void* at) {
    __builtin_prefetch(at, 0, 2);
}

// Sixteen zero points, each for four inputs.
INLINE void zero_points(const uint8_t* halves, FourBytes (&to)[kPieces]) {
    typedef uint64_t Two __attribute__((vector_size(16)));
    const uint64_t rows = load<uint64_t>(halves);
    uint8_t each[16];
    store(each, bits<Bytes16>(Two{rows, rows >> 4}) & 15);
    UNROLL
    for (int i = 0; i < kPieces; i++)
        to[i] = bits<FourBytes>(__builtin_convertvector(load<RowBytes>(each + i * kRows), RowWords) * 0x01010101u);
}

// Eight inputs of 16 rows: four and the next four.
INLINE void unpack(const uint8_t* codes, const FourBytes (&zeros)[kPieces], int8_t (&to)[2][64]) {
    UNROLL
    for (int i = 0; i < kPieces; i++) {
        const FourBytes both = load<FourBytes>(codes + i * 4 * kRows);
        store(to[0] + i * 4 * kRows, (both & 15) - zeros[i]);
        store(to[1] + i * 4 * kRows, (both >> 4) - zeros[i]);
    }
}

// Adds sums of 32 inputs times their scales, which are in bf16.
INLINE void bring_together(const Part (&sums)[kParts], const uint16_t* scales, RowFloats (&to)[kPieces]) {
    alignas(64) int32_t totals[16];
    total(sums, totals);
    UNROLL
    for (int i = 0; i < kPieces; i++) {
        const RowWords scale = __builtin_convertvector(load<RowHalves>(scales + i * kRows), RowWords) << 16;
        to[i] += __builtin_convertvector(load<RowInts>(totals + i * kRows), RowFloats) * bits<RowFloats>(scale);
    }
}

// The sums of TOKENS x BLOCKS x 16, as `tile` has them.
template <int BLOCKS, int TOKENS>
INLINE void tile_four(const Tokens& tokens, int64_t token, const Matrix& m, int64_t block, const Sink& sink) {
    RowFloats together[TOKENS][BLOCKS][kPieces] = {};
    const uint8_t* inputs = tokens.values + token * tokens.stride;
    const int64_t pairs = m.steps / 2, parts = (pairs + 3) / 4;
    for (int64_t part = 0; part < parts; part++) {
        Part sums[TOKENS][BLOCKS][kParts] = {};
        FourBytes zeros[BLOCKS][kPieces];
        UNROLL
        for (int b = 0; b < BLOCKS; b++) {
            const int64_t at = (block + b) * parts + part;
            zero_points(m.four.zero + at * 8, zeros[b]);
            fetch(m.four.zero + (at + kAhead * parts) * 8);
            fetch(m.four.scale + (at + kAhead * parts) * 16);
        }
        const int64_t end = part * 4 + 4 < pairs ? part * 4 + 4 : pairs;
        for (int64_t pair = part * 4; pair < end; pair++) {
            alignas(64) int8_t weights[BLOCKS][2][64];
            UNROLL
            for (int b = 0; b < BLOCKS; b++) {
                const uint8_t* codes = m.four.codes + ((block + b) * pairs + pair) * 64;
                unpack(codes, zeros[b], weights[b]);
                fetch(codes + kAhead * pairs * 64);
            }
            UNROLL
            for (int t = 0; t < TOKENS; t++) {
                UNROLL
                for (int half = 0; half < 2; half++) {
                    const int32_t four = load<int32_t>(inputs + t * tokens.stride + pair * 8 + half * 4);
                    UNROLL
                    for (int b = 0; b < BLOCKS; b++) add(sums[t][b], four, weights[b][half]);
                }
            }
        }
        UNROLL
        for (int t = 0; t < TOKENS; t++) {
            UNROLL
            for (int b = 0; b < BLOCKS; b++)
                bring_together(sums[t][b], m.four.scale + ((block + b) * parts + part) * 16, together[t][b]);
        }
    }
    for (int b = 0; b < BLOCKS; b++) {
        const int64_t row = (block + b) * 16;
        const F16 scale = load<F16>(m.scale + row), bias = load<F16>(m.bias + row);
        for (int t = 0; t < TOKENS; t++) {
            const F16 exact = load<F16>(together[t][b]) - load<F16>(m.four.offset + row);
            emit(sink, token + t, block + b, m.rows, exact * (scale * tokens.scale[token + t]) + bias);
        }
    }
}

}  // namespace
