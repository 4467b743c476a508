/* The end of a convolution: any function of a sum. */
#include "bit_conv2d.h"

/* Writes the results of one pixel from element `at` on, or the larger ones of these and those already there. */
void bit_finish_value(const BitPixels *pixels, unsigned part, int larger, uint32_t at) {
    const BitConv2d *const layer = pixels->layer;
    for (uint32_t i = 0; i < pixels->count; i++) {
        const uint32_t channel = pixels->channel + i;
        const int32_t sum = bit_part(pixels->sums[i], part);
        const int32_t value = layer->activate(sum, channel, at + channel, pixels->buffers);
        if (!larger || value > bit_load(pixels->y, at + channel, layer->result)) {
            bit_store(pixels->y, at + channel, layer->result, value);
        }
    }
}
