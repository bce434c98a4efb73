// Decoder and encoder: the order in which the kernels are called, and who does what when there are several threads.
//
// Shapes: B memories, R rows (row r reads memory r / (R / B)), Q tokens per row and step, N of all rows, T frames, D width,
// H heads, W width of a head padded to 16, V vocabulary. Caches are blocks of 16 positions as kernels.hpp describes.
#pragma once
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <vector>

#include "kernels.hpp"
#include "team.hpp"

namespace sprachbund {

// 64-byte aligned scratch that only grows until it is given back; what it holds does not outlive a call.
template <class T>
class Scratch {
  public:
    T* at_least(int64_t count) {
        int64_t units = (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 + 1;
        if (units > static_cast<int64_t>(units_.size())) units_ = std::vector<Unit>(static_cast<size_t>(units));
        return data();
    }
    T* data() { return reinterpret_cast<T*>(units_.data()); }
    void give_back() { units_ = {}; }

  private:
    struct alignas(64) Unit {
        unsigned char bytes[64];
    };
    std::vector<Unit> units_;
};

struct Search;
class Draft;

struct FeedForward {
    Norm norm;
    Matrix expand, contract;
    Then activation;
};

// Rows of `gate`: what is gated and what gates it, each padded to 16.
struct Convolution {
    Norm norm;
    Matrix gate;
    Depthwise depthwise;
    Matrix out;
};

// What a conformer's layer has beyond a transformer's.
struct ConformerParts {
    FeedForward first;  // before the attention
    Convolution convolution;
    Norm last;
};

struct EncoderLayer {
    Norm norm;
    Matrix heads;  // rows: queries, keys, values
    Matrix out;
    FeedForward feed_forward;
    std::optional<ConformerParts> conformer;
};

// A parasite's block (arXiv 2508.11189, section 2.2) owns no keys and values: it reads those of another decoder's layers.
struct Reader {
    int64_t first, layers;  // of the other decoder
    bool norms_query;       // by the layer's `self_norm`; else there is none
    Norm norm;              // of what was read
};

struct DecoderLayer {
    Norm self_norm;
    Matrix self_heads;  // rows: queries, keys, values; of a reader queries alone
    Matrix self_out;
    Norm cross_norm;
    Matrix cross_query;
    Matrix cross_memory;  // rows: keys, values
    Matrix cross_out;
    FeedForward feed_forward;
    std::optional<Reader> reader;
};

// What a decoder does to the rows of its output matrix that it reads as embeddings.
struct Embedding {
    float factor;
    std::optional<Norm> norm;  // of the sum with the position
};

struct Shape {
    int64_t width;       // D
    int64_t heads;       // H
    int64_t head_width;  // without padding
    int64_t hidden;      // the widest feed-forward

    int64_t padded_head() const { return up(head_width, 16); }
    int64_t all_heads() const { return heads * padded_head(); }
    float factor() const { return 1.0f / __builtin_sqrtf(static_cast<float>(head_width)); }
};

// One thread's quantized tokens.
struct Quantized {
    Scratch<uint8_t> values;
    Scratch<float> scale;

    void at_least(int64_t count, int64_t width) {
        values.at_least(count * width);
        scale.at_least(count);
    }
};

// Keys and values of memories: in bf16, or in 8 bits with scales.
struct Cross {
    uint16_t* halves;  // L x 2 x B x H x blocks x (16 W): keys, values
    int8_t* eight;     // same; one of the two is null
    float* scales;     // L x 3 x B x H x (16 blocks): of keys, offsets of keys, of values
    int64_t blocks;
};

// Tokens that rows never hold; rows that want the same share a list.
struct Suppressed {
    const int64_t* tokens;
    const int64_t* begins;   // lists + 1
    const int64_t* list_of;  // R

    void mask(int64_t row, float* logits) const {
        const int64_t list = list_of[row];
        for (int64_t at = begins[list]; at < begins[list + 1]; at++)
            logits[tokens[at]] = -std::numeric_limits<float>::infinity();
    }
};

// The draft tokens of Medusa heads for some rows.
struct DraftTokens {
    const std::vector<std::vector<Matrix>>& stacks;  // of every head, D to D
    const float* states;                             // rows x D padded: what goes into the last norm
    const int64_t* of_rows;                          // rows: their indices in the search
    int64_t rows, heads;
    const Suppressed* suppressed;
    int64_t* tokens;  // heads x rows
};

// Whisper's timestamps (arXiv 2212.04356, sections 2.3 and 4.5), of which a row's last tokens say what may come next: the
// same rules as sprachbund.decoding.logits_process. They end the vocabulary.
struct Times {
    // After one timestamp comes another one or the end; after a pair, text.
    enum Due : uint8_t { any, text, time_or_end };

