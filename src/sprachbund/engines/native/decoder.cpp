// The decoder: a step is one parallel region with eight barriers a layer, every product split by rows of the matrix. More
// than kQuantizedByEach tokens are rounded to 8 bits by all threads together, which makes six barriers more.
#include "model.hpp"

#include <algorithm>
#include <cmath>

namespace sprachbund {

namespace {

// Sets what may not follow token i of a step to -inf, timestamps and text.
void forbid_times(const Times& times, int64_t row, int64_t i, int64_t end_token, int64_t vocabulary, float* logits) {
    const float never = -std::numeric_limits<float>::infinity();
    const bool timed = times.latest[row] >= times.first;
    const int64_t latest = timed && times.due[i] != Times::text ? std::min(times.latest[row], vocabulary - 1)
                                                                  : times.first - 1;
    const int64_t begin = std::min(std::max(times.earliest[i], times.first), latest + 1);
    std::fill(logits + times.first, logits + begin, never);
    std::fill(logits + latest + 1, logits + vocabulary, never);
    if (!timed) return;
    if (times.due[i] == Times::time_or_end) {
        const float end = logits[end_token];
        std::fill(logits, logits + times.first, never);
        logits[end_token] = end;
    }
    // Where all timestamps together are likelier than the likeliest text token, one of them follows.
    if (begin > latest) return;
    const float text = *std::max_element(logits, logits + times.first);
    const float most = *std::max_element(logits + begin, logits + latest + 1);
    double total = 0;
    for (int64_t id = begin; id <= latest; id++) total += std::exp(static_cast<double>(logits[id]) - most);
    if (most + std::log(total) > text) std::fill(logits, logits + times.first, never);
}

}  // namespace

Decoder::Decoder(const Kernels* kernels, std::shared_ptr<Team> team, Shape shape_, std::vector<DecoderLayer> layers,
                 Norm norm, Matrix vocabulary, const float* positions, int64_t memory_width, Embedding embedding)
    : shape(shape_),
      vocabulary_size(vocabulary.rows),
      kernels_(kernels),
      team_(std::move(team)),
      layers_(std::move(layers)),
      norm_(norm),
      vocabulary_(vocabulary),
      positions_(positions),
      memory_width_(memory_width),
      embedding_(embedding),
      quantized_(static_cast<size_t>(team_->size())),
      attention_(static_cast<size_t>(team_->size())) {}

void Decoder::remember(const float* states, int64_t memories, int64_t frames, const Cross& into) {
    OneCall one_call(calls_);
    const int64_t count = memories * frames, padded = up(memory_width_, 16), chunk = kernels_->chunk;
    row_.resize(static_cast<size_t>(count));
    position_.resize(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; i++) {
        row_[static_cast<size_t>(i)] = i / frames;
        position_[static_cast<size_t>(i)] = i % frames;
    }
    for (auto& q : quantized_) q.at_least(chunk, padded);
    if (into.eight)
        for (auto& a : attention_) a.at_least(chunk * 2 * shape.all_heads());
    team_->run([&](int thread) {
        Quantized& mine = quantized_[static_cast<size_t>(thread)];
        const Range part = team_->share(thread, count);
        for (int64_t begin = part.begin; begin < part.end; begin += chunk) {
            const int64_t size = begin + chunk < part.end ? chunk : part.end - begin;
            kernels_->quantize(states + begin * padded, padded, size, padded, nullptr, mine.values.data(), padded,
                               mine.scale.data());
            remember(thread, {mine.values.data(), padded, mine.scale.data(), size}, begin, memories, into);
        }
    });
}

// Frames from `first` on, in every layer.
void Decoder::remember(int thread, const Tokens& tokens, int64_t first, int64_t memories, const Cross& into) {
    const int64_t wide = shape.padded_head(), all = shape.all_heads(), per_layer = memories * into.blocks * 16 * all;
    for (int64_t layer = 0; layer < layers(); layer++) {
        const Matrix& matrix = layers_[static_cast<size_t>(layer)].cross_memory;
        if (into.eight) {
            float* heads = attention_[static_cast<size_t>(thread)].data();
            kernels_->product(tokens, matrix, 0, matrix.blocks, {Then::keep, heads, 2 * all, nullptr, 0});
            keep_eight(heads, tokens.count, first, layer, memories, into);
        } else {
            uint16_t* keys = into.halves + 2 * layer * per_layer;
            const Heads heads{"kv",        shape.heads, wide, nullptr, keys, keys + per_layer, into.blocks, row_.data(),
                              position_.data()};
            kernels_->product(tokens, matrix, 0, matrix.blocks, {Then::heads, nullptr, 0, &heads, first});
        }
    }
}

void Decoder::keep_eight(const float* heads, int64_t count, int64_t first, int64_t layer, int64_t memories,
                         const Cross& into) {
    const int64_t wide = shape.padded_head(), all = shape.all_heads(), slots = into.blocks * 16;
    const int64_t units = memories * shape.heads;
    int8_t* keys = into.eight + 2 * layer * units * slots * wide;
    int8_t* values = keys + units * slots * wide;
    float* scales = into.scales + 3 * layer * units * slots;
    for (int64_t i = 0; i < count; i++) {
        const size_t token = static_cast<size_t>(first + i);
        for (int64_t head = 0; head < shape.heads; head++) {
            const int64_t unit = row_[token] * shape.heads + head, at = unit * slots + position_[token];
            const int64_t block = (unit * into.blocks + position_[token] / 16) * 16 * wide;
            const int64_t inside = position_[token] % 16;
            const float* x = heads + i * 2 * all + head * wide;
            float* scale = scales + at;
            scale[0] = kernels_->keep_key(x, wide, keys + block, inside, scale + units * slots);
            scale[2 * units * slots] = kernels_->keep_value(x + all, wide, values + block, inside);
        }
    }
}

void Decoder::step(const Step& step) {
    OneCall one_call(calls_);
    pass(step);
}

void Decoder::pass(const Step& step) {
    row_.clear();
    position_.clear();
    lengths_.clear();
    outputs_.clear();
    first_.assign(1, 0);
    for (int64_t row = 0; row < step.rows; row++) {
        for (int64_t i = 0; i < step.counts[row]; i++) {
            row_.push_back(row);
            position_.push_back(step.lengths[row] + i + step.ahead);
            lengths_.push_back(step.lengths[row] + i + 1);
        }
        for (int64_t i = step.last ? std::max<int64_t>(0, step.counts[row] - 1) : 0; i < step.counts[row]; i++)
            outputs_.push_back(first_.back() + i);
        first_.push_back(first_.back() + step.counts[row]);
    }
    const int64_t count = first_.back(), padded = up(shape.width, 16);
    const int64_t widest = std::max({padded, up(shape.all_heads(), 16), up(shape.hidden, 16)});
    shared_.at_least(count, widest);
    for (auto& q : quantized_) q.at_least(kQuantizedByEach, widest);
    int64_t segments = 1;
    for (const DecoderLayer& layer : layers_)
        if (layer.reader) segments = std::max(segments, layer.reader->layers);
    const int64_t longest = 16 * std::max(segments * step.own_blocks, step.cross.blocks);
    for (auto& a : attention_) a.at_least(attention_scratch(longest) + 16 * up(count, 16));
    x_.at_least(count * padded);
    mixed_.at_least(count * shape.all_heads());
    hidden_.at_least(count * std::max(padded, up(shape.hidden, 16)));
    last_.at_least(static_cast<int64_t>(outputs_.size()) * padded);
    queries_.at_least(count * shape.all_heads());
    team_->run([&](int thread) { work(thread, step); });
}

void Decoder::work(int thread, const Step& step) {
    const int64_t count = first_.back(), padded = up(shape.width, 16), all = shape.all_heads();
    const int64_t per_layer = step.rows * shape.heads * step.own_blocks * 16 * shape.padded_head();
    const Sink onto_x{Then::add, x_.data(), padded, nullptr, 0};
    embed(step, team_->share(thread, count));
    team_->barrier();
    for (int64_t i = 0; i < layers(); i++) {
        const DecoderLayer& layer = layers_[static_cast<size_t>(i)];
        uint16_t* keys = step.own + (layer.reader ? 0 : 2 * i * per_layer);
        const Heads own{"qkv",           shape.heads, shape.padded_head(), queries_.data(), keys, keys + per_layer,
                        step.own_blocks, row_.data(), position_.data()};
        const Norm* self_norm = layer.reader && !layer.reader->norms_query ? nullptr : &layer.self_norm;
        multiply(thread, quantized(thread, x_.data(), shape.width, self_norm, count), layer.self_heads,
                 {Then::heads, nullptr, 0, &own, 0});
        if (layer.reader) {
            read_others(thread, layer, step);
        } else {
            attend_self(thread, i, step);
            multiply(thread, quantized(thread, mixed_.data(), all, nullptr, count), layer.self_out, onto_x);
        }
        multiply(thread, quantized(thread, x_.data(), shape.width, &layer.cross_norm, count), layer.cross_query,
                 {Then::heads, nullptr, 0, &own, 0});
        attend_cross(thread, i, step);
        multiply(thread, quantized(thread, mixed_.data(), all, nullptr, count), layer.cross_out, onto_x);
        const FeedForward& forward = layer.feed_forward;
        const int64_t hidden = forward.expand.blocks * 16;
        multiply(thread, quantized(thread, x_.data(), shape.width, &forward.norm, count), forward.expand,
                 {forward.activation, hidden_.data(), hidden, nullptr, 0});
        multiply(thread, quantized(thread, hidden_.data(), hidden, nullptr, count), forward.contract, onto_x);
    }
    if (step.states) {
        const Range mine = team_->share(thread, count);
        std::copy(x_.data() + mine.begin * padded, x_.data() + mine.end * padded, step.states + mine.begin * padded);
    }
    if (!step.logits) return;
    const int64_t outputs = static_cast<int64_t>(outputs_.size());
    if (outputs < count) {
        const Range mine = team_->share(thread, outputs);
        for (int64_t i = mine.begin; i < mine.end; i++)
            std::copy_n(x_.data() + outputs_[static_cast<size_t>(i)] * padded, padded, last_.data() + i * padded);
        team_->barrier();
    }
    const float* x = outputs < count ? last_.data() : x_.data();
    multiply(thread, quantized(thread, x, shape.width, &norm_, outputs), vocabulary_,
             {Then::keep, step.logits, vocabulary_size, nullptr, 0});
    if (step.choice) choose(step, team_->share(thread, outputs));
}

void Decoder::choose(const Step& step, Range tokens) {
    const Choice& choice = *step.choice;
    for (int64_t i = tokens.begin; i < tokens.end; i++) {
        float* logits = step.logits + i * vocabulary_size;
        const size_t token = static_cast<size_t>(outputs_[static_cast<size_t>(i)]);
        const int64_t row = row_[token];
        choice.suppressed.mask(row, logits);
        if (lengths_[token] < choice.earliest_end[row])
            logits[choice.end_token] = -std::numeric_limits<float>::infinity();
        if (choice.times)
            forbid_times(*choice.times, row, static_cast<int64_t>(token), choice.end_token, vocabulary_size, logits);
        float* log_prob = choice.log_probs ? choice.log_probs + i : nullptr;
        choice.tokens[i] = kernels_->likeliest(logits, vocabulary_size, log_prob);
    }
}

void Decoder::logits(const float* states, int64_t count, const Matrix* matrix, float* out) {
    OneCall one_call(calls_);
    const Matrix& chosen = matrix ? *matrix : vocabulary_;
    shared_.at_least(count, up(shape.width, 16));
    for (auto& q : quantized_) q.at_least(kQuantizedByEach, up(shape.width, 16));
    team_->run([&](int thread) {
        multiply(thread, quantized(thread, states, shape.width, &norm_, count), chosen,
                 {Then::keep, out, chosen.rows, nullptr, 0});
    });
}

// A row of the output matrix is the token's embedding.
void Decoder::embed(const Step& step, Range tokens) {
    const int64_t padded = up(shape.width, 16);
    for (int64_t i = tokens.begin; i < tokens.end; i++) {
        const int64_t token = step.tokens[i], position = position_[static_cast<size_t>(i)];
        const int8_t* block = vocabulary_.values + token / 16 * vocabulary_.steps * 64 + token % 16 * 4;
        float* x = x_.data() + i * padded;
        const float scale = vocabulary_.scale[token] * embedding_.factor;
        for (int64_t d = 0; d < shape.width; d++) {
            const float weight = static_cast<float>(block[d / 4 * 64 + d % 4]) * scale;
            x[d] = weight + positions_[position * shape.width + d];
        }
        for (int64_t d = shape.width; d < padded; d++) x[d] = 0;
        if (embedding_.norm) kernels_->normalise(x, 1, shape.width, padded, *embedding_.norm);
    }
}

void Decoder::attend_self(int thread, int64_t layer, const Step& step) {
    const int64_t wide = shape.padded_head(), all = shape.all_heads(), per_head = step.own_blocks * 16 * wide;
    const uint16_t* keys = step.own + 2 * layer * step.rows * shape.heads * per_head;
    const uint16_t* values = keys + step.rows * shape.heads * per_head;
    const Range part = team_->share(thread, step.rows * shape.heads);
    for (int64_t unit = part.begin; unit < part.end; unit++) {
        const int64_t row = unit / shape.heads, first = first_[static_cast<size_t>(row)];
        const int64_t at = first * all + unit % shape.heads * wide;
        if (!step.counts[row]) continue;
        kernels_->attend({queries_.data() + at, all, keys + unit * per_head, values + unit * per_head,
                          lengths_.data() + first, step.counts[row], wide, shape.factor(), mixed_.data() + at, all, nullptr,
                          0, attention_[static_cast<size_t>(thread)].data(), nullptr});
    }
    team_->barrier();
}

// x += norm(W_out attention over the keys and values of several layers of another decoder).
void Decoder::read_others(int thread, const DecoderLayer& layer, const Step& step) {
    const Reader& reader = *layer.reader;
    const int64_t wide = shape.padded_head(), all = shape.all_heads(), padded = up(shape.width, 16);
    const int64_t per_head = step.own_blocks * 16 * wide, per_layer = step.rows * shape.heads * per_head;
    const uint16_t* keys = step.own + 2 * reader.first * per_layer;
    const Range part = team_->share(thread, step.rows * shape.heads);
    for (int64_t unit = part.begin; unit < part.end; unit++) {
        const int64_t row = unit / shape.heads, at = first_[static_cast<size_t>(row)] * all + unit % shape.heads * wide;
        if (!step.counts[row]) continue;
        kernels_->attend_segments({queries_.data() + at, all, keys + unit * per_head, keys + per_layer + unit * per_head,
                                   step.lengths + row, 1, wide, shape.factor(), mixed_.data() + at, all, nullptr, 0,
                                   attention_[static_cast<size_t>(thread)].data(), nullptr, reader.layers,
                                   2 * per_layer});
    }
    team_->barrier();
    const int64_t count = first_.back();
    multiply(thread, quantized(thread, mixed_.data(), all, nullptr, count), layer.self_out,
             {Then::keep, hidden_.data(), padded, nullptr, 0});
    const Range mine = team_->share(thread, count);
    kernels_->normalise(hidden_.data() + mine.begin * padded, mine.end - mine.begin, shape.width, padded, reader.norm);
    for (int64_t i = mine.begin * padded; i < mine.end * padded; i++) x_.data()[i] += hidden_.data()[i];
    team_->barrier();
}

int64_t Decoder::reads() const {
    int64_t most = 0;
    for (const DecoderLayer& layer : layers_)
        if (layer.reader) most = std::max(most, layer.reader->first + layer.reader->layers);
    return most;
}

// All rows of a memory attend together, so that its keys are read once.
void Decoder::attend_cross(int thread, int64_t layer, const Step& step) {
    const int64_t wide = shape.padded_head(), all = shape.all_heads(), slots = step.cross.blocks * 16;
    const int64_t units = step.memories * shape.heads, rows = step.rows / step.memories;
    const int64_t keys = 2 * layer * units * slots * wide, values = keys + units * slots * wide;
    const Range part = team_->share(thread, units);
    Scratch<float>& scratch = attention_[static_cast<size_t>(thread)];
    int64_t* lengths = reinterpret_cast<int64_t*>(scratch.data() +
                                                  attention_scratch(16 * std::max(step.own_blocks, step.cross.blocks)));
    for (int64_t unit = part.begin; unit < part.end; unit++) {
        const int64_t memory = unit / shape.heads, first = first_[static_cast<size_t>(memory * rows)];
        const int64_t group = first_[static_cast<size_t>((memory + 1) * rows)] - first;
        const int64_t at = first * all + unit % shape.heads * wide;
        for (int64_t q = 0; q < group; q++) lengths[q] = step.frames[memory];
        float* weights = step.weights ? step.weights + (layer * units + unit) * group * step.weight_frames : nullptr;
        Attention attention{queries_.data() + at, all, nullptr, nullptr, lengths, group, wide, shape.factor(),
                            mixed_.data() + at,   all, weights, step.weight_frames, scratch.data(), nullptr};
        const int64_t key = keys + unit * slots * wide, value = values + unit * slots * wide;
        Eight eight{};
        if (step.cross.eight) {
            const float* scale = step.cross.scales + (3 * layer * units + unit) * slots;
            eight = {step.cross.eight + key, step.cross.eight + value, scale, scale + units * slots,
                     scale + 2 * units * slots};
            attention.eight = &eight;
        } else {
            attention.keys = step.cross.halves + key;
            attention.values = step.cross.halves + value;
        }
        kernels_->attend(attention);
    }
    team_->barrier();
}

Tokens Decoder::quantized(int thread, const float* x, int64_t width, const Norm* norm, int64_t count) {
    const int64_t stride = up(width, 16);
    const bool few = count <= kQuantizedByEach;
    Quantized& to = few ? quantized_[static_cast<size_t>(thread)] : shared_;
    const Range part = few ? Range{0, count} : team_->share(thread, count);
    kernels_->quantize(x + part.begin * stride, stride, part.end - part.begin, width, norm,
                       to.values.data() + part.begin * stride, stride, to.scale.data() + part.begin);
    if (!few) team_->barrier();
    return {to.values.data(), stride, to.scale.data(), count};
}

void Decoder::multiply(int thread, const Tokens& tokens, const Matrix& matrix, const Sink& sink) {
    const Range part = team_->share(thread, matrix.blocks);
    kernels_->product(tokens, matrix, part.begin, part.end, sink);
    team_->barrier();
}

}  // namespace sprachbund
