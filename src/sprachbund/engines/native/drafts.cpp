#include "drafts.hpp"

#include <algorithm>

namespace sprachbund {

bool DecoderDraft::fits(int64_t rows, const int64_t* lengths, const Decoder& decoder) const {
    return &decoder == model_ && rows % memory_.memories == 0 && planted_.fits(rows, decoder) &&
           prompts_fit(prompts_, rows, lengths);
}

void DecoderDraft::choose(const DecodingState& rows, uint16_t* cache, int64_t blocks, int64_t ahead) {
    const int64_t asked = std::count_if(counts_.begin(), counts_.end(), [](int64_t count) { return count > 0; });
    chosen_.resize(static_cast<size_t>(asked));
    const Choice choice{*rows.suppressed, 0, none_.data(), chosen_.data(), nullptr, nullptr};
    Step step{};
    step.tokens = read_.data(), step.counts = counts_.data(), step.lengths = held_.data(), step.rows = rows.count;
    step.own = cache, step.own_blocks = blocks, step.cross = memory_.cross;
    step.frames = memory_.frames, step.memories = memory_.memories;
    step.logits = logits_.at_least(asked * own_->vocabulary_size), step.choice = &choice;
    step.last = true, step.ahead = ahead;
    own_->step(step);
}

void ParasiteDraft::propose(const DecodingState& rows, const int64_t* wanted, int64_t most, int64_t* tokens,
                            int64_t* counts) {
    std::fill_n(counts, rows.count, 0);
    held_.assign(rows.lengths, rows.lengths + rows.count);
    for (int64_t& held : held_) held--;
    counts_.resize(static_cast<size_t>(rows.count));
    for (int64_t ahead = 0; ahead < most; ahead++) {
        read_.clear();
        for (int64_t row = 0; row < rows.count; row++) {
            counts_[static_cast<size_t>(row)] = wanted[row] > ahead;
            if (wanted[row] > ahead)
                read_.push_back(ahead ? tokens[row * most + ahead - 1] : rows.of(row)[rows.lengths[row] - 1]);
        }
        if (read_.empty()) return;
        choose(rows, rows.own, rows.own_blocks, ahead);
        auto chosen = chosen_.begin();
        for (int64_t row = 0; row < rows.count; row++) {
            if (wanted[row] <= ahead) continue;
            const int64_t position = rows.lengths[row] - prompts_[static_cast<size_t>(row)] + ahead;
            tokens[row * most + ahead] = planted_.instead(*chosen++, row, position);
            counts[row]++;
        }
    }
}

// Draft tokens that the model wrote are in the cache already; those behind the first other one are written over.
void ModelDraft::propose(const DecodingState& rows, const int64_t* wanted, int64_t most, int64_t* tokens,
                         int64_t* counts) {
    std::fill_n(counts, rows.count, 0);
    held_.assign(static_cast<size_t>(rows.count), 0);
    counts_.resize(static_cast<size_t>(rows.count));
    for (int64_t row = 0; row < rows.count; row++) {
        std::vector<int64_t>& held = tokens_[static_cast<size_t>(row)];
        const int64_t* written = rows.of(row);
        // The newest token is always read, for what comes behind it.
        const int64_t most_held = std::min<int64_t>(rows.lengths[row] - 1, static_cast<int64_t>(held.size()));
        const auto end = std::mismatch(held.begin(), held.begin() + most_held, written).first;
        held.erase(end, held.end());
    }
    for (int64_t ahead = 0; ahead < most; ahead++) {
        read_.clear();
        for (int64_t row = 0; row < rows.count; row++) {
            const size_t r = static_cast<size_t>(row);
            std::vector<int64_t>& held = tokens_[r];
            held_[r] = static_cast<int64_t>(held.size());
            counts_[r] = 0;
            if (wanted[row] <= ahead || rows.lengths[row] + ahead > capacity_) continue;
            if (ahead) {
                held.push_back(tokens[row * most + ahead - 1]);
            } else {
                held.insert(held.end(), rows.of(row) + held_[r], rows.of(row) + rows.lengths[row]);
            }
            counts_[r] = static_cast<int64_t>(held.size()) - held_[r];
            read_.insert(read_.end(), held.begin() + held_[r], held.end());
        }
        if (read_.empty()) return;
        choose(rows, cache_, blocks_, 0);
        auto chosen = chosen_.begin();
        for (int64_t row = 0; row < rows.count; row++) {
            const size_t r = static_cast<size_t>(row);
            if (!counts_[r]) continue;
            const int64_t position = rows.lengths[row] - prompts_[r] + ahead;
            tokens[row * most + ahead] = planted_.instead(*chosen++, row, position);
            counts[row]++;
        }
    }
}

}  // namespace sprachbund
