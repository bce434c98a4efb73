// The interface to Python. Every array is checked here and in weights.hpp, so that nothing behind it has to; the computation
// runs without Python's lock.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <optional>
#include <string>

#include "causal.hpp"
#include "drafts.hpp"
#include "fastconformer.hpp"
#include "faststem.hpp"
#include "peak.hpp"
#include "weights.hpp"

namespace nb = nanobind;

namespace sprachbund {
namespace {

// Products read as many inputs as the matrix has; nothing may be narrower than that.
void check_hidden(const FeedForward& f) {
    if (f.contract.steps * 4 > f.expand.blocks * 16)
        throw nb::value_error("a feed-forward contracts more than it expands");
}

template <class Layer>
int64_t widest(const std::vector<Layer>& layers) {
    int64_t most = 0;
    for (const Layer& layer : layers) {
        check_hidden(layer.feed_forward);
        most = std::max(most, layer.feed_forward.expand.blocks * 16);
    }
    return most;
}

struct PyDecoder {
    Weights weights;
    int64_t max_tokens;
    std::unique_ptr<Decoder> decoder;

    PyDecoder(const nb::dict& arrays, const std::string& isa, std::shared_ptr<Team> team, int64_t width, int64_t heads,
              int64_t head_width, int64_t num_layers, const std::string& activation, int64_t vocabulary_size,
              int64_t max_tokens_, int64_t memory_width, float embedding_scale, const Lengths& groups)
        : weights(arrays), max_tokens(max_tokens_) {
        Shape shape{width, heads, head_width, 0};
        const int64_t all = shape.all_heads(), parts = groups.empty() ? 3 : 1;
        if (!groups.empty() && static_cast<int64_t>(groups.size()) != num_layers + 1)
            throw nb::value_error("every block reads a group of layers");
        std::vector<DecoderLayer> layers;
        for (int64_t i = 0; i < num_layers; i++) {
            const std::string at = "layers." + std::to_string(i) + ".";
            const bool norms = groups.empty() || weights.has(at + "self_norm.gain");
            layers.push_back({norms ? weights.norm(at + "self_norm", width) : Norm{},
                              weights.matrix(at + "self_heads", parts * all, width),
                              weights.matrix(at + "self_out", width, all), weights.norm(at + "cross_norm", width),
                              weights.matrix(at + "cross_query", all, width),
                              weights.matrix(at + "cross_memory", 2 * all, memory_width),
                              weights.matrix(at + "cross_out", width, all),
                              weights.feed_forward(at + "feed_forward", width, activation_named(activation)),
                              std::nullopt});
            if (groups.empty()) continue;
            const int64_t first = groups[static_cast<size_t>(i)], last = groups[static_cast<size_t>(i + 1)];
            if (first < 0 || last <= first) throw nb::value_error("a block reads no layers");
            layers.back().reader = Reader{first, last - first, norms, weights.norm(at + "read_norm", width)};
        }
        shape.hidden = widest(layers);
        const Matrix vocabulary = weights.matrix("vocabulary", vocabulary_size, width, false);
        if (!vocabulary.values) throw nb::value_error("an output matrix has 8 bits, as its rows are the embeddings");
        Embedding embedding{embedding_scale, std::nullopt};
        if (weights.has("embedding_norm.gain")) embedding.norm = weights.norm("embedding_norm", width);
        decoder = std::make_unique<Decoder>(chosen(isa), std::move(team), shape, std::move(layers),
                                            weights.norm("norm", width), vocabulary,
                                            weights.get<float>("positions", {max_tokens, width}), memory_width,
                                            embedding);
    }

    void remember(const Array<const float>& states, const AnyOut& cross, const std::optional<Array<float>>& scales) {
        const int64_t memories = length(states, 0, "states"), frames = length(states, 1, "states");
        expect(states, {memories, frames, up(decoder->memory_width(), 16)}, "states");
        const Cross into = cross_of(cross, scales, memories);
        if (into.blocks * 16 < frames) throw nb::value_error("the cache has less room than there are frames");
        nb::gil_scoped_release free;
        if (memories * frames > 0) decoder->remember(states.data(), memories, frames, into);
    }

    void step(const Array<const int64_t>& tokens, const Array<const int64_t>& lengths, const Array<int16_t>& own,
              const AnyOut& cross, const std::optional<Array<float>>& scales, const Array<const int64_t>& frames,
              const std::optional<Array<float>>& logits, const std::optional<Array<float>>& attention,
              const std::optional<Array<float>>& states) {
        check_own();
        Step s{};
        s.rows = length(tokens, 0, "tokens");
        const int64_t queries = length(tokens, 1, "tokens");
        const std::vector<int64_t> counts(static_cast<size_t>(s.rows), queries);
        s.counts = counts.data();
        s.memories = length(frames, 0, "frames");
        s.own_blocks = length(own, 4, "own");
        if (s.memories < 1 || s.rows % s.memories) throw nb::value_error("rows are not a multiple of memories");
        expect(lengths, {s.rows}, "lengths");
        expect(own, cache(s.rows, s.own_blocks), "own");
        s.cross = cross_of(cross, scales, s.memories);
        if (logits) {
            expect(*logits, {s.rows, queries, decoder->vocabulary_size}, "logits");
            s.logits = logits->data();
        }
        if (states) {
            expect(*states, {s.rows, queries, up(decoder->shape.width, 16)}, "states");
            s.states = states->data();
        }
        s.tokens = tokens.data(), s.lengths = lengths.data(), s.frames = frames.data();
        s.own = reinterpret_cast<uint16_t*>(own.data());
        check_tokens(s.tokens, s.rows * queries);
        for (int64_t r = 0; r < s.rows; r++) check_length(s.lengths[r], queries, s.own_blocks);
        check_frames(s.frames, s.memories, s.cross);
        if (attention) {
            s.weight_frames = length(*attention, 4, "attention");
            expect(
                *attention,
                {decoder->layers(), s.memories, decoder->shape.heads, s.rows / s.memories * queries, s.weight_frames},
                "attention");
            s.weights = attention->data();
        }
        nb::gil_scoped_release free;
        decoder->step(s);
    }

