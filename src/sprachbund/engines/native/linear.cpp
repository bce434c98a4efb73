#include "model.hpp"

namespace sprachbund {

void Linear::run(const float* x, int64_t count, float* out) {
    OneCall one_call(calls_);
    const int64_t stride = up(inputs, 16);
    const bool few = count <= kQuantizedByEach;
    if (few)
        for (auto& q : quantized_) q.at_least(kQuantizedByEach, stride);
    else
        shared_.at_least(count, stride);
    team_->run([&](int thread) {
        Quantized& to = few ? quantized_[static_cast<size_t>(thread)] : shared_;
        const Range part = few ? Range{0, count} : team_->share(thread, count);
        kernels_->quantize(x + part.begin * stride, stride, part.end - part.begin, inputs, nullptr,
                           to.values.data() + part.begin * stride, stride, to.scale.data() + part.begin);
        if (!few) team_->barrier();
        const Range blocks = team_->share(thread, matrix_.blocks);
        kernels_->product({to.values.data(), stride, to.scale.data(), count}, matrix_, blocks.begin, blocks.end,
                          {Then::keep, out, matrix_.rows, nullptr, 0});
    });
}

}  // namespace sprachbund
