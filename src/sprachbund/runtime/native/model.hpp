// Decoder and encoder: the order in which the kernels are called, and who does what when there are several threads.
//
// Shapes: B memories, R rows (row r reads memory r / (R / B)), Q tokens per row and step, N = R * Q, T frames, D width,
// H heads, W width of a head padded to 16, V vocabulary. Caches are blocks of 16 positions as kernels.hpp describes.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "kernels.hpp"
#include "team.hpp"

namespace sprachbund {

// 64-byte aligned scratch that only grows; what it holds does not outlive a call.
template <class T>
class Scratch {
  public:
    T* at_least(int64_t count) {
        int64_t units = (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 + 1;
        if (units > static_cast<int64_t>(units_.size())) units_ = std::vector<Unit>(static_cast<size_t>(units));
        return data();
    }
    T* data() { return reinterpret_cast<T*>(units_.data()); }

  private:
    struct alignas(64) Unit {
        unsigned char bytes[64];
    };
    std::vector<Unit> units_;
};

struct FeedForward {
    Norm norm;
    Matrix expand, contract;
};

struct EncoderLayer {
    Norm norm;
    Matrix heads;  // rows: queries, keys, values
    Matrix out;
    FeedForward feed_forward;
};

struct DecoderLayer {
    Norm self_norm;
    Matrix self_heads;  // rows: queries, keys, values
    Matrix self_out;
    Norm cross_norm;
    Matrix cross_query;
    Matrix cross_memory;  // rows: keys, values
    Matrix cross_out;
    FeedForward feed_forward;
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
};

struct Step {
    const int64_t* tokens;   // R x Q
    const int64_t* lengths;  // R: tokens that the rows hold already
    int64_t rows, queries;
    uint16_t* own;  // L x 2 x R x H x own_blocks x (16 W): keys, values
    int64_t own_blocks;
    const uint16_t* cross;  // L x 2 x B x H x cross_blocks x (16 W)
    const int64_t* frames;  // B
    int64_t memories, cross_blocks;
    float* logits;   // null, or N x V
    float* states;   // null, or N x D padded: what goes into the last norm
    float* weights;  // null, or L x B x H x (R / B * Q) x T
    int64_t weight_frames;
};

class Decoder {
  public:
    Decoder(const Kernels* kernels, std::shared_ptr<Team> team, Shape shape, std::vector<DecoderLayer> layers,
            Norm norm, Matrix vocabulary, const float* positions, int64_t memory_width);

    // Keys and values of B x T states for every layer, into L x 2 x B x H x blocks x (16 W) zeros.
    void remember(const float* states, int64_t memories, int64_t frames, uint16_t* cross, int64_t blocks);
    void step(const Step& step);
    // The last norm of N states (D padded), times a matrix: the whole vocabulary's where there is none.
    void logits(const float* states, int64_t count, const Matrix* matrix, float* out);

    const Shape shape;
    const int64_t vocabulary_size;
    int64_t layers() const { return static_cast<int64_t>(layers_.size()); }
    int64_t memory_width() const { return memory_width_; }

  private:
    void work(int thread, const Step& step);
    void embed(const Step& step, Range tokens);
    void attend_self(int thread, int64_t layer, const Step& step);
    void attend_cross(int thread, int64_t layer, const Step& step);
    Tokens quantized(int thread, const float* x, int64_t width, const Norm* norm, int64_t count);
    void multiply(int thread, const Tokens& tokens, const Matrix& matrix, const Sink& sink);
    float* attention_space(int thread, int64_t longest);

    const Kernels* kernels_;
    std::shared_ptr<Team> team_;
    std::vector<DecoderLayer> layers_;
    Norm norm_;
    Matrix vocabulary_;
    const float* positions_;
    int64_t memory_width_;
    std::vector<Quantized> quantized_;  // one per thread
    std::vector<Scratch<float>> attention_;
    Quantized shared_;
    Scratch<float> x_, mixed_, hidden_;
    Scratch<uint16_t> queries_;
    std::vector<int64_t> row_, position_, lengths_;
    std::mutex calls_;
};

class Encoder {
  public:
    Encoder(const Kernels* kernels, std::shared_ptr<Team> team, Shape shape, std::vector<EncoderLayer> layers,
            Norm norm);

    // All layers and the last norm on one utterance, x (T, D with rows padded to 16), in place.
    void encode(float* x, int64_t frames);

    const Shape shape;

  private:
    void work(int thread, float* x, int64_t frames);
    void heads(int thread, int64_t layer, float* x, Range chunk, const Heads& heads);
    void attend(int thread, const Heads& heads, int64_t frames);
    void rest(int thread, int64_t layer, float* x, Range chunk);

    const Kernels* kernels_;
    std::shared_ptr<Team> team_;
    std::vector<EncoderLayer> layers_;
    Norm norm_;
    std::vector<Quantized> quantized_;
    std::vector<Scratch<float>> attention_, hidden_;
    Scratch<float> mixed_;
    Scratch<uint16_t> queries_, keys_, values_;
    std::vector<int64_t> row_, position_, lengths_;
    std::mutex calls_;
};

}  // namespace sprachbund
