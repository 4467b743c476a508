/* Columns of weights of 3 and 4 bits: one input at a time, up to 16 codes of 4 bits. */
#include "bit_table.h"

void bit_columns_4bit(const BitInputs *x, BitCodes *weight, uint32_t outputs, int low, int step, uint32_t *sum,
                      uint32_t *table) {
    for (uint32_t i = 0; i < x->count; i++) {
        const uint32_t word = bit_input(x, i);
        if (word != 0) {
            bit_fill(table, 1, word, low, step, 16);
            bit_add_4bit(weight, outputs, sum, table);
        } else {
            bit_skip_4bit(weight, outputs);
        }
    }
}
