/* Columns of FP1.3.0 weights, sign and exponent: the table is made of shifts. */
#include "bit_table.h"

void bit_columns_fp130(const BitInputs *x, BitCodes *weight, uint32_t outputs, int low, int step, uint32_t *sum,
                       uint32_t *table) {
    (void)low;
    (void)step;
    for (uint32_t i = 0; i < x->count; i++) {
        uint32_t word = bit_input(x, i);
        if (word != 0) {
            for (unsigned exponent = 0; exponent < 8; exponent++) {
                table[exponent] = word;
                table[exponent + 8] = 0U - word;
                word <<= 1;
            }
            bit_add_4bit(weight, outputs, sum, table);
        } else {
            bit_skip_4bit(weight, outputs);
        }
    }
}
