/* The end of a convolution: a bias and a shift for each output, results from 0 to `high` in uint8. */
#include "bit_conv2d.h"

/* As bit_finish_value. */
void bit_finish_shift(const BitPixels *pixels, unsigned part, int larger, uint32_t at) {
    const BitConv2d *const layer = pixels->layer;
    const uint32_t *sum = pixels->sums;
    const uint32_t *const end = sum + pixels->count;
    const int16_t *bias = layer->bias + pixels->channel;
    const uint8_t *shifts = layer->shift + pixels->channel;
    uint8_t *y = pixels->y + at + pixels->channel;
    do {
        const int32_t value = bit_part(*sum++, part) + (int16_t)BIT_FLASH16(bias++);
        const unsigned shift = BIT_FLASH8(shifts++);
        int32_t result = bit_finish_round(value, shift);
        const int32_t least = larger ? *y : 0;
        result = result < least ? least : result;
        *y++ = (uint8_t)(result > layer->high ? layer->high : result);
    } while (sum != end);
}
