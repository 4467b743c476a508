/* Rows of 4-bit weights: one input. */
#include "bit_compact_dense.h"
#include "bit_table.h"

void bit_compact_4bit(const BitCompactDense *layer, const uint8_t *codes, const uint8_t *x, const uint8_t *end,
                      uint32_t *sum, const uint32_t *last, uint32_t *table) {
    bit_fill(table, 1, bit_activation(layer, x), layer->low, layer->step, 16);
    (void)end;
    bit_compact_add(codes, sum, last, table);
}
