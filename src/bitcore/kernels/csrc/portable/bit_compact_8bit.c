/* Rows of 8-bit weights: one input; a table for the lower 4 bits of a code and one for the upper ones. */
#include "bit_compact_dense.h"

void bit_compact_8bit(const BitCompactDense *layer, const uint8_t *codes, const uint8_t *x, const uint8_t *end,
                      uint32_t *sum, const uint32_t *last, uint32_t *table) {
    uint32_t step = bit_activation(layer, x);
    uint32_t value = bit_mul(step, (uint32_t)(int32_t)layer->low);
    uint32_t upper = 0;
    for (uint32_t *entry = table; entry != table + 16; entry++) {
        entry[0] = value;
        entry[16] = upper;
        value += step;
        upper += step << 4;
    }
    do {
        const uint32_t byte = BIT_FLASH8(codes++);
        *sum++ += table[byte & 15] + table[16 + (byte >> 4)];
    } while (sum != last);
    (void)end;
}
