/* Columns of ternary weights: three inputs at a time, 27 codes of 5 bits. */
#include "bit_table.h"

void bit_columns_ternary(const BitInputs *x, BitCodes *weight, uint32_t outputs, int low, int step, uint32_t *sum,
                         uint32_t *table) {
    (void)low;
    (void)step;
    for (uint32_t i = 0; i < x->count; i += 3) {
        const uint32_t x0 = bit_input(x, i);
        const uint32_t x1 = i + 1 < x->count ? bit_input(x, i + 1) : 0;
        const uint32_t x2 = i + 2 < x->count ? bit_input(x, i + 2) : 0;
        if ((x0 | x1 | x2) != 0) {
            bit_fill_ternary(table, 1, x0, x1, x2);
            bit_add_5bit(weight, outputs, sum, table);
        } else {
            bit_skip_5bit(weight, outputs);
        }
    }
}
