// Arrays that come from Python: by name, with their shapes and types checked, as the parts of a model.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <string>
#include <utility>
#include <vector>

#include "model.hpp"

namespace nb = nanobind;

namespace sprachbund {

template <class T>
using Array = nb::ndarray<T, nb::c_contig, nb::device::cpu>;
using Any = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;
using AnyOut = nb::ndarray<nb::c_contig, nb::device::cpu>;
using Lengths = std::vector<int64_t>;

inline std::string written(const Lengths& shape) {
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

inline const Kernels* chosen(const std::string& name) {
    const Kernels* named = kernels(name.c_str());
    if (!named) throw nb::value_error(("this processor or build has no kernels named " + name).c_str());
    return named;
}

inline Then activation_named(const std::string& name) {
    if (name == "gelu") return Then::gelu;
    if (name == "silu") return Then::silu;
    if (name == "relu") return Then::relu;
    throw nb::value_error(("there is no activation " + name).c_str());
}

// Arrays by name; they stay alive as long as this.
class Weights {
  public:
    explicit Weights(const nb::dict& arrays) {
        for (auto [name, array] : arrays) arrays_.emplace_back(nb::cast<std::string>(name), nb::cast<Any>(array));
    }

    bool has(const std::string& name) const {
        for (const auto& entry : arrays_)
            if (entry.first == name) return true;
        return false;
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

    Norm root_norm(const std::string& name, int64_t width, float epsilon) const {
        return {get<float>(name + ".gain", {up(width, 16)}), nullptr, epsilon};
    }

    // In 4 or 8 bits, as it comes. `rows` without padding; `padded` says that the padded ones are computed too, as zeros.
    Matrix matrix(const std::string& name, int64_t rows, int64_t inputs, bool padded = true) const {
        const int64_t blocks = up(rows, 16) / 16, pairs = up(inputs, 8) / 8, parts = up(pairs, 4) / 4;
        const Lengths each{blocks * 16};
        Matrix m{nullptr, get<float>(name + ".scale", each), nullptr, get<float>(name + ".bias", each),
                 padded ? blocks * 16 : rows, blocks, up(inputs, 4) / 4, {}};
        if (has(name + ".codes")) {
            m.steps = 2 * pairs;
            m.four = {get<uint8_t>(name + ".codes", {blocks, pairs, 16, 4}),
                      reinterpret_cast<const uint16_t*>(get<int16_t>(name + ".steps", {blocks, parts, 16})),
                      get<uint8_t>(name + ".zeros", {blocks, parts, 8}), get<float>(name + ".offset", each)};
        } else {
            m.values = get<int8_t>(name + ".values", {blocks, m.steps, 16, 4});
            m.offset = get<int32_t>(name + ".offset", each);
        }
        return m;
    }

    // `of` stands behind the names of its matrices.
    FeedForward feed_forward(const std::string& name, int64_t width, Then activation, const std::string& of = "") const {
        const std::string expand = name + ".expand" + of, contract = name + ".contract" + of;
        const int64_t hidden = length(find(expand + ".scale"), 0, "expand");
        return {norm(name + ".norm", width), matrix(expand, hidden, width), matrix(contract, width, inputs(contract)),
                activation};
    }

    ConformerParts conformer(const std::string& layer, int64_t width, int64_t taps, Then activation) const {
        const int64_t padded = up(width, 16);
        const std::string name = layer + "convolution";
        return {feed_forward(layer + "feed_forward_in", width, activation),
                {norm(name + ".norm", width),
                 matrix(name + ".gate", 2 * padded, width),
                 {get<float>(name + ".taps", {taps, padded}), get<float>(name + ".bias", {padded}), taps,
                  norm(name + ".inner_norm", width)},
                 matrix(name + ".out", width, width)},
                norm(layer + "norm", width)};
    }

  private:
    // Of a matrix, padded.
    int64_t inputs(const std::string& name) const {
        if (has(name + ".codes")) return 8 * length(find(name + ".codes"), 1, "codes");
        return 4 * length(find(name + ".values"), 1, "values");
    }

    const Any& find(const std::string& name) const {
        for (const auto& [other, array] : arrays_)
            if (other == name) return array;
        throw nb::value_error(("there is no array " + name).c_str());
    }

    std::vector<std::pair<std::string, Any>> arrays_;
};

}  // namespace sprachbund
