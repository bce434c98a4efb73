// The kernels of this processor against plain loops, without Python: for processors that only an emulator has here.
// See kernels_check.sh.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "kernels.hpp"

using namespace sprachbund;

namespace {

std::mt19937 generator(1);
int failures = 0;

float normal() {
    static std::normal_distribution<float> distribution;
    return distribution(generator);
}
int64_t between(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(generator);
}
void expect(bool right, const char* isa, const char* what) {
    if (!right && failures++ < 20) std::printf("%s: %s differs\n", isa, what);
}
bool near(double a, double b, double slack) {
    return std::fabs(a - b) <= slack * (1 + std::fabs(b));
}

struct Packed {
    std::vector<int8_t> values, plain;
    std::vector<float> scale, bias;
    std::vector<int32_t> offset;
    Matrix matrix;

    Packed(int64_t rows, int64_t inputs) : plain(static_cast<size_t>(rows * inputs)) {
        const int64_t blocks = up(rows, 16) / 16, steps = up(inputs, 4) / 4;
        values.resize(static_cast<size_t>(blocks * steps * 64));
        scale.resize(static_cast<size_t>(blocks * 16)), bias = scale, offset.resize(scale.size());
        for (int64_t r = 0; r < rows; r++) {
            scale[static_cast<size_t>(r)] = std::fabs(normal()), bias[static_cast<size_t>(r)] = normal();
            for (int64_t i = 0; i < inputs; i++) {
                const auto w = static_cast<int8_t>(between(-127, 127));
                plain[static_cast<size_t>(r * inputs + i)] = w;
                values[static_cast<size_t>(((r / 16 * steps + i / 4) * 16 + r % 16) * 4 + i % 4)] = w;
                offset[static_cast<size_t>(r)] += 128 * w;
            }
        }
        matrix = {values.data(), scale.data(), offset.data(), bias.data(), rows, blocks, steps, {}};
    }
};

void product(const Kernels& k) {
    // Some have more inputs than any set takes at a time.
    const int64_t rows = between(1, 100), inputs = between(0, 4) ? between(1, 200) : between(1000, 2500);
    const int64_t count = between(1, 70), stride = up(inputs, 16);
    Packed packed(rows, inputs);
    std::vector<uint8_t> tokens(static_cast<size_t>(count * stride));
    std::vector<float> scale(static_cast<size_t>(count)), out(static_cast<size_t>(count * rows));
    for (auto& token : tokens) token = static_cast<uint8_t>(between(0, 255));
    for (auto& s : scale) s = std::fabs(normal());
    k.product({tokens.data(), stride, scale.data(), count}, packed.matrix, 0, packed.matrix.blocks,
              {Then::keep, out.data(), rows, nullptr, 0});
    std::vector<float> more(out.size(), 0.5f), twice(out.size(), 2.0f);
    k.product({tokens.data(), stride, scale.data(), count}, packed.matrix, 0, packed.matrix.blocks,
              {Then::add, more.data(), rows, nullptr, 0, 0.25f});
    k.product({tokens.data(), stride, scale.data(), count}, packed.matrix, 0, packed.matrix.blocks,
              {Then::times, twice.data(), rows, nullptr, 0});
    // Without scales and a bias, the sums of integers come out.
    const std::vector<float> ones(static_cast<size_t>(std::max(count, up(rows, 16))), 1.0f), zeros(ones.size());
    std::vector<float> exact(out.size());
    Matrix bare = packed.matrix;
    bare.scale = ones.data(), bare.bias = zeros.data();
    k.product({tokens.data(), stride, ones.data(), count}, bare, 0, bare.blocks,
              {Then::keep, exact.data(), rows, nullptr, 0});
    for (size_t i = 0; i < out.size(); i++) {
        expect(near(more[i], 0.5f + 0.25f * out[i], 1e-6), k.name, "sum");
        expect(near(twice[i], 2.0f * out[i], 1e-6), k.name, "times");
    }
    for (int64_t t = 0; t < count; t++) {
        for (int64_t r = 0; r < rows; r++) {
            int64_t sum = 0;
            for (int64_t i = 0; i < inputs; i++)
                sum += (tokens[static_cast<size_t>(t * stride + i)] - 128) *
                       packed.plain[static_cast<size_t>(r * inputs + i)];
            expect(exact[static_cast<size_t>(t * rows + r)] == static_cast<float>(sum), k.name, "sum of integers");
            const float y =
                static_cast<float>(sum) * (packed.scale[static_cast<size_t>(r)] * scale[static_cast<size_t>(t)]);
            expect(near(out[static_cast<size_t>(t * rows + r)], y + packed.bias[static_cast<size_t>(r)], 1e-5), k.name,
                   "product");
        }
    }
}

void product_four(const Kernels& k) {
    const int64_t rows = between(1, 70), inputs = between(1, 150), count = between(1, 13), stride = up(inputs, 16);
    const int64_t blocks = up(rows, 16) / 16, pairs = up(inputs, 8) / 8, parts = up(pairs, 4) / 4;
    std::vector<uint8_t> codes(static_cast<size_t>(blocks * pairs * 64)), zero(static_cast<size_t>(blocks * parts * 8));
    std::vector<uint16_t> step(static_cast<size_t>(blocks * parts * 16));
    std::vector<float> scale(static_cast<size_t>(blocks * 16), 1.0f), offset(scale.size()), bias(scale.size());
    for (auto& z : zero) z = static_cast<uint8_t>(between(0, 255));
    for (auto& s : step) s = static_cast<uint16_t>(0x3f80 + between(0, 0x7f));  // bf16 from one to two
    std::vector<double> plain(static_cast<size_t>(rows * inputs));
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t i = 0; i < inputs; i++) {
            const int64_t part = r / 16 * parts + i / 32, code = between(0, 15);
            const int point = zero[static_cast<size_t>(part * 8 + r % 8)] >> (r % 16 < 8 ? 0 : 4) & 15;
            const uint32_t bits = static_cast<uint32_t>(step[static_cast<size_t>(part * 16 + r % 16)]) << 16;
            float width;
            std::memcpy(&width, &bits, 4);
            codes[static_cast<size_t>(((r / 16 * pairs + i / 8) * 16 + r % 16) * 4 + i % 4)] |=
                static_cast<uint8_t>(code << (i % 8 < 4 ? 0 : 4));
            plain[static_cast<size_t>(r * inputs + i)] = static_cast<double>(code - point) * width;
            offset[static_cast<size_t>(r)] += 128 * static_cast<float>(code - point) * width;
        }
    }
    std::vector<uint8_t> tokens(static_cast<size_t>(count * stride));
    std::vector<float> token_scale(static_cast<size_t>(count), 1.0f), out(static_cast<size_t>(count * rows));
    for (int64_t t = 0; t < count; t++)  // what is beyond the inputs counts for nothing: 128 is zero
        for (int64_t i = 0; i < stride; i++)
            tokens[static_cast<size_t>(t * stride + i)] = static_cast<uint8_t>(i < inputs ? between(0, 255) : 128);
    // Codes beyond the inputs must be their zero points.
    for (int64_t r = 0; r < blocks * 16; r++)
        for (int64_t i = inputs; i < pairs * 8; i++) {
            const int64_t part = r / 16 * parts + i / 32;
            const int point = zero[static_cast<size_t>(part * 8 + r % 8)] >> (r % 16 < 8 ? 0 : 4) & 15;
            codes[static_cast<size_t>(((r / 16 * pairs + i / 8) * 16 + r % 16) * 4 + i % 4)] |=
                static_cast<uint8_t>(point << (i % 8 < 4 ? 0 : 4));
        }
    const Matrix m{nullptr, scale.data(), nullptr, bias.data(), rows, blocks, 2 * pairs,
                   {codes.data(), step.data(), zero.data(), offset.data()}};
    k.product({tokens.data(), stride, token_scale.data(), count}, m, 0, blocks,
              {Then::keep, out.data(), rows, nullptr, 0});
    for (int64_t t = 0; t < count; t++) {
        for (int64_t r = 0; r < rows; r++) {
            double sum = 0, size = 1;
            for (int64_t i = 0; i < inputs; i++) {
                const double w = plain[static_cast<size_t>(r * inputs + i)];
                sum += (tokens[static_cast<size_t>(t * stride + i)] - 128) * w;
                size += 128 * std::fabs(w);
            }
            expect(std::fabs(out[static_cast<size_t>(t * rows + r)] - sum) <= 1e-6 * size, k.name, "product in 4 bits");
        }
    }
}