    int64_t first;          // of the vocabulary's timestamps
    const int64_t* latest;  // R: the last one allowed; below the first in rows without timestamps
    // Behind each token of a step (N):
    const int64_t* earliest;
    const Due* due;
};

// The likeliest token behind each token of a step, among those that its row may hold.
struct Choice {
    Suppressed suppressed;
    int64_t end_token;
    const int64_t* earliest_end;  // R: where a row has fewer tokens than this it may not end yet
    int64_t* tokens;              // N
    float* log_probs;             // N, or null
    const Times* times;           // null where no row has timestamps
};

struct Step {
    const int64_t* tokens;   // N, row by row
    const int64_t* counts;   // R: of each row; rows of none are left alone
    const int64_t* lengths;  // R: tokens that the rows hold already
    int64_t rows;
    uint16_t* own;  // L x 2 x R x H x own_blocks x (16 W): keys, values; those of the other decoder for readers
    int64_t own_blocks;
    Cross cross;            // is only read
    const int64_t* frames;  // B
    int64_t memories;
    float* logits;   // null, or N x V
    float* states;   // null, or N x D padded: what goes into the last norm
    float* weights;  // null, or L x B x H x (R / B * Q) x T; all rows have Q tokens then
    int64_t weight_frames;
    const Choice* choice;  // null, or what is chosen of the logits
    bool last;             // logits and choices of the last token of each row alone
    int64_t ahead;         // positions that the tokens stand further than the cache says; readers read one token a row
};

// So few tokens every thread quantizes for itself: that is sooner done than waited for.
constexpr int64_t kQuantizedByEach = 8;

class Decoder {
  public:
    Decoder(const Kernels* kernels, std::shared_ptr<Team> team, Shape shape, std::vector<DecoderLayer> layers,
            Norm norm, Matrix vocabulary, const float* positions, int64_t memory_width, Embedding embedding);

    // Keys and values of B x T states for every layer, into zeros.
    void remember(const float* states, int64_t memories, int64_t frames, const Cross& into);
    void step(const Step& step);
    // Rows to their ends, the likeliest token each time; see search.hpp.
    void search(const Search& search, Draft* draft);
    // A draft's part of a search, inside it.
    void draft(const DraftTokens& draft);
    // The last norm of N states (D padded), times a matrix: the whole vocabulary's where there is none.
    void logits(const float* states, int64_t count, const Matrix* matrix, float* out);

    const Shape shape;
    const int64_t vocabulary_size;
    int64_t layers() const { return static_cast<int64_t>(layers_.size()); }
    int64_t memory_width() const { return memory_width_; }
    // One past the last layer of the other decoder that it reads; 0 for a decoder with keys and values of its own.
    int64_t reads() const;

  private:
    void pass(const Step& step);
    void work(int thread, const Step& step);
    void choose(const Step& step, Range tokens);
    void embed(const Step& step, Range tokens);
    void attend_self(int thread, int64_t layer, const Step& step);
    void read_others(int thread, const DecoderLayer& layer, const Step& step);
    void attend_cross(int thread, int64_t layer, const Step& step);
    Tokens quantized(int thread, const float* x, int64_t width, const Norm* norm, int64_t count);
    void multiply(int thread, const Tokens& tokens, const Matrix& matrix, const Sink& sink);
    void remember(int thread, const Tokens& tokens, int64_t first, int64_t memories, const Cross& into);
    void keep_eight(const float* heads, int64_t count, int64_t first, int64_t layer, int64_t memories,
                    const Cross& into);

    const Kernels* kernels_;
    std::shared_ptr<Team> team_;
    std::vector<DecoderLayer> layers_;
    Norm norm_;
    Matrix vocabulary_;
    const float* positions_;
    int64_t memory_width_;
    Embedding embedding_;
    std::vector<Quantized> quantized_;  // one per thread
    std::vector<Scratch<float>> attention_;
    Quantized shared_;
    Scratch<float> x_, mixed_, hidden_, draft_logits_, last_;
    Scratch<uint16_t> queries_;
    std::vector<int64_t> row_, position_, lengths_;
    std::vector<int64_t> first_;  // R + 1: tokens of the step before each row's
    std::vector<int64_t> outputs_;  // tokens of the step that have logits
    CallLock calls_;                // a decoder may be its own draft, inside its search
};

class Encoder {
  public:
    Encoder(const Kernels* kernels, std::shared_ptr<Team> team, Shape shape, std::vector<EncoderLayer> layers,
            std::optional<Norm> norm);

