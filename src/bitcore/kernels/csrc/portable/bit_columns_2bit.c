/* Columns of weights of 2 bits: two inputs at a time, 16 codes of 4 bits. */
#include "bit_table.h"

void bit_columns_2bit(const BitInputs *x, BitCodes *weight, uint32_t outputs, int low, int step, uint32_t *sum,
                      uint32_t *table) {
    for (uint32_t i = 0; i < x->count; i += 2) {
        const uint32_t x0 = bit_input(x, i);
        const uint32_t x1 = i + 1 < x->count ? bit_input(x, i + 1) : 0;
        if ((x0 | x1) != 0) {
            const uint32_t next = step == 2 ? x1 << 1 : x1;
            bit_fill(table, 1, x0, low, step, 4);
            const uint32_t least = bit_mul(x1, (uint32_t)(int32_t)low);
            for (unsigned code = 0; code < 4; code++) {
                table[code] += least;
            }
            bit_extend(table, 4, next);
            bit_extend(table + 4, 4, next);
            bit_extend(table + 8, 4, next);
            bit_add_4bit(weight, outputs, sum, table);
        } else {
            bit_skip_4bit(weight, outputs);
        }
    }
}
