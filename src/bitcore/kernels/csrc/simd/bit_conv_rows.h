/* What happens to tiles besides products, in plain loops that the compiler vectorizes for each instruction set.
 * Included once by each bit_conv_<isa>.c, which defines BIT_NAME, inline functions `product` and `count` for constant
 * numbers of bits, fields (of 16 rows) and pixels, and maybe macros that name something better than the loops here. */
#include <string.h>

#include "bit_conv.h"

#include "bit_floats.h"

/* ---- integers to integers ---- */

/* (x * multiplier + bias) / 2**shift, ties to even. With floor = v >> shift, adding half - 1 and the parity of floor
 * carries into the quotient exactly when the rest exceeds a half, or is one and floor is odd. */
static inline int64_t round_shift(int64_t v, int64_t shift) {
    return shift == 0 ? v : (v + ((int64_t)1 << (shift - 1)) - 1 + (v >> shift & 1)) >> shift;
}

#ifndef BIT_REQUANTIZE_IN_DOUBLE
/* Adding 1.5 * 2**52 rounds a double below 2**51 to an integer, ties to even, which is then in its low bits. */
static void requantize_in_double(const struct bit_post *post, int32_t *tile, int pixels, int64_t first, int rows) {
    const double *factor = post->factor + (post->shared ? 0 : first),
                 *addend = post->addend + (post->shared ? 0 : first);
    const double low = post->low, high = post->high;
    for (int p = 0; p < pixels; p++) {
        int32_t *at = tile + p * BIT_TILE_ROWS;
        for (int r = 0; r < rows; r++) {
            double x = at[r] * factor[r] + addend[r];
            x = x < low ? low : x;
            x = x > high ? high : x;
            x += 6755399441055744.0;
            int64_t bits;
            memcpy(&bits, &x, sizeof bits);
            at[r] = (int32_t)bits;
        }
    }
}
#define BIT_REQUANTIZE_IN_DOUBLE requantize_in_double
#endif

static void requantize(const struct bit_post *post, int32_t *tile, int pixels, int64_t first, int rows) {
    if (post->in_double) {
        BIT_REQUANTIZE_IN_DOUBLE(post, tile, pixels, first, rows);
        return;
    }
    const int64_t at = post->shared ? 0 : first;
    for (int p = 0; p < pixels; p++) {
        for (int r = 0; r < rows; r++) {
            const int64_t v = tile[p * BIT_TILE_ROWS + r] * post->multiplier[at + r] + post->bias[at + r];
            const int64_t y = round_shift(v, post->shift[at + r]);
            tile[p * BIT_TILE_ROWS + r] = (int32_t)(y < post->low ? post->low : y > post->high ? post->high : y);
        }
    }
}

static void threshold(const struct bit_post *post, int32_t *tile, int pixels, int64_t first, int rows) {
    const int32_t *thresholds = post->table + (post->shared ? 0 : first);
    const int32_t *sign = thresholds + post->count * post->channels;
    for (int p = 0; p < pixels; p++) {
        int32_t x[BIT_TILE_ROWS], reached[BIT_TILE_ROWS] = {0}, *at = tile + p * BIT_TILE_ROWS;
        for (int r = 0; r < rows; r++) {
            x[r] = at[r] * sign[r];
        }
        for (int64_t k = 0; k < post->count; k++) {
            for (int r = 0; r < rows; r++) {
                reached[r] += x[r] >= thresholds[k * post->channels + r];
            }
        }
        for (int r = 0; r < rows; r++) {
            at[r] = post->low + post->high * reached[r];
        }
    }
}

/* ---- buffers ---- */

#define EACH(type, from, ...)                                                                                          \
    {                                                                                                                  \
        type *v = from;                                                                                                \
        if (rows == BIT_TILE_ROWS) {                                                                                   \
            for (int r = 0; r < BIT_TILE_ROWS; r++) {                                                                  \
                __VA_ARGS__;                                                                                           \
            }                                                                                                          \
        } else {                                                                                                       \
            for (int r = 0; r < rows; r++) {                                                                           \
                __VA_ARGS__;                                                                                           \
            }                                                                                                          \
        }                                                                                                              \
    }

