/* Dot products of FP1.3.0 weights: sign and exponent, two in a byte; a product is a shift. */
#include "bit_runtime.h"

BIT_INLINE int32_t dot(const uint8_t *weight, const void *x, int x_signed, uint32_t n) {
    const int8_t *s = (const int8_t *)x;
    const uint8_t *u = (const uint8_t *)x;
    uint32_t total = 0;
    for (uint32_t i = 0; i < n; i++) {
        const unsigned code = (i & 1U) ? (unsigned)weight[i >> 1] >> 4 : weight[i >> 1] & 15U;
        const uint32_t value = (x_signed ? (uint32_t)(int32_t)s[i] : (uint32_t)u[i]) << (code & 7U);
        total = (code & 8U) ? total - value : total + value;
    }
    return (int32_t)total;
}

int32_t bit_dot_fp130_int8(const uint8_t *weight, const int8_t *x, uint32_t n, int32_t sum) {
    (void)sum;
    return dot(weight, x, 1, n);
}

int32_t bit_dot_fp130_uint8(const uint8_t *weight, const uint8_t *x, uint32_t n, int32_t sum) {
    (void)sum;
    return dot(weight, x, 0, n);
}
