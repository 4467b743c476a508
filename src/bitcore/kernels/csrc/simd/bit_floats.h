/* From floats to levels and from sums to floats, in plain loops that the compiler vectorizes for each instruction set.
 * Included once by each file that fills a table of an instruction set.
 *
 * Compiled without contraction: a product and a sum are rounded one after the other, as torch rounds them.
 */
#ifndef BIT_FLOATS_H
#define BIT_FLOATS_H

#include <stdint.h>
#include <string.h>

static inline uint32_t bit_of_float(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* The largest |x|, as its bits (a NaN compares above infinity). */
static inline uint32_t bit_largest(const float *x, int64_t n) {
    uint32_t largest = 0;
    for (int64_t i = 0; i < n; i++) {
        const uint32_t magnitude = bit_of_float(x[i]) & 0x7fffffffU; /* floats compare as their bits */
        largest = magnitude > largest ? magnitude : largest;
    }
    return largest;
}

/* Levels low ... high of a quotient u, in steps of 1, or the odd ones.
 *
 * A float of magnitude below 2**22 plus 1.5 * 2**23 has a unit in the last place of 1, so the addition rounds to an
 * integer, ties to even, which is then the low bits of the sum. Clamping first gives the same, as the bounds are
 * integers. */
static inline int32_t bit_level_of(float u, const int step, float low, float high) {
    if (step != 1) { /* odd levels: 2 * floor(u / 2) + 1 */
        u = __builtin_floorf(__builtin_floorf(u) / 2) * 2 + 1;
    }
    u = u < low ? low : u;
    u = u > high ? high : u;
    return (int32_t)(bit_of_float(u + 12582912.0f) - 0x4b400000U);
}

/* Levels of x / scale minus an offset, and their sum. range: low, high, step of the levels, and the offset. */
static inline __attribute__((always_inline)) int32_t bit_levels_of(const float *x, int8_t *levels, int64_t n,
                                                                   float scale, const int *range, const int step,
                                                                   uint8_t *nan) {
    const float low = (float)range[0], high = (float)range[1];
    const int32_t offset = range[3];
    int32_t sum = 0;
    uint32_t bad = 0;
    for (int64_t i = 0; i < n; i++) {
        const float u = x[i] / scale;
        bad |= u != u;
        const int32_t level = bit_level_of(u, step, low, high) - offset;
        levels[i] = (int8_t)level;
        sum += (int8_t)level;
    }
    *nan = bad != 0;
    return sum;
}

static inline int32_t bit_quantize(const float *x, int8_t *levels, int64_t n, float scale, const int *range,
                                   uint8_t *nan) {
    return range[2] == 1 ? bit_levels_of(x, levels, n, scale, range, 1, nan)
                         : bit_levels_of(x, levels, n, scale, range, 2, nan);
}

/* Levels of `n` pixels of up to 4 channels, `plane` floats apart, side by side in bytes `pixel` apart; returns whether
 * there is a NaN. */
static inline __attribute__((always_inline)) int bit_interleave(const float *x, int64_t plane, int channels, int64_t n,
                                                                float scale, const int *range, const int step,
                                                                int8_t *levels, int64_t pixel) {
    const float low = (float)range[0], high = (float)range[1];
    const int32_t offset = range[3];
    uint32_t bad = 0;
    for (int64_t begin = 0; begin < n; begin += 64) {
        const int64_t count = n - begin < 64 ? n - begin : 64;
        uint32_t words[64] = {0};
        for (int c = 0; c < channels; c++) {
            const float *at = x + c * plane + begin;
            for (int64_t i = 0; i < count; i++) {
                const float u = at[i] / scale;
                bad |= u != u;
                words[i] |= (uint32_t)(uint8_t)(bit_level_of(u, step, low, high) - offset) << 8 * c;
            }
        }
        for (int64_t i = 0; i < count; i++, levels += pixel) {
            if (channels == 4) {
                levels[0] = (int8_t)words[i], levels[1] = (int8_t)(words[i] >> 8);
                levels[2] = (int8_t)(words[i] >> 16), levels[3] = (int8_t)(words[i] >> 24);
                continue;
            }
            for (int c = 0; c < channels; c++) {
                levels[c] = (int8_t)(words[i] >> 8 * c);
            }
        }
    }
    return bad != 0;
}

static inline int bit_quantize_planes(const float *x, int64_t plane, int channels, int64_t n, float scale,
                                      const int *range, int8_t *levels, int64_t pixel) {
    return range[2] == 1 ? bit_interleave(x, plane, channels, n, scale, range, 1, levels, pixel)
                         : bit_interleave(x, plane, channels, n, scale, range, 2, levels, pixel);
}

/* real = integer * (scale * weight scale) + bias, in one loop for each kind of weight scale and bias (either may be
 * NULL). */
static inline __attribute__((always_inline)) void bit_to_reals(const int32_t *integers, int64_t n, const float scale,
                                                               const float *weight_scale, const float *bias,
                                                               float *restrict y) {
    for (int64_t i = 0; i < n; i++) {
        const float real = (float)integers[i] * (weight_scale != NULL ? scale * weight_scale[i] : scale);
        y[i] = bias != NULL ? real + bias[i] : real;
    }
}

/* real = integer * scale + bias, or (integer + grid) * scale: `scale`, `bias` and `grid` (each may be NULL) hold one
 * number an output. */
static inline void bit_reals_of(const int32_t *integers, const float *scale, const float *bias, const double *grid,
                                int64_t n, float *restrict y) {
    if (grid != NULL) {
        for (int64_t i = 0; i < n; i++) {
            y[i] = (float)((double)integers[i] + grid[i]) * scale[i];
        }
    } else {
        bit_to_reals(integers, n, 1.0f, scale, bias, y);
    }
}

/* The scales of `n` outputs from `first` on; and, in `grid`, the bias in units of them, rounded, if there is to be. */
static inline void bit_scales_of(const struct bit_output *out, float scale, int64_t first, int64_t n, float *scales,
                                 double *grid) {
    if (out->weight_scales == 1) {
        const float s = scale * out->weight_scale[0];
        for (int64_t i = 0; i < n; i++) {
            scales[i] = s;
        }
    } else {
        for (int64_t i = 0; i < n; i++) {
            scales[i] = scale * out->weight_scale[first + i];
        }
    }
    if (grid != NULL) {
        for (int64_t i = 0; i < n; i++) {
            grid[i] = __builtin_rint((double)out->bias[first + i] / (double)scales[i]);
        }
    }
}

#endif