    // Returns the number of passes.
    int64_t search(const Array<int64_t>& tokens, const Array<int64_t>& lengths, const Array<const int64_t>& room,
                   const Array<double>& log_probs, const Array<bool>& ended, const Array<const int64_t>& suppressed,
                   const Array<const int64_t>& begins, const Array<const int64_t>& list_of, int64_t end_token,
                   const Array<const int64_t>& earliest_end, int64_t most, int64_t most_passes,
                   const Array<int64_t>& checked, const Array<int64_t>& accepted, int64_t capacity, const Array<int16_t>& own, const AnyOut& cross,
                   const std::optional<Array<float>>& scales, const Array<const int64_t>& frames, bool until_end,
                   int64_t first_time, const Array<const int64_t>& latest_time, const Array<const int64_t>& prompts,
                   Draft* draft) {
        check_own();
        Search s{};
        s.rows = length(tokens, 0, "tokens"), s.stride = length(tokens, 1, "tokens");
        s.memories = length(frames, 0, "frames"), s.own_blocks = length(own, 4, "own");
        if (s.memories < 1 || s.rows % s.memories) throw nb::value_error("rows are not a multiple of memories");
        expect(own, cache(s.rows, s.own_blocks), "own");
        s.cross = cross_of(cross, scales, s.memories);
        check_frames(frames.data(), s.memories, s.cross);
        expect(lengths, {s.rows}, "lengths");
        expect(room, {s.rows}, "room");
        expect(log_probs, {s.rows}, "log_probs");
        expect(ended, {s.rows}, "ended");
        expect(list_of, {s.rows}, "list_of");
        expect(earliest_end, {s.rows}, "earliest_end");
        expect(checked, {s.rows}, "checked");
        expect(latest_time, {s.rows}, "latest_time");
        expect(prompts, {s.rows}, "prompts");
        if (first_time < -1 || first_time > decoder->vocabulary_size)
            throw nb::value_error("the timestamps are outside the vocabulary");
        if (most < 0) throw nb::value_error("a negative number of draft tokens");
        expect(accepted, {s.rows, most + 1}, "accepted");
        for (int64_t r = 0; r < s.rows; r++) {
            const int64_t held = lengths.data()[r], more = room.data()[r];
            if (held < 1 || held > s.stride || more < 0 || more > s.stride - held || more - 1 > capacity - held)
                throw nb::value_error("more tokens than a row has room for");
            if (prompts.data()[r] < 0 || prompts.data()[r] > lengths.data()[r])
                throw nb::value_error("a prompt is longer than its row");
            check_length(0, capacity, s.own_blocks);
            check_tokens(tokens.data() + r * s.stride, lengths.data()[r]);
        }
        check_tokens(suppressed.data(), length(suppressed, 0, "suppressed"));
        check_tokens(&end_token, 1);
        check_lists(length(suppressed, 0, "suppressed"), begins, list_of);
        if (draft && !draft->fits(s.rows, lengths.data(), *decoder))
            throw nb::value_error("the draft is for other rows, or another model");
        int64_t passes = 0;
        s.tokens = tokens.data(), s.lengths = lengths.data(), s.room = room.data(), s.log_probs = log_probs.data();
        s.ended = ended.data(), s.suppressed = {suppressed.data(), begins.data(), list_of.data()};
        s.until_end = until_end, s.first_time = first_time, s.prompts = prompts.data();
        s.latest_time = latest_time.data();
        s.end_token = end_token, s.earliest_end = earliest_end.data(), s.most = most;
        s.checked = checked.data(), s.accepted = accepted.data(), s.passes = &passes, s.most_passes = most_passes, s.capacity = capacity;
        s.own = reinterpret_cast<uint16_t*>(own.data()), s.frames = frames.data();
        {
            nb::gil_scoped_release free;
            decoder->search(s, draft);
        }
        return passes;
    }

    void logits(const Array<const float>& states, const Array<float>& out, const std::optional<nb::dict>& matrix) {
        const int64_t count = length(states, 0, "states"), padded = up(decoder->shape.width, 16);
        expect(states, {count, padded}, "states");
        const int64_t rows = matrix ? length(out, 1, "logits") : decoder->vocabulary_size;
        expect(out, {count, rows}, "logits");
        const Weights own(matrix ? *matrix : nb::dict());
        Matrix chosen{};
        if (matrix) chosen = own.matrix("matrix", rows, decoder->shape.width, false);
        const float* from = states.data();
        float* to = out.data();
        const bool restricted = matrix.has_value();
        nb::gil_scoped_release free;
        if (count > 0) decoder->logits(from, count, restricted ? &chosen : nullptr, to);
    }

    // A draft's memory, whose arrays its maker keeps alive.
    DraftMemory memory_of(const AnyOut& cross, const std::optional<Array<float>>& scales,
                          const Array<const int64_t>& frames) const {
        const int64_t memories = length(frames, 0, "frames");
        if (memories < 1) throw nb::value_error("a draft without a memory");
        const DraftMemory memory{cross_of(cross, scales, memories), frames.data(), memories};
        check_frames(memory.frames, memories, memory.cross);
        return memory;
    }

    Lengths cache(int64_t rows, int64_t blocks) const {
        return {decoder->layers(), 2, rows, decoder->shape.heads, blocks, 16 * decoder->shape.padded_head()};
    }

  private:
    void check_own() const {
        if (decoder->reads()) throw nb::value_error("a parasite has no keys and values of its own");
    }

    Cross cross_of(const AnyOut& array, const std::optional<Array<float>>& scales, int64_t memories) const {
        const int64_t blocks = length(array, 4, "cross");
        expect(array, cache(memories, blocks), "cross");
        if (!scales) {
            if (array.dtype() != nb::dtype<int16_t>()) throw nb::value_error("keys without scales are in 16 bits");
            return {static_cast<uint16_t*>(array.data()), nullptr, nullptr, blocks};
        }
        if (array.dtype() != nb::dtype<int8_t>()) throw nb::value_error("keys with scales are in 8 bits");
        if (decoder->shape.padded_head() > kWidestEight) throw nb::value_error("its heads are too wide for 8 bits");
        expect(*scales, {decoder->layers(), 3, memories, decoder->shape.heads, blocks * 16}, "scales");
        return {nullptr, static_cast<int8_t*>(array.data()), scales->data(), blocks};
    }

    void check_tokens(const int64_t* tokens, int64_t count) const {
        for (int64_t i = 0; i < count; i++) {
            if (tokens[i] < 0 || tokens[i] >= decoder->vocabulary_size)
                throw nb::index_error("a token is outside the vocabulary");
        }
    }

    // Whether there is room for `more` tokens behind those that a row holds. No sum, which could be beyond all numbers.
    void check_length(int64_t held, int64_t more, int64_t own_blocks) const {
        if (held < 0 || more > std::min(own_blocks * 16, max_tokens) - held)
            throw nb::value_error("more tokens than the cache can hold");
    }

    void check_lists(int64_t count, const Array<const int64_t>& begins, const Array<const int64_t>& list_of) const {
        const int64_t lists = length(begins, 0, "begins") - 1;
        for (int64_t i = 0; i <= lists; i++) {
            if (begins.data()[i] < (i ? begins.data()[i - 1] : 0) || begins.data()[i] > count)
                throw nb::value_error("lists of suppressed tokens run backwards");
        }
        for (int64_t r = 0; r < length(list_of, 0, "list_of"); r++) {
            if (list_of.data()[r] < 0 || list_of.data()[r] >= lists)
                throw nb::index_error("a row's list of suppressed tokens is not there");
        }
    }

    void check_frames(const int64_t* frames, int64_t memories, const Cross& cross) const {
        for (int64_t b = 0; b < memories; b++) {
            if (frames[b] < 0 || frames[b] > cross.blocks * 16)
                throw nb::value_error("more frames than the memory has");
        }
    }
};

struct PyTokenMap {
    std::vector<std::pair<Array<const int64_t>, Array<const int32_t>>> arrays;  // they stay alive as long as this
    std::unique_ptr<TokenMap> map;

    PyTokenMap(const nb::dict& tables, int64_t vocabulary_size) {
        std::vector<TokenMap::Table> all;
        if (vocabulary_size < 1) throw nb::value_error("a token map without a vocabulary");
        for (auto [order, pair] : tables) {
            const nb::tuple both = nb::cast<nb::tuple>(pair);
            arrays.emplace_back(nb::cast<Array<const int64_t>>(both[0]), nb::cast<Array<const int32_t>>(both[1]));
            const auto& [contexts, followers] = arrays.back();
            const int64_t size = length(contexts, 0, "contexts");
            expect(contexts, {size}, "contexts");
            expect(followers, {size}, "followers");
            for (int64_t i = 0; i < size; i++) {
                if (followers.data()[i] < 0 || followers.data()[i] >= vocabulary_size)
                    throw nb::index_error("a follower is outside the vocabulary");
            }
            all.push_back({nb::cast<int64_t>(order), contexts.data(), followers.data(), size});
            if (all.back().order < 1 || (all.size() > 1 && all.back().order >= all[all.size() - 2].order))
                throw nb::value_error("tables come with the longest contexts first");
        }
        if (all.empty()) throw nb::value_error("a token map without tables");
        map = std::make_unique<TokenMap>(std::move(all), vocabulary_size);
    }
};

// Medusa heads of a decoder, as arrays "HEAD.BLOCK" of matrices.
struct PyHeads {
    Weights weights;
    std::vector<std::vector<Matrix>> stacks;

