/* Rows of weights as 5-bit codes, from the lowest bit of a byte up: of three ternary inputs, or of one. */
#include "bit_compact_dense.h"

void bit_compact_5bit(const BitCompactDense *layer, const uint8_t *codes, const uint8_t *x, const uint8_t *end,
                      uint32_t *sum, const uint32_t *last, uint32_t *table) {
    uint32_t bits = 0;
    unsigned left = 0;
    bit_compact_fill(layer, x, end, table);
    do {
        if (left < 5) {
            bits |= (uint32_t)BIT_FLASH8(codes++) << left;
            left += 8;
        }
        *sum++ += table[bits & 31];
        bits >>= 5;
        left -= 5;
    } while (sum != last);
}