void quantize(const Kernels& k) {
    const int64_t width = between(1, 90), padded = up(width, 16);
    std::vector<float> x(static_cast<size_t>(padded));
    std::vector<uint8_t> values(x.size());
    float scale = 0, peak = 0;
    for (size_t i = 0; i < static_cast<size_t>(width); i++) {
        x[i] = normal();
        peak = std::fmax(peak, std::fabs(x[i]));
    }
    k.quantize(x.data(), padded, 1, width, nullptr, values.data(), padded, &scale);
    for (size_t i = 0; i < x.size(); i++)
        expect(values[i] == static_cast<uint8_t>(std::nearbyint(x[i] * (127.0f / peak)) + 128), k.name, "quantize");
}

// RMSNorm in front of rounding to 8 bits, within a step.
void quantize_normed(const Kernels& k) {
    const int64_t width = between(1, 90), padded = up(width, 16);
    std::vector<float> x(static_cast<size_t>(padded)), gain = x;
    std::vector<uint8_t> values(x.size());
    float scale = 0;
    double squares = 0;
    for (size_t i = 0; i < static_cast<size_t>(width); i++) {
        x[i] = normal(), gain[i] = normal();
        squares += double(x[i]) * x[i] / double(width);
    }
    const Norm norm{gain.data(), nullptr, 1e-3f};
    k.quantize(x.data(), padded, 1, width, &norm, values.data(), padded, &scale);
    for (size_t i = 0; i < x.size(); i++) {
        const double wanted = x[i] / std::sqrt(squares + 1e-3) * gain[i];
        expect(std::fabs((values[i] - 128.0) * scale - wanted) < 0.51 * scale, k.name, "norm");
    }
}

