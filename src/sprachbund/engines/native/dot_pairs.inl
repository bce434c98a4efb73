// bf16 products where the processor has no instruction for them: a bf16 number is the upper half of a float.
namespace {

typedef F16 Sum;
constexpr int kSumParts = 1;

INLINE void dot_pairs(Sum (&sums)[kSumParts], uint32_t two, const uint16_t* pairs) {
    U16 both = load<U16>(pairs);
    sums[0] += bits<F16>(both << 16) * bits<float>(two << 16);
    sums[0] += bits<F16>(both & 0xffff0000u) * bits<float>(two & 0xffff0000u);
}

}  // namespace
