/* From accumulators to activations by a multiplier, in 32 bits. */
#include "bit_runtime.h"

int32_t bit_scale(int32_t x, uint32_t multiplier, int32_t bias, unsigned shift) {
    /* After i steps `value` is (bias + x * (multiplier mod 2**i)) / 2**i, rounded down; `lost` has seen what was cut.
     */
    int32_t value = bias;
    uint32_t lost = 0;
    do {
        if (multiplier & 1U) {
            value += x;
        }
        lost |= (uint32_t)value;
        value = bit_shift_right(value, 1);
        multiplier >>= 1;
    } while (--shift != 1);
    if (multiplier & 1U) {
        value += x;
    }
    const uint32_t half = (uint32_t)value;
    value = bit_shift_right(value, 1);
    return value + (int32_t)(half & (lost | (uint32_t)value) & 1U);
}