// What attend_sixteen.inl may lose to rounding, of scores without their factor and of mixed values. Every number is off by
// half a unit of integers that go up to what is largest beside it: queries, keys and values along their dimensions,
// probabilities times the largest dimension of each value along 64 positions.
struct RoundedTo16 {
    double scores = 0, mixed = 0;

    RoundedTo16() = default;
    RoundedTo16(const float* query, const float* keys, const float* values, const std::vector<double>& weights,
                double total, int64_t width) {
        const auto largest = static_cast<int64_t>(std::sqrt(2147483647.0 / double(width)));
        auto most = [&](const float* x) {
            double peak = 0;
            for (int64_t d = 0; d < width; d++) peak = std::max(peak, double(std::fabs(x[d])));
            return peak;
        };
        auto sum = [&](const float* x) {
            double all = 0;
            for (int64_t d = 0; d < width; d++) all += std::fabs(x[d]);
            return all;
        };
        const double by_query = most(query) / (2.0 * double(largest));
        double share = 0;
        for (size_t p = 0; p < weights.size(); p++) {
            const float *key = keys + p * static_cast<size_t>(width), *value = values + p * static_cast<size_t>(width);
            const double by_key = most(key) / (2.0 * double(largest));
            scores = std::max(scores, sum(query) * by_key + by_query * (sum(key) + double(width) * by_key));
            const double weight = weights[p] / total * most(value);
            mixed += weight / (2 * 4095);
            share = p % 64 ? std::max(share, weight) : weight;
            if (p % 64 == 63 || p + 1 == weights.size())
                mixed += double(p % 64 + 1) * share * (1 + 1.0 / 8190) / (2 * 8191);
        }
    }
};

