// Drafts that are decoders: a parasite, which reads the keys and values of the model, and a smaller model.
//
// Shapes: R rows, K draft tokens of a row at most, V vocabulary.
#pragma once
#include "search.hpp"

namespace sprachbund {

// The memory as a draft's own cross-attention reads it.
struct DraftMemory {
    Cross cross;
    const int64_t* frames;  // of each memory
    int64_t memories;
};

class DecoderDraft : public Draft {
  public:
    DecoderDraft(const Decoder* model, Decoder* own, DraftMemory memory, Planted planted, std::vector<int64_t> prompts)
        : model_(model),
          own_(own),
          memory_(memory),
          planted_(std::move(planted)),
          prompts_(std::move(prompts)),
          none_(prompts_.size(), 0) {}

    bool fits(int64_t rows, const int64_t* lengths, const Decoder& decoder) const override;

  protected:
    // Reads `read_` by `counts_` of each row behind `held_` tokens and puts the likeliest tokens of the rows into
    // `chosen_`, in the order of those that read any.
    void choose(const DecodingState& rows, uint16_t* cache, int64_t blocks, int64_t ahead);

    const Decoder* model_;
    Decoder* own_;
    DraftMemory memory_;
    Planted planted_;
    std::vector<int64_t> prompts_;
    std::vector<int64_t> read_, counts_, held_, chosen_;

  private:
    std::vector<int64_t> none_;
    Scratch<float> logits_;
};

// The parasite of arXiv 2508.11189: at each further token it runs again on its own, which has no keys to be seen.
class ParasiteDraft : public DecoderDraft {
  public:
    using DecoderDraft::DecoderDraft;
    void propose(const DecodingState& rows, const int64_t* wanted, int64_t most, int64_t* tokens,
                 int64_t* counts) override;
    bool reads_cache() const override { return true; }
};

// A smaller model with a cache of its own: L x 2 x R x H x blocks x (16 W), which holds `capacity` tokens of a row.
class ModelDraft : public DecoderDraft {
  public:
    ModelDraft(const Decoder* model, Decoder* own, DraftMemory memory, Planted planted, std::vector<int64_t> prompts,
               uint16_t* cache, int64_t blocks, int64_t capacity)
        : DecoderDraft(model, own, memory, std::move(planted), std::move(prompts)),
          cache_(cache),
          blocks_(blocks),
          capacity_(capacity),
          tokens_(prompts_.size()) {}

    void propose(const DecodingState& rows, const int64_t* wanted, int64_t most, int64_t* tokens,
                 int64_t* counts) override;

  private:
    uint16_t* cache_;
    int64_t blocks_, capacity_;
    std::vector<std::vector<int64_t>> tokens_;  // of each row, that the cache holds
};

}  // namespace sprachbund
