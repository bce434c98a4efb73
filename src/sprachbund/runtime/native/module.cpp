// The door to Python. Every array is checked here, so that nothing behind it has to; the computation runs without
// Python's lock.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <optional>
#include <string>

#include "model.hpp"

namespace nb = nanobind;

namespace sprachbund {
namespace {

template <class T>
using Array = nb::ndarray<T, nb::c_contig, nb::device::cpu>;
using Any = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;
using Lengths = std::vector<int64_t>;

std::string written(const Lengths& shape) {
    std::string out;
    for (int64_t n : shape) out += (out.empty() ? "" : " x ") + std::to_string(n);
    return out;
}

template <class A>
void expect(const A& array, const Lengths& shape, const std::string& name) {
    Lengths seen;
    for (size_t i = 0; i < array.ndim(); i++) seen.push_back(static_cast<int64_t>(array.shape(i)));
    if (seen != shape) throw nb::value_error((name + " is " + written(seen) + ", not " + written(shape)).c_str());
}

template <class A>
int64_t length(const A& array, size_t axis, const char* name) {
    if (axis >= array.ndim()) throw nb::value_error((std::string(name) + " has too few dimensions").c_str());
    return static_cast<int64_t>(array.shape(axis));
}

const Kernels* chosen(const std::string& name) {
    const Kernels* found = kernels(name.c_str());
    if (!found) throw nb::value_error(("this processor or build has no kernels named " + name).c_str());
    return found;
}

// Arrays by name; they stay alive as long as this.
class Weights {
  public:
    explicit Weights(const nb::dict& arrays) {
        for (auto [name, array] : arrays) arrays_.emplace_back(nb::cast<std::string>(name), nb::cast<Any>(array));
    }

    template <class T>
    const T* get(const std::string& name, const Lengths& shape) const {
        const Any& array = find(name);
        if (array.dtype() != nb::dtype<T>()) throw nb::value_error((name + " has another type").c_str());
        expect(array, shape, name);
        return static_cast<const T*>(array.data());
    }

    Norm norm(const std::string& name, int64_t width) const {
        const Lengths shape{up(width, 16)};
        return {get<float>(name + ".gain", shape), get<float>(name + ".bias", shape)};
    }

    // `rows` without padding; 0 keeps the padded ones, so that they are computed, as zeros.
    Matrix matrix(const std::string& name, int64_t rows, int64_t inputs, bool padded = true) const {
        const int64_t blocks = up(rows, 16) / 16, steps = up(inputs, 4) / 4;
        const Lengths each{blocks * 16};
        return {get<int8_t>(name + ".values", {blocks, steps, 16, 4}),
                get<float>(name + ".scale", each),
                get<int32_t>(name + ".offset", each),
                get<float>(name + ".bias", each),
                padded ? blocks * 16 : rows,
                blocks,
                steps};
    }

    FeedForward feed_forward(const std::string& name, int64_t width) const {
        const int64_t hidden = length(find(name + ".expand.values"), 0, "expand") * 16;
        return {norm(name + ".norm", width), matrix(name + ".expand", hidden, width),
                matrix(name + ".contract", width, 4 * length(find(name + ".contract.values"), 1, "contract"))};
    }

  private:
    const Any& find(const std::string& name) const {
        for (const auto& [other, array] : arrays_)
            if (other == name) return array;
        throw nb::value_error(("there is no array " + name).c_str());
    }

    std::vector<std::pair<std::string, Any>> arrays_;
};

// Products read as many inputs as the matrix has; nothing may be narrower than that.
void check_hidden(const FeedForward& f) {
    if (f.contract.steps * 4 > f.expand.blocks * 16)
        throw nb::value_error("a feed-forward contracts more than it expands");
}

template <class Layer>
int64_t widest(const std::vector<Layer>& layers) {
    int64_t most = 0;
    for (const Layer& layer : layers) {
        check_hidden(layer.feed_forward);
        most = std::max(most, layer.feed_forward.expand.blocks * 16);
    }
    return most;
}

struct PyDecoder {
    Weights weights;
    int64_t max_tokens;
    std::unique_ptr<Decoder> decoder;

