// Convolutions over time before the layers, each followed by GELU. A frame's window lies in one piece, so a convolution
// is a product whose tokens overlap.
#include <algorithm>

#include "model.hpp"

namespace sprachbund {

int64_t Stem::frames_after(int64_t frames) const {
    for (const StemLayer& layer : layers_) frames = layer.frames_after(frames);
    return frames;
}

void Stem::run(const float* x, int64_t frames, float* out) {
    OneCall one_call(calls_);
    inner_.resize(layers_.size());
    int64_t widest = 0, count = frames;
    for (size_t i = 0; i < layers_.size(); i++) {
        const StemLayer& layer = layers_[i];
        const int64_t size = (count + layer.taps) * layer.channels;  // silence before and after
        std::fill_n(inner_[i].at_least(size), size, 0.0f);
        widest = std::max(widest, layer.taps * layer.channels);
        count = layer.frames_after(count);
    }
    std::copy_n(x, frames * layers_[0].channels, inner_[0].data() + layers_[0].taps / 2 * layers_[0].channels);
    for (auto& q : quantized_) q.at_least(kernels_->chunk, widest);
    team_->run([&](int thread) { work(thread, frames, out); });
    inner_.clear();  // the layers come next and have no use for it
}

void Stem::work(int thread, int64_t frames, float* out) {
    Quantized& mine = quantized_[static_cast<size_t>(thread)];
    const int64_t chunk = kernels_->chunk;
    for (size_t i = 0; i < layers_.size(); i++) {
        const StemLayer& layer = layers_[i];
        frames = layer.frames_after(frames);
        const bool last = i + 1 == layers_.size();
        const int64_t wide = layer.taps * layer.channels, next = layer.matrix.blocks * 16;
        float* to = last ? out : inner_[i + 1].data() + layers_[i + 1].taps / 2 * next;
        const Range part = team_->share(thread, frames);
        for (int64_t at = part.begin; at < part.end; at += chunk) {
            const int64_t count = std::min(chunk, part.end - at), step = layer.stride * layer.channels;
            kernels_->quantize(inner_[i].data() + at * step, step, count, wide, nullptr, mine.values.data(), wide,
                               mine.scale.data());
            kernels_->product({mine.values.data(), wide, mine.scale.data(), count}, layer.matrix, 0,
                              layer.matrix.blocks, {Then::gelu, to + at * next, next, nullptr, 0});
        }
        team_->barrier();
    }
}

}  // namespace sprachbund
