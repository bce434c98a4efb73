// The convolutions before the layers of a FastConformer (arXiv 2305.05084, section 2): one, and then separable ones,
// each of 3 x 3 and stride 2 over time and bins, with ReLU behind it.
//
// Shapes: T frames, M bins, C channels, padded to 16; every stage leaves half of frames and bins.
#pragma once
#include "model.hpp"

namespace sprachbund {

struct Separable {
    Square depthwise;
    Matrix pointwise;
};

class FastStem {
  public:
    // C is not padded here.
    FastStem(const Kernels* kernels, std::shared_ptr<Team> team, int64_t bins, int64_t channels, Square first,
             std::vector<Separable> separable);

    // One utterance, x (T, 1 + M) with a zero before the bins of every frame, to (frames_after(T), C x bins left).
    void run(const float* x, int64_t frames, float* out);

    int64_t frames_after(int64_t frames) const;
    int64_t width_after() const { return channels_ * (bins_ >> stages()); }
    int64_t bins() const { return bins_; }

  private:
    // Rows that a thread has made of a stage, each with a bin of silence in front: the next one reads three in a row.
    struct Stage {
        Scratch<float> rows;
        int64_t holds[3];
    };
    struct Worker {
        std::vector<Stage> stages;
        Scratch<float> silence, convolved;
        Quantized quantized;
    };

    int64_t stages() const { return 1 + static_cast<int64_t>(separable_.size()); }
    int64_t padded() const { return up(channels_, 16); }
    void work(int thread, const float* x, int64_t frames, float* out);
    const float* row(Worker& worker, int64_t stage, int64_t index, const float* x, int64_t frames);

    const Kernels* kernels_;
    std::shared_ptr<Team> team_;
    int64_t bins_, channels_;
    Square first_;
    std::vector<Separable> separable_;
    std::vector<Worker> workers_;  // one per thread
    CallLock calls_;
};

}  // namespace sprachbund
