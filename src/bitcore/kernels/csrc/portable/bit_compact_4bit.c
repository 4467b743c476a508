/* Rows of 4-bit weights: one input. */
#include "bit_compact_dense.h"

void bit_compact_4bit(const BitCompactDense *layer, const uint8_t *codes, const uint8_t *x, const uint8_t *end,
                      uint32_t *sum, const uint32_t *last, uint32_t *table) {
    const uint32_t word = bit_activation(layer, x);
    const uint32_t step = word << (layer->step == 2);
    uint32_t value = bit_mul(word, (uint32_t)(int32_t)layer->low);
    for (uint32_t *entry = table; entry != table + 16; value += step) {
        *entry++ = value;
    }
    (void)end;
    bit_compact_add(codes, sum, last, table);
}