    PyHeads(const nb::dict& arrays, int64_t heads, int64_t blocks, int64_t width) : weights(arrays) {
        for (int64_t head = 0; head < heads; head++) {
            stacks.emplace_back();
            for (int64_t block = 0; block < blocks; block++)
                stacks.back().push_back(
                    weights.matrix(std::to_string(head) + "." + std::to_string(block), width, width));
        }
    }
};

void make_heads_draft(HeadsDraft* at, const PyDecoder& decoder, const PyHeads& heads,
                      std::vector<std::vector<int64_t>> planted, Lengths prompts) {
    for (const auto& stack : heads.stacks) {
        for (const Matrix& matrix : stack)
            if (matrix.rows != up(decoder.decoder->shape.width, 16))
                throw nb::value_error("the heads are of another width than the decoder");
    }
    new (at) HeadsDraft(decoder.decoder.get(), heads.stacks, {std::move(planted)}, std::move(prompts));
}

void make_parasite_draft(ParasiteDraft* at, const PyDecoder& model, const PyDecoder& own, const AnyOut& cross,
                         const std::optional<Array<float>>& scales, const Array<const int64_t>& frames,
                         std::vector<std::vector<int64_t>> planted, Lengths prompts) {
    const Shape &theirs = model.decoder->shape, &ours = own.decoder->shape;
    const int64_t reads = own.decoder->reads();
    if (!reads || reads > model.decoder->layers() || theirs.width != ours.width || theirs.heads != ours.heads ||
        theirs.head_width != ours.head_width || model.max_tokens > own.max_tokens ||
        model.decoder->vocabulary_size != own.decoder->vocabulary_size)
        throw nb::value_error("the parasite is for another decoder");
    new (at) ParasiteDraft(model.decoder.get(), own.decoder.get(), own.memory_of(cross, scales, frames),
                           {std::move(planted)}, std::move(prompts));
}

void make_model_draft(ModelDraft* at, const PyDecoder& model, const PyDecoder& own, const Array<int16_t>& cache,
                      const AnyOut& cross, const std::optional<Array<float>>& scales,
                      const Array<const int64_t>& frames, int64_t capacity, std::vector<std::vector<int64_t>> planted,
                      Lengths prompts) {
    const int64_t blocks = length(cache, 4, "own");
    if (own.decoder->reads() || model.decoder->vocabulary_size != own.decoder->vocabulary_size)
        throw nb::value_error("the draft model has another vocabulary");
    expect(cache, own.cache(static_cast<int64_t>(prompts.size()), blocks), "own");
    if (capacity < 0 || capacity > std::min(blocks * 16, own.max_tokens))
        throw nb::value_error("more tokens than the cache can hold");
    new (at) ModelDraft(model.decoder.get(), own.decoder.get(), own.memory_of(cross, scales, frames),
                        {std::move(planted)}, std::move(prompts), reinterpret_cast<uint16_t*>(cache.data()), blocks,
                        capacity);
}

void make_token_map_draft(TokenMapDraft* at, const PyTokenMap& map, Lengths languages, Lengths prompts) {
    if (languages.size() != prompts.size()) throw nb::value_error("languages and prompts are not as many");
    new (at) TokenMapDraft(map.map.get(), std::move(languages), std::move(prompts));
}

struct PyJoinedDraft : JoinedDraft {
    std::vector<nb::object> drafts;  // of the parts, which stay alive as long as this

    PyJoinedDraft(std::vector<Part> parts, std::vector<nb::object> drafts)
        : JoinedDraft(std::move(parts)), drafts(std::move(drafts)) {}
};

// Parts are (draft, its rows, draft tokens at most).
void make_joined_draft(PyJoinedDraft* at, const nb::list& parts) {
    std::vector<JoinedDraft::Part> all;
    std::vector<nb::object> drafts;
    for (nb::handle part : parts) {
        const nb::tuple three = nb::cast<nb::tuple>(part);
        if (!nb::isinstance<Draft>(three[0])) throw nb::type_error("a part to be joined is no draft");
        all.push_back({nb::cast<Draft*>(three[0]), nb::cast<Lengths>(three[1]), nb::cast<int64_t>(three[2])});
        if (all.back().draft->reads_cache())
            throw nb::value_error("a draft that reads the model's cache cannot be joined with others");
        drafts.push_back(nb::borrow(three[0]));
    }
    new (at) PyJoinedDraft(std::move(all), std::move(drafts));
}

// A single proposal, for tests: `most` tokens of every row, into `out` (R x K), -1 where there is none.
void py_propose(Draft& draft, const PyDecoder& model, const Array<const int64_t>& tokens,
                const Array<const int64_t>& lengths, const Array<int16_t>& own, const Array<int64_t>& out) {
    const int64_t rows = length(tokens, 0, "tokens"), most = length(out, 1, "out");
    const int64_t blocks = length(own, 4, "own"), stride = length(tokens, 1, "tokens");
    expect(lengths, {rows}, "lengths");
    expect(out, {rows, most}, "out");
    expect(own, model.cache(rows, blocks), "own");
    for (int64_t row = 0; row < rows; row++) {
        const int64_t count = lengths.data()[row];
        if (count < 1 || count > stride || count + most - 1 > std::min(blocks * 16, model.max_tokens))
            throw nb::value_error("more tokens than a row has room for");
        for (int64_t i = 0; i < count; i++) {
            const int64_t token = tokens.data()[row * stride + i];
            if (token < 0 || token >= model.decoder->vocabulary_size)
                throw nb::index_error("a token is outside the vocabulary");
        }
    }
    if (!draft.fits(rows, lengths.data(), *model.decoder))
        throw nb::value_error("the draft is for other rows, or another model");
    const std::vector<int64_t> wanted(static_cast<size_t>(rows), most), nothing(static_cast<size_t>(rows), 0);
    const std::vector<int64_t> begins{0, 0};
    std::vector<int64_t> counts(static_cast<size_t>(rows));
    const Suppressed suppressed{nothing.data(), begins.data(), nothing.data()};
    draft.propose({tokens.data(), stride, lengths.data(), rows, nullptr, &suppressed, up(model.decoder->shape.width, 16),
                   reinterpret_cast<uint16_t*>(own.data()), blocks},
                  wanted.data(), most, out.data(), counts.data());
    for (int64_t row = 0; row < rows; row++)
        std::fill(out.data() + row * most + counts[static_cast<size_t>(row)], out.data() + (row + 1) * most, -1);
}

struct PyEncoder {
    Weights weights;
    std::unique_ptr<Encoder> encoder;

