// Which kernels this processor can run.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <initializer_list>

#include "kernels.hpp"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(WITH_TILES)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace sprachbund {

extern const Kernels portable_kernels;
#if defined(__x86_64__)
extern const Kernels avx2_kernels, avx_vnni_kernels, avx512_vnni_kernels, avx512_kernels;
#if defined(WITH_TILES)
extern const Kernels amx_kernels, amx_int8_kernels;
#endif
#elif defined(__aarch64__)
extern const Kernels arm_i8mm_kernels, arm_dot_kernels;
#endif

#if defined(__x86_64__)
namespace {

// What the processor itself says; of the compilers' own checks, several say no to everything where their runtime library
// is not the one that they expect. Bits: Intel's manual, volume 2A, CPUID.
struct Leaf {
    unsigned a = 0, b = 0, c = 0, d = 0;

    Leaf(unsigned leaf, unsigned part) { __get_cpuid_count(leaf, part, &a, &b, &c, &d); }
};

bool all_of(unsigned word, std::initializer_list<int> bits) {
    for (int bit : bits)
        if (!(word >> bit & 1u)) return false;
    return true;
}

// Whether the operating system saves the registers with these bits of XCR0.
bool saves(std::initializer_list<int> registers) {
    if (!all_of(Leaf(1, 0).c, {27})) return false;  // OSXSAVE
    unsigned low = 0, high = 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return all_of(low, registers);
}

bool has_avx2() {
    return saves({1, 2}) && all_of(Leaf(1, 0).c, {12, 28, 29}) && all_of(Leaf(7, 0).b, {5});  // FMA, AVX, F16C; AVX2
}

bool has_avx512_vnni() {
    return has_avx2() && saves({5, 6, 7}) && all_of(Leaf(7, 0).b, {16, 17, 30, 31}) &&  // F, DQ, BW, VL
           all_of(Leaf(7, 0).c, {11});                                                  // VNNI
}

bool has_avx_vnni() {
    return has_avx2() && all_of(Leaf(7, 1).a, {4});
}

bool has_avx512() {
    return has_avx512_vnni() && all_of(Leaf(7, 1).a, {5});  // bf16
}

bool is_intel() {
    return Leaf(0, 0).b == 0x756e6547;  // "Genu", the first letters of GenuineIntel
}

#if defined(WITH_TILES)
// Whether tiles are there and this process may use them: Linux saves their registers, 8 KiB a thread, for those alone that
// have asked.
bool has_tiles() {
#if defined(SPRACHBUND_EMULATED_TILES)
    return true;
#else
    constexpr long kAsk = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM; older headers have no name for it
    return saves({17, 18}) && all_of(Leaf(7, 0).d, {24, 25}) && syscall(SYS_arch_prctl, kAsk, kTileData) == 0;
#endif
}

bool has_bf16_tiles() {
#if defined(SPRACHBUND_EMULATED_TILES)
    return true;
#else
    return all_of(Leaf(7, 0).d, {22});
#endif
}

// The same numbers from 0 to 255 each time.
struct Draws {
    uint32_t state = 1;

