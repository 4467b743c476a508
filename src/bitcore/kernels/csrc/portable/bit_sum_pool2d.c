/* Sums of windows: average and global pooling, before the division that the next requantization does. */
#include "bit_pool.h"

void bit_sum_pool2d(const BitPool *layer, const uint8_t *x, uint8_t *y, const BitBuffers *buffers) {
    bit_pool2d(layer, x, y, buffers, 1);
}