    PyEncoder(const nb::dict& arrays, const std::string& isa, std::shared_ptr<Team> team, int64_t width, int64_t heads,
              int64_t head_width, int64_t num_layers, const std::string& activation, int64_t kernel_size)
        : weights(arrays) {
        if (kernel_size != 0 && (kernel_size < 0 || kernel_size % 2 == 0))
            throw nb::value_error("a kernel needs a centre");
        Shape shape{width, heads, head_width, 0};
        const Then then = activation_named(activation);
        const int64_t all = shape.all_heads();
        std::vector<EncoderLayer> layers;
        for (int64_t i = 0; i < num_layers; i++) {
            const std::string at = "layers." + std::to_string(i) + ".";
            layers.push_back({weights.norm(at + "self_norm", width), weights.matrix(at + "self_heads", 3 * all, width),
                              weights.matrix(at + "self_out", width, all),
                              weights.feed_forward(at + "feed_forward", width, then), std::nullopt});
            if (kernel_size > 0) {
                EncoderLayer& layer = layers.back();
                layer.conformer = weights.conformer(at, width, kernel_size, then);
                check_hidden(layer.conformer->first);
                shape.hidden = std::max(shape.hidden, layer.conformer->first.expand.blocks * 16);
            }
        }
        shape.hidden = std::max(shape.hidden, widest(layers));
        std::optional<Norm> norm;
        if (kernel_size == 0) norm = weights.norm("norm", width);  // a conformer's layers have their own
        encoder = std::make_unique<Encoder>(chosen(isa), std::move(team), shape, std::move(layers), norm);
    }

    void encode(const Array<float>& x, const std::optional<Array<float>>& means) {
        const int64_t frames = length(x, 0, "x"), padded = up(encoder->shape.width, 16);
        expect(x, {frames, padded}, "x");
        if (means) expect(*means, {encoder->num_layers(), padded}, "means");
        float *at = x.data(), *to = means ? means->data() : nullptr;
        nb::gil_scoped_release free;
        if (frames > 0) encoder->encode(at, frames, to);
    }
};

struct PyLinear {
    Weights weights;
    std::unique_ptr<Linear> linear;

    PyLinear(const nb::dict& arrays, const std::string& isa, std::shared_ptr<Team> team, int64_t rows, int64_t inputs)
        : weights(arrays) {
        if (rows < 1 || inputs < 1) throw nb::value_error("a matrix without rows or inputs");
        linear = std::make_unique<Linear>(chosen(isa), std::move(team), weights.matrix("matrix", rows, inputs, false),
                                          inputs);
    }

    void run(const Array<const float>& x, const Array<float>& out) {
        const int64_t count = length(x, 0, "x");
        expect(x, {count, up(linear->inputs, 16)}, "x");
        expect(out, {count, linear->rows()}, "out");
        const float* from = x.data();
        float* to = out.data();
        nb::gil_scoped_release free;
        if (count > 0) linear->run(from, count, to);
    }
};

// The convolutions before a FastConformer's layers; the first one, and depthwise and pointwise ones by their numbers.
struct PyFastStem {
    Weights weights;
    std::unique_ptr<FastStem> stem;

    PyFastStem(const nb::dict& arrays, const std::string& isa, std::shared_ptr<Team> team, int64_t bins, int64_t channels,
               int64_t halvings)
        : weights(arrays) {
        if (halvings < 1 || halvings > 16 || channels < 1 || bins < 1 || bins % (int64_t{1} << halvings))
            throw nb::value_error("bins that cannot be halved as often");
        const int64_t padded = up(channels, 16);
        auto square = [&](const std::string& name) {
            return Square{weights.get<float>(name + ".taps", {9, padded}), weights.get<float>(name + ".bias", {padded}),
                          padded};
        };
        std::vector<Separable> separable;
        for (int64_t i = 0; i + 1 < halvings; i++) {
            const std::string number = std::to_string(i);
            separable.push_back({square("depthwise." + number), weights.matrix("pointwise." + number, channels, channels)});
        }
        stem = std::make_unique<FastStem>(chosen(isa), std::move(team), bins, channels, square("first"),
                                          std::move(separable));
    }

    void run(const Array<const float>& x, const Array<float>& out) {
        const int64_t frames = length(x, 0, "x");
        expect(x, {frames, 1 + stem->bins()}, "x");
        expect(out, {stem->frames_after(frames), stem->width_after()}, "out");
        const float* from = x.data();
        float* to = out.data();
        nb::gil_scoped_release free;
        if (frames > 0) stem->run(from, frames, to);
    }
};

Context context_named(const std::string& name) {
    if (name == "around") return Context::around;
    if (name == "causal") return Context::before;
    if (name == "chunk") return Context::chunk;
    throw nb::value_error(("no convolution sees " + name).c_str());
}

// Matrices have the names of the modules that they were packed from, and so have those of causal language models.
struct PyFastConformer {
    Weights weights;
    std::unique_ptr<FastConformer> model;

    PyFastConformer(const nb::dict& arrays, const std::string& isa, std::shared_ptr<Team> team, int64_t width,
                    int64_t heads, int64_t num_layers, int64_t kernel_size, const std::string& activation,
                    const std::string& sees)
        : weights(arrays) {
        const Context context = context_named(sees);
        if (width < 16 || width % 16 || heads < 1 || width % (16 * heads) || num_layers < 1 || kernel_size < 1 ||
            (kernel_size % 2 == 0 && context != Context::before))
            throw nb::value_error("sizes that no FastConformer of these kernels has");
        const Then then = activation_named(activation);
        std::vector<FastLayer> layers;
        int64_t hidden = 0;
        for (int64_t i = 0; i < num_layers; i++) {
            const std::string at = "layers." + std::to_string(i) + ".", attention = at + "attention.";
            const std::string convolution = at + "convolution.";
            layers.push_back({weights.feed_forward(at + "feed_forward_in", width, then, ".matrix"),
                              weights.norm(at + "attention_norm", width),
                              weights.matrix(attention + "query.matrix", width, width),
                              weights.matrix(attention + "key.matrix", width, width),
                              weights.matrix(attention + "value.matrix", width, width),
                              weights.matrix(attention + "distance.matrix", width, width),
                              weights.matrix(attention + "out.matrix", width, width),
                              weights.get<float>(attention + "content_bias", {width}),
                              weights.get<float>(attention + "distance_bias", {width}),
                              {weights.norm(convolution + "norm", width),
                               weights.matrix(convolution + "gate.matrix", 2 * width, width),
                               {weights.get<float>(convolution + "taps", {kernel_size, width}),
                                weights.get<float>(convolution + "bias", {width}), kernel_size,
                                context == Context::around ? Norm{} : weights.norm(convolution + "inner_norm", width)},
                               weights.matrix(convolution + "out.matrix", width, width)},
                              weights.feed_forward(at + "feed_forward_out", width, then, ".matrix"),
                              weights.norm(at + "norm", width)});
            for (const FeedForward* forward : {&layers.back().first, &layers.back().last}) {
                check_hidden(*forward);
                hidden = std::max(hidden, forward->expand.blocks * 16);
            }
        }
        model = std::make_unique<FastConformer>(chosen(isa), std::move(team), Shape{width, heads, width / heads, hidden},
                                                std::move(layers), weights.get<float>("rates", {width / 2}), context);
    }

    // Frames of all utterances, which have to be those that come in.
    int64_t frames_of(const Array<float>& x, const Array<const int64_t>& counts) {
        const int64_t count = length(x, 0, "x"), utterances = length(counts, 0, "counts");
        expect(x, {count, model->shape.width}, "x");
        expect(counts, {utterances}, "counts");
        int64_t total = 0;
        for (int64_t i = 0; i < utterances; i++) {
            if (counts.data()[i] < 0 || counts.data()[i] > count - total)
                throw nb::value_error("the utterances have other frames than come in");
            total += counts.data()[i];
        }
        if (total != count) throw nb::value_error("the utterances have other frames than come in");
        return count;
    }

    // Where the mean frames behind each layer go (B, L, D), if they are wanted.
    float* means_of(const std::optional<Array<float>>& means, int64_t utterances) {
        if (!means) return nullptr;
        expect(*means, {utterances, model->layers(), model->shape.width}, "means");
        return means->data();
    }