static void add(const void *row, int bytes, int offset, int rows, int32_t *out) {
    if (bytes == 1) {
        EACH(const int8_t, row, out[r] += v[r] + offset)
    } else if (bytes == 2) {
        EACH(const int16_t, row, out[r] += v[r])
    } else {
        EACH(const int32_t, row, out[r] += v[r])
    }
}

static void store(void *row, int bytes, int offset, int rows, const int32_t *in) {
    if (bytes == 1) {
        EACH(int8_t, row, v[r] = (int8_t)(in[r] - offset))
    } else if (bytes == 2) {
        EACH(int16_t, row, v[r] = (int16_t)in[r])
    } else {
        EACH(int32_t, row, v[r] = in[r])
    }
}

/* The largest of `count` rows, element by element, three more at a time (the last one may count twice). */
#define LARGEST(type, most)                                                                                            \
    for (int64_t i = 1; i < count; i += 3) {                                                                           \
        const type *second = from[i + 1 < count ? i + 1 : i], *third = from[i + 2 < count ? i + 2 : i];                \
        EACH(const type, from[i], {                                                                                    \
            const type a = v[r] > second[r] ? v[r] : second[r], b = third[r] > most[r] ? third[r] : most[r];           \
            most[r] = a > b ? a : b;                                                                                   \
        })                                                                                                             \
    }

static void largest(const void *const *from, int64_t count, int bytes, int offset, int rows, int32_t *out) {
    if (bytes == 1) {
        int8_t most[BIT_TILE_ROWS];
        memcpy(most, from[0], (size_t)rows);
        LARGEST(int8_t, most)
        EACH(int8_t, most, out[r] = v[r] + offset)
    } else if (bytes == 2) {
        int16_t most[BIT_TILE_ROWS];
        memcpy(most, from[0], (size_t)rows * sizeof *most);
        LARGEST(int16_t, most)
        EACH(int16_t, most, out[r] = v[r])
    } else {
        memcpy(out, from[0], (size_t)rows * sizeof *out);
        LARGEST(int32_t, out)
    }
}

/* ---- floats ---- */

static void reals(const int32_t *tile, const float *scale, const float *bias, const double *grid, int pixels, int rows,
                  float *y, int64_t pixel, int64_t channel) {
    float columns[BIT_TILE_PIXELS][BIT_TILE_ROWS];
    for (int p = 0; p < pixels; p++) {
        bit_reals_of(tile + p * BIT_TILE_ROWS, scale, bias, grid, rows, channel == 1 ? y + p * pixel : columns[p]);
    }
    for (int r = 0; channel != 1 && r < rows; r++) {
        for (int p = 0; p < pixels; p++) {
            y[r * channel + p] = columns[p][r];
        }
    }
}

/* ---- products ---- */

#ifndef BIT_SUMS
static void sums(const int8_t *const *pointers, int64_t taps, int64_t length, int pixels, int32_t *result) {
    for (int p = 0; p < pixels; p++) {
        int32_t sum = 0;
        for (int64_t tap = 0; tap < taps; tap++) {
            const int8_t *x = pointers[tap * BIT_TILE_PIXELS + p];
            for (int64_t i = 0; i < length; i++) {
                sum += x[i];
            }
        }
        result[p] = sum;
    }
}
#define BIT_SUMS sums
#endif

#ifndef BIT_DEPTHWISE
/* One filter a channel. int16 holds each product of a stored byte and a level (at most 128 * 128), if barely:
 * +16384, and -16384. */
static void depthwise(const int16_t *weight, int64_t stride, const int8_t *const *pointers, int64_t taps, int pixels,
                      int rows, const int32_t *constant, int32_t *tile) {
    for (int p = 0; p < pixels; p++) {
        int32_t sum[BIT_TILE_ROWS];
        memcpy(sum, constant, (size_t)rows * sizeof *sum);
        for (int64_t tap = 0; tap < taps; tap++) {
            const int16_t *w = weight + tap * stride;
            EACH(const int8_t, pointers[tap * BIT_TILE_PIXELS + p], sum[r] += (int16_t)(w[r] * v[r]))
        }
        memcpy(tile + p * BIT_TILE_ROWS, sum, (size_t)rows * sizeof *sum);
    }
}
#define BIT_DEPTHWISE depthwise
#endif