    PyDecoder(const nb::dict& arrays, const std::string& isa, std::shared_ptr<Team> team, int64_t width, int64_t heads,
              int64_t head_width, int64_t num_layers, int64_t vocabulary_size, int64_t max_tokens_,
              int64_t memory_width)
        : weights(arrays), max_tokens(max_tokens_) {
        Shape shape{width, heads, head_width, 0};
        const int64_t all = shape.all_heads();
        std::vector<DecoderLayer> layers;
        for (int64_t i = 0; i < num_layers; i++) {
            const std::string at = "layers." + std::to_string(i) + ".";
            layers.push_back({weights.norm(at + "self_norm", width), weights.matrix(at + "self_heads", 3 * all, width),
                              weights.matrix(at + "self_out", width, all), weights.norm(at + "cross_norm", width),
                              weights.matrix(at + "cross_query", all, width),
                              weights.matrix(at + "cross_memory", 2 * all, memory_width),
                              weights.matrix(at + "cross_out", width, all),
                              weights.feed_forward(at + "feed_forward", width)});
        }
        shape.hidden = widest(layers);
        decoder = std::make_unique<Decoder>(chosen(isa), std::move(team), shape, std::move(layers),
                                            weights.norm("norm", width),
                                            weights.matrix("vocabulary", vocabulary_size, width, false),
                                            weights.get<float>("positions", {max_tokens, width}), memory_width);
    }

    void remember(const Array<const float>& states, const Array<int16_t>& cross) {
        const int64_t memories = length(states, 0, "states"), frames = length(states, 1, "states");
        const int64_t blocks = up(frames, 16) / 16;
        expect(states, {memories, frames, up(decoder->memory_width(), 16)}, "states");
        expect(cross, cache(memories, blocks), "cross");
        auto* into = reinterpret_cast<uint16_t*>(cross.data());
        nb::gil_scoped_release free;
        decoder->remember(states.data(), memories, frames, into, blocks);
    }

    void step(const Array<const int64_t>& tokens, const Array<const int64_t>& lengths, const Array<int16_t>& own,
              const Array<const int16_t>& cross, const Array<const int64_t>& frames,
              const std::optional<Array<float>>& logits, const std::optional<Array<float>>& attention,
              const std::optional<Array<float>>& states) {
        Step s{};
        s.rows = length(tokens, 0, "tokens"), s.queries = length(tokens, 1, "tokens");
        s.memories = length(frames, 0, "frames");
        s.own_blocks = length(own, 4, "own"), s.cross_blocks = length(cross, 4, "cross");
        if (s.memories < 1 || s.rows % s.memories) throw nb::value_error("rows are not a multiple of memories");
        expect(lengths, {s.rows}, "lengths");
        expect(own, cache(s.rows, s.own_blocks), "own");
        expect(cross, cache(s.memories, s.cross_blocks), "cross");
        if (logits) {
            expect(*logits, {s.rows, s.queries, decoder->vocabulary_size}, "logits");
            s.logits = logits->data();
        }
        if (states) {
            expect(*states, {s.rows, s.queries, up(decoder->shape.width, 16)}, "states");
            s.states = states->data();
        }
        s.tokens = tokens.data(), s.lengths = lengths.data(), s.frames = frames.data();
        s.own = reinterpret_cast<uint16_t*>(own.data());
        s.cross = reinterpret_cast<const uint16_t*>(cross.data());
        check(s);
        if (attention) {
            s.weight_frames = length(*attention, 4, "attention");
            expect(
                *attention,
                {decoder->layers(), s.memories, decoder->shape.heads, s.rows / s.memories * s.queries, s.weight_frames},
                "attention");
            s.weights = attention->data();
        }
        nb::gil_scoped_release free;
        decoder->step(s);
    }

    void logits(const Array<const float>& states, const Array<float>& out, const std::optional<nb::dict>& matrix) {
        const int64_t count = length(states, 0, "states"), padded = up(decoder->shape.width, 16);
        expect(states, {count, padded}, "states");
        const int64_t rows = matrix ? length(out, 1, "logits") : decoder->vocabulary_size;
        expect(out, {count, rows}, "logits");
        const Weights own(matrix ? *matrix : nb::dict());
        Matrix chosen{};
        if (matrix) chosen = own.matrix("matrix", rows, decoder->shape.width, false);
        const float* from = states.data();
        float* to = out.data();
        const bool restricted = matrix.has_value();
        nb::gil_scoped_release free;
        if (count > 0) decoder->logits(from, count, restricted ? &chosen : nullptr, to);
    }

