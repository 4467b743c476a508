/* From accumulators to activations by a shift. */
#include "bit_runtime.h"

int32_t bit_requantize_shift(int32_t x, int32_t bias, unsigned shift, int32_t low, int32_t high) {
    const int32_t value = bit_round_shift((int32_t)((uint32_t)x + (uint32_t)bias), shift);
    return value < low ? low : value > high ? high : value;
}
