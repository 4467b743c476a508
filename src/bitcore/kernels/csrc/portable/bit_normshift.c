/* Dynamic power-of-two quantization of one sample, by shifts alone. */
#include "bit_store.h"

BIT_INLINE uint32_t magnitude(int32_t x, int relu) { return x >= 0 ? (uint32_t)x : relu ? 0U : 0U - (uint32_t)x; }

void bit_normshift(const uint8_t *x, unsigned source, uint8_t *y, uint32_t n, int32_t high, int relu) {
    uint32_t largest = 0;
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t value = magnitude(bit_load(x, i, source), relu);
        largest = value > largest ? value : largest;
    }
    unsigned left = 0;
    unsigned right = 0;
    while (((uint32_t)high << right) < largest) {
        right++;
    }
    while (right == 0 && largest != 0 && (largest << (left + 1)) <= (uint32_t)high) {
        left++;
    }
    for (uint32_t i = 0; i < n; i++) {
        const int32_t value = bit_load(x, i, source);
        y[i] = (uint8_t)bit_round_shift((int32_t)((uint32_t)(relu && value < 0 ? 0 : value) << left), right);
    }
}
