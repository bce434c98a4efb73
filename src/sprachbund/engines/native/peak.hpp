// What the processor itself can do, to measure the kernels by: instructions that wait for nothing, and reading. None of the
// kernels' code is used here.
#pragma once
#include <cstdint>
#include <vector>

#include "team.hpp"

namespace sprachbund {

struct RegisterLoop {
    const char* name;
    const char* needs;    // kernels that run where its instructions do; null for all
    int64_t operations;   // of a round, two for a product and its sum
    void (*run)(int64_t rounds);
};

// Those of this processor. The first is a chain of additions that wait for each other, one a cycle: a clock.
std::vector<RegisterLoop> register_loops();

// Seconds in which a team reads memory once, every thread a part of its own.
//
// streams: addresses from which a thread reads at once: 1, 2, 4 or 8. ahead: bytes that are fetched before they are read; 0
// leaves that to the processor. 64 bytes aligned; what does not fill all streams is left out: less than 4 KiB a thread.
double seconds_of_reading(Team& team, const uint8_t* memory, int64_t bytes, int streams, int64_t ahead);

}  // namespace sprachbund
