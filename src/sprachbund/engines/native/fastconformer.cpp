// Frames pass through the parts of a layer so many at a time, so that what lies between two products stays in the
// caches; threads share the rows of a matrix, so that every weight is read once a pass. Attention sees all frames of an
// utterance, and the convolution those beside its own, so a layer has three rounds of passes.
#include "fastconformer.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace sprachbund {

namespace {

constexpr int64_t kPass = 192;          // frames
constexpr int64_t kReach = 64;          // distances become known so many at a time
// Queries of a unit. Where the context is limited, a larger unit reads more keys that most of its queries do not see.
constexpr int64_t kUnit = 48;
static_assert(kUnit <= kManyAtOnce);
constexpr float kUnseen = -3.0e38f;  // added to the score of a key that a query does not see

// Rounded to nearest even.
uint16_t to_half(float x) {
    uint32_t u;
    std::memcpy(&u, &x, 4);
    return static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

float from_half(uint16_t half) {
    const uint32_t u = static_cast<uint32_t>(half) << 16;
    float x;
    std::memcpy(&x, &u, 4);
    return x;
}

// Where dimension d of a position lies among keys, and among values, of one head; kernels.hpp has the layouts.
int64_t key_at(int64_t position, int64_t d, int64_t width) {
    return position / 16 * 16 * width + d / 2 * 32 + position % 16 * 2 + d % 2;
}
int64_t value_at(int64_t position, int64_t d, int64_t width) {
    return position / 16 * 16 * width + d / 16 * 256 + position % 16 / 2 * 32 + d % 16 * 2 + position % 2;
}

int64_t margin_of(int64_t taps, Context context) { return context == Context::before ? taps - 1 : taps / 2; }

}  // namespace

FastConformer::FastConformer(const Kernels* kernels, std::shared_ptr<Team> team, Shape shape_,
                             std::vector<FastLayer> layers, const float* rates, Context context)
    : shape(shape_),
      margin(margin_of(layers.front().convolution.depthwise.count, context)),
      kernels_(kernels),
      team_(std::move(team)),
      layers_(std::move(layers)),
      rates_(rates),
      context_(context),
      attention_(static_cast<size_t>(team_->size())),
      biases_(static_cast<size_t>(team_->size())),
      distances_(layers_.size()) {}

void FastConformer::encode(float* x, const int64_t* counts, int64_t utterances, Sight sight, const Streams* streams,
                           float* means) {
    OneCall one_call(calls_);
    prepare(counts, utterances, sight, streams);
    means_ = means;
    team_->run([&](int thread) { work(thread, x); });
    streams_ = nullptr;
    means_ = nullptr;
    // What comes next has no use for what grows with the frames.
    for (Scratch<float>* floats : {&mixed_, &gated_}) floats->give_back();
    for (Scratch<uint16_t>* halves : {&queries_, &by_distance_, &keys_, &values_}) halves->give_back();
}

void FastConformer::prepare(const int64_t* counts, int64_t utterances, Sight sight, const Streams* streams) {
    for (auto* list : {&begins_, &row_, &position_}) list->clear();
    counts_.assign(counts, counts + utterances);
    streams_ = streams;
    sight_ = sight;
    int64_t longest = 0;
    for (int64_t row = 0; row < utterances; row++) {
        longest = std::max(longest, known(row) + counts[row]);
        begins_.push_back(static_cast<int64_t>(row_.size()));
        row_.insert(row_.end(), static_cast<size_t>(counts[row]), row);
        for (int64_t i = 0; i < counts[row]; i++) position_.push_back(known(row) + i);
    }
    divide();
    know(longest);
    const int64_t frames = static_cast<int64_t>(row_.size()), width = shape.width;
    const int64_t most = std::min(frames, kPass), hidden = std::max(up(shape.hidden, 16), 2 * width);
    blocks_ = up(longest, 16) / 16;
    const int64_t keys = utterances * blocks_ * 16 * width, gated = (frames + (utterances + 1) * margin) * width;
    shared_.at_least(most, hidden);
    hidden_.at_least(most * hidden);
    mixed_.at_least(frames * width);
    queries_.at_least(frames * width);
    by_distance_.at_least(frames * width);
    std::fill_n(keys_.at_least(keys), keys, uint16_t{0});
    std::fill_n(values_.at_least(keys), keys, uint16_t{0});
    std::fill_n(gated_.at_least(gated), gated, 0.0f);
    for (auto& a : attention_) a.at_least(std::max(attention_scratch(longest), many_scratch(shape.head_width)));
    // Biases of all queries of a unit, in whole blocks at both ends; the last row is read up to a multiple of 16.
    for (auto& b : biases_) b.at_least(kUnit * (up(longest + kUnit, 16) + 16) + 16);
}

void FastConformer::divide() {
    for (auto* list : {&lengths_, &starts_}) list->clear();
    units_.clear();
    for (int64_t row = 0; row < static_cast<int64_t>(counts_.size()); row++) {
        const int64_t before = known(row), count = counts_[static_cast<size_t>(row)], all = before + count;
        for (int64_t first = 0; first < count; first += kUnit) {
            const int64_t several = std::min(kUnit, count - first);
            const auto start = [&](int64_t i) {
                return sight_.chunk ? std::max<int64_t>(0, (before + i) / sight_.chunk - sight_.before) * sight_.chunk : 0;
            };
            Unit unit{row, 0, first, several, start(first) / 16 * 16, 0, lengths_.size()};
            for (int64_t i = first; i < first + several; i++) {
                const int64_t end = sight_.chunk ? ((before + i) / sight_.chunk + 1) * sight_.chunk : all;
                lengths_.push_back(std::min(end, all) - unit.from);
                starts_.push_back(start(i) - unit.from);
                unit.longest = std::max(unit.longest, lengths_.back());
            }
            for (unit.head = 0; unit.head < shape.heads; unit.head++) units_.push_back(unit);
        }
    }
}

// Distances from longest - 1 to 1 - longest; nothing is done where they are known.
void FastConformer::know(int64_t longest) {
    if (longest <= reach_) return;
    const int64_t reach = up(longest, kReach), count = 2 * reach - 1, width = shape.width, size = up(count, 16) * width;
    reach_ = 0;  // until all have been made
    for (auto& d : distances_) std::fill_n(d.at_least(size), size, uint16_t{0});
    Quantized signals;
    signals.at_least(count, width);
    const std::vector<int64_t> row(static_cast<size_t>(count), 0);
    std::vector<int64_t> position(static_cast<size_t>(count));
    for (int64_t p = 0; p < count; p++) position[static_cast<size_t>(p)] = p;
    Scratch<float> made;
    float* signal = made.at_least(team_->size() * width);
    team_->run([&](int thread) {
        const Range mine = team_->share(thread, count);
        float* own = signal + thread * width;
        for (int64_t p = mine.begin; p < mine.end; p++) {
            for (int64_t i = 0; i < width / 2; i++) {
                const float angle = static_cast<float>(reach - 1 - p) * rates_[i];
                own[2 * i] = std::sin(angle);
                own[2 * i + 1] = std::cos(angle);
            }
            kernels_->quantize(own, width, 1, width, nullptr, signals.values.data() + p * width, width,
                               signals.scale.data() + p);
        }
        team_->barrier();
        for (size_t i = 0; i < layers_.size(); i++) {
            const Heads heads{"k",     shape.heads,          shape.head_width, nullptr, distances_[i].data(),
                              nullptr, up(count, 16) / 16, row.data(),       position.data()};
            const Range rows = team_->share(thread, layers_[i].distance.blocks);
            kernels_->product({signals.values.data(), width, signals.scale.data(), count}, layers_[i].distance,
                              rows.begin, rows.end, {Then::heads, nullptr, 0, &heads, 0});
        }
    });
    reach_ = reach;
}

void FastConformer::work(int thread, float* x) {
    const int64_t frames = static_cast<int64_t>(row_.size());
    auto in_passes = [&](auto&& each) {
        for (int64_t at = 0; at < frames; at += kPass)
            each(x + at * shape.width, Range{at, std::min(at + kPass, frames)});
    };
    for (size_t i = 0; i < layers_.size(); i++) {
        const FastLayer& layer = layers_[i];
        if (streams_) recall(thread, static_cast<int64_t>(i));
        in_passes([&](float* at, Range pass) {
            feed_forward(thread, layer.first, at, pass);
            heads(thread, layer, at, pass);
        });
        attend(thread, distances_[i].data());
        in_passes([&](float* at, Range pass) { gate(thread, layer, at, pass); });
        if (streams_) remember(thread, static_cast<int64_t>(i));
        in_passes([&](float* at, Range pass) {
            convolve(thread, layer, at, pass);
            feed_forward(thread, layer.last, at, pass);
            const Range mine = team_->share(thread, pass.end - pass.begin);
            kernels_->normalise(at + mine.begin * shape.width, mine.end - mine.begin, shape.width, shape.width,
                                layer.last_norm);
            team_->barrier();
        });
        if (means_) average(thread, x, static_cast<int64_t>(i));
    }
}

// Threads share the dimensions, so that a mean does not depend on their number.
void FastConformer::average(int thread, const float* x, int64_t layer) {
    const Range mine = team_->share(thread, shape.width);
    std::vector<double> sum(static_cast<size_t>(mine.end - mine.begin));
    for (int64_t row = 0; row < static_cast<int64_t>(counts_.size()); row++) {
        const int64_t count = counts_[static_cast<size_t>(row)];
        const float* frame = x + begins_[static_cast<size_t>(row)] * shape.width + mine.begin;
        float* mean = means_ + (row * layers() + layer) * shape.width + mine.begin;
        std::fill(sum.begin(), sum.end(), 0.0);
        for (int64_t i = 0; i < count; i++, frame += shape.width)
            for (size_t d = 0; d < sum.size(); d++) sum[d] += static_cast<double>(frame[d]);
        for (size_t d = 0; d < sum.size(); d++)
            mean[d] = static_cast<float>(sum[d] / static_cast<double>(std::max<int64_t>(1, count)));
    }
    team_->barrier();
}

// Before the frames' own: keys and values of the past, and what the convolution saw last.
void FastConformer::recall(int thread, int64_t layer) {
    const int64_t width = shape.head_width, past = streams_->past, utterances = static_cast<int64_t>(counts_.size());
    const Range mine = team_->share(thread, utterances * shape.heads);
    for (int64_t unit = mine.begin; unit < mine.end; unit++) {
        const int64_t row = unit / shape.heads, head = unit % shape.heads, real = known(row);
        const int64_t from = (((row * layers() + layer) * shape.heads + head) * past + past - real) * width;
        uint16_t* keys = keys_.data() + unit * blocks_ * 16 * width;
        uint16_t* values = values_.data() + unit * blocks_ * 16 * width;
        for (int64_t position = 0; position < real; position++) {
            const float *key = streams_->keys + from + position * width, *value = streams_->values + from + position * width;
            for (int64_t d = 0; d < width; d++) {
                keys[key_at(position, d, width)] = to_half(key[d]);
                values[value_at(position, d, width)] = to_half(value[d]);
            }
        }
    }
    const Range rows = team_->share(thread, utterances);
    for (int64_t row = rows.begin; row < rows.end; row++) {
        const float* before = streams_->convolution + (row * layers() + layer) * shape.width * margin;
        float* to = gated_.data() + (begins_[static_cast<size_t>(row)] + row * margin) * shape.width;
        for (int64_t i = 0; i < margin; i++)
            for (int64_t d = 0; d < shape.width; d++) to[i * shape.width + d] = before[d * margin + i];
    }
}

// What the frames after these will see.
void FastConformer::remember(int thread, int64_t layer) {
    const int64_t width = shape.head_width, past = streams_->past, utterances = static_cast<int64_t>(counts_.size());
    const int64_t chunk = streams_->chunk, kept = std::max<int64_t>(0, past - chunk);
    const Range mine = team_->share(thread, utterances * shape.heads);
    for (int64_t unit = mine.begin; unit < mine.end; unit++) {
        const int64_t row = unit / shape.heads, head = unit % shape.heads;
        const int64_t all = known(row) + counts_[static_cast<size_t>(row)];
        const int64_t at = ((row * layers() + layer) * shape.heads + head) * past * width;
        const uint16_t* keys = keys_.data() + unit * blocks_ * 16 * width;
        const uint16_t* values = values_.data() + unit * blocks_ * 16 * width;
        std::copy_n(streams_->keys + at + (past - kept) * width, kept * width, streams_->keys_after + at);
        std::copy_n(streams_->values + at + (past - kept) * width, kept * width, streams_->values_after + at);
        for (int64_t slot = kept; slot < past; slot++) {
            const int64_t position = known(row) + chunk - past + slot;
            for (int64_t d = 0; d < width; d++) {
                const bool there = position < all;
                streams_->keys_after[at + slot * width + d] =
                    there ? from_half(keys[key_at(position, d, width)]) : 0.0f;
                streams_->values_after[at + slot * width + d] =
                    there ? from_half(values[value_at(position, d, width)]) : 0.0f;
            }
        }
    }
    const Range rows = team_->share(thread, utterances);
    for (int64_t row = rows.begin; row < rows.end; row++) {
        const int64_t last = begins_[static_cast<size_t>(row)] + counts_[static_cast<size_t>(row)] + row * margin;
        const float* from = gated_.data() + last * shape.width;
        float* after = streams_->convolution_after + (row * layers() + layer) * shape.width * margin;
        for (int64_t i = 0; i < margin; i++)
            for (int64_t d = 0; d < shape.width; d++) after[d * margin + i] = from[i * shape.width + d];
    }
}

void FastConformer::feed_forward(int thread, const FeedForward& forward, float* x, Range pass) {
    const int64_t hidden = forward.expand.blocks * 16, count = pass.end - pass.begin;
    multiply(thread, quantized(thread, x, shape.width, &forward.norm, count), forward.expand,
             {forward.activation, hidden_.data(), hidden, nullptr, 0});
    multiply(thread, quantized(thread, hidden_.data(), hidden, nullptr, count), forward.contract,
             {Then::add, x, shape.width, nullptr, 0, 0.5f});
}

void FastConformer::heads(int thread, const FastLayer& layer, const float* x, Range pass) {
    const Tokens tokens = quantized(thread, x, shape.width, &layer.norm, pass.end - pass.begin);
    Heads heads{"",      shape.heads, shape.head_width, queries_.data(),     keys_.data(),       values_.data(),
                blocks_, row_.data(), position_.data(), by_distance_.data(), layer.content_bias, layer.distance_bias};
    auto project = [&](const char* part, const Matrix& matrix) {
        heads.parts = part;
        const Range rows = team_->share(thread, matrix.blocks);
        kernels_->product(tokens, matrix, rows.begin, rows.end, {Then::heads, nullptr, 0, &heads, pass.begin});
    };
    project("q", layer.query);
    project("k", layer.key);
    project("v", layer.value);
    team_->barrier();
}

// Threads take turns, since utterances have different lengths.
void FastConformer::attend(int thread, const uint16_t* distances) {
    const int64_t width = shape.head_width, all = shape.width, known_blocks = up(2 * reach_ - 1, 16) / 16;
    float* scratch = attention_[static_cast<size_t>(thread)].data();
    float* biases = biases_[static_cast<size_t>(thread)].data();
    for (size_t i = static_cast<size_t>(thread); i < units_.size(); i += static_cast<size_t>(team_->size())) {
        const Unit& unit = units_[i];
        const int64_t at = (begins_[static_cast<size_t>(unit.utterance)] + unit.first) * all + unit.head * width;
        const int64_t keys =
            ((unit.utterance * shape.heads + unit.head) * blocks_ * 16 + unit.from) * width;
        const int64_t *lengths = lengths_.data() + unit.lengths, *starts = starts_.data() + unit.lengths;
        // Key k is k positions after key 0, which is at `origin` for the first query of the unit, one before for the next.
        const int64_t origin = reach_ - 1 - known(unit.utterance) - unit.first + unit.from;
        const int64_t block = (origin - unit.count + 1) / 16, blocks = (origin + unit.longest - 1) / 16 + 1 - block;
        kernels_->match({by_distance_.data() + at, all, distances + (unit.head * known_blocks + block) * 16 * width,
                         nullptr, nullptr, unit.count, width, shape.factor(), biases, blocks * 16, nullptr, 0, scratch,
                         nullptr},
                        blocks);
        Attention attention{queries_.data() + at, all, keys_.data() + keys, values_.data() + keys,
                            lengths, unit.count, width, shape.factor(),
                            mixed_.data() + at, all, nullptr, 0, scratch, nullptr};
        attention.bias = biases + origin - block * 16;
        attention.bias_stride = blocks * 16 - 1;
        for (int64_t q = 0; q < unit.count; q++)
            std::fill_n(biases + origin - block * 16 + q * attention.bias_stride, starts[q], kUnseen);
        kernels_->attend_many(attention);
    }
    team_->barrier();
}

// What attention gives, and what is gated of it for the convolution.
void FastConformer::gate(int thread, const FastLayer& layer, float* x, Range pass) {
    const int64_t width = shape.width, count = pass.end - pass.begin;
    multiply(thread, quantized(thread, mixed_.data() + pass.begin * width, width, nullptr, count), layer.out,
             {Then::add, x, width, nullptr, 0});
    multiply(thread, quantized(thread, x, width, &layer.convolution.norm, count), layer.convolution.gate,
             {Then::keep, hidden_.data(), 2 * width, nullptr, 0});
    const Range mine = team_->share(thread, count);
    for (int64_t i = mine.begin; i < mine.end; i++) {
        const int64_t frame = pass.begin + i, padded = frame + (row_[static_cast<size_t>(frame)] + 1) * margin;
        kernels_->gate(hidden_.data() + i * 2 * width, 1, width, gated_.data() + padded * width);
    }
    team_->barrier();
}

void FastConformer::convolve(int thread, const FastLayer& layer, float* x, Range pass) {
    Depthwise depthwise = layer.convolution.depthwise;
    const int64_t taps = depthwise.count;
    const int64_t width = shape.width, count = pass.end - pass.begin;
    const Range mine = team_->share(thread, count);
    for (int64_t i = mine.begin; i < mine.end; i++) {
        const int64_t frame = pass.begin + i, padded = frame + (row_[static_cast<size_t>(frame)] + 1) * margin;
        depthwise.count = taps_of(frame, taps);
        kernels_->depthwise(gated_.data() + (padded - margin) * width, 1, width, width, depthwise,
                            hidden_.data() + i * width);
    }
    // Each thread quantizes the frames that it has convolved.
    multiply(thread, quantized(thread, hidden_.data(), width, nullptr, count), layer.convolution.out,
             {Then::add, x, width, nullptr, 0});
}

// Taps of the kernel that a frame has a use for, the first of them: the others lie behind its chunk or its utterance.
int64_t FastConformer::taps_of(int64_t frame, int64_t taps) const {
    if (context_ != Context::chunk) return taps;
    const auto row = static_cast<size_t>(row_[static_cast<size_t>(frame)]);
    const int64_t i = frame - begins_[row], count = counts_[row];
    const int64_t end = sight_.chunk ? std::min(count, (i / sight_.chunk + 1) * sight_.chunk) : count;
    return std::min(taps, taps / 2 + end - i);
}

Tokens FastConformer::quantized(int thread, const float* x, int64_t width, const Norm* norm, int64_t count) {
    const Range mine = team_->share(thread, count);
    kernels_->quantize(x + mine.begin * width, width, mine.end - mine.begin, width, norm,
                       shared_.values.data() + mine.begin * width, width, shared_.scale.data() + mine.begin);
    team_->barrier();
    return {shared_.values.data(), width, shared_.scale.data(), count};
}

void FastConformer::multiply(int thread, const Tokens& tokens, const Matrix& matrix, const Sink& sink) {
    const Range rows = team_->share(thread, matrix.blocks);
    kernels_->product(tokens, matrix, rows.begin, rows.end, sink);
    team_->barrier();
}

}  // namespace sprachbund
