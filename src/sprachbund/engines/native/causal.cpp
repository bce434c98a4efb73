// A step is one parallel region with six barriers a layer, every product split by rows of its matrices. Many positions
// are passed through the layers so many at a time, so that what lies between two products stays in the caches.
#include "causal.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace sprachbund {

namespace {

constexpr int64_t kPass = 512;  // positions

// Rounded to nearest even.
uint16_t to_half(float x) {
    uint32_t u;
    std::memcpy(&u, &x, 4);
    return static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

void normalise_head(float* x, int64_t width, const Norm& norm) {
    float squares = 0;
    for (int64_t i = 0; i < width; i++) squares += x[i] * x[i];
    const float scale = 1.0f / std::sqrt(squares / static_cast<float>(width) + norm.epsilon);
    for (int64_t i = 0; i < width; i++) x[i] = x[i] * scale * norm.gain[i];
}

// Dimension i goes with i + width / 2; `turned` holds cosines, then sines.
void rotate(float* x, int64_t width, const float* turned) {
    const int64_t half = width / 2;
    for (int64_t i = 0; i < half; i++) {
        const float first = x[i], second = x[half + i], cosine = turned[i], sine = turned[half + i];
        x[i] = first * cosine - second * sine;
        x[half + i] = second * cosine + first * sine;
    }
}

}  // namespace

CausalLM::CausalLM(const Kernels* kernels, std::shared_ptr<Team> team, CausalShape shape_,
                   std::vector<CausalLayer> layers, Norm norm, Matrix vocabulary, const float* frequencies)
    : shape(shape_),
      vocabulary_size(vocabulary.rows),
      kernels_(kernels),
      team_(std::move(team)),
      layers_(std::move(layers)),
      norm_(norm),
      vocabulary_(vocabulary),
      frequencies_(frequencies),
      quantized_(static_cast<size_t>(team_->size())),
      attention_(static_cast<size_t>(team_->size())),
      attended_(static_cast<size_t>(team_->size())) {}

void CausalLM::step(const CausalStep& step) {
    OneCall one_call(calls_);
    row_.clear();
    position_.clear();
    for (int64_t row = 0; row < step.rows; row++) {
        for (int64_t i = 0; i < step.counts[row]; i++) {
            row_.push_back(row);
            position_.push_back(step.held[row] + i);
        }
    }
    const int64_t count = static_cast<int64_t>(row_.size());
    for (int64_t begin = 0; begin < count; begin += kPass) {
        const Range positions{begin, std::min(begin + kPass, count)};
        prepare(positions);
        team_->run([&](int thread) { work(thread, step, positions); });
    }
}

void CausalLM::prepare(Range positions) {
    const int64_t group = shape.group(), all = shape.heads * shape.head_width;
    const int64_t most = std::max<int64_t>(1, kManyAtOnce / group);
    count_ = positions.end - positions.begin;
    of_row_.assign(row_.begin() + positions.begin, row_.begin() + positions.end);
    at_.assign(position_.begin() + positions.begin, position_.begin() + positions.end);
    lengths_.clear();
    int64_t longest = 0;
    for (int64_t position : at_) {
        lengths_.insert(lengths_.end(), static_cast<size_t>(group), position + 1);
        longest = std::max(longest, position + 1);
    }
    units_.clear();
    for (int64_t first = 0, last = 0; first < count_; first = last) {
        const int64_t row = of_row_[static_cast<size_t>(first)];
        while (last < count_ && last < first + most && of_row_[static_cast<size_t>(last)] == row) last++;
        for (int64_t head = 0; head < shape.key_heads; head++) units_.push_back({row, head, first, last - first});
    }
    const int64_t padded = up(shape.width, 16), inner = up(shape.inner_width, 16);
    const int64_t widest = std::max({padded, up(all, 16), inner});
    if (count_ > kQuantizedByEach) shared_.at_least(count_, widest);
    for (auto& q : quantized_) q.at_least(kQuantizedByEach, widest);
    for (auto& a : attention_) a.at_least(std::max(attention_scratch(longest), many_scratch(shape.wide())));
    for (auto& a : attended_) a.at_least(most * group * shape.wide());
    x_.at_least(count_ * padded);
    projected_.at_least(count_ * shape.parts() * shape.head_width);
    turned_.at_least(count_ * shape.head_width);
    mixed_.at_least(count_ * up(all, 16));
    hidden_.at_least(count_ * inner);
    queries_.at_least(count_ * shape.heads * shape.wide());
}

void CausalLM::work(int thread, const CausalStep& step, Range positions) {
    const int64_t padded = up(shape.width, 16), inner = up(shape.inner_width, 16), width = shape.head_width;
    const int64_t all = shape.heads * width, keys = shape.key_heads * width, stride = all + 2 * keys;
    const int64_t per_layer = step.rows * shape.key_heads * step.blocks * 16 * shape.wide();
    const Sink onto_x{Then::add, x_.data(), padded, nullptr, 0, shape.residual_scale};
    float* projected = projected_.data();
    begin(step, positions, team_->share(thread, count_));
    team_->barrier();
    for (int64_t i = 0; i < layers(); i++) {
        const CausalLayer& layer = layers_[static_cast<size_t>(i)];
        uint16_t *own_keys = step.own + 2 * i * per_layer, *own_values = own_keys + per_layer;
        multiply(thread, quantized(thread, x_.data(), shape.width, &layer.norm),
                 {{&layer.query, {Then::keep, projected, stride, nullptr, 0}},
                  {&layer.key, {Then::keep, projected + all, stride, nullptr, 0}},
                  {&layer.value, {Then::keep, projected + all + keys, stride, nullptr, 0}}});
        store(thread, layer, own_keys, own_values, step.blocks);
        attend(thread, step, own_keys, own_values);
        multiply(thread, quantized(thread, mixed_.data(), all, nullptr), {{&layer.out, onto_x}});
        const Tokens tokens = quantized(thread, x_.data(), shape.width, &layer.inner_norm);
        // The same rows of both, so that no thread waits for what another one gates.
        const Range part = team_->share(thread, layer.gate.blocks);
        kernels_->product(tokens, layer.gate, part.begin, part.end, {Then::silu, hidden_.data(), inner, nullptr, 0});
        kernels_->product(tokens, layer.up, part.begin, part.end, {Then::times, hidden_.data(), inner, nullptr, 0});
        team_->barrier();
        multiply(thread, quantized(thread, hidden_.data(), inner, nullptr), {{&layer.down, onto_x}});
    }
    if (!step.logits) return;
    float* logits = step.logits + positions.begin * vocabulary_size;
    multiply(thread, quantized(thread, x_.data(), shape.width, &norm_),
             {{&vocabulary_, {Then::keep, logits, vocabulary_size, nullptr, 0}}});
}

// What goes into the layers, and the cosines and sines of its positions.
void CausalLM::begin(const CausalStep& step, Range positions, Range mine) {
    const int64_t padded = up(shape.width, 16), half = shape.head_width / 2, all = shape.heads * shape.head_width;
    for (int64_t i = mine.begin; i < mine.end; i++) {
        const float* embedded = step.embedded + (positions.begin + i) * shape.width;
        float *x = x_.data() + i * padded, *turned = turned_.data() + i * shape.head_width;
        for (int64_t d = 0; d < shape.width; d++) x[d] = embedded[d] * shape.embedding_scale;
        std::fill(x + shape.width, x + padded, 0.0f);
        std::fill_n(mixed_.data() + i * up(all, 16) + all, up(all, 16) - all, 0.0f);
        for (int64_t d = 0; d < half; d++) {
            const float angle = static_cast<float>(at_[static_cast<size_t>(i)]) * frequencies_[d];
            turned[d] = std::cos(angle);
            turned[half + d] = std::sin(angle);
        }
    }
}

// Head norms and positions of queries and keys; queries in bf16 so that those of a group lie together, keys and values
// into the cache.
void CausalLM::store(int thread, const CausalLayer& layer, uint16_t* keys, uint16_t* values, int64_t blocks) {
    const int64_t width = shape.head_width, wide = shape.wide(), parts = shape.parts(), group = shape.group();
    const Range mine = team_->share(thread, count_ * parts);
    for (int64_t i = mine.begin; i < mine.end; i++) {
        const int64_t token = i / parts, part = i % parts, at = at_[static_cast<size_t>(token)];
        const bool is_query = part < shape.heads, is_value = part >= shape.heads + shape.key_heads;
        float* x = projected_.data() + i * width;
        const std::optional<Norm>& norm = is_query ? layer.query_norm : layer.key_norm;
        if (!is_value) {
            if (norm) normalise_head(x, width, *norm);
            rotate(x, width, turned_.data() + token * width);
        }
        if (is_query) {
            uint16_t* to = queries_.data() + ((part / group * count_ + token) * group + part % group) * wide;
            for (int64_t d = 0; d < width; d++) to[d] = to_half(x[d]);
            std::fill(to + width, to + wide, static_cast<uint16_t>(0));
            continue;
        }
        const int64_t head = (part - shape.heads) % shape.key_heads, inside = at % 16;
        const int64_t unit = of_row_[static_cast<size_t>(token)] * shape.key_heads + head;
        const int64_t block = (unit * blocks + at / 16) * 16 * wide;
        if (is_value) {
            uint16_t* to = values + block + inside / 2 * 32 + inside % 2;
            for (int64_t d = 0; d < width; d++) to[d / 16 * 256 + d % 16 * 2] = to_half(x[d]);
        } else {
            uint16_t* to = keys + block + inside * 2;
            for (int64_t d = 0; d < width; d += 2) {
                const uint16_t two[2] = {to_half(x[d]), to_half(x[d + 1])};
                std::memcpy(to + d * 16, two, sizeof two);
            }
        }
    }
    team_->barrier();
}

// Threads take turns, since later positions of a row see more. Prefixes, which have no logits, are read by the kernel for
// many queries; tokens never are, so that several at once give the logits of single ones.
void CausalLM::attend(int thread, const CausalStep& step, const uint16_t* keys, const uint16_t* values) {
    const bool many = !step.logits && shape.group() <= kManyAtOnce;
    const int64_t width = shape.head_width, wide = shape.wide(), group = shape.group();
    const int64_t per_head = step.blocks * 16 * wide, stride = up(shape.heads * width, 16);
    float* attended = attended_[static_cast<size_t>(thread)].data();
    for (size_t i = static_cast<size_t>(thread); i < units_.size(); i += static_cast<size_t>(team_->size())) {
        const Unit& unit = units_[i];
        const int64_t from = (unit.row * shape.key_heads + unit.head) * per_head;
        const Attention attention{queries_.data() + (unit.head * count_ + unit.first) * group * wide, wide, keys + from,
                                  values + from, lengths_.data() + unit.first * group, unit.count * group, wide,
                                  shape.attention_scale, attended, wide, nullptr, 0,
                                  attention_[static_cast<size_t>(thread)].data(), nullptr};
        many ? kernels_->attend_many(attention) : kernels_->attend(attention);
        for (int64_t token = 0; token < unit.count; token++) {
            float* to = mixed_.data() + (unit.first + token) * stride + unit.head * group * width;
            for (int64_t q = 0; q < group; q++) std::copy_n(attended + (token * group + q) * wide, width, to + q * width);
        }
    }
    team_->barrier();
}

Tokens CausalLM::quantized(int thread, const float* x, int64_t width, const Norm* norm) {
    const int64_t stride = up(width, 16);
    const bool few = count_ <= kQuantizedByEach;
    Quantized& to = few ? quantized_[static_cast<size_t>(thread)] : shared_;
    const Range part = few ? Range{0, count_} : team_->share(thread, count_);
    kernels_->quantize(x + part.begin * stride, stride, part.end - part.begin, width, norm,
                       to.values.data() + part.begin * stride, stride, to.scale.data() + part.begin);
    if (!few) team_->barrier();
    return {to.values.data(), stride, to.scale.data(), count_};
}

// Matrices of the same inputs, shared among the threads as if they were one.
void CausalLM::multiply(int thread, const Tokens& tokens, std::initializer_list<Part> parts) {
    int64_t total = 0;
    for (const Part& part : parts) total += part.matrix->blocks;
    const Range mine = team_->share(thread, total);
    int64_t before = 0;
    for (const Part& part : parts) {
        const int64_t begin = std::max<int64_t>(0, mine.begin - before);
        const int64_t end = std::min(part.matrix->blocks, mine.end - before);
        if (begin < end) kernels_->product(tokens, *part.matrix, begin, end, part.sink);
        before += part.matrix->blocks;
    }
    team_->barrier();
}

}  // namespace sprachbund