  private:
    Lengths cache(int64_t rows, int64_t blocks) const {
        return {decoder->layers(), 2, rows, decoder->shape.heads, blocks, 16 * decoder->shape.padded_head()};
    }

    void check(const Step& s) const {
        for (int64_t i = 0; i < s.rows * s.queries; i++) {
            if (s.tokens[i] < 0 || s.tokens[i] >= decoder->vocabulary_size)
                throw nb::index_error("a token is outside the vocabulary");
        }
        const int64_t capacity = std::min(s.own_blocks * 16, max_tokens);
        for (int64_t r = 0; r < s.rows; r++) {
            if (s.lengths[r] < 0 || s.lengths[r] + s.queries > capacity)
                throw nb::value_error("more tokens than the cache can hold");
        }
        for (int64_t b = 0; b < s.memories; b++) {
            if (s.frames[b] < 0 || s.frames[b] > s.cross_blocks * 16)
                throw nb::value_error("more frames than the memory has");
        }
    }
};

struct PyEncoder {
    Weights weights;
    std::unique_ptr<Encoder> encoder;

    PyEncoder(const nb::dict& arrays, const std::string& isa, std::shared_ptr<Team> team, int64_t width, int64_t heads,
              int64_t head_width, int64_t num_layers)
        : weights(arrays) {
        Shape shape{width, heads, head_width, 0};
        const int64_t all = shape.all_heads();
        std::vector<EncoderLayer> layers;
        for (int64_t i = 0; i < num_layers; i++) {
            const std::string at = "layers." + std::to_string(i) + ".";
            layers.push_back({weights.norm(at + "self_norm", width), weights.matrix(at + "self_heads", 3 * all, width),
                              weights.matrix(at + "self_out", width, all),
                              weights.feed_forward(at + "feed_forward", width)});
        }
        shape.hidden = widest(layers);
        encoder = std::make_unique<Encoder>(chosen(isa), std::move(team), shape, std::move(layers),
                                            weights.norm("norm", width));
    }

    void encode(const Array<float>& x) {
        const int64_t frames = length(x, 0, "x");
        expect(x, {frames, up(encoder->shape.width, 16)}, "x");
        float* at = x.data();
        nb::gil_scoped_release free;
        if (frames > 0) encoder->encode(at, frames);
    }
};

// Single kernels, for tests and measurements.

void py_quantize(const std::string& isa, const Array<const float>& x, int64_t width,
                 const std::optional<Array<const float>>& gain, const std::optional<Array<const float>>& bias,
                 const Array<uint8_t>& values, const Array<float>& scale) {
    const int64_t count = length(x, 0, "x"), padded = up(width, 16);
    expect(x, {count, padded}, "x");
    expect(values, {count, padded}, "values");
    expect(scale, {count}, "scale");
    if (gain.has_value() != bias.has_value()) throw nb::value_error("gain and bias come together");
    Norm norm{};
    if (gain) {
        expect(*gain, {padded}, "gain");
        expect(*bias, {padded}, "bias");
        norm = {gain->data(), bias->data()};
    }
    chosen(isa)->quantize(x.data(), padded, count, width, gain ? &norm : nullptr, values.data(), padded, scale.data());
}

void py_product(const std::string& isa, const Array<const uint8_t>& values, const Array<const float>& scale,
                const nb::dict& matrix, int64_t rows, const Array<float>& out, const std::string& then) {
    const int64_t count = length(values, 0, "values"), stride = length(values, 1, "values");
    const Weights weights(matrix);
    const Matrix m = weights.matrix("matrix", rows, stride, false);
    expect(scale, {count}, "scale");
    expect(out, {count, rows}, "out");
    const Then kind = then == "add" ? Then::add : then == "gelu" ? Then::gelu : Then::keep;
    nb::gil_scoped_release free;
    chosen(isa)->product({values.data(), stride, scale.data(), count}, m, 0, m.blocks,
                         {kind, out.data(), rows, nullptr, 0});
}

void py_attend(const std::string& isa, const Array<const int16_t>& queries, const Array<const int16_t>& keys,
               const Array<const int16_t>& values, const Array<const int64_t>& lengths, float factor,
               const Array<float>& out, const Array<float>& weights) {
    const int64_t count = length(queries, 0, "queries"), width = length(queries, 1, "queries"),
                  blocks = length(keys, 0, "keys");
    const int64_t frames = length(weights, 1, "weights");
    if (width % 16) throw nb::value_error("heads are padded to a multiple of 16");
    expect(keys, {blocks, 16 * width}, "keys");
    expect(values, {blocks, 16 * width}, "values");
    expect(lengths, {count}, "lengths");
    expect(out, {count, width}, "out");
    expect(weights, {count, frames}, "weights");
    for (int64_t q = 0; q < count; q++) {
        if (lengths.data()[q] < 0 || lengths.data()[q] > blocks * 16)
            throw nb::value_error("a length is beyond the keys");
    }
    auto raw = [](const auto& array) { return reinterpret_cast<const uint16_t*>(array.data()); };
    Scratch<float> scratch;
    chosen(isa)->attend({raw(queries), width, raw(keys), raw(values), lengths.data(), count, width, factor, out.data(),
                         width, weights.data(), frames, scratch.at_least(attention_scratch(blocks * 16))});
}

std::vector<std::string> available() {
    std::vector<std::string> names;
    for (const char* name : instruction_sets)
        if (kernels(name)) names.emplace_back(name);
    return names;
}

}  // namespace
}  // namespace sprachbund

