/* Convolutions as implicit matrix products, for every instruction set; the engine (bit_engine.h) is made of them.
 *
 * Activations are signed bytes, channels last: [height][width][pixel], `pixel` being the channels and a few bytes of
 * padding. A value x is stored as x - offset, with offset 128 where values exceed 127, or 0. The products of one tile
 * are those of up to 6 output pixels and up to 64 output channels. Its inputs are given by pointers, one a tap (a
 * position of the kernel) and pixel: strides, dilations and borders are a matter of which pointers. A pointer beyond
 * the border leads to bytes of -offset, which are zeros.
 *
 * A block of weights holds 64 output channels (or the last ones, up to a multiple of 16, 32 or 64), tap after tap, each
 * in units of 4 input channels: byte 4 * lane + i of a 64-byte vector belongs to input i and to output lane + 16 * f,
 * f being the field of the byte. 8-bit codes: one vector a field. 4-bit: fields 2v and 2v + 1 in the low and high half
 * of vector v. 2-bit: four fields a byte. 1-bit: two units in one vector, the fields of the first in the low half.
 *
 * With level = base + step * code, and sums over a window's taps and channels:
 *   sum(level * x) = step * sum(code * stored) + base * sum(stored) + offset * sum(level).
 * The second sum is taken once a pixel, the third (and the bias) is a constant of the output channel. Where a unit is
 * wider than the channels, its codes are 0, and the sum of stored values does not count those bytes.
 */
#ifndef BIT_CONV_H
#define BIT_CONV_H

#include <stddef.h>
#include <stdint.h>

#include "bit_simd.h"

#define BIT_TILE_PIXELS 6
#define BIT_TILE_ROWS 64

/* What becomes of a tile of integers; `tile` is [pixels][BIT_TILE_ROWS]. */
enum bit_post_kind {
    BIT_POST_REQUANTIZE,
    BIT_POST_THRESHOLD,
    BIT_POST_LOOKUP,
    BIT_POST_ADD,    /* a buffer's values */
    BIT_POST_STORE,  /* to a buffer */
    BIT_POST_KEEP,   /* a copy of the tile, in a slot, for */
    BIT_POST_RESTORE /* other ways on from there */
};

struct bit_post {
    int32_t kind;
    int32_t target;    /* of add and store the buffer, of keep and restore the slot */
    int32_t shared;    /* one parameter for all channels, repeated BIT_TILE_ROWS times; else one a channel, padded */
    int32_t low, high; /* threshold: the first result, and the step */
    int32_t in_double; /* double arithmetic on the intermediate results is exact, and the result fits int32 */
    int64_t count;     /* thresholds of a channel */
    int64_t channels;  /* threshold: from one to the next of a channel */
    int64_t items;     /* of each array */
    const double *factor, *addend; /* multiplier / 2**shift, bias / 2**shift */
    const int64_t *multiplier, *bias, *shift;
    const int32_t *table; /* thresholds [count][channels], then signs [channels]; or the 256 entries of a lookup */
};

/* Products of a block with `pixels` pixels; pointers[tap * BIT_TILE_PIXELS + pixel].
 * tile[pixel][row] = (sum(code * stored) << shift) + correction[pixel] + constant[row] */
typedef void (*bit_conv_product)(const uint8_t *weight, const int8_t *const *pointers, int64_t taps, int64_t units,
                                 int shift, const int32_t *correction, const int32_t *constant, int32_t *tile);

/* The same for signs, as words of 64 channels: tile = constant - 2 * (how many differ). */
typedef void (*bit_conv_count)(const uint64_t *weight, const int8_t *const *pointers, int64_t taps, int64_t words,
                               int fields, const int32_t *constant, int32_t *tile);

struct bit_conv_isa {
    bit_conv_product product[4][3][BIT_TILE_PIXELS]; /* [1, 2, 4, 8 bits][16, 32, 64 rows][pixels - 1] */
    bit_conv_count count[BIT_TILE_PIXELS];           /* [pixels - 1] */
    /* sums[pixel] of `length` stored bytes of every tap */
    void (*sums)(const int8_t *const *pointers, int64_t taps, int64_t length, int pixels, int32_t *sums);
    /* one filter a channel; weights [taps][stride] */
    void (*depthwise)(const int16_t *weight, int64_t stride, const int8_t *const *pointers, int64_t taps, int pixels,
                      int rows, const int32_t *constant, int32_t *tile);
    void (*signs)(const int8_t *x, int64_t n, uint64_t *bits); /* 1 for negative; n channels */
    void (*requantize)(const struct bit_post *post, int32_t *tile, int pixels, int64_t first, int rows);
    void (*threshold)(const struct bit_post *post, int32_t *tile, int pixels, int64_t first, int rows);
    /* rows of a buffer of 1, 2 or 4 bytes an element to and from a row of a tile */
    void (*add)(const void *row, int bytes, int offset, int rows, int32_t *out);
    void (*store)(void *row, int bytes, int offset, int rows, const int32_t *in);
    void (*largest)(const void *const *from, int64_t count, int bytes, int offset, int rows, int32_t *out);
    /* as in bit_floats.h */
    uint32_t (*magnitude)(const float *x, int64_t n);
    int32_t (*quantize)(const float *x, int8_t *levels, int64_t n, float scale, const int *range, uint8_t *nan);
    int (*quantize_planes)(const float *x, int64_t plane, int channels, int64_t n, float scale, const int *range,
                           int8_t *levels, int64_t pixel);
    /* a tile to floats, which lie `pixel` and `channel` apart; one of them is 1 */
    void (*reals)(const int32_t *tile, const float *scale, const float *bias, const double *grid, int pixels, int rows,
                  float *y, int64_t pixel, int64_t channel);
};

#endif
