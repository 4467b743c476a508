/* Opens the runtime's functions to the tests: each takes arrays, so that a call covers many values. */
#include "bit_runtime.h"

#define EACH for (uint32_t i = 0; i < n; i++)

void test_mul(const uint32_t *a, const uint32_t *b, uint32_t *y, uint32_t n) {
    EACH { y[i] = bit_mul(a[i], b[i]); }
}

void test_shift_right(const int32_t *x, const uint32_t *shift, int32_t *y, uint32_t n) {
    EACH { y[i] = bit_shift_right(x[i], shift[i]); }
}

void test_round_shift(const int32_t *x, const uint32_t *shift, int32_t *y, uint32_t n) {
    EACH { y[i] = bit_round_shift(x[i], shift[i]); }
}

void test_requantize(const int32_t *x, const int32_t *multiplier, const int64_t *bias, const uint32_t *shift,
                     const int32_t *low, const int32_t *high, int32_t *y, uint32_t n) {
    EACH { y[i] = bit_requantize(x[i], multiplier[i], bias[i], shift[i], low[i], high[i]); }
}

void test_requantize_shift(const int32_t *x, const int32_t *bias, const uint32_t *shift, const int32_t *low,
                           const int32_t *high, int32_t *y, uint32_t n) {
    EACH { y[i] = bit_requantize_shift(x[i], bias[i], shift[i], low[i], high[i]); }
}

void test_threshold(const int32_t *x, const int32_t *thresholds, uint32_t count, int32_t *y, uint32_t n) {
    EACH { y[i] = bit_threshold(x[i], thresholds, count); }
}

#define TEST_DOT(format)                                                                                               \
    int32_t test_dot_##format##_int8(const uint8_t *weight, const int8_t *x, uint32_t n) {                             \
        return bit_dot_##format##_int8(weight, x, n, bit_sum_int8(x, n));                                              \
    }                                                                                                                  \
    int32_t test_dot_##format##_uint8(const uint8_t *weight, const uint8_t *x, uint32_t n) {                           \
        return bit_dot_##format##_uint8(weight, x, n, bit_sum_uint8(x, n));                                            \
    }
BIT_FORMATS(TEST_DOT)