// Arrays that are written to are never converted: what was written into a copy would be lost.
NB_MODULE(_native, m) {
    using namespace sprachbund;
    m.def("instruction_sets", &available, "Names of the kernels that run here, best first.");
    m.def("quantize", &py_quantize, nb::arg("isa"), nb::arg("x"), nb::arg("width"), nb::arg("gain").none(),
          nb::arg("bias").none(), nb::arg("values").noconvert(), nb::arg("scale").noconvert());
    m.def("product", &py_product, nb::arg("isa"), nb::arg("values").noconvert(), nb::arg("scale"), nb::arg("matrix"),
          nb::arg("rows"), nb::arg("out").noconvert(), nb::arg("then"));
    m.def("attend", &py_attend, nb::arg("isa"), nb::arg("queries").noconvert(), nb::arg("keys").noconvert(),
          nb::arg("values").noconvert(), nb::arg("lengths"), nb::arg("factor"), nb::arg("out").noconvert(),
          nb::arg("weights").noconvert());
    nb::class_<Team>(m, "Team").def(nb::init<int>()).def_prop_ro("size", &Team::size);
    nb::class_<PyDecoder>(m, "Decoder")
        .def(nb::init<const nb::dict&, const std::string&, std::shared_ptr<Team>, int64_t, int64_t, int64_t, int64_t,
                      int64_t, int64_t, int64_t>(),
             nb::arg("weights"), nb::arg("isa"), nb::arg("team"), nb::kw_only(), nb::arg("width"), nb::arg("heads"),
             nb::arg("head_width"), nb::arg("num_layers"), nb::arg("vocabulary_size"), nb::arg("max_tokens"),
             nb::arg("memory_width"))
        .def("remember", &PyDecoder::remember, nb::arg("states"), nb::arg("cross").noconvert())
        .def("step", &PyDecoder::step, nb::arg("tokens"), nb::arg("lengths"), nb::arg("own").noconvert(),
             nb::arg("cross").noconvert(), nb::arg("frames"), nb::arg("logits").noconvert().none(),
             nb::arg("attention").noconvert().none(), nb::arg("states").noconvert() = nb::none())
        .def("logits", &PyDecoder::logits, nb::arg("states"), nb::arg("logits").noconvert(),
             nb::arg("matrix") = nb::none());
    nb::class_<PyEncoder>(m, "Encoder")
        .def(nb::init<const nb::dict&, const std::string&, std::shared_ptr<Team>, int64_t, int64_t, int64_t, int64_t>(),
             nb::arg("weights"), nb::arg("isa"), nb::arg("team"), nb::kw_only(), nb::arg("width"), nb::arg("heads"),
             nb::arg("head_width"), nb::arg("num_layers"))
        .def("encode", &PyEncoder::encode, nb::arg("x").noconvert());
}
