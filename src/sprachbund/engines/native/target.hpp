// The instruction set of the functions between TARGET and END_TARGET, and the compiler's own names for its instructions.
//
// It is chosen in the sources and not by flags: so one command compiles every file, with any build tool, and for two
// processors at once where macOS wants that. Headers of the library come before TARGET, as the one below: of a function
// that several files have, the linker keeps any, which must not be one that only some processors can run.
#pragma once
#include <cstdint>
#include <cstring>

#include "kernels.hpp"
#if defined(__x86_64__)
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // in GCC 12's header: its bug 105593
#endif
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define TARGET(features) PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define END_TARGET PRAGMA(clang attribute pop)
#else
#define TARGET(features) PRAGMA(GCC push_options) PRAGMA(GCC target(features))
#define END_TARGET PRAGMA(GCC pop_options)
#endif
