// FastConformer encoders (arXiv 2305.05084) that hear whole utterances, or chunks behind what they remember of their
// streams (arXiv 2312.17279): layers of half a feed-forward, attention by content and by distance, convolution module,
// half a feed-forward, norm.
//
// Shapes: B utterances, N frames of all of them, L layers, D width, H heads, W = D / H width of a head, P frames of the
// past, K taps. D and W are multiples of 16.
#pragma once
#include "model.hpp"

namespace sprachbund {

struct FastLayer {
    FeedForward first;
    Norm norm;  // before the attention
    Matrix query, key, value, distance, out;
    const float *content_bias, *distance_bias;  // H x W, added to queries
    Convolution convolution;                    // a batch norm is part of taps and bias: its inner norm has no gain
    FeedForward last;
    Norm last_norm;
};

// Which frames a frame sees: those of its chunk, and of so many chunks before; all of its utterance where `chunk` is 0.
struct Sight {
    int64_t chunk = 0, before = 0;
};

// What a convolution sees: as many frames on both sides, those before alone, or those before and the later ones of the
// chunk (arXiv 2304.09325). A kernel is centred but for the second.
enum class Context { around, before, chunk };

// What streams remember, and room for what they will: keys and values (B, L, H, P, W), the newest last, and inputs of
// the convolutions (B, L, D, K - 1), or K / 2 where these see a chunk. Keys and values of a frame are numbers in bf16,
// in whatever they are kept.
struct Streams {
    const float *keys, *values, *convolution;
    float *keys_after, *values_after, *convolution_after;
    const int64_t* known;  // how many of the P are real
    int64_t past;          // P
    int64_t chunk;         // frames that the past moves by: `counts`, or more where a stream ends
};

class FastConformer {
  public:
    FastConformer(const Kernels* kernels, std::shared_ptr<Team> team, Shape shape, std::vector<FastLayer> layers,
                  const float* rates, Context context);

    // All layers, in place, on utterances that lie one behind the other in x (N, D). What an utterance becomes is the
    // same whatever the others are. With streams, the frames follow what these remember. `means`, where they are wanted,
    // take the mean frame of every utterance behind every layer (B, L, D), zero of one without frames.
    void encode(float* x, const int64_t* counts, int64_t utterances, Sight sight, const Streams* streams, float* means);

    const Shape shape;
    const int64_t margin;  // frames of silence, or of the past, before every utterance, for the convolution
    int64_t layers() const { return static_cast<int64_t>(layers_.size()); }

  private:
    // Queries of one utterance and head that attend together, to keys from `from` on, a multiple of 16.
    struct Unit {
        int64_t utterance, head, first, count, from, longest;
        size_t lengths;  // where those of its queries begin in `lengths_`, which count from `from` on
    };

    void prepare(const int64_t* counts, int64_t utterances, Sight sight, const Streams* streams);
    void divide();
    void know(int64_t longest);
    void recall(int thread, int64_t layer);
    void remember(int thread, int64_t layer);
    int64_t known(int64_t utterance) const { return streams_ ? streams_->known[utterance] : 0; }
    void work(int thread, float* x);
    // On the frames of a pass:
    void feed_forward(int thread, const FeedForward& forward, float* x, Range pass);
    void heads(int thread, const FastLayer& layer, const float* x, Range pass);
    void gate(int thread, const FastLayer& layer, float* x, Range pass);
    void convolve(int thread, const FastLayer& layer, float* x, Range pass);
    int64_t taps_of(int64_t frame, int64_t taps) const;
    void attend(int thread, const uint16_t* distances);
    void average(int thread, const float* x, int64_t layer);
    Tokens quantized(int thread, const float* x, int64_t width, const Norm* norm, int64_t count);
    void multiply(int thread, const Tokens& tokens, const Matrix& matrix, const Sink& sink);

    const Kernels* kernels_;
    std::shared_ptr<Team> team_;
    std::vector<FastLayer> layers_;
    const float* rates_;  // D / 2: radians per frame
    const Context context_;
    std::vector<Scratch<float>> attention_, biases_;  // one per thread
    Quantized shared_;
    Scratch<float> hidden_, mixed_, gated_;
    Scratch<uint16_t> queries_, by_distance_, keys_, values_;
    // The products with the signals of distances, as keys: H x blocks x (16 W) of each layer. They are the same for all
    // utterances, and are kept. Position p stands for the distance reach_ - 1 - p.
    std::vector<Scratch<uint16_t>> distances_;
    int64_t reach_ = 0;  // distances below this are known, to both sides
    // Of a call:
    const Streams* streams_ = nullptr;
    float* means_ = nullptr;
    Sight sight_;
    std::vector<int64_t> counts_, begins_;  // of utterances: their frames, the frames before them
    std::vector<int64_t> row_, position_;   // of frames: their utterances, their positions behind what is remembered
    std::vector<int64_t> lengths_;          // of the queries of units: they see the keys before
    std::vector<int64_t> starts_;           // of the same queries: they do not see the keys before
    std::vector<Unit> units_;
    int64_t blocks_ = 0;  // of 16 keys of every utterance
    CallLock calls_;
};

}  // namespace sprachbund
