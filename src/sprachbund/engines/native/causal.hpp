// Causal language models of the Llama kind: layers of RMSNorm, attention with rotary positions and grouped queries,
// RMSNorm and SwiGLU, behind prefixes that are read at once.
//
// Shapes: R rows, N new positions of all rows, D width, H heads, K heads of keys and values, G = H / K queries of each,
// E width of a head, W the same padded to 16, V vocabulary. Caches are blocks of 16 positions as kernels.hpp describes.
#pragma once
#include <initializer_list>

#include "model.hpp"

namespace sprachbund {

struct CausalShape {
    int64_t width;         // D
    int64_t inner_width;   // of the feed-forwards
    int64_t heads;         // H
    int64_t key_heads;     // K
    int64_t head_width;    // E
    float embedding_scale;
    float residual_scale;
    float attention_scale;

    int64_t wide() const { return up(head_width, 16); }
    int64_t group() const { return heads / key_heads; }
    int64_t parts() const { return heads + 2 * key_heads; }  // of a token: queries, keys, values
};

struct CausalLayer {
    Norm norm;
    Matrix query, key, value, out;
    std::optional<Norm> query_norm, key_norm;  // of each head
    Norm inner_norm;
    Matrix gate, up, down;
};

struct CausalStep {
    const float* embedded;  // N x D, row by row
    const int64_t* counts;  // R: new positions of each row; rows of none are left alone
    const int64_t* held;    // R: positions that the rows hold already
    int64_t rows;
    uint16_t* own;  // L x 2 x R x K x blocks x (16 W): keys, values
    int64_t blocks;
    float* logits;  // N x V, behind tokens; null for prefixes
};

class CausalLM {
  public:
    CausalLM(const Kernels* kernels, std::shared_ptr<Team> team, CausalShape shape, std::vector<CausalLayer> layers,
             Norm norm, Matrix vocabulary, const float* frequencies);

    // Keys and values of all new positions into the cache, and logits behind each. What a position gives is the same
    // whatever the other rows are, and so is what a token gives whatever comes with it.
    void step(const CausalStep& step);

    const CausalShape shape;
    const int64_t vocabulary_size;
    int64_t layers() const { return static_cast<int64_t>(layers_.size()); }

  private:
    // Queries of one row that attend together: those of a group at some positions.
    struct Unit {
        int64_t row, head;     // of keys
        int64_t first, count;  // positions of the pass
    };
    struct Part {
        const Matrix* matrix;
        Sink sink;
    };

    void prepare(Range positions);
    void work(int thread, const CausalStep& step, Range positions);
    void begin(const CausalStep& step, Range positions, Range mine);
    void store(int thread, const CausalLayer& layer, uint16_t* keys, uint16_t* values, int64_t blocks);
    void attend(int thread, const CausalStep& step, const uint16_t* keys, const uint16_t* values);
    Tokens quantized(int thread, const float* x, int64_t width, const Norm* norm);
    void multiply(int thread, const Tokens& tokens, std::initializer_list<Part> parts);

    const Kernels* kernels_;
    std::shared_ptr<Team> team_;
    std::vector<CausalLayer> layers_;
    Norm norm_;
    Matrix vocabulary_;
    const float* frequencies_;          // E / 2: radians per position
    std::vector<Quantized> quantized_;  // one per thread
    std::vector<Scratch<float>> attention_, attended_;
    Quantized shared_;
    Scratch<float> x_, projected_, turned_, mixed_, hidden_;
    Scratch<uint16_t> queries_;
    std::vector<int64_t> row_, position_;  // of all N
    // Of a pass:
    int64_t count_ = 0;
    std::vector<int64_t> of_row_, at_, lengths_;  // positions' rows, their indices there; positions that each query sees
    std::vector<Unit> units_;
    CallLock calls_;
};

}  // namespace sprachbund