    void encode(const Array<float>& x, const Array<const int64_t>& counts, int64_t chunk, int64_t before,
                const std::optional<Array<float>>& means) {
        const int64_t count = frames_of(x, counts), utterances = length(counts, 0, "counts");
        if (chunk < 0 || before < 0) throw nb::value_error("chunks of less than nothing");
        float *data = x.data(), *to = means_of(means, utterances);
        const int64_t* each = counts.data();
        nb::gil_scoped_release free;
        if (count > 0) model->encode(data, each, utterances, {chunk, before}, nullptr, to);
    }

    // Of every stream, `counts` frames of a chunk; what the streams will remember goes to `..._after`.
    void step(const Array<float>& x, const Array<const int64_t>& counts, int64_t chunk,
              const Array<const int64_t>& known, const Array<const float>& keys, const Array<const float>& values,
              const Array<const float>& convolution, const Array<float>& keys_after, const Array<float>& values_after,
              const Array<float>& convolution_after, const std::optional<Array<float>>& means) {
        frames_of(x, counts);
        const int64_t rows = length(counts, 0, "counts"), past = length(keys, 3, "keys");
        const Shape& shape = model->shape;
        const Lengths heads{rows, model->layers(), shape.heads, past, shape.head_width};
        const Lengths inputs{rows, model->layers(), shape.width, model->margin};
        expect(known, {rows}, "known");
        expect(keys, heads, "keys");
        expect(values, heads, "values");
        expect(keys_after, heads, "keys_after");
        expect(values_after, heads, "values_after");
        expect(convolution, inputs, "convolution");
        expect(convolution_after, inputs, "convolution_after");
        for (int64_t i = 0; i < rows; i++) {
            if (known.data()[i] < 0 || known.data()[i] > past)
                throw nb::value_error("the streams remember more than they have room for");
            if (counts.data()[i] > chunk) throw nb::value_error("the utterances have more frames than their chunk");
        }
        const Streams streams{keys.data(), values.data(), convolution.data(), keys_after.data(), values_after.data(),
                              convolution_after.data(), known.data(), past, chunk};
        float *data = x.data(), *to = means_of(means, rows);
        const int64_t* each = counts.data();
        nb::gil_scoped_release free;
        if (rows > 0) model->encode(data, each, rows, {}, &streams, to);
    }
};

struct PyCausalLM {
    Weights weights;
    std::unique_ptr<CausalLM> model;

    PyCausalLM(const nb::dict& arrays, const std::string& isa, std::shared_ptr<Team> team, int64_t width,
               int64_t inner_width, int64_t heads, int64_t key_heads, int64_t head_width, int64_t num_layers,
               int64_t vocabulary_size, float norm_epsilon, bool head_norms, float embedding_scale,
               float residual_scale, float attention_scale)
        : weights(arrays) {
        if (std::min({width, inner_width, heads, key_heads, head_width, vocabulary_size}) < 1 || heads % key_heads ||
            head_width % 2)
            throw nb::value_error("sizes that no causal language model has");
        const CausalShape shape{width,      inner_width,     heads,          key_heads,
                                head_width, embedding_scale, residual_scale, attention_scale};
        const int64_t all = heads * head_width, keys = key_heads * head_width;
        std::vector<CausalLayer> layers;
        for (int64_t i = 0; i < num_layers; i++) {
            const std::string at = "layers." + std::to_string(i) + ".", attention = at + "self_attn.", mlp = at + "mlp.";
            // What lies beside the queries and keys of a token is another one's, so nothing is written behind them.
            layers.push_back({weights.root_norm(at + "input_layernorm", width, norm_epsilon),
                              weights.matrix(attention + "q_proj.matrix", all, width, false),
                              weights.matrix(attention + "k_proj.matrix", keys, width, false),
                              weights.matrix(attention + "v_proj.matrix", keys, width, false),
                              weights.matrix(attention + "o_proj.matrix", width, all), std::nullopt, std::nullopt,
                              weights.root_norm(at + "post_attention_layernorm", width, norm_epsilon),
                              weights.matrix(mlp + "gate_proj.matrix", inner_width, width),
                              weights.matrix(mlp + "up_proj.matrix", inner_width, width),
                              weights.matrix(mlp + "down_proj.matrix", width, inner_width)});
            if (!head_norms) continue;
            layers.back().query_norm = weights.root_norm(attention + "q_norm", head_width, norm_epsilon);
            layers.back().key_norm = weights.root_norm(attention + "k_norm", head_width, norm_epsilon);
        }
        model = std::make_unique<CausalLM>(chosen(isa), std::move(team), shape, std::move(layers),
                                           weights.root_norm("norm", width, norm_epsilon),
                                           weights.matrix("lm_head.matrix", vocabulary_size, width, false),
                                           weights.get<float>("frequencies", {head_width / 2}));
    }

    void step(const Array<const float>& embedded, const Array<const int64_t>& counts, const Array<const int64_t>& held,
              const Array<int16_t>& own, const std::optional<Array<float>>& logits) {
        const CausalShape& shape = model->shape;
        const int64_t count = length(embedded, 0, "embedded");
        CausalStep s{};
        s.rows = length(counts, 0, "counts");
        s.blocks = length(own, 4, "own");
        expect(embedded, {count, shape.width}, "embedded");
        expect(counts, {s.rows}, "counts");
        expect(held, {s.rows}, "held");
        expect(own, {model->layers(), 2, s.rows, shape.key_heads, s.blocks, 16 * shape.wide()}, "own");
        int64_t total = 0;
        for (int64_t r = 0; r < s.rows; r++) {
            const int64_t here = held.data()[r], more = counts.data()[r];
            if (here < 0 || more < 0 || more > s.blocks * 16 - here)
                throw nb::value_error("more tokens than the cache can hold");
            total += more;
        }
        if (total != count) throw nb::value_error("the rows have another number of positions than come in");
        if (logits) {
            expect(*logits, {count, model->vocabulary_size}, "logits");
            s.logits = logits->data();
        }
        s.embedded = embedded.data(), s.counts = counts.data(), s.held = held.data();
        s.own = reinterpret_cast<uint16_t*>(own.data());
        nb::gil_scoped_release free;
        model->step(s);
    }
};

struct PyStem {
    Weights weights;
    std::unique_ptr<Stem> stem;

    PyStem(const nb::dict& arrays, const std::string& isa, std::shared_ptr<Team> team, int64_t channels, int64_t width,
           const Lengths& taps, const Lengths& strides)
        : weights(arrays) {
        if (taps.empty() || taps.size() != strides.size()) throw nb::value_error("every layer has taps and a stride");
        std::vector<StemLayer> layers;
        for (size_t i = 0; i < taps.size(); i++) {
            if (taps[i] < 1 || taps[i] % 2 == 0 || strides[i] < 1) throw nb::value_error("a kernel needs a centre");
            const int64_t from = up(i == 0 ? channels : width, 16);
            layers.push_back({weights.matrix(std::to_string(i), width, taps[i] * from), from, taps[i], strides[i]});
        }
        stem = std::make_unique<Stem>(chosen(isa), std::move(team), std::move(layers));
    }

