/* Fully connected layers in little code. */
#include "bit_compact_dense.h"

/* bit_scale with an output's numbers, clamped to 0...high. Most negative products are found without computing them:
 * multipliers lie between 2**14 and 2**15. */
static int32_t scale(const BitCompactDense *layer, uint32_t channel, int32_t sum) {
    const uint32_t word = BIT_FLASH16(&layer->multiplier[channel]);
    const int32_t bias = (int32_t)BIT_FLASH32(&layer->bias[channel]);
    if (bit_shift_right(bias, 14) + sum + (sum > 0 ? sum : 0) < 0) {
        return 0;
    }
    const int32_t value = bit_scale(sum, (word & 0x3fffU) | 0x4000U, bias, layer->shift + (word >> 14));
    return value < 0 ? 0 : value > layer->high ? layer->high : value;
}

void bit_compact_dense(const BitCompactDense *layer, const uint8_t *x, uint8_t *y, const BitBuffers *buffers,
                       uint32_t *scratch) {
    const uint8_t *const stop = x + layer->inputs;
    const uint8_t *codes = layer->codes;
    uint32_t channel = 0;
    do {
        uint32_t count = layer->outputs - channel;
        count = count < layer->block ? count : layer->block;
        const uint32_t row = (bit_mul(count, layer->bits) + 7) >> 3;
        uint32_t *const last = scratch + count;
        for (uint32_t *sum = scratch; sum != last; sum++) {
            *sum = 0;
        }
        const uint8_t *first = x;
        do {
            const uint8_t *end = first + layer->inputs_of_row;
            end = end < stop ? end : stop;
            const uint32_t bytes = row != 0 ? row : BIT_FLASH8(codes++);
            const uint8_t *input = end;
            do {
                if (*--input != 0) {
                    layer->add(layer, codes, first, input + 1, scratch, last, scratch + layer->block);
                    break;
                }
            } while (input != first);
            codes += bytes;
            first = end;
        } while (first != stop);
        for (const uint32_t *sum = scratch; sum != last; sum++, channel++) {
            const int32_t value = (int32_t)*sum;
            bit_store(y, channel, layer->result,
                      layer->activate ? layer->activate(value, channel, channel, buffers)
                                      : scale(layer, channel, value));
        }
    } while (channel < layer->outputs);
}
