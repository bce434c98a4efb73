#include "peak.hpp"

#include <chrono>

#include "kernels.hpp"
#include "target.hpp"
#if defined(WITH_TILES)
#include "tiles.hpp"
#endif

#if defined(__x86_64__)
// A round is twelve or fourteen results that do not wait for each other: more than any of these instructions takes cycles.
#define SIX(F) F("0", "6") F("1", "7") F("2", "8") F("3", "9") F("4", "10") F("5", "11")
#define FOURTEEN(F) F("0") F("1") F("2") F("3") F("4") F("5") F("6") F("7") F("8") F("9") F("10") F("11") F("12") F("13")
#define ZERO(n) "vpxor %%xmm" n ", %%xmm" n ", %%xmm" n "\n\t"
#define SIXTEEN_ZEROS FOURTEEN(ZERO) ZERO("14") ZERO("15")
#define REGISTERS                                                                                                   \
    "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", \
        "xmm14", "xmm15", "cc"
#define ROUNDS(NAME, BODY)                                                                         \
    void NAME(int64_t rounds) {                                                                    \
        __asm__ volatile(SIXTEEN_ZEROS "1:\n\t" BODY "decq %0\n\tjnz 1b\n\tvzeroupper" : "+r"(rounds) : : REGISTERS); \
    }
#define DPBUSD_512(n) "vpdpbusd %%zmm14, %%zmm15, %%zmm" n "\n\t"
#define DPBUSD_256(n) "%{vex%} vpdpbusd %%ymm14, %%ymm15, %%ymm" n "\n\t"
#define DPBF16_512(n) "vdpbf16ps %%zmm14, %%zmm15, %%zmm" n "\n\t"
#define FMA_512(n) "vfmadd231ps %%zmm14, %%zmm15, %%zmm" n "\n\t"
#define FMA_256(n) "vfmadd231ps %%ymm14, %%ymm15, %%ymm" n "\n\t"
#define MADDWD(sum, product)                               \
    "vpmaddwd %%ymm14, %%ymm15, %%ymm" product "\n\t"      \
    "vpaddd %%ymm" product ", %%ymm" sum ", %%ymm" sum "\n\t"
#define MADDUBSW(sum, product)                             \
    "vpmaddubsw %%ymm14, %%ymm15, %%ymm" product "\n\t"    \
    "vpmaddwd %%ymm13, %%ymm" product ", %%ymm" product "\n\t" \
    "vpaddd %%ymm" product ", %%ymm" sum ", %%ymm" sum "\n\t"
#define ADD "addq %1, %0\n\t"

namespace {

// The jump and the count run beside the chain.
void add_chain(int64_t rounds) {
    int64_t sum = 0, one = 1;
    __asm__ volatile("1:\n\t" ADD ADD ADD ADD ADD ADD ADD ADD ADD ADD ADD ADD ADD ADD ADD ADD "decq %2\n\tjnz 1b"
                     : "+r"(sum), "+r"(one), "+r"(rounds)
                     :
                     : "cc");
}

TARGET("avx2,fma")
ROUNDS(fma_256, FOURTEEN(FMA_256))
ROUNDS(maddwd_256, SIX(MADDWD) SIX(MADDWD))
ROUNDS(maddubsw_256, SIX(MADDUBSW) SIX(MADDUBSW))
END_TARGET
TARGET("avx2,avxvnni")
ROUNDS(dpbusd_256, FOURTEEN(DPBUSD_256))
END_TARGET
TARGET("avx512f,avx512vnni,avx512bf16")
ROUNDS(fma_512, FOURTEEN(FMA_512))
ROUNDS(dpbusd_512, FOURTEEN(DPBUSD_512))
ROUNDS(dpbf16_512, FOURTEEN(DPBF16_512))
END_TARGET
#if defined(WITH_TILES)
TARGET("amx-tile,amx-int8,amx-bf16")
#define TILES(NAME, MULTIPLY)               \
    void NAME(int64_t rounds) {             \
        const TileShapes shapes;            \
        settle(&shapes);                    \
        _tile_loadconfig(&shapes);          \
        for (int64_t i = 0; i < rounds; i++) { \
            MULTIPLY(0, 4, 6);              \
            MULTIPLY(1, 4, 7);              \
            MULTIPLY(2, 5, 6);              \
            MULTIPLY(3, 5, 7);              \
        }                                   \
        _tile_release();                    \
    }
TILES(dpbusd_tiles, _tile_dpbusd)
TILES(dpbf16_tiles, _tile_dpbf16ps)
END_TARGET
#endif

}  // namespace
#endif

