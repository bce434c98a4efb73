// Greedy search of all rows to their ends in one call, with or without a draft: every pass reads the newest token of each
// row and the draft tokens behind it, and every draft token is kept that the model would have written itself (arXiv
// 2211.17192 without sampling). Rows have lengths of their own, and draft tokens as many as their draft found.
//
// Shapes: R rows, U tokens of a row at most, K draft tokens of a row at most, V vocabulary.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "model.hpp"

namespace sprachbund {

// The rows as a draft sees them: prompts, what was written behind them, and the newest token, which no cache holds yet.
struct DecodingState {
    const int64_t* tokens;  // R x stride
    int64_t stride;
    const int64_t* lengths;  // R
    int64_t count;           // R
    const float* states;     // R x D padded: what went into the last norm where each newest token was chosen; null before
    const Suppressed* suppressed;
    int64_t state_width;  // D padded
    uint16_t* own;  // the model's cache, see Step: of every row all tokens but the newest
    int64_t own_blocks;

    const int64_t* of(int64_t row) const { return tokens + row * stride; }
};

class Draft {
  public:
    virtual ~Draft() = default;
    // Whether it was made for rows of these lengths and for this decoder or its vocabulary.
    virtual bool fits(int64_t rows, const int64_t* lengths, const Decoder& decoder) const = 0;
    // Tokens that may follow each row, up to wanted[row] of them, into tokens (R x K), and how many there are.
    virtual void propose(const DecodingState& rows, const int64_t* wanted, int64_t most, int64_t* tokens,
                         int64_t* counts) = 0;
    virtual bool reads_states() const { return false; }
    // Whether it reads the model's cache, in which its rows have to be neighbours.
    virtual bool reads_cache() const { return false; }
};

// What most often followed the last tokens in texts of a language: contexts as sorted numbers with the digits language,
// t1 .. tn in base V + 1; the digit V stands before the first token of a text. The longest context that was seen decides.
class TokenMap {
  public:
    struct Table {
        int64_t order;  // tokens of a context
        const int64_t* contexts;
        const int32_t* followers;
        int64_t size;
    };

    // Tables with the longest contexts first.
    TokenMap(std::vector<Table> tables, int64_t vocabulary_size)
        : tables_(std::move(tables)), vocabulary_size_(vocabulary_size) {}

    // The token behind the last `order()` tokens, which end before `end`; -1 where nothing like it was seen.
    int64_t follow(int64_t language, const int64_t* end) const;
    int64_t order() const { return tables_.front().order; }
    int64_t vocabulary_size() const { return vocabulary_size_; }

  private:
    std::vector<Table> tables_;
    int64_t vocabulary_size_;
};

// Texts of every row whose tokens are proposed in place of a draft's own, for measurements; or none.
struct Planted {
    std::vector<std::vector<int64_t>> texts;

    bool fits(int64_t rows, const Decoder& decoder) const;
    // The token at a position of a row's text; the draft's own behind its end.
    int64_t instead(int64_t own, int64_t row, int64_t position) const {
        if (texts.empty()) return own;
        const auto& text = texts[static_cast<size_t>(row)];
        return static_cast<size_t>(position) < text.size() ? text[static_cast<size_t>(position)] : own;
    }
};

// No prompt is longer than its row, which has its newest token behind it.
bool prompts_fit(const std::vector<int64_t>& prompts, int64_t rows, const int64_t* lengths);

class TokenMapDraft : public Draft {
  public:
    // Of each row: the language's number in the map, -1 for none; tokens of the prompt, which no text has.
    TokenMapDraft(const TokenMap* map, std::vector<int64_t> languages, std::vector<int64_t> prompts)
        : map_(map), languages_(std::move(languages)), prompts_(std::move(prompts)) {}

    bool fits(int64_t rows, const int64_t* lengths, const Decoder& decoder) const override;
    void propose(const DecodingState& rows, const int64_t* wanted, int64_t most, int64_t* tokens,
                 int64_t* counts) override;

