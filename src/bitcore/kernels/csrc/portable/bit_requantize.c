/* From accumulators to activations in 64 bits. */
#include "bit_runtime.h"

int32_t bit_requantize(int32_t x, int32_t multiplier, int64_t bias, unsigned shift, int32_t low, int32_t high) {
#ifdef BIT_NO_MULTIPLIER
    uint64_t product = 0;
    uint64_t factor = (uint64_t)(int64_t)x;
    uint32_t rest = (uint32_t)multiplier;
    if (multiplier < 0) {
        factor = 0U - factor;
        rest = 0U - rest;
    }
    for (; rest != 0; rest >>= 1, factor <<= 1) {
        if (rest & 1U) {
            product += factor;
        }
    }
    const int64_t value = (int64_t)product + bias;
#else
    const int64_t value = (int64_t)x * multiplier + bias;
#endif
    const int64_t floor = value >= 0 ? value >> shift : ~(~value >> shift);
    const uint64_t rest_bits = (uint64_t)value - ((uint64_t)floor << shift);
    const uint64_t half = ((uint64_t)1 << shift) >> 1;
    const int64_t rounded = floor + (rest_bits > half || (rest_bits == half && shift > 0 && (floor & 1)));
    return rounded < low ? low : rounded > high ? high : (int32_t)rounded;
}
