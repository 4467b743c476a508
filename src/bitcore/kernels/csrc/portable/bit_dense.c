/* Fully connected layers. */
#include "bit_store.h"

void bit_dense(const BitDense *layer, const uint8_t *x, uint8_t *y, const BitBuffers *buffers, uint32_t *scratch) {
    const BitWeights *const w = &layer->weights;
    const BitInputs inputs = {x, 0, layer->inputs, 0, 1, layer->flip};
    BitCodes codes = w->codes;
    for (uint32_t channel = 0; channel < w->outputs;) {
        const uint32_t rest = w->outputs - channel;
        const uint32_t count = rest < w->block ? rest : w->block;
        for (uint32_t i = 0; i < count; i++) {
            scratch[i] = 0;
        }
        w->columns(&inputs, &codes, count, w->low, w->step, scratch, scratch + w->block);
        for (uint32_t i = 0; i < count; i++, channel++) {
            bit_store(y, channel, layer->result, layer->activate((int32_t)scratch[i], channel, channel, buffers));
        }
    }
}
