// Each thread makes some of the last stage's frames, and of the stages before the rows that these read: three at a time
// lie in its caches. A few rows at the borders are made by two threads, so that none waits.
#include "faststem.hpp"

#include <algorithm>

namespace sprachbund {

FastStem::FastStem(const Kernels* kernels, std::shared_ptr<Team> team, int64_t bins, int64_t channels, Square first,
                   std::vector<Separable> separable)
    : kernels_(kernels),
      team_(std::move(team)),
      bins_(bins),
      channels_(channels),
      first_(first),
      separable_(std::move(separable)),
      workers_(static_cast<size_t>(team_->size())) {}

int64_t FastStem::frames_after(int64_t frames) const {
    for (int64_t stage = 0; stage < stages(); stage++) frames = (frames + 1) / 2;
    return frames;
}

void FastStem::run(const float* x, int64_t frames, float* out) {
    OneCall one_call(calls_);
    const int64_t most = bins_ / 2 * padded();  // of a row
    for (Worker& w : workers_) {
        w.stages.resize(static_cast<size_t>(stages()));
        for (Stage& stage : w.stages) {
            const int64_t size = 3 * (padded() + most);
            std::fill_n(stage.rows.at_least(size), size, 0.0f);
            std::fill_n(stage.holds, 3, int64_t{-1});
        }
        const int64_t silence = std::max(1 + bins_, padded() + most);
        std::fill_n(w.silence.at_least(silence), silence, 0.0f);
        w.convolved.at_least(most);
        w.quantized.values.at_least(most);
        w.quantized.scale.at_least(bins_);
    }
    team_->run([&](int thread) { work(thread, x, frames, out); });
}

void FastStem::work(int thread, const float* x, int64_t frames, float* out) {
    const int64_t last = stages() - 1, bins = bins_ >> stages();
    const Range mine = team_->share(thread, frames_after(frames));
    for (int64_t t = mine.begin; t < mine.end; t++) {
        const float* from = row(workers_[static_cast<size_t>(thread)], last, t, x, frames) + padded();
        float* to = out + t * width_after();
        for (int64_t bin = 0; bin < bins; bin++)
            for (int64_t channel = 0; channel < channels_; channel++)
                to[channel * bins + bin] = from[bin * padded() + channel];
    }
}

// Of a stage's output; silence before the first row and behind the last one.
const float* FastStem::row(Worker& worker, int64_t stage, int64_t index, const float* x, int64_t frames) {
    int64_t before = frames;  // rows of the stage before
    for (int64_t i = 0; i < stage; i++) before = (before + 1) / 2;
    if (index < 0 || index >= (before + 1) / 2) return worker.silence.data();
    const int64_t bins = bins_ >> (stage + 1);
    Stage& own = worker.stages[static_cast<size_t>(stage)];
    float* made = own.rows.data() + index % 3 * (padded() + bins * padded());
    if (own.holds[index % 3] == index) return made;
    own.holds[index % 3] = index;
    const float* rows[3];
    for (int64_t i = 0; i < 3; i++) {
        const int64_t at = 2 * index - 1 + i;
        if (stage > 0)
            rows[i] = row(worker, stage - 1, at, x, frames);
        else
            rows[i] = at < 0 || at >= frames ? worker.silence.data() : x + at * (1 + bins_);
    }
    if (stage == 0) {
        kernels_->spread(rows, bins, first_, made + padded());
        return made;
    }
    const Separable& separable = separable_[static_cast<size_t>(stage - 1)];
    Quantized& to = worker.quantized;
    kernels_->shrink(rows, bins, separable.depthwise, worker.convolved.data());
    kernels_->quantize(worker.convolved.data(), padded(), bins, channels_, nullptr, to.values.data(), padded(),
                       to.scale.data());
    kernels_->product({to.values.data(), padded(), to.scale.data(), bins}, separable.pointwise, 0,
                      separable.pointwise.blocks, {Then::relu, made + padded(), padded(), nullptr, 0});
    return made;
}

}  // namespace sprachbund
