// The encoder: every thread takes chunks of frames through all of a layer but its attention, so that what a chunk
// becomes stays in the cache next to the core. Two barriers a layer; a third where a convolution looks at the frames of
// other chunks.
#include "model.hpp"

#include <algorithm>

namespace sprachbund {

namespace {

constexpr int64_t kPadding = 16;  // floats behind each row: rows a power of two apart would share few lines of the cache

int64_t margin(const std::vector<EncoderLayer>& layers) {
    int64_t most = -1;
    for (const EncoderLayer& layer : layers)
        if (layer.conformer) most = std::max(most, layer.conformer->convolution.depthwise.count / 2);
    return most;
}

void add_frames(const float* frames, int64_t count, int64_t width, double* sum) {
    for (int64_t frame = 0; frame < count; frame++)
        for (int64_t i = 0; i < width; i++) sum[i] += static_cast<double>(frames[frame * width + i]);
}

}  // namespace

Encoder::Encoder(const Kernels* kernels, std::shared_ptr<Team> team, Shape shape_, std::vector<EncoderLayer> layers,
                 std::optional<Norm> norm)
    : shape(shape_),
      kernels_(kernels),
      team_(std::move(team)),
      layers_(std::move(layers)),
      norm_(norm),
      margin_(margin(layers_)),
      quantized_(static_cast<size_t>(team_->size())),
      attention_(static_cast<size_t>(team_->size())),
      hidden_(static_cast<size_t>(team_->size())),
      sums_(static_cast<size_t>(team_->size())) {}

void Encoder::encode(float* x, int64_t frames, float* means) {
    OneCall one_call(calls_);
    const int64_t positions = up(frames, 16), all = shape.all_heads(), padded = up(shape.width, 16);
    const int64_t hidden = std::max(up(shape.hidden, 16), 2 * padded);
    row_.assign(static_cast<size_t>(frames), 0);
    lengths_.assign(static_cast<size_t>(frames), frames);
    position_.resize(static_cast<size_t>(frames));
    for (int64_t i = 0; i < frames; i++) position_[static_cast<size_t>(i)] = i;
    for (auto& q : quantized_) q.at_least(kernels_->chunk, std::max({padded, all, hidden}));
    for (auto& a : attention_) a.at_least(std::max(attention_scratch(positions), many_scratch(shape.padded_head())));
    for (auto& h : hidden_) h.at_least(kernels_->chunk * (hidden + kPadding));
    mixed_.at_least(frames * all);
    queries_.at_least(frames * all);
    std::fill_n(keys_.at_least(positions * all), positions * all, uint16_t{0});
    std::fill_n(values_.at_least(positions * all), positions * all, uint16_t{0});
    if (margin_ >= 0) {
        const int64_t size = (frames + 2 * margin_) * padded;
        std::fill_n(gated_.at_least(size), size, 0.0f);
    }
    if (means)
        for (auto& sums : sums_) sums.assign(layers_.size() * static_cast<size_t>(padded), 0.0);
    team_->run([&](int thread) { work(thread, x, frames, means != nullptr); });
    if (means) average(frames, means);
    // The decoder comes next and has no use for them: what grows with the frames would lie beside its caches.
    mixed_.give_back();
    gated_.give_back();
    for (Scratch<uint16_t>* heads : {&queries_, &keys_, &values_}) heads->give_back();
}

void Encoder::average(int64_t frames, float* means) const {
    const size_t count = sums_.front().size();
    for (size_t i = 0; i < count; i++) {
        double sum = 0;
        for (const auto& of_thread : sums_) sum += of_thread[i];
        means[i] = static_cast<float>(sum / static_cast<double>(frames));
    }
}

void Encoder::work(int thread, float* x, int64_t frames, bool with_sums) {
    // As few chunks as there may be, all of the same size.
    const int64_t fair = (frames + team_->size() - 1) / team_->size(), chunks = (fair + kernels_->chunk - 1) / kernels_->chunk;
    const int64_t size = up((fair + chunks - 1) / chunks, kernels_->at_once);
    const int64_t padded = up(shape.width, 16);
    const Range part = team_->share(thread, frames, size);
    const Heads into{"qkv",          shape.heads,         shape.padded_head(), queries_.data(), keys_.data(),
                       values_.data(), up(frames, 16) / 16, row_.data(),         position_.data()};
    auto in_chunks = [&](auto&& each) {
        for (int64_t at = part.begin; at < part.end; at += size)
            each(x + at * padded, Range{at, std::min(at + size, part.end)});
    };
    // In double precision, so that the means do not depend on the number of threads.
    double* sum = sums_[static_cast<size_t>(thread)].data();
    for (const EncoderLayer& layer : layers_) {
        in_chunks([&](float* at, Range chunk) { heads(thread, layer, at, chunk, into); });
        team_->barrier();
        attend(thread, into, frames);
        team_->barrier();
        if (layer.conformer) {
            in_chunks([&](float* at, Range chunk) {
                mixed(thread, layer, at, chunk);
                gate(thread, layer.conformer->convolution, at, chunk);
            });
            team_->barrier();
        }
        in_chunks([&](float* at, Range chunk) {
            const int64_t count = chunk.end - chunk.begin;
            layer.conformer ? convolve(thread, layer.conformer->convolution, at, chunk)
                            : mixed(thread, layer, at, chunk);
            feed_forward(thread, layer.feed_forward, at, count);
            if (layer.conformer) kernels_->normalise(at, count, shape.width, padded, layer.conformer->last);
            if (with_sums) add_frames(at, count, padded, sum);
        });
        if (with_sums) sum += padded;
    }
    if (norm_) kernels_->normalise(x + part.begin * padded, part.end - part.begin, shape.width, padded, *norm_);
}

void Encoder::heads(int thread, const EncoderLayer& layer, float* x, Range chunk, const Heads& heads) {
    const int64_t count = chunk.end - chunk.begin;
    if (layer.conformer) feed_forward(thread, layer.conformer->first, x, count);
    kernels_->product(quantized(thread, x, up(shape.width, 16), shape.width, &layer.norm, count), layer.heads, 0, layer.heads.blocks,
                      {Then::heads, nullptr, 0, &heads, chunk.begin});
}

void Encoder::attend(int thread, const Heads& heads, int64_t frames) {
    const int64_t wide = shape.padded_head(), all = shape.all_heads(), per_head = heads.blocks * 16 * wide;
    // As many queries at once as there may be, but enough groups for all threads.
    const int64_t fair = up(frames * shape.heads / (4 * team_->size()), kQueriesAtOnce);
    const int64_t size = std::clamp(fair, kQueriesAtOnce, kManyAtOnce), groups = (frames + size - 1) / size;
    const Range part = team_->share(thread, shape.heads * groups);
    for (int64_t unit = part.begin; unit < part.end; unit++) {
        const int64_t head = unit / groups, first = unit % groups * size;
        const int64_t count = std::min(size, frames - first), at = first * all + head * wide;
        kernels_->attend_all({heads.queries + at, all, heads.keys + head * per_head, heads.values + head * per_head,
                              lengths_.data() + first, count, wide, shape.factor(), mixed_.data() + at, all, nullptr, 0,
                              attention_[static_cast<size_t>(thread)].data(), nullptr});
    }
}

void Encoder::mixed(int thread, const EncoderLayer& layer, float* x, Range chunk) {
    const int64_t all = shape.all_heads();
    add(thread, layer.out, mixed_.data() + chunk.begin * all, all, all, x, chunk.end - chunk.begin);
}

void Encoder::gate(int thread, const Convolution& convolution, const float* x, Range chunk) {
    const int64_t padded = up(shape.width, 16), count = chunk.end - chunk.begin;
    float* halves = hidden_[static_cast<size_t>(thread)].data();
    const Matrix& matrix = convolution.gate;
    kernels_->product(quantized(thread, x, padded, shape.width, &convolution.norm, count), matrix, 0, matrix.blocks,
                      {Then::keep, halves, 2 * padded, nullptr, 0});
    kernels_->gate(halves, count, padded, gated_.data() + (margin_ + chunk.begin) * padded);
}

void Encoder::convolve(int thread, const Convolution& convolution, float* x, Range chunk) {
    const int64_t padded = up(shape.width, 16), count = chunk.end - chunk.begin;
    const Depthwise& depthwise = convolution.depthwise;
    float* hidden = hidden_[static_cast<size_t>(thread)].data();
    const float* first = gated_.data() + (margin_ - depthwise.count / 2 + chunk.begin) * padded;
    kernels_->depthwise(first, count, shape.width, padded, depthwise, hidden);
    add(thread, convolution.out, hidden, padded, padded, x, count);
}

void Encoder::feed_forward(int thread, const FeedForward& forward, float* x, int64_t count) {
    float* hidden = hidden_[static_cast<size_t>(thread)].data();
    const int64_t wide = forward.expand.blocks * 16, stride = wide + kPadding;
    kernels_->product(quantized(thread, x, up(shape.width, 16), shape.width, &forward.norm, count), forward.expand, 0,
                      forward.expand.blocks, {forward.activation, hidden, stride, nullptr, 0});
    add(thread, forward.contract, hidden, stride, wide, x, count);
}

void Encoder::add(int thread, const Matrix& matrix, const float* from, int64_t stride, int64_t width, float* x,
                  int64_t count) {
    kernels_->product(quantized(thread, from, stride, width, nullptr, count), matrix, 0, matrix.blocks,
                      {Then::add, x, up(shape.width, 16), nullptr, 0});
}

Tokens Encoder::quantized(int thread, const float* x, int64_t stride, int64_t width, const Norm* norm, int64_t count) {
    Quantized& to = quantized_[static_cast<size_t>(thread)];
    const int64_t value_stride = up(width, 16);
    kernels_->quantize(x, stride, count, width, norm, to.values.data(), value_stride, to.scale.data());
    return {to.values.data(), value_stride, to.scale.data(), count};
}

}  // namespace sprachbund