  private:
    const TokenMap* map_;
    std::vector<int64_t> languages_, prompts_;
    std::vector<int64_t> context_;
};

// A whole text for every row, of which the model may write more, less or something else: after a token that is not in
// the text, what comes next is looked up by the last tokens, nearest to where it was left.
class TextDraft : public Draft {
  public:
    TextDraft(std::vector<std::vector<int64_t>> texts, std::vector<int64_t> prompts);

    bool fits(int64_t rows, const int64_t* lengths, const Decoder& decoder) const override;
    void propose(const DecodingState& rows, const int64_t* wanted, int64_t most, int64_t* tokens,
                 int64_t* counts) override;

  private:
    int64_t find(int64_t row, const int64_t* end, int64_t written) const;

    std::vector<std::vector<int64_t>> texts_;
    std::vector<int64_t> prompts_;
    std::vector<int64_t> position_;  // in each text: the token that is expected next
    std::vector<int64_t> read_;   // of each row: tokens of it for which the position is right
};

// Medusa heads (arXiv 2401.10774, section 2.1): stacks of x + SiLU(W x) on the normed state, each for one token further.
// All of them go through the output matrix together, which is then read once.
class HeadsDraft : public Draft {
  public:
    HeadsDraft(Decoder* decoder, std::vector<std::vector<Matrix>> stacks, Planted planted,
               std::vector<int64_t> prompts)
        : decoder_(decoder), stacks_(std::move(stacks)), planted_(std::move(planted)), prompts_(std::move(prompts)) {}

    bool fits(int64_t rows, const int64_t* lengths, const Decoder& decoder) const override;
    void propose(const DecodingState& rows, const int64_t* wanted, int64_t most, int64_t* tokens,
                 int64_t* counts) override;
    bool reads_states() const override { return true; }

  private:
    Decoder* decoder_;
    std::vector<std::vector<Matrix>> stacks_;
    Planted planted_;
    std::vector<int64_t> prompts_;
    std::vector<float> states_;
    std::vector<int64_t> asked_, drafted_;
};

// The drafts of several searches whose rows share one, each with rows of its own; none that reads the model's cache.
class JoinedDraft : public Draft {
  public:
    struct Part {
        Draft* draft;
        std::vector<int64_t> rows;  // of the search that they share, in the draft's order
        int64_t most;               // draft tokens of a row and pass
    };

    explicit JoinedDraft(std::vector<Part> parts) : parts_(std::move(parts)) {}

    bool fits(int64_t rows, const int64_t* lengths, const Decoder& decoder) const override;
    void propose(const DecodingState& rows, const int64_t* wanted, int64_t most, int64_t* tokens,
                 int64_t* counts) override;
    bool reads_states() const override;

  private:
    std::vector<Part> parts_;
    std::vector<int64_t> texts_, lengths_, wanted_, list_of_, tokens_, counts_;  // of a part
    std::vector<float> states_;
};

struct Search {
    int64_t* tokens;  // R x stride: prompts and newest tokens; what is written goes behind them
    int64_t stride;
    int64_t* lengths;    // R, the newest token included
    const int64_t* room;  // R: most tokens that are still to come; 0 for a finished row
    double* log_probs;    // R: those of the tokens written are added
    bool* ended;          // R: set where the end token was written
    Suppressed suppressed;
    int64_t end_token;
    const int64_t* earliest_end;  // see Choice
    int64_t most;                 // K
    int64_t* checked;             // R: draft tokens that the model has checked
    int64_t* accepted;            // R x (K + 1): passes of a row in which at least 0, 1, .. draft tokens were accepted
    int64_t most_passes;          // after which the rows are left as they are
    bool until_end;               // or after a pass in which one ended or had no room left
    int64_t first_time;           // of the vocabulary's timestamps; -1 where no row has any
    const int64_t* latest_time;   // R, see Times
    const int64_t* prompts;       // R: tokens of the prompts, among which timestamps do not count
    int64_t* passes;
    int64_t rows, capacity;  // tokens that a row's cache can hold
    uint16_t* own;
    int64_t own_blocks;
    Cross cross;
    const int64_t* frames;
    int64_t memories;
};

}  // namespace sprachbund
