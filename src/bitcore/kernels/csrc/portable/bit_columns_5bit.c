/* Columns of weights of 5 bits: one input at a time, up to 32 codes. */
#include "bit_table.h"

void bit_columns_5bit(const BitInputs *x, BitCodes *weight, uint32_t outputs, int low, int step, uint32_t *sum,
                      uint32_t *table) {
    for (uint32_t i = 0; i < x->count; i++) {
        const uint32_t word = bit_input(x, i);
        if (word != 0) {
            bit_fill(table, 1, word, low, step, 32);
            bit_add_5bit(weight, outputs, sum, table);
        } else {
            bit_skip_5bit(weight, outputs);
        }
    }
}