    void run(const Array<const float>& x, const Array<float>& out) {
        const int64_t frames = length(x, 0, "x");
        expect(x, {frames, stem->layers().front().channels}, "x");
        expect(out, {stem->frames_after(frames), stem->layers().back().matrix.rows}, "out");
        const float* from = x.data();
        float* to = out.data();
        nb::gil_scoped_release free;
        if (frames > 0) stem->run(from, frames, to);
    }
};

// Single kernels, for tests and measurements.

void py_quantize(const std::string& isa, const Array<const float>& x, int64_t width,
                 const std::optional<Array<const float>>& gain, const std::optional<Array<const float>>& bias,
                 const Array<uint8_t>& values, const Array<float>& scale, float epsilon) {
    const int64_t count = length(x, 0, "x"), padded = up(width, 16);
    expect(x, {count, padded}, "x");
    expect(values, {count, padded}, "values");
    expect(scale, {count}, "scale");
    if (bias && !gain) throw nb::value_error("a norm has a gain");
    Norm norm{nullptr, nullptr, epsilon};
    if (gain) {
        expect(*gain, {padded}, "gain");
        norm.gain = gain->data();
    }
    if (bias) {
        expect(*bias, {padded}, "bias");
        norm.bias = bias->data();
    }
    chosen(isa)->quantize(x.data(), padded, count, width, gain ? &norm : nullptr, values.data(), padded, scale.data());
}

void py_product(const std::string& isa, const Array<const uint8_t>& values, const Array<const float>& scale,
                const nb::dict& matrix, int64_t rows, const Array<float>& out, const std::string& then,
                float factor) {
    const int64_t count = length(values, 0, "values"), stride = length(values, 1, "values");
    const Weights weights(matrix);
    const Matrix m = weights.matrix("matrix", rows, stride, false);
    if (m.steps * 4 > stride) throw nb::value_error("tokens are padded to 4 inputs, to 8 for a matrix in 4 bits");
    expect(scale, {count}, "scale");
    expect(out, {count, rows}, "out");
    const Then kind = then == "add"     ? Then::add
                      : then == "times" ? Then::times
                      : then == "keep"  ? Then::keep
                                        : activation_named(then);
    nb::gil_scoped_release free;
    chosen(isa)->product({values.data(), stride, scale.data(), count}, m, 0, m.blocks,
                         {kind, out.data(), rows, nullptr, 0, factor});
}

void py_attend(const std::string& isa, const Array<const int16_t>& queries, const Array<const int16_t>& keys,
               const Array<const int16_t>& values, const Array<const int64_t>& lengths, float factor,
               const Array<float>& out, const Array<float>& weights) {
    const int64_t count = length(queries, 0, "queries"), width = length(queries, 1, "queries"),
                  blocks = length(keys, 0, "keys");
    const int64_t frames = length(weights, 1, "weights");
    if (width % 16) throw nb::value_error("heads are padded to a multiple of 16");
    expect(keys, {blocks, 16 * width}, "keys");
    expect(values, {blocks, 16 * width}, "values");
    expect(lengths, {count}, "lengths");
    expect(out, {count, width}, "out");
    expect(weights, {count, frames}, "weights");
    for (int64_t q = 0; q < count; q++) {
        if (lengths.data()[q] < 0 || lengths.data()[q] > blocks * 16)
            throw nb::value_error("a length is beyond the keys");
    }
    auto raw = [](const auto& array) { return reinterpret_cast<const uint16_t*>(array.data()); };
    Scratch<float> scratch;
    chosen(isa)->attend({raw(queries), width, raw(keys), raw(values), lengths.data(), count, width, factor, out.data(),
                         width, weights.data(), frames, scratch.at_least(attention_scratch(blocks * 16)), nullptr});
}

// As `attend`, over segments of keys (S, C, 16 W), of which every query sees the first `seen` positions.
void py_attend_segments(const std::string& isa, const Array<const int16_t>& queries, const Array<const int16_t>& keys,
                        const Array<const int16_t>& values, int64_t seen, float factor, const Array<float>& out) {
    const int64_t count = length(queries, 0, "queries"), width = length(queries, 1, "queries"),
                  segments = length(keys, 0, "keys"), blocks = length(keys, 1, "keys");
    if (width % 16) throw nb::value_error("heads are padded to a multiple of 16");
    expect(keys, {segments, blocks, 16 * width}, "keys");
    expect(values, {segments, blocks, 16 * width}, "values");
    expect(out, {count, width}, "out");
    if (seen < 0 || seen > blocks * 16) throw nb::value_error("a length is beyond the keys");
    const std::vector<int64_t> lengths(static_cast<size_t>(count), seen);
    auto raw = [](const auto& array) { return reinterpret_cast<const uint16_t*>(array.data()); };
    Scratch<float> scratch;
    chosen(isa)->attend_segments({raw(queries), width, raw(keys), raw(values), lengths.data(), count, width, factor,
                                  out.data(), width, nullptr, 0,
                                  scratch.at_least(attention_scratch(segments * blocks * 16)), nullptr, segments,
                                  blocks * 16 * width});
}

// As `attend`, without weights, by one of the kernels for many queries.
template <auto KERNEL>
void py_attend_many(const std::string& isa, const Array<const int16_t>& queries, const Array<const int16_t>& keys,
                    const Array<const int16_t>& values, const Array<const int64_t>& lengths, float factor,
                    const Array<float>& out) {
    const int64_t count = length(queries, 0, "queries"), width = length(queries, 1, "queries"),
                  blocks = length(keys, 0, "keys");
    if (width % 16) throw nb::value_error("heads are padded to a multiple of 16");
    expect(keys, {blocks, 16 * width}, "keys");
    expect(values, {blocks, 16 * width}, "values");
    expect(lengths, {count}, "lengths");
    expect(out, {count, width}, "out");
    for (int64_t q = 0; q < count; q++) {
        if (lengths.data()[q] < 0 || lengths.data()[q] > blocks * 16)
            throw nb::value_error("a length is beyond the keys");
    }
    auto raw = [](const auto& array) { return reinterpret_cast<const uint16_t*>(array.data()); };
    Scratch<float> scratch;
    scratch.at_least(std::max(attention_scratch(blocks * 16), many_scratch(width)));
    const Kernels* kernels = chosen(isa);
    nb::gil_scoped_release free;
    for (int64_t at = 0; at < count; at += kManyAtOnce)
        (kernels->*KERNEL)({raw(queries) + at * width, width, raw(keys), raw(values), lengths.data() + at,
                            std::min(kManyAtOnce, count - at), width, factor, out.data() + at * width, width, nullptr, 0,
                            scratch.data(), nullptr});
}

// As `attend`, from keys and values in floats (positions x width), which it brings to 8 bits.
void py_attend_eight(const std::string& isa, const Array<const int16_t>& queries, const Array<const float>& keys,
                     const Array<const float>& values, const Array<const int64_t>& lengths, float factor,
                     const Array<float>& out, const Array<float>& weights) {
    const int64_t count = length(queries, 0, "queries"), width = length(queries, 1, "queries"),
                  positions = length(keys, 0, "keys"), padded = up(positions, 16);
    if (width % 16 || width > kWidestEight) throw nb::value_error("heads are padded to 16, and 256 at most");
    expect(keys, {positions, width}, "keys");
    expect(values, {positions, width}, "values");
    expect(lengths, {count}, "lengths");
    expect(out, {count, width}, "out");
    expect(weights, {count, positions}, "weights");
    for (int64_t q = 0; q < count; q++) {
        if (lengths.data()[q] < 0 || lengths.data()[q] > positions)
            throw nb::value_error("a length is beyond the keys");
    }
    std::vector<int8_t> packed(static_cast<size_t>(2 * padded * width));
    std::vector<float> scales(static_cast<size_t>(3 * padded));
    int8_t *key = packed.data(), *value = key + padded * width;
    float* scale = scales.data();
    const Kernels* kernels = chosen(isa);
    for (int64_t i = 0; i < positions; i++) {
        const int64_t block = i / 16 * 16 * width;
        scale[i] = kernels->keep_key(keys.data() + i * width, width, key + block, i % 16, scale + padded + i);
        scale[2 * padded + i] = kernels->keep_value(values.data() + i * width, width, value + block, i % 16);
    }
    const Eight eight{key, value, scale, scale + padded, scale + 2 * padded};
    Scratch<float> scratch;
    kernels->attend({reinterpret_cast<const uint16_t*>(queries.data()), width, nullptr, nullptr, lengths.data(), count,
                     width, factor, out.data(), width, weights.data(), positions,
                     scratch.at_least(attention_scratch(padded)), &eight});
}

// Frames (T, D padded to 16) with silence around them, through the convolution, norm and SiLU.
void py_depthwise(const std::string& isa, const Array<const float>& x, int64_t width, const nb::dict& arrays,
                  int64_t taps, const Array<float>& out) {
    const int64_t count = length(out, 0, "out"), padded = up(width, 16);
    const Weights weights(arrays);
    expect(out, {count, padded}, "out");
    expect(x, {count + taps - 1, padded}, "x");
    const Depthwise depthwise{weights.get<float>("taps", {taps, padded}), weights.get<float>("bias", {padded}), taps,
                              weights.norm("inner_norm", width)};
    chosen(isa)->depthwise(x.data(), count, width, padded, depthwise, out.data());
}

void py_gate(const std::string& isa, const Array<const float>& halves, const Array<float>& out) {
    const int64_t count = length(out, 0, "out"), padded = length(out, 1, "out");
    if (padded % 16) throw nb::value_error("rows are padded to a multiple of 16");
    expect(halves, {count, 2 * padded}, "halves");
    chosen(isa)->gate(halves.data(), count, padded, out.data());
}

std::vector<std::string> available() {
    std::vector<std::string> names;
    for (const char* name : instruction_sets())
        if (kernels(name)) names.emplace_back(name);
    return names;
}

nb::dict py_register_loops() {
    nb::dict operations;
    for (const RegisterLoop& loop : register_loops()) operations[loop.name] = loop.operations;
    return operations;
}

void py_run_register_loop(const std::string& name, int64_t rounds) {
    if (rounds < 1) throw nb::value_error("a loop has one round at least");
    for (const RegisterLoop& loop : register_loops()) {
        if (name != loop.name) continue;
        nb::gil_scoped_release free;
        loop.run(rounds);
        return;
    }
    throw nb::value_error(("this processor has no loop named " + name).c_str());
}

double py_seconds_of_reading(Team& team, const Array<const uint8_t>& memory, int streams, int64_t ahead) {
    if (reinterpret_cast<uintptr_t>(memory.data()) % 64) throw nb::value_error("memory is not 64 bytes aligned");
    nb::gil_scoped_release free;
    return seconds_of_reading(team, memory.data(), static_cast<int64_t>(memory.nbytes()), streams, ahead);
}

}  // namespace
}  // namespace sprachbund