    uint32_t operator()() { return (state = state * 1664525u + 1013904223u) >> 24; }
};

// One product by tiles and by vectors. The tiles were written without a processor that has them, so each has to show once
// that it agrees.
bool products_agree() {
    constexpr int64_t kTokens = 37, kRows = 40, kBlocks = 3, kSteps = 27, kStride = 112;
    std::vector<uint8_t> values(kTokens * kStride);
    std::vector<int8_t> weights(kBlocks * kSteps * 64);
    std::vector<float> token_scale(kTokens), scale(kBlocks * 16), bias(scale), sums(kTokens * kRows), other(sums);
    std::vector<int32_t> offset(kBlocks * 16);
    Draws draw;
    for (auto& v : values) v = static_cast<uint8_t>(draw());
    for (auto& w : weights) w = static_cast<int8_t>(draw() - 128);
    for (auto* all : {&token_scale, &scale, &bias})
        for (auto& x : *all) x = 1.0f + static_cast<float>(draw());
    for (auto& o : offset) o = static_cast<int32_t>(draw());
    const Tokens tokens{values.data(), kStride, token_scale.data(), kTokens};
    const Matrix m{weights.data(), scale.data(), offset.data(), bias.data(), kRows, kBlocks, kSteps, {}};
    amx_kernels.product(tokens, m, 0, kBlocks, {Then::keep, sums.data(), kRows, nullptr, 0});
    avx512_kernels.product(tokens, m, 0, kBlocks, {Then::keep, other.data(), kRows, nullptr, 0});
    return sums == other;
}

// One attention, likewise. Scores are exact here and values at most 2. Both ways round their weights to bf16, which
// moves each by 2^-8 of itself at most, but not to the same numbers.
bool attentions_agree(int64_t width) {
    constexpr int64_t kQueries = 37, kPositions = 110, kBlocks = 7;
    std::vector<uint16_t> queries(static_cast<size_t>(kQueries * width));
    std::vector<uint16_t> keys(static_cast<size_t>(kBlocks * 16 * width)), values(keys);
    std::vector<int64_t> lengths(kQueries);
    std::vector<float> sums(queries.size()), other(sums);
    struct alignas(64) Line {
        float of[16];
    };
    std::vector<Line> scratch(static_cast<size_t>(std::max(attention_scratch(kPositions), many_scratch(width)) / 16));
    Draws draw;
    for (auto* all : {&queries, &keys, &values})
        for (auto& half : *all) {
            const float x = (static_cast<float>(draw()) - 128) / 64;
            uint32_t bits;
            std::memcpy(&bits, &x, 4);
            half = static_cast<uint16_t>(bits >> 16);
        }
    for (auto& length : lengths) length = 1 + draw() % kPositions;
    auto attend = [&](const Kernels& k, float* to) {
        k.attend_all({queries.data(), width, keys.data(), values.data(), lengths.data(), kQueries, width, 0.25f, to,
                       width, nullptr, 0, scratch.data()->of, nullptr});
    };
    attend(amx_kernels, sums.data());
    attend(avx512_kernels, other.data());
    for (size_t i = 0; i < sums.size(); i++)
        if (!(std::fabs(sums[i] - other[i]) <= 2 * 2.0f / 256)) return false;
    return true;
}

// Those with tiles of 8 bits and of bf16, those of 8 bits alone, or none.
const Kernels* with_tiles() {
    if (!has_avx512() || !has_tiles() || !products_agree()) return nullptr;
    return has_bf16_tiles() && attentions_agree(48) && attentions_agree(80) ? &amx_kernels : &amx_int8_kernels;
}
#endif

}  // namespace
#elif defined(__aarch64__)
namespace {

bool has_arm_dot() {
#if defined(__linux__)
    return getauxval(AT_HWCAP) >> 20 & 1u;  // HWCAP_ASIMDDP; headers of different ages may not know its name
#else
    return true;  // macOS runs on nothing older
#endif
}

bool has_arm_i8mm() {
#if defined(__linux__)
    return getauxval(AT_HWCAP2) >> 13 & 1u;  // HWCAP2_I8MM
#elif defined(__APPLE__)
    int has = 0;
    size_t size = sizeof has;
    return sysctlbyname("hw.optional.arm.FEAT_I8MM", &has, &size, nullptr, 0) == 0 && has;
#else
    return false;
#endif
}

}  // namespace
#endif

std::vector<const char*> instruction_sets() {
#if defined(__x86_64__)
    // Intel's processors start one dot product of bf16 in two cycles, and four of integers in that time, so that the attention
    // of encoders is faster by those of 16 bits; AMD's start as many of both (docs/native_engine.md).
    if (is_intel()) return {"amx", "avx512_vnni", "avx512", "avx_vnni", "avx2", "portable"};
    return {"amx", "avx512", "avx512_vnni", "avx_vnni", "avx2", "portable"};
#elif defined(__aarch64__)
    return {"arm_i8mm", "arm_dot", "portable"};
#else
    return {"portable"};
#endif
}

// The processor is asked once: hypervisors answer CPUID in its place, which takes tens of microseconds each time.
const Kernels* kernels(const char* name) {
    auto is = [name](const char* other) { return std::strcmp(name, other) == 0; };
#if defined(__x86_64__)
#if defined(WITH_TILES)
    if (is("amx")) {
        static const Kernels* const best = with_tiles();
        return best;
    }
#endif
    static const bool avx512 = has_avx512(), avx512_vnni = has_avx512_vnni(), avx_vnni = has_avx_vnni(), avx2 = has_avx2();
    if (is("avx512")) return avx512 ? &avx512_kernels : nullptr;
    if (is("avx512_vnni")) return avx512_vnni ? &avx512_vnni_kernels : nullptr;
    if (is("avx_vnni")) return avx_vnni ? &avx_vnni_kernels : nullptr;
    if (is("avx2")) return avx2 ? &avx2_kernels : nullptr;
#endif
#if defined(__aarch64__)
    static const bool arm_i8mm = has_arm_i8mm(), arm_dot = has_arm_dot();
    if (is("arm_i8mm")) return arm_i8mm ? &arm_i8mm_kernels : nullptr;
    if (is("arm_dot")) return arm_dot ? &arm_dot_kernels : nullptr;
#endif
    return is("portable") ? &portable_kernels : nullptr;
}

}  // namespace sprachbund
