/* Rows of weights of few levels: 4-bit codes of a few inputs. */
#include "bit_compact_dense.h"

void bit_compact_digits(const BitCompactDense *layer, const uint8_t *codes, const uint8_t *x, const uint8_t *end,
                        uint32_t *sum, const uint32_t *last, uint32_t *table) {
    bit_compact_fill(layer, x, end, table);
    bit_compact_add(codes, sum, last, table);
}
