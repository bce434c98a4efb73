// The encoder: every thread takes chunks of frames through all of a layer but its attention, so that what a chunk
// becomes stays in the cache next to the core; two barriers a layer.
#include "model.hpp"

#include <algorithm>

namespace sprachbund {

namespace {

constexpr int64_t kChunk = 48;  // frames: a multiple of the twelve that the widest kernel takes at once

}  // namespace

Encoder::Encoder(const Kernels* kernels, std::shared_ptr<Team> team, Shape shape_, std::vector<EncoderLayer> layers,
                 Norm norm)
    : shape(shape_),
      kernels_(kernels),
      team_(std::move(team)),
      layers_(std::move(layers)),
      norm_(norm),
      quantized_(static_cast<size_t>(team_->size())),
      attention_(static_cast<size_t>(team_->size())),
      hidden_(static_cast<size_t>(team_->size())) {}

void Encoder::encode(float* x, int64_t frames) {
    std::lock_guard<std::mutex> one_call(calls_);
    const int64_t positions = up(frames, 16), all = shape.all_heads(), hidden = up(shape.hidden, 16);
    row_.assign(static_cast<size_t>(frames), 0);
    lengths_.assign(static_cast<size_t>(frames), frames);
    position_.resize(static_cast<size_t>(frames));
    for (int64_t i = 0; i < frames; i++) position_[static_cast<size_t>(i)] = i;
    for (auto& q : quantized_) {
        q.values.at_least(kChunk * std::max({up(shape.width, 16), all, hidden}));
        q.scale.at_least(kChunk);
    }
    for (auto& a : attention_) a.at_least(attention_scratch(positions));
    for (auto& h : hidden_) h.at_least(kChunk * hidden);
    mixed_.at_least(frames * all);
    queries_.at_least(frames * all);
    std::fill_n(keys_.at_least(positions * all), positions * all, uint16_t{0});
    std::fill_n(values_.at_least(positions * all), positions * all, uint16_t{0});
    team_->run([&](int thread) { work(thread, x, frames); });
}

void Encoder::work(int thread, float* x, int64_t frames) {
    const int64_t fair = up((frames + team_->size() - 1) / team_->size(), 12), chunk = fair < kChunk ? fair : kChunk;
    const Range part = team_->share(thread, frames, chunk);
    const Heads places{"qkv",          shape.heads,         shape.padded_head(), queries_.data(), keys_.data(),
                       values_.data(), up(frames, 16) / 16, row_.data(),         position_.data()};
    const int64_t padded = up(shape.width, 16);
    for (size_t layer = 0; layer < layers_.size(); layer++) {
        const int64_t i = static_cast<int64_t>(layer);
        for (int64_t at = part.begin; at < part.end; at += chunk)
            heads(thread, i, x, {at, std::min(at + chunk, part.end)}, places);
        team_->barrier();
        attend(thread, places, frames);
        team_->barrier();
        for (int64_t at = part.begin; at < part.end; at += chunk)
            rest(thread, i, x, {at, std::min(at + chunk, part.end)});
    }
    kernels_->normalise(x + part.begin * padded, part.end - part.begin, shape.width, padded, norm_);
}

void Encoder::heads(int thread, int64_t layer, float* x, Range chunk, const Heads& heads) {
    const EncoderLayer& l = layers_[static_cast<size_t>(layer)];
    Quantized& mine = quantized_[static_cast<size_t>(thread)];
    const int64_t padded = up(shape.width, 16), count = chunk.end - chunk.begin;
    kernels_->quantize(x + chunk.begin * padded, padded, count, shape.width, &l.norm, mine.values.data(), padded,
                       mine.scale.data());
    kernels_->product({mine.values.data(), padded, mine.scale.data(), count}, l.heads, 0, l.heads.blocks,
                      {Then::heads, nullptr, 0, &heads, chunk.begin});
}

void Encoder::attend(int thread, const Heads& heads, int64_t frames) {
    const int64_t wide = shape.padded_head(), all = shape.all_heads(), per_head = heads.blocks * 16 * wide;
    const int64_t groups = (frames + kQueriesAtOnce - 1) / kQueriesAtOnce;
    const Range part = team_->share(thread, shape.heads * groups);
    for (int64_t unit = part.begin; unit < part.end; unit++) {
        const int64_t head = unit / groups, first = unit % groups * kQueriesAtOnce;
        const int64_t count = std::min(kQueriesAtOnce, frames - first), at = first * all + head * wide;
        kernels_->attend({heads.queries + at, all, heads.keys + head * per_head, heads.values + head * per_head,
                          lengths_.data() + first, count, wide, shape.factor(), mixed_.data() + at, all, nullptr, 0,
                          attention_[static_cast<size_t>(thread)].data()});
    }
}

void Encoder::rest(int thread, int64_t layer, float* x, Range chunk) {
    const EncoderLayer& l = layers_[static_cast<size_t>(layer)];
    const FeedForward& forward = l.feed_forward;
    Quantized& mine = quantized_[static_cast<size_t>(thread)];
    float* hidden = hidden_[static_cast<size_t>(thread)].data();
    const int64_t padded = up(shape.width, 16), all = shape.all_heads(), count = chunk.end - chunk.begin;
    const int64_t wide = forward.expand.blocks * 16;
    float* at = x + chunk.begin * padded;
    const Sink onto_x{Then::add, at, padded, nullptr, 0};
    uint8_t* values = mine.values.data();
    float* scale = mine.scale.data();
    kernels_->quantize(mixed_.data() + chunk.begin * all, all, count, all, nullptr, values, all, scale);
    kernels_->product({values, all, scale, count}, l.out, 0, l.out.blocks, onto_x);
    kernels_->quantize(at, padded, count, shape.width, &forward.norm, values, padded, scale);
    kernels_->product({values, padded, scale, count}, forward.expand, 0, forward.expand.blocks,
                      {Then::gelu, hidden, wide, nullptr, 0});
    kernels_->quantize(hidden, wide, count, wide, nullptr, values, wide, scale);
    kernels_->product({values, wide, scale, count}, forward.contract, 0, forward.contract.blocks, onto_x);
}

}  // namespace sprachbund