// Attention in 8 bits against double precision, with what rounding may cost; that in bf16 against the same.
void attend(const Kernels& k) {
    const int64_t width = 16 * between(1, 9), positions = between(1, 150), padded = up(positions, 16);
    const int64_t count = between(1, kManyAtOnce);
    // Of a number that is rounded to bf16, as the weights of attention of many queries are with these instructions.
    const double half_step = 1.0 / 256, step_of_many = std::strcmp(k.name, "avx512") ? 0 : half_step;
    const double step_of_all = std::strcmp(k.name, "amx") ? step_of_many : half_step;
    const bool in_sixteen_bits = !std::strcmp(k.name, "avx512_vnni") || !std::strcmp(k.name, "avx_vnni");
    const double eps = 1.0 / (1 << 24);
    const auto size = static_cast<size_t>(padded * width);
    std::vector<uint16_t> queries(static_cast<size_t>(count * width)), keys(size), values(size);
    std::vector<int8_t> key8(size), value8(size);
    std::vector<float> q(queries.size()), key(size), value(size), scales(static_cast<size_t>(3 * padded));
    auto half = [](float x) {
        uint32_t u;
        std::memcpy(&u, &x, 4);
        return static_cast<uint16_t>(u >> 16);
    };
    auto whole = [](uint16_t h) {
        const uint32_t u = static_cast<uint32_t>(h) << 16;
        float x;
        std::memcpy(&x, &u, 4);
        return x;
    };
    for (size_t i = 0; i < q.size(); i++) queries[i] = half(normal()), q[i] = whole(queries[i]);
    for (int64_t p = 0; p < positions; p++) {
        const int64_t block = p / 16 * 16 * width, inside = p % 16;
        for (int64_t d = 0; d < width; d++) {
            const auto at = static_cast<size_t>(p * width + d);
            const uint16_t hk = half(normal()), hv = half(normal());
            key[at] = whole(hk), value[at] = whole(hv);
            keys[static_cast<size_t>(block + d / 2 * 32 + inside * 2 + d % 2)] = hk;
            values[static_cast<size_t>(block + d / 16 * 256 + inside / 2 * 32 + d % 16 * 2 + inside % 2)] = hv;
        }
        const auto at = static_cast<size_t>(p);
        scales[at] = k.keep_key(&key[at * static_cast<size_t>(width)], width, &key8[static_cast<size_t>(block)], inside,
                                &scales[at + static_cast<size_t>(padded)]);
        scales[at + 2 * static_cast<size_t>(padded)] =
            k.keep_value(&value[at * static_cast<size_t>(width)], width, &value8[static_cast<size_t>(block)], inside);
    }
    const float factor = 1 / std::sqrt(static_cast<float>(width));
    std::vector<int64_t> lengths(static_cast<size_t>(count));
    for (auto& length : lengths) length = between(0, positions);
    std::vector<float> out(q.size()), out8(q.size()), many(q.size()), all(q.size());
    std::vector<float> scratch(static_cast<size_t>(std::max(attention_scratch(padded), many_scratch(width))) + 64);
    const Eight eight{key8.data(), value8.data(), scales.data(), scales.data() + padded, scales.data() + 2 * padded};
    for (const Eight* with : {static_cast<const Eight*>(nullptr), &eight}) {
        k.attend({queries.data(), width, keys.data(), values.data(), lengths.data(), count, width, factor,
                  with ? out8.data() : out.data(), width, nullptr, 0, scratch.data(), with});
    }
    for (auto [kernel, to] : {std::pair{k.attend_many, many.data()}, std::pair{k.attend_all, all.data()}})
        kernel({queries.data(), width, keys.data(), values.data(), lengths.data(), count, width, factor, to, width,
                nullptr, 0, scratch.data(), nullptr});
    // Scores by themselves, and as biases that begin one position before those of the query above.
    const int64_t stride = padded + count + 16;
    std::vector<float> biases(static_cast<size_t>(count * (stride + 1) + 16)), by_match(static_cast<size_t>(count * padded));
    for (auto& b : biases) b = normal();
    std::vector<float> biased(q.size()), biased_many(q.size());
    Attention with_bias{queries.data(), width, keys.data(), values.data(), lengths.data(), count, width, factor,
                        biased.data(), width, nullptr, 0, scratch.data(), nullptr};
    with_bias.bias = biases.data() + count, with_bias.bias_stride = stride - 1;
    k.attend(with_bias);
    with_bias.out = biased_many.data();
    k.attend_many(with_bias);
    k.match({queries.data(), width, keys.data(), nullptr, nullptr, count, width, factor, by_match.data(), padded, nullptr, 0,
             scratch.data(), nullptr},
            padded / 16);
    for (int64_t n = 0; n < count; n++) {
        const int64_t seen = lengths[static_cast<size_t>(n)];
        std::vector<double> weights(static_cast<size_t>(seen)), other(weights);
        double total = 0, other_total = 0, largest = 0;
        for (int64_t p = 0; p < seen; p++) {
            double score = 0, size = 0;
            for (int64_t d = 0; d < width; d++) {
                const double part =
                    double(q[static_cast<size_t>(n * width + d)]) * key[static_cast<size_t>(p * width + d)];
                score += part, size += std::fabs(part);
            }
            total += weights[static_cast<size_t>(p)] = std::exp(score * factor);
            largest = std::max(largest, size * factor);
            other_total += other[static_cast<size_t>(p)] =
                std::exp(score * factor + double(with_bias.bias[n * with_bias.bias_stride + p]));
            expect(near(by_match[static_cast<size_t>(n * padded + p)], score * factor, 1e-4), k.name, "score");
        }
        // A score is a sum of `width` products; an exponential is off by its score's error and 2 ulp; mixed values and
        // the sum that divides them have `seen` terms, brought to another maximum once in 64. A tenth more is for
        // products of these, and 1e-6 for denormals and what is below e^-87.
        const double scores = double(width + 3) * eps * largest;
        const double relative = 1.1 * (2 * scores + double(2 * seen + 8 + seen / 16) * eps);
        RoundedTo16 rounded;
        if (in_sixteen_bits)
            rounded = {&q[static_cast<size_t>(n * width)], key.data(), value.data(), weights, total, width};
        for (int64_t d = 0; d < width; d++) {
            double y = 0, z = 0, size = 0;
            for (int64_t p = 0; p < seen; p++) {
                const double part = weights[static_cast<size_t>(p)] / total * value[static_cast<size_t>(p * width + d)];
                y += part, size += std::fabs(part);
                z += other[static_cast<size_t>(p)] / other_total * value[static_cast<size_t>(p * width + d)];
            }
            expect(std::fabs(biased[static_cast<size_t>(n * width + d)] - z) < 0.02, k.name, "attention with biases");
            expect(std::fabs(biased_many[static_cast<size_t>(n * width + d)] - z) < 0.02, k.name,
                   "attention of many with biases");
            expect(std::fabs(out[static_cast<size_t>(n * width + d)] - y) < 0.02, k.name, "attention");
            expect(std::fabs(many[static_cast<size_t>(n * width + d)] - y) <= (relative + 1.1 * step_of_many) * size + 1e-6, k.name,
                   "attention of many");
            const double bound = (relative + 1.1 * step_of_all + 2.2 * rounded.scores * factor) * size + rounded.mixed + 1e-6;
            expect(std::fabs(all[static_cast<size_t>(n * width + d)] - y) <= bound, k.name, "attention of all");
            expect(std::fabs(out8[static_cast<size_t>(n * width + d)] - y) < 0.06, k.name, "attention in 8 bits");
        }
    }
}

