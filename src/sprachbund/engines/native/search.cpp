#include "search.hpp"

#include <algorithm>
#include <cstdlib>

namespace sprachbund {

int64_t TokenMap::follow(int64_t language, const int64_t* end) const {
    for (const Table& table : tables_) {
        int64_t number = language;
        for (const int64_t* token = end - table.order; token < end; token++)
            number = number * (vocabulary_size_ + 1) + *token;
        const int64_t* last = table.contexts + table.size;
        const int64_t* entry = std::lower_bound(table.contexts, last, number);
        if (entry < last && *entry == number) return table.followers[entry - table.contexts];
    }
    return -1;
}

bool Planted::fits(int64_t rows, const Decoder& decoder) const {
    for (const auto& text : texts) {
        for (int64_t token : text)
            if (token < 0 || token >= decoder.vocabulary_size) return false;
    }
    return texts.empty() || static_cast<int64_t>(texts.size()) == rows;
}

bool prompts_fit(const std::vector<int64_t>& prompts, int64_t rows, const int64_t* lengths) {
    if (static_cast<int64_t>(prompts.size()) != rows) return false;
    for (int64_t row = 0; row < rows; row++) {
        const int64_t prompt = prompts[static_cast<size_t>(row)];
        if (prompt < 0 || prompt >= lengths[row]) return false;
    }
    return true;
}

bool TokenMapDraft::fits(int64_t rows, const int64_t* lengths, const Decoder& decoder) const {
    return prompts_fit(prompts_, rows, lengths) && map_->vocabulary_size() <= decoder.vocabulary_size;
}

void TokenMapDraft::propose(const DecodingState& rows, const int64_t* wanted, int64_t most, int64_t* tokens,
                            int64_t* counts) {
    const int64_t order = map_->order();
    for (int64_t row = 0; row < rows.count; row++) {
        const size_t r = static_cast<size_t>(row);
        counts[row] = 0;
        if (languages_[r] < 0) continue;
        const int64_t written = std::min(order, std::max<int64_t>(0, rows.lengths[row] - prompts_[r]));
        context_.assign(static_cast<size_t>(order - written), map_->vocabulary_size());
        const int64_t* end = rows.of(row) + rows.lengths[row];
        context_.insert(context_.end(), end - written, end);
        for (; counts[row] < wanted[row]; counts[row]++) {
            const int64_t token = map_->follow(languages_[r], context_.data() + context_.size());
            if (token < 0) break;
            tokens[row * most + counts[row]] = token;
            context_.push_back(token);
        }
    }
}

TextDraft::TextDraft(std::vector<std::vector<int64_t>> texts, std::vector<int64_t> prompts)
    : texts_(std::move(texts)), prompts_(std::move(prompts)), position_(texts_.size(), 0), read_(prompts_) {}

bool TextDraft::fits(int64_t rows, const int64_t* lengths, const Decoder& decoder) const {
    for (const auto& text : texts_) {
        for (int64_t token : text)
            if (token < 0 || token >= decoder.vocabulary_size) return false;
    }
    return static_cast<int64_t>(texts_.size()) == rows && prompts_fit(prompts_, rows, lengths);
}

void TextDraft::propose(const DecodingState& rows, const int64_t* wanted, int64_t most, int64_t* tokens,
                        int64_t* counts) {
    for (int64_t row = 0; row < rows.count; row++) {
        const size_t r = static_cast<size_t>(row);
        counts[row] = 0;
        if (wanted[row] == 0) continue;
        const std::vector<int64_t>& text = texts_[r];
        const int64_t size = static_cast<int64_t>(text.size());
        for (; read_[r] < rows.lengths[row]; read_[r]++)
            position_[r] = find(row, rows.of(row) + read_[r] + 1, read_[r] + 1 - prompts_[r]);
        counts[row] = std::min(wanted[row], std::max<int64_t>(0, size - position_[r]));
        std::copy_n(text.data() + std::min(position_[r], size), counts[row], tokens + row * most);
    }
}

// The position behind the last of `written` tokens, which end before `end`.
int64_t TextDraft::find(int64_t row, const int64_t* end, int64_t written) const {
    const std::vector<int64_t>& text = texts_[static_cast<size_t>(row)];
    const int64_t size = static_cast<int64_t>(text.size()), expected = position_[static_cast<size_t>(row)] + 1;
    if (expected <= size && text[static_cast<size_t>(expected - 1)] == end[-1]) return expected;
    for (int64_t many = std::min<int64_t>(2, written); many > 0; many--) {
        int64_t best = -1;
        for (int64_t at = many; at <= size; at++) {
            if (std::equal(end - many, end, text.data() + at - many) &&
                (best < 0 || std::abs(at - expected) < std::abs(best - expected)))
                best = at;
        }
        if (best >= 0) return best;
    }
    return expected;  // as if this token were the one that was expected
}

bool HeadsDraft::fits(int64_t rows, const int64_t* lengths, const Decoder& decoder) const {
    return &decoder == decoder_ && planted_.fits(rows, decoder) && prompts_fit(prompts_, rows, lengths);
}

void HeadsDraft::propose(const DecodingState& rows, const int64_t* wanted, int64_t most, int64_t* tokens,
                         int64_t* counts) {
    const int64_t heads = std::min(most, static_cast<int64_t>(stacks_.size())), padded = up(decoder_->shape.width, 16);
    std::fill_n(counts, rows.count, 0);
    asked_.clear();
    for (int64_t row = 0; rows.states && row < rows.count; row++)
        if (wanted[row] > 0) asked_.push_back(row);
    if (asked_.empty() || heads == 0) return;
    states_.clear();
    for (int64_t row : asked_)
        states_.insert(states_.end(), rows.states + row * padded, rows.states + (row + 1) * padded);
    drafted_.resize(asked_.size() * static_cast<size_t>(heads));
    decoder_->draft({stacks_, states_.data(), asked_.data(), static_cast<int64_t>(asked_.size()), heads,
                     rows.suppressed, drafted_.data()});
    for (size_t i = 0; i < asked_.size(); i++) {
        const int64_t row = asked_[i], written = rows.lengths[row] - prompts_[static_cast<size_t>(row)];
        counts[row] = std::min(wanted[row], heads);
        for (int64_t head = 0; head < counts[row]; head++) {
            const int64_t own = drafted_[static_cast<size_t>(head) * asked_.size() + i];
            tokens[row * most + head] = planted_.instead(own, row, written + head);
        }
    }
}

bool JoinedDraft::fits(int64_t rows, const int64_t* lengths, const Decoder& decoder) const {
    for (const Part& part : parts_) {
        std::vector<int64_t> own;
        for (int64_t row : part.rows) {
            if (row < 0 || row >= rows) return false;
            own.push_back(lengths[row]);
        }
        if (part.most < 0 || !part.draft->fits(static_cast<int64_t>(own.size()), own.data(), decoder)) return false;
    }
    return true;
}

bool JoinedDraft::reads_states() const {
    return std::any_of(parts_.begin(), parts_.end(), [](const Part& part) { return part.draft->reads_states(); });
}

void JoinedDraft::propose(const DecodingState& rows, const int64_t* wanted, int64_t most, int64_t* tokens,
                          int64_t* counts) {
    std::fill_n(counts, rows.count, 0);
    for (const Part& part : parts_) {
        const int64_t count = static_cast<int64_t>(part.rows.size()), own_most = std::min(most, part.most);
        texts_.clear(), lengths_.clear(), wanted_.clear(), list_of_.clear(), states_.clear();
        const bool reads = rows.states && part.draft->reads_states();
        for (int64_t row : part.rows) {
            texts_.insert(texts_.end(), rows.of(row), rows.of(row) + rows.stride);
            lengths_.push_back(rows.lengths[row]);
            wanted_.push_back(std::min(wanted[row], own_most));
            list_of_.push_back(rows.suppressed->list_of[row]);
            if (reads)
                states_.insert(states_.end(), rows.states + row * rows.state_width,
                               rows.states + (row + 1) * rows.state_width);
        }
        const Suppressed suppressed{rows.suppressed->tokens, rows.suppressed->begins, list_of_.data()};
        DecodingState own = rows;
        own.tokens = texts_.data(), own.lengths = lengths_.data(), own.count = count;
        own.states = reads ? states_.data() : nullptr, own.suppressed = &suppressed;
        tokens_.resize(static_cast<size_t>(count * own_most));
        counts_.assign(static_cast<size_t>(count), 0);
        part.draft->propose(own, wanted_.data(), own_most, tokens_.data(), counts_.data());
        for (size_t i = 0; i < part.rows.size(); i++) {
            counts[part.rows[i]] = counts_[i];
            std::copy_n(tokens_.data() + static_cast<int64_t>(i) * own_most, counts_[i], tokens + part.rows[i] * most);
        }
    }
}

void Decoder::draft(const DraftTokens& draft) {
    const int64_t count = draft.rows * draft.heads, padded = up(shape.width, 16);
    shared_.at_least(count, padded);
    for (auto& q : quantized_) q.at_least(kQuantizedByEach, padded);
    float* x = x_.at_least(count * padded);
    float* hidden = hidden_.at_least(count * padded);
    float* logits = draft_logits_.at_least(count * vocabulary_size);
    for (int64_t head = 0; head < draft.heads; head++)
        std::copy_n(draft.states, draft.rows * padded, x + head * draft.rows * padded);
    kernels_->normalise(x, count, shape.width, padded, norm_);
    team_->run([&](int thread) {
        for (int64_t head = 0; head < draft.heads; head++) {
            float* own = x + head * draft.rows * padded;
            for (const Matrix& matrix : draft.stacks[static_cast<size_t>(head)]) {
                multiply(thread, quantized(thread, own, shape.width, nullptr, draft.rows), matrix,
                         {Then::silu, hidden, padded, nullptr, 0});
                const Range mine = team_->share(thread, draft.rows * padded);
                for (int64_t i = mine.begin; i < mine.end; i++) own[i] += hidden[i];
                team_->barrier();
            }
        }
        multiply(thread, quantized(thread, x, shape.width, nullptr, count), vocabulary_,
                 {Then::keep, logits, vocabulary_size, nullptr, 0});
        const Range mine = team_->share(thread, count);
        for (int64_t i = mine.begin; i < mine.end; i++) {
            float* own = logits + i * vocabulary_size;
            draft.suppressed->mask(draft.of_rows[i % draft.rows], own);
            draft.tokens[i] = kernels_->likeliest(own, vocabulary_size, nullptr);
        }
    });
}

namespace {

// What the timestamps of a row allow behind its newest token and behind each draft token after it, `count` in all.
void see_times(const Search& search, int64_t row, const int64_t* draft, int64_t count, std::vector<int64_t>* earliest,
               std::vector<Times::Due>* due) {
    const int64_t first = search.first_time;
    int64_t seen = first - 1;                // the latest so far
    bool last = false, second_last = true;  // as if a pair stood before the first token
    const auto see = [&](int64_t token) {
        seen = std::max(seen, token);
        second_last = last, last = token >= first;
    };
    const int64_t* text = search.tokens + row * search.stride;
    for (int64_t at = search.prompts[row]; at < search.lengths[row]; at++) {
        see(text[at]);
        if (at == search.prompts[row]) second_last = true;
    }
    for (int64_t i = 0; i < count; i++) {
        if (i > 0) see(draft[i - 1]);
        due->push_back(!last ? Times::any : second_last ? Times::text : Times::time_or_end);
        // No segment is empty, but one may begin where the one before it ended.
        earliest->push_back(seen + (due->back() == Times::time_or_end ? 0 : 1));
    }
}

}  // namespace

void Decoder::search(const Search& search, Draft* draft) {
    OneCall one_call(calls_);
    const int64_t rows = search.rows, most = search.most;
    const auto of = [](int64_t count) { return static_cast<size_t>(count); };
    std::vector<int64_t> room(search.room, search.room + rows), held(of(rows)), wanted(of(rows));
    std::vector<int64_t> drafted(of(rows)), counts(of(rows)), proposed(of(rows * most)), tokens, chosen;
    std::vector<float> log_probs;
    Scratch<float> logits;
    // Of the step and, behind the first, of every row where its newest token was chosen.
    const bool reads = draft && draft->reads_states();
    const int64_t padded = up(shape.width, 16);
    std::vector<float> states, newest(reads ? of(rows * padded) : 0);
    std::vector<int64_t> earliest;
    std::vector<Times::Due> due;
    bool one_ended = false;
    while (*search.passes < search.most_passes && !(search.until_end && one_ended)) {
        for (int64_t row = 0; row < rows; row++) {
            held[of(row)] = search.lengths[row] - 1;
            // Draft tokens for which there is room, in the row and in its cache.
            wanted[of(row)] = std::max<int64_t>(
                0, std::min({most, room[of(row)] - 1, search.capacity - search.lengths[row]}));
        }
        if (draft)
            draft->propose({search.tokens, search.stride, search.lengths, rows,
                            reads && *search.passes > 0 ? newest.data() : nullptr, &search.suppressed, padded,
                            search.own, search.own_blocks},
                           wanted.data(), most, proposed.data(), drafted.data());
        tokens.clear();
        for (int64_t row = 0; row < rows; row++) {
            counts[of(row)] = room[of(row)] > 0 ? 1 + drafted[of(row)] : 0;
            if (!counts[of(row)]) continue;
            tokens.push_back(search.tokens[row * search.stride + search.lengths[row] - 1]);
            tokens.insert(tokens.end(), proposed.data() + row * most, proposed.data() + row * most + drafted[of(row)]);
        }
        if (tokens.empty()) return;
        const int64_t count = static_cast<int64_t>(tokens.size());
        chosen.resize(tokens.size());
        log_probs.resize(tokens.size());
        Times times{search.first_time, search.latest_time, nullptr, nullptr};
        if (search.first_time >= 0) {
            earliest.clear(), due.clear();
            int64_t first = 0;
            for (int64_t row = 0; row < rows; first += counts[of(row)], row++)
                if (counts[of(row)]) see_times(search, row, tokens.data() + first + 1, counts[of(row)], &earliest, &due);
            times.earliest = earliest.data(), times.due = due.data();
        }
        const Choice choice{search.suppressed, search.end_token,   search.earliest_end,
                            chosen.data(),     log_probs.data(), search.first_time >= 0 ? &times : nullptr};
        Step step{};
        step.tokens = tokens.data(), step.counts = counts.data(), step.lengths = held.data(), step.rows = rows;
        step.own = search.own, step.own_blocks = search.own_blocks, step.cross = search.cross;
        step.frames = search.frames, step.memories = search.memories;
        step.logits = logits.at_least(count * vocabulary_size), step.choice = &choice;
        if (reads) states.resize(of(count * padded)), step.states = states.data();
        pass(step);
        ++*search.passes;
        int64_t first = 0;
        for (int64_t row = 0; row < rows; first += counts[of(row)], row++) {
            int64_t standing = 0, written = 0;
            while (standing < counts[of(row)] - 1 && tokens[of(first + standing + 1)] == chosen[of(first + standing)])
                standing++;
            const int64_t last = std::min(standing + 1, room[of(row)]);
            int64_t* end = search.tokens + row * search.stride + search.lengths[row];
            while (counts[of(row)] && written < last && !search.ended[row]) {
                search.log_probs[row] += log_probs[of(first + written)];
                search.ended[row] = chosen[of(first + written)] == search.end_token;
                end[written] = chosen[of(first + written)];
                written++;
            }
            if (reads && written)
                std::copy_n(states.data() + (first + written - 1) * padded, padded, newest.data() + row * padded);
            search.lengths[row] += written;
            search.checked[row] += std::min(written, drafted[of(row)]);
            if (counts[of(row)])
                for (int64_t k = 0; k <= std::min(standing, written); k++) search.accepted[row * (most + 1) + k]++;
            room[of(row)] = search.ended[row] ? 0 : room[of(row)] - written;
            one_ended = one_ended || (counts[of(row)] && room[of(row)] == 0);
        }
    }
}

}  // namespace sprachbund