// Arrays that are written to are never converted: what was written into a copy would be lost.
NB_MODULE(_native, m) {
    using namespace sprachbund;
    m.def("register_loops", &py_register_loops, "Operations of a round of every register loop that runs here, by name.");
    m.def("run_register_loop", &py_run_register_loop, nb::arg("name"), nb::arg("rounds"));
    m.def("seconds_of_reading", &py_seconds_of_reading, nb::arg("team"), nb::arg("memory"), nb::arg("streams"),
          nb::arg("ahead"));
    m.def("instruction_sets", &available, "Names of the kernels that run here, best first.");
    m.def("quantize", &py_quantize, nb::arg("isa"), nb::arg("x"), nb::arg("width"), nb::arg("gain").none(),
          nb::arg("bias").none(), nb::arg("values").noconvert(), nb::arg("scale").noconvert(), nb::arg("epsilon") = 0.0f);
    m.def("product", &py_product, nb::arg("isa"), nb::arg("values").noconvert(), nb::arg("scale"), nb::arg("matrix"),
          nb::arg("rows"), nb::arg("out").noconvert(), nb::arg("then"), nb::arg("factor") = 1.0f);
    m.def("attend", &py_attend, nb::arg("isa"), nb::arg("queries").noconvert(), nb::arg("keys").noconvert(),
          nb::arg("values").noconvert(), nb::arg("lengths"), nb::arg("factor"), nb::arg("out").noconvert(),
          nb::arg("weights").noconvert());
    const auto attend_many = [&m](const char* name, auto* kernel) {
        m.def(name, kernel, nb::arg("isa"), nb::arg("queries").noconvert(), nb::arg("keys").noconvert(),
              nb::arg("values").noconvert(), nb::arg("lengths"), nb::arg("factor"), nb::arg("out").noconvert());
    };
    attend_many("attend_many", &py_attend_many<&Kernels::attend_many>);
    attend_many("attend_all", &py_attend_many<&Kernels::attend_all>);
    m.def("attend_segments", &py_attend_segments, nb::arg("isa"), nb::arg("queries").noconvert(),
          nb::arg("keys").noconvert(), nb::arg("values").noconvert(), nb::arg("seen"), nb::arg("factor"),
          nb::arg("out").noconvert());
    m.def("attend_eight", &py_attend_eight, nb::arg("isa"), nb::arg("queries").noconvert(), nb::arg("keys"),
          nb::arg("values"), nb::arg("lengths"), nb::arg("factor"), nb::arg("out").noconvert(),
          nb::arg("weights").noconvert());
    m.def("depthwise", &py_depthwise, nb::arg("isa"), nb::arg("x").noconvert(), nb::arg("width"), nb::arg("weights"),
          nb::arg("taps"), nb::arg("out").noconvert());
    m.def("gate", &py_gate, nb::arg("isa"), nb::arg("halves").noconvert(), nb::arg("out").noconvert());
    nb::class_<Team>(m, "Team").def(nb::init<int>()).def_prop_ro("size", &Team::size);
    nb::class_<PyTokenMap>(m, "TokenMap")
        .def(nb::init<const nb::dict&, int64_t>(), nb::arg("tables"), nb::arg("vocabulary_size"));
    nb::class_<Draft>(m, "Draft")
        .def("propose", &py_propose, nb::arg("decoder"), nb::arg("tokens"), nb::arg("lengths"),
             nb::arg("own").noconvert(), nb::arg("out").noconvert());
    nb::class_<TokenMapDraft, Draft>(m, "TokenMapDraft")
        .def("__init__", &make_token_map_draft, nb::keep_alive<1, 2>(), nb::arg("token_map"), nb::arg("languages"),
             nb::arg("prompts"));
    nb::class_<TextDraft, Draft>(m, "TextDraft")
        .def(nb::init<std::vector<std::vector<int64_t>>, std::vector<int64_t>>(), nb::arg("texts"),
             nb::arg("prompts"));
    nb::class_<PyJoinedDraft, Draft>(m, "JoinedDraft").def("__init__", &make_joined_draft, nb::arg("parts"));
    nb::class_<PyHeads>(m, "Heads")
        .def(nb::init<const nb::dict&, int64_t, int64_t, int64_t>(), nb::arg("weights"), nb::kw_only(),
             nb::arg("heads"), nb::arg("blocks"), nb::arg("width"));
    nb::class_<PyDecoder>(m, "Decoder")
        .def(nb::init<const nb::dict&, const std::string&, std::shared_ptr<Team>, int64_t, int64_t, int64_t, int64_t,
                      const std::string&, int64_t, int64_t, int64_t, float, const Lengths&>(),
             nb::arg("weights"), nb::arg("isa"), nb::arg("team"), nb::kw_only(), nb::arg("width"), nb::arg("heads"),
             nb::arg("head_width"), nb::arg("num_layers"), nb::arg("activation"), nb::arg("vocabulary_size"),
             nb::arg("max_tokens"), nb::arg("memory_width"), nb::arg("embedding_scale"),
             nb::arg("groups") = Lengths())
        .def("remember", &PyDecoder::remember, nb::arg("states"), nb::arg("cross").noconvert(),
             nb::arg("scales").noconvert().none())
        .def("step", &PyDecoder::step, nb::arg("tokens"), nb::arg("lengths"), nb::arg("own").noconvert(),
             nb::arg("cross").noconvert(), nb::arg("scales").noconvert().none(), nb::arg("frames"),
             nb::arg("logits").noconvert().none(),
             nb::arg("attention").noconvert().none(), nb::arg("states").noconvert() = nb::none())
        .def("search", &PyDecoder::search, nb::kw_only(), nb::arg("tokens").noconvert(),
             nb::arg("lengths").noconvert(), nb::arg("room"), nb::arg("log_probs").noconvert(),
             nb::arg("ended").noconvert(), nb::arg("suppressed"), nb::arg("begins"), nb::arg("list_of"),
             nb::arg("end_token"), nb::arg("earliest_end"), nb::arg("most"), nb::arg("most_passes"), nb::arg("checked").noconvert(),
             nb::arg("accepted").noconvert(), nb::arg("capacity"), nb::arg("own").noconvert(),
             nb::arg("cross").noconvert(), nb::arg("scales").noconvert().none(), nb::arg("frames"),
             nb::arg("until_end"), nb::arg("first_time"), nb::arg("latest_time"), nb::arg("prompts"),
             nb::arg("draft").none() = nb::none())
        .def("logits", &PyDecoder::logits, nb::arg("states"), nb::arg("logits").noconvert(),
             nb::arg("matrix") = nb::none());
    nb::class_<HeadsDraft, Draft>(m, "HeadsDraft")
        .def("__init__", &make_heads_draft, nb::keep_alive<1, 2>(), nb::keep_alive<1, 3>(), nb::arg("decoder"),
             nb::arg("heads"), nb::arg("planted"), nb::arg("prompts"));
    nb::class_<ParasiteDraft, Draft>(m, "ParasiteDraft")
        .def("__init__", &make_parasite_draft, nb::keep_alive<1, 2>(), nb::keep_alive<1, 3>(), nb::keep_alive<1, 4>(),
             nb::keep_alive<1, 5>(), nb::keep_alive<1, 6>(), nb::arg("decoder"), nb::arg("parasite"),
             nb::arg("cross").noconvert(), nb::arg("scales").noconvert().none(), nb::arg("frames").noconvert(),
             nb::arg("planted"), nb::arg("prompts"));
    nb::class_<ModelDraft, Draft>(m, "ModelDraft")
        .def("__init__", &make_model_draft, nb::keep_alive<1, 2>(), nb::keep_alive<1, 3>(), nb::keep_alive<1, 4>(),
             nb::keep_alive<1, 5>(), nb::keep_alive<1, 6>(), nb::keep_alive<1, 7>(), nb::arg("decoder"),
             nb::arg("smaller"), nb::arg("own").noconvert(), nb::arg("cross").noconvert(),
             nb::arg("scales").noconvert().none(), nb::arg("frames").noconvert(), nb::arg("capacity"),
             nb::arg("planted"), nb::arg("prompts"));
    nb::class_<PyEncoder>(m, "Encoder")
        .def(nb::init<const nb::dict&, const std::string&, std::shared_ptr<Team>, int64_t, int64_t, int64_t, int64_t,
                      const std::string&, int64_t>(),
             nb::arg("weights"), nb::arg("isa"), nb::arg("team"), nb::kw_only(), nb::arg("width"), nb::arg("heads"),
             nb::arg("head_width"), nb::arg("num_layers"), nb::arg("activation"), nb::arg("kernel_size"))
        .def("encode", &PyEncoder::encode, nb::arg("x").noconvert(), nb::arg("means").noconvert().none());
    nb::class_<PyLinear>(m, "Linear")
        .def(nb::init<const nb::dict&, const std::string&, std::shared_ptr<Team>, int64_t, int64_t>(),
             nb::arg("weights"), nb::arg("isa"), nb::arg("team"), nb::kw_only(), nb::arg("rows"), nb::arg("inputs"))
        .def("run", &PyLinear::run, nb::arg("x").noconvert(), nb::arg("out").noconvert());
    nb::class_<PyCausalLM>(m, "CausalLM")
        .def(nb::init<const nb::dict&, const std::string&, std::shared_ptr<Team>, int64_t, int64_t, int64_t, int64_t,
                      int64_t, int64_t, int64_t, float, bool, float, float, float>(),
             nb::arg("weights"), nb::arg("isa"), nb::arg("team"), nb::kw_only(), nb::arg("width"),
             nb::arg("inner_width"), nb::arg("heads"), nb::arg("key_heads"), nb::arg("head_width"),
             nb::arg("num_layers"), nb::arg("vocabulary_size"), nb::arg("norm_epsilon"), nb::arg("head_norms"),
             nb::arg("embedding_scale"), nb::arg("residual_scale"), nb::arg("attention_scale"))
        .def("step", &PyCausalLM::step, nb::arg("embedded").noconvert(), nb::arg("counts"), nb::arg("held"),
             nb::arg("own").noconvert(), nb::arg("logits").noconvert().none());
    nb::class_<PyFastStem>(m, "FastStem")
        .def(nb::init<const nb::dict&, const std::string&, std::shared_ptr<Team>, int64_t, int64_t, int64_t>(),
             nb::arg("weights"), nb::arg("isa"), nb::arg("team"), nb::kw_only(), nb::arg("bins"), nb::arg("channels"),
             nb::arg("halvings"))
        .def("run", &PyFastStem::run, nb::arg("x").noconvert(), nb::arg("out").noconvert());
    nb::class_<PyFastConformer>(m, "FastConformer")
        .def(nb::init<const nb::dict&, const std::string&, std::shared_ptr<Team>, int64_t, int64_t, int64_t, int64_t,
                      const std::string&, const std::string&>(),
             nb::arg("weights"), nb::arg("isa"), nb::arg("team"), nb::kw_only(), nb::arg("width"), nb::arg("heads"),
             nb::arg("num_layers"), nb::arg("kernel_size"), nb::arg("activation"), nb::arg("convolution"))
        .def("encode", &PyFastConformer::encode, nb::arg("x").noconvert(), nb::arg("counts"), nb::arg("chunk") = 0,
             nb::arg("before") = 0, nb::arg("means").noconvert().none() = nb::none())
        .def("step", &PyFastConformer::step, nb::arg("x").noconvert(), nb::arg("counts"), nb::kw_only(), nb::arg("chunk"),
             nb::arg("known"), nb::arg("keys"), nb::arg("values"), nb::arg("convolution"),
             nb::arg("keys_after").noconvert(), nb::arg("values_after").noconvert(),
             nb::arg("convolution_after").noconvert(), nb::arg("means").noconvert().none() = nb::none());
    nb::class_<PyStem>(m, "Stem")
        .def(nb::init<const nb::dict&, const std::string&, std::shared_ptr<Team>, int64_t, int64_t, const Lengths&,
                      const Lengths&>(),
             nb::arg("weights"), nb::arg("isa"), nb::arg("team"), nb::kw_only(), nb::arg("channels"), nb::arg("width"),
             nb::arg("taps"), nb::arg("strides"))
        .def("run", &PyStem::run, nb::arg("x").noconvert(), nb::arg("out").noconvert());
}
