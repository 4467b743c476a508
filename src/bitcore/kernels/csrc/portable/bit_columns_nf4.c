/* Columns of NF4 weights: the table holds the products with all 16 levels. */
#include "bit_table.h"

void bit_columns_nf4(const BitInputs *x, BitCodes *weight, uint32_t outputs, int low, int step, uint32_t *sum,
                     uint32_t *table) {
    static const int8_t levels[16] BIT_IN_FLASH = BIT_NF4_LEVELS;
    (void)low;
    (void)step;
    for (uint32_t i = 0; i < x->count; i++) {
        const uint32_t word = bit_input(x, i);
        if (word != 0) {
            for (unsigned code = 0; code < 16; code++) {
                table[code] = bit_mul(word, (uint32_t)(int32_t)(int8_t)BIT_FLASH8(&levels[code]));
            }
            bit_add_4bit(weight, outputs, sum, table);
        } else {
            bit_skip_4bit(weight, outputs);
        }
    }
}