void convolve(const Kernels& k) {
    const int64_t width = between(2, 70), padded = up(width, 16), taps = 2 * between(0, 4) + 1, count = between(1, 9);
    const auto all = static_cast<size_t>((count + taps - 1) * padded);
    std::vector<float> x(all), weights(static_cast<size_t>(taps * padded)), bias(static_cast<size_t>(padded));
    std::vector<float> gain = bias, shift = bias, out(static_cast<size_t>(count * padded));
    auto fill = [&](std::vector<float>& v) {
        for (size_t i = 0; i < v.size(); i++) v[i] = static_cast<int64_t>(i) % padded < width ? normal() : 0;
    };
    for (auto* v : {&x, &weights, &bias, &gain, &shift}) fill(*v);
    const Depthwise depthwise{weights.data(), bias.data(), taps, {gain.data(), shift.data()}};
    const Depthwise without_norm{weights.data(), bias.data(), taps, {}};
    std::vector<float> unnormed(out.size());
    k.depthwise(x.data(), count, width, padded, depthwise, out.data());
    k.depthwise(x.data(), count, width, padded, without_norm, unnormed.data());
    for (int64_t t = 0; t < count; t++) {
        std::vector<double> y(static_cast<size_t>(width));
        double mean = 0, variance = 0;
        for (int64_t d = 0; d < width; d++) {
            double sum = bias[static_cast<size_t>(d)];
            for (int64_t i = 0; i < taps; i++)
                sum += double(x[static_cast<size_t>((t + i) * padded + d)]) *
                       weights[static_cast<size_t>(i * padded + d)];
            y[static_cast<size_t>(d)] = sum, mean += sum / double(width);
        }
        for (double v : y) variance += (v - mean) * (v - mean) / double(width);
        for (int64_t d = 0; d < width; d++) {
            const auto at = static_cast<size_t>(d);
            const double n = (y[at] - mean) / std::sqrt(variance + 1e-5) * gain[at] + shift[at];
            expect(near(out[static_cast<size_t>(t * padded + d)], n / (1 + std::exp(-n)), 1e-3), k.name, "convolution");
            expect(near(unnormed[static_cast<size_t>(t * padded + d)], y[at] / (1 + std::exp(-y[at])), 1e-4), k.name,
                   "convolution without norm");
        }
    }
}

