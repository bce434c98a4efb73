// FastConformer encoders that hear whole utterances (arXiv 2305.05084): layers of half a feed-forward, attention by
// content and by distance, convolution module, half a feed-forward, norm.
//
// Shapes: N frames of all utterances, D width, H heads, W = D / H width of a head. D and W are multiples of 16.
#pragma once
#include "model.hpp"

namespace sprachbund {

struct FastLayer {
    FeedForward first;
    Norm norm;  // before the attention
    Matrix query, key, value, distance, out;
    const float *content_bias, *distance_bias;  // H x W, added to queries
    Convolution convolution;                    // whose batch norm is part of taps and bias: its inner norm has no gain
    FeedForward last;
    Norm last_norm;
};

class FastConformer {
  public:
    FastConformer(const Kernels* kernels, std::shared_ptr<Team> team, Shape shape, std::vector<FastLayer> layers,
                  const float* rates);

    // All layers, in place, on utterances that lie one behind the other in x (N, D). What an utterance becomes is the
    // same whatever the others are.
    void encode(float* x, const int64_t* counts, int64_t utterances);

    const Shape shape;

  private:
    // Queries of one utterance and head that attend together.
    struct Unit {
        int64_t utterance, head, first, count;
    };

    void prepare(const int64_t* counts, int64_t utterances);
    void know(int64_t longest);
    void work(int thread, float* x);
    // On the frames of a pass:
    void feed_forward(int thread, const FeedForward& forward, float* x, Range pass);
    void heads(int thread, const FastLayer& layer, const float* x, Range pass);
    void gate(int thread, const FastLayer& layer, float* x, Range pass);
    void convolve(int thread, const FastLayer& layer, float* x, Range pass);
    void attend(int thread, const uint16_t* distances);
    Tokens quantized(int thread, const float* x, int64_t width, const Norm* norm, int64_t count);
    void multiply(int thread, const Tokens& tokens, const Matrix& matrix, const Sink& sink);

    const Kernels* kernels_;
    std::shared_ptr<Team> team_;
    std::vector<FastLayer> layers_;
    const float* rates_;  // D / 2: radians per frame
    int64_t margin_;      // frames of silence around every utterance in `gated_`, for the convolution
    std::vector<Scratch<float>> attention_, biases_;  // one per thread
    Quantized shared_;
    Scratch<float> hidden_, mixed_, gated_;
    Scratch<uint16_t> queries_, by_distance_, keys_, values_;
    // The products with the signals of distances, as keys: H x blocks x (16 W) of each layer. They are the same for all
    // utterances, and are kept. Place p stands for the distance reach_ - 1 - p.
    std::vector<Scratch<uint16_t>> distances_;
    int64_t reach_ = 0;  // distances below this are known, to both sides
    // Of a call:
    std::vector<int64_t> counts_, begins_;  // of utterances: their frames, the frames before them
    std::vector<int64_t> row_, position_;   // of frames: their utterances, their places there
    std::vector<int64_t> lengths_;          // of every query of a unit, utterance by utterance
    std::vector<Unit> units_;
    int64_t blocks_ = 0;  // of 16 keys of every utterance
    std::mutex calls_;
};

}  // namespace sprachbund
