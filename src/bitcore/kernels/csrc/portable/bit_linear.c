/* The matrix product of packed weights and 8-bit activations: the portable kernel behind the Python package. */
#include "bit_linear.h"

#include "bit_runtime.h"

#define ENTRY_INT8(format) bit_dot_##format##_int8,
#define ENTRY_UINT8(format) bit_dot_##format##_uint8,

int bit_linear_int8_portable(int format, const uint8_t *weight, int64_t row_bytes, const int8_t *x, int32_t *y,
                             int64_t rows, int64_t outputs, int64_t inputs) {
    static int32_t (*const dots[])(const uint8_t *, const int8_t *, uint32_t, int32_t) = {BIT_FORMATS(ENTRY_INT8)};
    if (format < 0 || format >= BIT_FORMAT_COUNT || inputs > UINT32_MAX) {
        return 1;
    }
    for (int64_t row = 0; row < rows; row++, x += inputs, y += outputs) {
        const int32_t sum = bit_sum_int8(x, (uint32_t)inputs);
        for (int64_t i = 0; i < outputs; i++) {
            y[i] = dots[format](weight + i * row_bytes, x, (uint32_t)inputs, sum);
        }
    }
    return 0;
}

int bit_linear_uint8_portable(int format, const uint8_t *weight, int64_t row_bytes, const uint8_t *x, int32_t *y,
                              int64_t rows, int64_t outputs, int64_t inputs) {
    static int32_t (*const dots[])(const uint8_t *, const uint8_t *, uint32_t, int32_t) = {BIT_FORMATS(ENTRY_UINT8)};
    if (format < 0 || format >= BIT_FORMAT_COUNT || inputs > UINT32_MAX) {
        return 1;
    }
    for (int64_t row = 0; row < rows; row++, x += inputs, y += outputs) {
        const int32_t sum = bit_sum_uint8(x, (uint32_t)inputs);
        for (int64_t i = 0; i < outputs; i++) {
            y[i] = dots[format](weight + i * row_bytes, x, (uint32_t)inputs, sum);
        }
    }
    return 0;
}
