/* Dot products of ternary weights: 5 in a byte, byte = sum of code[i] * 3**i, code = level + 1. */
#include "bit_runtime.h"

/* Digits come out from the most significant one by comparing: no division, no table lookup of weights. */
BIT_INLINE int32_t dot(const uint8_t *weight, const void *x, int x_signed, uint32_t n) {
    static const uint8_t powers[5] = {1, 3, 9, 27, 81};
    const int8_t *s = (const int8_t *)x;
    const uint8_t *u = (const uint8_t *)x;
    int32_t total = 0;
    while (n != 0) {
        const uint32_t count = n < 5 ? n : 5;
        unsigned byte = *weight++;
        for (uint32_t i = count; i-- != 0;) {
            const unsigned one = powers[i], two = one + one;
            const int32_t value = x_signed ? s[i] : u[i];
            if (byte >= two) {
                byte -= two;
                total += value;
            } else if (byte >= one) {
                byte -= one;
            } else {
                total -= value;
            }
        }
        s += count;
        u += count;
        n -= count;
    }
    return total;
}

int32_t bit_dot_ternary_int8(const uint8_t *weight, const int8_t *x, uint32_t n, int32_t sum) {
    (void)sum;
    return dot(weight, x, 1, n);
}

int32_t bit_dot_ternary_uint8(const uint8_t *weight, const uint8_t *x, uint32_t n, int32_t sum) {
    (void)sum;
    return dot(weight, x, 0, n);
}