#ifndef BIT_SIGNS
static void signs(const int8_t *x, int64_t n, uint64_t *bits) {
    for (int64_t i = 0; i < n; i += 64) {
        uint64_t word = 0;
        for (int64_t j = 0; j < 64 && i + j < n; j++) {
            word |= (uint64_t)(x[i + j] < 0) << j;
        }
        bits[i / 64] = word;
    }
}
#define BIT_SIGNS signs
#endif

/* ---- the table: one function for each number of bits, fields and pixels ---- */

#define JOIN_(a, bits, b, isa, fields, pixels) a##bits##b##isa##_##fields##_##pixels
#define JOIN(a, bits, b, isa, fields, pixels) JOIN_(a, bits, b, isa, fields, pixels)
#define PRODUCT(bits, fields, pixels) JOIN(bit_conv2d_, bits, bit_int8_, BIT_NAME, fields, pixels)
#define DEFINE(bits, fields, pixels)                                                                                   \
    static void PRODUCT(bits, fields, pixels)(const uint8_t *weight, const int8_t *const *pointers, int64_t taps,      \
                                              int64_t units, int shift, const int32_t *correction,                     \
                                              const int32_t *constant, int32_t *tile) {                                \
        product(bits, fields, pixels, weight, pointers, taps, units, shift, correction, constant, tile);               \
    }
#define EACH_PIXELS(DO, bits, fields)                                                                                  \
    DO(bits, fields, 1)                                                                                                \
    DO(bits, fields, 2)                                                                                                \
    DO(bits, fields, 3)                                                                                                \
    DO(bits, fields, 4)                                                                                                \
    DO(bits, fields, 5)                                                                                                \
    DO(bits, fields, 6)
#define DEFINE_BITS(bits)                                                                                              \
    EACH_PIXELS(DEFINE, bits, 1)                                                                                       \
    EACH_PIXELS(DEFINE, bits, 2)                                                                                       \
    EACH_PIXELS(DEFINE, bits, 4)
DEFINE_BITS(1)
DEFINE_BITS(2)
DEFINE_BITS(4)
DEFINE_BITS(8)

#define COUNT(pixels) JOIN(bit_conv2d_, binary, _binary_, BIT_NAME, any, pixels)
#define DEFINE_COUNT(binary, any, pixels)                                                                              \
    static void COUNT(pixels)(const uint64_t *weight, const int8_t *const *pointers, int64_t taps, int64_t words,      \
                              int fields, const int32_t *constant, int32_t *tile) {                                    \
        count(pixels, weight, pointers, taps, words, fields, constant, tile);                                          \
    }
EACH_PIXELS(DEFINE_COUNT, 1, 1)

#define NAME(bits, fields, pixels) PRODUCT(bits, fields, pixels),
#define NAME_COUNT(bits, fields, pixels) COUNT(pixels),
#define FIELDS(bits)                                                                                                   \
    {                                                                                                                  \
        {EACH_PIXELS(NAME, bits, 1)}, {EACH_PIXELS(NAME, bits, 2)}, { EACH_PIXELS(NAME, bits, 4) }                     \
    }
#define TABLE_(isa) bit_conv_##isa
#define TABLE(isa) TABLE_(isa)
const struct bit_conv_isa TABLE(BIT_NAME) = {
    .product = {FIELDS(1), FIELDS(2), FIELDS(4), FIELDS(8)},
    .count = {EACH_PIXELS(NAME_COUNT, 1, 1)},
    .sums = BIT_SUMS,
    .depthwise = BIT_DEPTHWISE,
    .signs = BIT_SIGNS,
    .requantize = requantize,
    .threshold = threshold,
    .add = add,
    .store = store,
    .largest = largest,
    .magnitude = bit_largest,
    .quantize = bit_quantize,
    .quantize_planes = bit_quantize_planes,
    .reals = reals,
};
