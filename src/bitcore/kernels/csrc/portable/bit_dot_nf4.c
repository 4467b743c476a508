/* Dot products of NF4 weights: activations are summed by code, then 16 products remain for the whole row. */
#include "bit_runtime.h"

BIT_INLINE int32_t dot(const uint8_t *weight, const void *x, int x_signed, uint32_t n) {
    static const int8_t levels[16] = BIT_NF4_LEVELS;
    const int8_t *s = (const int8_t *)x;
    const uint8_t *u = (const uint8_t *)x;
    uint32_t sums[16];
    uint32_t total = 0;
    for (unsigned code = 0; code < 16; code++) {
        sums[code] = 0;
    }
    for (uint32_t i = 0; i < n; i++) {
        const unsigned code = (i & 1U) ? (unsigned)weight[i >> 1] >> 4 : weight[i >> 1] & 15U;
        sums[code] += x_signed ? (uint32_t)(int32_t)s[i] : (uint32_t)u[i];
    }
    for (unsigned code = 0; code < 16; code++) {
        total += bit_mul(sums[code], (uint32_t)(int32_t)levels[code]);
    }
    return (int32_t)total;
}

int32_t bit_dot_nf4_int8(const uint8_t *weight, const int8_t *x, uint32_t n, int32_t sum) {
    (void)sum;
    return dot(weight, x, 1, n);
}

int32_t bit_dot_nf4_uint8(const uint8_t *weight, const uint8_t *x, uint32_t n, int32_t sum) {
    (void)sum;
    return dot(weight, x, 0, n);
}