    // All layers and the last norm on one utterance, x (T, D with rows padded to 16), in place. `means`, where they are
    // wanted, take the mean frame behind each layer (N, D padded), before the last norm.
    void encode(float* x, int64_t frames, float* means);

    int64_t num_layers() const { return static_cast<int64_t>(layers_.size()); }

    const Shape shape;

  private:
    void work(int thread, float* x, int64_t frames, bool with_sums);
    void average(int64_t frames, float* means) const;
    // On the frames of a chunk, which begin at x.
    void heads(int thread, const EncoderLayer& layer, float* x, Range chunk, const Heads& heads);
    void attend(int thread, const Heads& heads, int64_t frames);
    void mixed(int thread, const EncoderLayer& layer, float* x, Range chunk);
    void gate(int thread, const Convolution& convolution, const float* x, Range chunk);
    void convolve(int thread, const Convolution& convolution, float* x, Range chunk);
    void feed_forward(int thread, const FeedForward& forward, float* x, int64_t count);
    // x += matrix * quantize(from); rows of `from` are `stride` floats apart.
    void add(int thread, const Matrix& matrix, const float* from, int64_t stride, int64_t width, float* x, int64_t count);
    Tokens quantized(int thread, const float* x, int64_t stride, int64_t width, const Norm* norm, int64_t count);

    const Kernels* kernels_;
    std::shared_ptr<Team> team_;
    std::vector<EncoderLayer> layers_;
    std::optional<Norm> norm_;
    int64_t margin_;  // frames of silence before and after `gated_`, for the convolution; -1 where there is none
    std::vector<Quantized> quantized_;
    std::vector<Scratch<float>> attention_, hidden_;
    std::vector<std::vector<double>> sums_;  // of each thread: (N, D padded) over its frames
    Scratch<float> mixed_, gated_;
    Scratch<uint16_t> queries_, keys_, values_;
    std::vector<int64_t> row_, position_, lengths_;
    CallLock calls_;
};

// One linear layer by itself.
class Linear {
  public:
    Linear(const Kernels* kernels, std::shared_ptr<Team> team, Matrix matrix, int64_t inputs)
        : inputs(inputs),
          kernels_(kernels),
          team_(std::move(team)),
          matrix_(matrix),
          quantized_(static_cast<size_t>(team_->size())) {}

    // x (N, inputs padded to 16) to out (N, rows).
    void run(const float* x, int64_t count, float* out);

    const int64_t inputs;
    int64_t rows() const { return matrix_.rows; }

  private:
    const Kernels* kernels_;
    std::shared_ptr<Team> team_;
    Matrix matrix_;
    std::vector<Quantized> quantized_;
    Quantized shared_;
    CallLock calls_;
};

struct StemLayer {
    Matrix matrix;     // inputs: taps x channels
    int64_t channels;  // of the input, padded to 16
    int64_t taps;      // odd; the frame in the middle is the output's
    int64_t stride;

    int64_t frames_after(int64_t frames) const { return (frames + stride - 1) / stride; }
};

class Stem {
  public:
    Stem(const Kernels* kernels, std::shared_ptr<Team> team, std::vector<StemLayer> layers)
        : kernels_(kernels),
          team_(std::move(team)),
          layers_(std::move(layers)),
          quantized_(static_cast<size_t>(team_->size())) {}

    // One utterance, x (T, channels padded to 16), to (frames_after(T), rows padded to 16).
    void run(const float* x, int64_t frames, float* out);

    int64_t frames_after(int64_t frames) const;
    const std::vector<StemLayer>& layers() const { return layers_; }

  private:
    void work(int thread, int64_t frames, float* out);

    const Kernels* kernels_;
    std::shared_ptr<Team> team_;
    std::vector<StemLayer> layers_;
    std::vector<Quantized> quantized_;
    std::vector<Scratch<float>> inner_;  // what goes into each layer
    CallLock calls_;
};

}  // namespace sprachbund
