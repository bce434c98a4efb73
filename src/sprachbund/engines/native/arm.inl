// What both Arm files share. TARGET there names the architecture too, as GCC's header does: without it, GCC 12 refuses to
// inline the header's functions.
#include "vector.hpp"

namespace {

INLINE I16 to_nearest(F16 x) {
    struct Floats {
        float32x4_t of[4];
    };
    struct Integers {
        int32x4_t of[4];
    };
    Floats f = bits<Floats>(x);
    Integers out;
    for (int i = 0; i < 4; i++) out.of[i] = vcvtnq_s32_f32(f.of[i]);
    return bits<I16>(out);
}

}  // namespace
