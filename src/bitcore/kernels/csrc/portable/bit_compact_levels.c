/* Rows of weights with 16 levels of any kind: one input. */
#include "bit_compact_dense.h"

void bit_compact_levels(const BitCompactDense *layer, const uint8_t *codes, const uint8_t *x, const uint8_t *end,
                        uint32_t *sum, const uint32_t *last, uint32_t *table) {
    for (unsigned code = 0; code < 16; code++) {
        const int16_t level = (int16_t)BIT_FLASH16(&layer->products[code]);
        table[code] = bit_mul(bit_activation(layer, x), (uint32_t)(int32_t)level);
    }
    (void)end;
    bit_compact_add(codes, sum, last, table);
}
