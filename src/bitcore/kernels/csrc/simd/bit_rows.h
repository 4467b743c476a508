/* What every instruction set does around its products, in plain loops that the compiler vectorizes for each of them:
 * activations to levels, packed fields to bytes, accumulators to outputs. Included once by each bit_linear_<isa>.c.
 *
 * Compiled without contraction: a product and a sum are rounded one after the other, as torch rounds them.
 */
#include <math.h>
#include <string.h>

#include "bit_simd.h"

#include "bit_floats.h"

/* int8 levels; or, with flip, uint8 levels minus 128. */
static int32_t bit_copy(const uint8_t *x, int8_t *levels, int64_t n, int flip) {
    const uint8_t mask = flip ? 128 : 0;
    int32_t sum = 0;
    for (int64_t i = 0; i < n; i++) {
        const int8_t level = (int8_t)(x[i] ^ mask);
        levels[i] = level;
        sum += level;
    }
    return sum;
}

#ifndef BIT_SIGNS
/* Signs of x / scale, 1 for negative; a quotient that underflows to -0 counts as positive. */
static void bit_signs(const float *x, uint64_t *bits, int64_t n, float scale, uint8_t *nan) {
    uint32_t bad = 0;
    for (int64_t i = 0; i < n; i += 64) {
        const int64_t count = n - i < 64 ? n - i : 64;
        uint8_t negative[64] = {0};
        for (int64_t j = 0; j < count; j++) {
            const float u = x[i + j] / scale;
            bad |= u != u;
            negative[j] = u < 0;
        }
        uint64_t word = 0;
        for (int j = 0; j < 64; j += 8) { /* gathers the lowest bits of 8 bytes */
            uint64_t bytes;
            memcpy(&bytes, negative + j, sizeof bytes);
            word |= (bytes * 0x0102040810204080U) >> 56 << j;
        }
        bits[i / 64] = word;
    }
    *nan = bad != 0;
}
#define BIT_SIGNS bit_signs
#endif

#ifndef BIT_LOOKUP /* 64 bytes of codes below 16 to table entries */
#define BIT_LOOKUP(out, codes, table)                                                                                  \
    for (int lookup_i = 0; lookup_i < 64; lookup_i++) {                                                                \
        (out)[lookup_i] = (table)[(codes)[lookup_i]];                                                                  \
    }
#endif

/* One unit: values of 4 (ternary: 5) blocks. Of 8 blocks, the first or second 4. */
static void bit_unpack(const struct bit_prepared *weight, const uint8_t *units, int64_t count, int plane, int half,
                       uint8_t *panel) {
    const uint8_t *table = weight->table[plane];
    for (int64_t u = 0; u < count; u++) {
        switch (weight->layout) {
        case BIT_LAYOUT_1BIT:
            for (int f = 0; f < 4; f++) {
                for (int i = 0; i < 64; i++) {
                    panel[64 * f + i] = units[i] >> (f + 4 * half) & 1;
                }
            }
            break;
        case BIT_LAYOUT_2BIT:
            for (int f = 0; f < 4; f++) {
                for (int i = 0; i < 64; i++) {
                    panel[64 * f + i] = units[i] >> 2 * f & 3;
                }
            }
            break;
        case BIT_LAYOUT_4BIT:
            for (int v = 0; v < 2; v++) {
                for (int f = 0; f < 2; f++) {
                    uint8_t codes[64], *out = panel + 128 * v + 64 * f;
                    for (int i = 0; i < 64; i++) {
                        codes[i] = units[64 * v + i] >> 4 * f & 15;
                    }
                    if (weight->tables) {
                        BIT_LOOKUP(out, codes, table)
                    } else {
                        memcpy(out, codes, 64);
                    }
                }
            }
            break;
        default: { /* BIT_LAYOUT_TERNARY */
            uint8_t state[64];
            memcpy(state, units, 64);
            for (int f = 0; f < 5; f++) {
                for (int i = 0; i < 64; i++) { /* the digit, floor(3 b / 256), without leaving 8 bits */
                    panel[64 * f + i] = (uint8_t)((state[i] > 85) + (state[i] > 170));
                    state[i] = (uint8_t)(3 * state[i]);
                }
            }
        }
        }
        units += bit_unit_bytes(weight->layout);
        panel += weight->layout == BIT_LAYOUT_TERNARY ? 320 : 256;
    }
}

/* Accumulators of one row of x to `n` outputs (up to BIT_MAX_ROWS) from `first` on.
 *
 * integer = step * acc + correction (+ 128 * the row's sum of levels, where 128 was subtracted from x);
 * real = integer * s + bias with s = x scale * weight scale, or (integer + round(bias / s)) * s. */
static void bit_finish(const struct bit_prepared *weight, const struct bit_output *out, int64_t token, int64_t first,
                       int64_t n, const int32_t *acc, int32_t correction, int shifted, float scale, int nan) {
    const int32_t *row_sums = (const int32_t *)(const void *)((const uint8_t *)weight + weight->rows_at) + first;
    const uint32_t step = (uint32_t)weight->step;
    _Alignas(64) int32_t local[BIT_MAX_ROWS];
    int32_t *integers = out->integers ? out->integers + token * weight->outputs + first : local;
    if (shifted) {
        for (int64_t i = 0; i < n; i++) {
            integers[i] = (int32_t)(step * (uint32_t)acc[i] + (uint32_t)correction + 128U * (uint32_t)row_sums[i]);
        }
    } else {
        for (int64_t i = 0; i < n; i++) {
            integers[i] = (int32_t)(step * (uint32_t)acc[i] + (uint32_t)correction);
        }
    }
    if (out->integers) {
        return;
    }
    float *y = out->reals + token * weight->outputs + first;
    const float *bias = out->bias != NULL ? out->bias + first : NULL;
    if (nan) {
        for (int64_t i = 0; i < n; i++) {
            y[i] = NAN;
        }
    } else if (bias != NULL && out->bias_on_grid) {
        float scales[BIT_MAX_ROWS];
        double grid[BIT_MAX_ROWS];
        bit_scales_of(out, scale, first, n, scales, grid);
        bit_reals_of(integers, scales, NULL, grid, n, y);
    } else if (out->weight_scales == 1) {
        bit_to_reals(integers, n, scale * out->weight_scale[0], NULL, bias, y);
    } else {
        bit_to_reals(integers, n, scale, out->weight_scale + first, bias, y);
    }
}

#define BIT_ROWS                                                                                                       \
    .unpack = bit_unpack, .largest = bit_largest, .quantize = bit_quantize, .copy = bit_copy, .signs = BIT_SIGNS,      \
    .finish = bit_finish