// Convolutions of 3 x 3 and stride 2.
void halve(const Kernels& k) {
    const int64_t channels = 16 * between(1, 4), count = between(1, 20), bins = 1 + 2 * count;
    std::vector<float> taps(static_cast<size_t>(9 * channels)), bias(static_cast<size_t>(channels));
    std::vector<float> single(static_cast<size_t>(3 * bins)), many(static_cast<size_t>(3 * bins * channels));
    for (auto* v : {&taps, &bias, &single, &many})
        for (auto& x : *v) x = normal();
    const float *of_single[3], *of_many[3];
    for (int64_t i = 0; i < 3; i++)
        of_single[i] = single.data() + i * bins, of_many[i] = many.data() + i * bins * channels;
    const Square square{taps.data(), bias.data(), channels};
    std::vector<float> spread(static_cast<size_t>(count * channels)), shrunk(spread);
    k.spread(of_single, count, square, spread.data());
    k.shrink(of_many, count, square, shrunk.data());
    for (int64_t bin = 0; bin < count; bin++) {
        for (int64_t c = 0; c < channels; c++) {
            double one = bias[static_cast<size_t>(c)], all = one;
            for (int64_t tap = 0; tap < 9; tap++) {
                const int64_t at = 2 * bin + tap % 3;
                const double w = taps[static_cast<size_t>(tap * channels + c)];
                one += w * of_single[tap / 3][at], all += w * of_many[tap / 3][at * channels + c];
            }
            const auto at = static_cast<size_t>(bin * channels + c);
            expect(near(spread[at], std::fmax(one, 0), 1e-5), k.name, "spreading");
            expect(near(shrunk[at], all, 1e-5), k.name, "shrinking");
        }
    }
}

void all_of(const Kernels& k) {
    for (int i = 0; i < 30; i++) {
        product(k), product_four(k), quantize(k), quantize_normed(k);
        attend(k), convolve(k), halve(k);
    }
    std::printf("%s checked\n", k.name);
}

}  // namespace

namespace sprachbund {
extern const Kernels amx_kernels;
}

int main() {
    for (const char* name : instruction_sets())
        if (const Kernels* k = kernels(name)) all_of(*k);
#if defined(SPRACHBUND_EMULATED_TILES)
    // Where tiles disagree with vectors, a process has other kernels by that name, or none.
    if (kernels("avx512") && kernels("amx") != &amx_kernels) {
        expect(false, "amx", "what a process checks");
        all_of(amx_kernels);
    }
#endif
    std::printf("%d differences\n", failures);
    return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
