/* What the parts of a convolution share. */
#ifndef BIT_CONV2D_H
#define BIT_CONV2D_H

#include "bit_store.h"

/* What is being computed: one pixel, or two neighbours in the lower and upper halves of the sums. */
struct BitPixels {
    const BitConv2d *layer;
    const uint8_t *x;
    uint8_t *y;
    const BitBuffers *buffers;
    uint32_t *sums;
    uint32_t count;              /* outputs of the block */
    uint32_t channel;            /* the first of them */
    int32_t row, column, offset; /* where the first pixel's window begins; may lie outside the map */
    int both;
};

/* Parts of a sum; the larger half stands for both where they are pooled and results never fall when sums rise. */
enum { BIT_WHOLE, BIT_LOWER, BIT_UPPER, BIT_LARGER };

BIT_INLINE int32_t bit_part(uint32_t sum, unsigned part) {
    if (part == BIT_WHOLE) {
        return (int32_t)sum;
    }
    const int32_t lower = bit_low_half(sum);
    const int32_t upper = bit_high_half(sum);
    return part == BIT_LOWER || (part == BIT_LARGER && lower > upper) ? lower : upper;
}

#endif
