/* Functions of single elements. */
#include "bit_store.h"

void bit_map(const BitMap *layer, const uint8_t *x, uint8_t *y, const BitBuffers *buffers) {
    uint32_t element = 0;
    for (uint32_t pixels = layer->pixels; pixels != 0; pixels--) {
        for (uint32_t channel = 0; channel < layer->channels; channel++, element++) {
            const int32_t value = bit_load(x, element, layer->source);
            bit_store(y, element, layer->result, layer->activate(value, channel, element, buffers));
        }
    }
}