namespace sprachbund {

#if defined(__x86_64__) && defined(WITH_TILES)
extern const Kernels amx_kernels;
#endif

namespace {

const RegisterLoop kLoops[] = {
#if defined(__x86_64__)
    {"addq, one after another", nullptr, 16, add_chain},
#if defined(WITH_TILES)
    {"tdpbusd", "amx", 4 * 16 * 16 * 64 * 2, dpbusd_tiles},
    {"tdpbf16ps", "amx", 4 * 16 * 16 * 32 * 2, dpbf16_tiles},
#endif
    {"vpdpbusd zmm", "avx512_vnni", 14 * 128, dpbusd_512},
    {"vpdpbusd ymm", "avx_vnni", 14 * 64, dpbusd_256},
    {"vpmaddubsw ymm, vpmaddwd, vpaddd", "avx2", 12 * 64, maddubsw_256},
    {"vpmaddwd ymm, vpaddd", "avx2", 12 * 32, maddwd_256},
    {"vdpbf16ps zmm", "avx512", 14 * 64, dpbf16_512},
    {"vfmadd231ps zmm", "avx512_vnni", 14 * 32, fma_512},
    {"vfmadd231ps ymm", "avx2", 14 * 16, fma_256},
#else
    {"none", "none", 0, nullptr},
#endif
};

}  // namespace

std::vector<RegisterLoop> register_loops() {
    std::vector<RegisterLoop> loops;
    for (const RegisterLoop& loop : kLoops) {
#if defined(__x86_64__) && defined(WITH_TILES)
        if (loop.run == dpbf16_tiles && kernels("amx") != &amx_kernels) continue;
#endif
        if (!loop.needs || kernels(loop.needs)) loops.push_back(loop);
    }
    return loops;
}

}  // namespace sprachbund

#if defined(__x86_64__)
TARGET("avx512f,avx512bw,avx512dq,avx512vl")
namespace wide {
typedef uint64_t Loaded __attribute__((vector_size(64)));
#include "read.inl"
}  // namespace wide
END_TARGET
TARGET("avx2")
namespace narrow {
typedef uint64_t Loaded __attribute__((vector_size(32)));
#include "read.inl"
}  // namespace narrow
END_TARGET
#endif
namespace plain {
typedef uint64_t Loaded __attribute__((vector_size(16)));
#include "read.inl"
}  // namespace plain

namespace sprachbund {

double seconds_of_reading(Team& team, const uint8_t* memory, int64_t bytes, int streams, int64_t ahead) {
    auto* read = &plain::read;
#if defined(__x86_64__)
    if (kernels("avx2")) read = &narrow::read;
    if (kernels("avx512_vnni")) read = &wide::read;
#endif
    if (streams != 1 && streams != 2 && streams != 4 && streams != 8)
        throw std::invalid_argument("memory is read in 1, 2, 4 or 8 streams");
    double seconds = 0;
    team.run([&](int thread) {
        const Range part = team.share(thread, bytes, 4096);
        team.barrier();  // all are awake
        const auto begin = std::chrono::steady_clock::now();
        read(memory + part.begin, part.end - part.begin, streams, ahead);
        team.barrier();
        if (thread == 0) seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    });
    return seconds;
}

}  // namespace sprachbund
