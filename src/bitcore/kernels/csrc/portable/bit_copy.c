/* Concatenation: one map's channels into a map of more channels. */
#include "bit_store.h"

void bit_copy_channels(const BitCopy *layer, const uint8_t *x, uint8_t *y, const BitBuffers *buffers) {
    uint32_t from = 0;
    uint32_t to = layer->first;
    for (uint32_t pixels = layer->pixels; pixels != 0; pixels--) {
        for (uint32_t channel = 0; channel < layer->channels; channel++) {
            const int32_t value = bit_load(x, from + channel, layer->source);
            bit_store(y, to + channel, layer->result,
                      layer->activate(value, layer->first + channel, to + channel, buffers));
        }
        from += layer->channels;
        to += layer->all;
    }
}
