/* Max pooling; padding never wins. */
#include "bit_pool.h"

void bit_max_pool2d(const BitPool *layer, const uint8_t *x, uint8_t *y, const BitBuffers *buffers) {
    bit_pool2d(layer, x, y, buffers, 0);
}
