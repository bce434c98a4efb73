// Reads memory with loads of one size; a part of peak.cpp, which includes it once for each.
template <int STREAMS, bool AHEAD>
static inline __attribute__((always_inline)) void read_streams(const uint8_t* memory, int64_t bytes, int64_t ahead) {
    constexpr int64_t kAtOnce = 256, kSize = sizeof(Loaded);
    const int64_t each = bytes / STREAMS / kAtOnce * kAtOnce;
    Loaded sum[8] = {};
    for (int64_t at = 0; at < each; at += kAtOnce) {
        for (int s = 0; s < STREAMS; s++) {
            const uint8_t* from = memory + s * each + at;
            if (AHEAD)
                for (int64_t line = 0; line < kAtOnce; line += 64) __builtin_prefetch(from + ahead + line, 0, 0);
#pragma GCC unroll 16
            for (int64_t i = 0; i < kAtOnce / kSize; i++) {
                Loaded loaded;
                std::memcpy(&loaded, from + i * kSize, sizeof(Loaded));
                sum[i % 8] += loaded;
            }
        }
    }
    for (const Loaded& part : sum) __asm__ volatile("" : : "m"(part));  // so that nothing is left out
}

static void read(const uint8_t* memory, int64_t bytes, int streams, int64_t ahead) {
    if (streams == 1) ahead ? read_streams<1, true>(memory, bytes, ahead) : read_streams<1, false>(memory, bytes, 0);
    if (streams == 2) ahead ? read_streams<2, true>(memory, bytes, ahead) : read_streams<2, false>(memory, bytes, 0);
    if (streams == 4) ahead ? read_streams<4, true>(memory, bytes, ahead) : read_streams<4, false>(memory, bytes, 0);
    if (streams == 8) ahead ? read_streams<8, true>(memory, bytes, ahead) : read_streams<8, false>(memory, bytes, 0);
}
