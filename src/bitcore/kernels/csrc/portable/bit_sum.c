/* Sums of activations. */
#include "bit_runtime.h"

int32_t bit_sum_int8(const int8_t *x, uint32_t n) {
    int32_t sum = 0;
    for (; n != 0; n--) {
        sum += *x++;
    }
    return sum;
}

int32_t bit_sum_uint8(const uint8_t *x, uint32_t n) {
    int32_t sum = 0;
    for (; n != 0; n--) {
        sum += *x++;
    }
    return sum;
}
